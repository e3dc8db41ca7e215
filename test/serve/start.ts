/** A server on this machine over the demo model, and OpenAI's own client for it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import OpenAI from 'openai';
import { pino } from 'pino';
import { HybridModel } from '../../src/index.js';
import { HybridBackend, type Backend } from '../../src/serve/backend.js';
import { DEFAULT_LIMITS, type ServeLimits } from '../../src/serve/limits.js';
import { ServedModel } from '../../src/serve/served-model.js';
import { ApiServer } from '../../src/serve/server.js';
import { Service } from '../../src/serve/service.js';
import { DEMO } from '../engine/open.js';

export const MODEL = 'tales-4m-relu';

export interface StartOptions {
  backend?: (model: HybridModel) => Backend;
  /** `plain` unless given; null: the model's own. */
  template?: string | null;
  limits?: Partial<ServeLimits>;
  keys?: string[];
  corsOrigins?: string[];
  /** Lines of the log. */
  log?: string[];
}

export interface Started {
  url: string;
  server: ApiServer;
  service: Service;
  model: HybridModel;
  client: OpenAI;
  /** Plain request, for what the client would not send. */
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
  close(): Promise<void>;
}

export async function startServer(options: StartOptions = {}): Promise<Started> {
  const cache = mkdtempSync(join(tmpdir(), 'hybrid-infer-serve-'));
  process.env.HYBRID_INFER_CACHE = cache;
  const { template = 'plain', keys = [], corsOrigins = [] } = options;
  const model = await HybridModel.load(DEMO, {
    threads: 2,
    ffn: 'exact',
    chatTemplate: template ?? undefined,
  });
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const lines = options.log;
  const log = lines
    ? pino({ base: null }, { write: (line: string) => void lines.push(line) })
    : pino({ level: 'silent' });
  const service = new Service(limits, log);
  service.add(new ServedModel((options.backend ?? ((m) => new HybridBackend(m)))(model), limits));
  service.state = 'ready';
  const server = await ApiServer.listen(service, {
    host: '127.0.0.1',
    port: 0,
    keys,
    corsOrigins,
    hosts: [],
  });
  const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: keys[0] ?? 'none', maxRetries: 0 });
  return {
    url: server.url,
    server,
    service,
    model,
    client,
    post: (path, body, headers = {}) =>
      fetch(server.url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
      }),
    async close() {
      await server.drain();
      rmSync(cache, { recursive: true, force: true });
    },
  };
}
