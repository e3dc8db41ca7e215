/** The state of a server: its models, whether it takes requests, its limits, metrics and log. */
import type { HttpBindings } from '@hono/node-server';
import type { Context } from 'hono';
import type { Logger } from 'pino';
import { ApiError, unavailable } from './api-error.js';
import type { ServeLimits } from './limits.js';
import { Metrics } from './metrics.js';
import type { ServedModel } from './served-model.js';

export type ServeContext = Context<{ Bindings: HttpBindings; Variables: { about: Record<string, unknown> } }>;

const RETRY_LOADING_SECONDS = 5;

export class Service {
  readonly metrics = new Metrics();
  readonly models = new Map<string, ServedModel>();
  state: 'loading' | 'ready' | 'draining' = 'loading';
  /** Requests that are being answered. */
  active = 0;

  constructor(
    readonly limits: ServeLimits,
    readonly log: Logger,
  ) {}

  add(model: ServedModel): void {
    this.models.set(model.name, model);
    this.metrics.slots.set({ model: model.name }, model.backend.slots);
  }

  /** @throws ApiError 503 while models are loading or the server is going down */
  requireReady(): void {
    if (this.state === 'loading')
      throw unavailable('the model is being loaded', RETRY_LOADING_SECONDS, 'model_loading');
    if (this.state === 'draining')
      throw unavailable('the server is shutting down', RETRY_LOADING_SECONDS, 'shutting_down');
  }

  /** @throws ApiError 404; 400 when there are several models and none is named */
  model(name: string | undefined): ServedModel {
    const [only, ...more] = this.models.values();
    if (name === undefined && only && more.length === 0) return only;
    const found = name === undefined ? undefined : this.models.get(name);
    if (found) return found;
    const names = [...this.models.keys()].join(', ');
    if (name === undefined)
      throw new ApiError(400, `model is missing; this server has ${names}`, { param: 'model' });
    throw new ApiError(
      404,
      `the model ${JSON.stringify(name.slice(0, 100))} does not exist; this server has ${names}`,
      {
        param: 'model',
        code: 'model_not_found',
      },
    );
  }

  /** Fires when the connection of a request ends before its answer does. */
  clientSignal(c: ServeContext): AbortSignal {
    const gone = new AbortController();
    const { outgoing } = c.env;
    outgoing.once('close', () => {
      if (!outgoing.writableFinished) gone.abort();
    });
    if (outgoing.destroyed) gone.abort();
    return gone.signal;
  }

  async close(): Promise<void> {
    for (const model of this.models.values()) await model.close();
  }
}
