/** The routes, and what stands before all of them: keys, hosts, readiness, errors in one form, one log line each. */
import { randomUUID } from 'node:crypto';
import { Hono, type MiddlewareHandler } from 'hono';
import { cors } from 'hono/cors';
import { ApiError, toApiError } from './api-error.js';
import { requireKey } from './auth.js';
import { PAGE } from './page/page.js';
import { chat } from './routes/chat.js';
import { completions } from './routes/completions.js';
import { embeddings } from './routes/embeddings.js';
import { health, metrics, ready } from './routes/health.js';
import { listModels, oneModel } from './routes/models.js';
import { responses } from './routes/responses.js';
import type { ServeContext, Service } from './service.js';

export interface AppOptions {
  /** None: everybody may. */
  keys: readonly string[];
  /** Origins whose pages may call; none by default. */
  corsOrigins: readonly string[];
  /** Names that a Host header may have beside addresses and localhost; null: any (not only this machine can reach us). */
  hosts: readonly string[] | null;
}

type Env = { Bindings: ServeContext['env']; Variables: { about: Record<string, unknown> } };

export function createApp(service: Service, options: AppOptions): Hono<Env> {
  const app = new Hono<Env>();
  app.use(logged(service));
  if (options.hosts) app.use(knownHost(options.hosts));
  if (options.corsOrigins.length > 0) app.use(cors({ origin: [...options.corsOrigins] }));

  app.get('/', (c) => c.body(PAGE.html, 200, PAGE.headers));
  app.get('/health', (c) => health(c, service));
  app.get('/ready', (c) => ready(c, service));

  app.use(requireKey(options.keys));
  app.get('/metrics', (c) => metrics(c, service));
  app.use('/v1/*', async (_, next) => {
    service.requireReady();
    await next();
  });
  app.get('/v1/models', (c) => listModels(c, service));
  app.get('/v1/models/*', (c) => oneModel(c, service));
  app.post('/v1/completions', (c) => completions(c, service));
  app.post('/v1/chat/completions', (c) => chat(c, service));
  app.post('/v1/responses', (c) => responses(c, service));
  app.post('/v1/embeddings', (c) => embeddings(c, service));

  const known = new Set(app.routes.filter((route) => route.method !== 'ALL').map((route) => route.path));
  app.notFound((c) => {
    const exists = known.has(c.req.path);
    return c.json(
      new ApiError(
        exists ? 405 : 404,
        exists ? `${c.req.method} is not what this path is for` : 'there is nothing under this path',
      ).body,
      exists ? 405 : 404,
    );
  });
  app.onError((thrown, c) => {
    const error = toApiError(thrown);
    if (error.status >= 500 && !(thrown instanceof ApiError))
      service.log.error({ err: thrown }, 'a request failed');
    return c.json(error.body, error.status, error.headers);
  });
  return app;
}

/** One line a request; bodies and keys are never in it. */
function logged(service: Service): MiddlewareHandler<Env> {
  return async (c, next) => {
    const began = performance.now();
    const id = randomUUID();
    c.set('about', {});
    c.header('x-request-id', id);
    const { outgoing } = c.env;
    service.active++;
    outgoing.once('close', () => {
      service.active--;
      const status = outgoing.writableFinished ? outgoing.statusCode : 499;
      const ms = Math.round(performance.now() - began);
      const path = c.req.path.slice(0, 200);
      service.metrics.requests.inc({ route: routeOf(c.req.path), status: String(status) });
      service.log.info({ id, method: c.req.method, path, status, ms, ...c.get('about') }, 'request');
    });
    await next();
  };
}

/** Of a bounded number: a metric must not grow with what clients make up. */
const ROUTES = new Set([
  '/',
  '/health',
  '/ready',
  '/metrics',
  '/v1/models',
  '/v1/completions',
  '/v1/chat/completions',
  '/v1/responses',
  '/v1/embeddings',
]);
const routeOf = (path: string): string =>
  ROUTES.has(path) ? path : path.startsWith('/v1/models/') ? '/v1/models/{model}' : 'other';

/**
 * A web page can make a browser believe that its own name is this machine (DNS rebinding); then the request
 * still carries that name.
 */
function knownHost(names: readonly string[]): MiddlewareHandler<Env> {
  return async (c, next) => {
    const host = (c.req.header('host') ?? '').replace(/:\d+$/, '').toLowerCase();
    const isAddress = /^(\d{1,3}\.){3}\d{1,3}$|^\[[0-9a-f:.]+\]$/.test(host);
    if (!isAddress && host !== 'localhost' && !names.includes(host))
      throw new ApiError(403, 'this server does not answer under that name; --allow-host adds one');
    await next();
  };
}
