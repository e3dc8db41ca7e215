/**
 * Random damage to requests: every answer is one of this API's, soon, and the server lives. FUZZ_REQUESTS sets
 * how many (tools/fuzz-serve.mjs runs rounds of 25,000), FUZZ_SEED which.
 */
import { Agent, request } from 'undici';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { random } from '../helpers/tiny-models.js';
import { MODEL, startServer, type Started } from './start.js';

const REQUESTS = Number(process.env.FUZZ_REQUESTS ?? 800);
const SEED = Number(process.env.FUZZ_SEED ?? 1);
/** At once; the queue holds the rest back or refuses it. */
const CLIENTS = 8;
/** Documented in docs/serve.md; everything else would be a defect. */
const STATUSES = [200, 400, 401, 404, 405, 413, 415, 503];

let s: Started;
beforeAll(async () => {
  s = await startServer();
});
afterAll(() => s.close());

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const SCHEMA: Json = {
  type: 'object',
  properties: { a: { type: 'integer' } },
  required: ['a'],
  additionalProperties: false,
};
const TOOLS: Json = [{ type: 'function', function: { name: 'f', parameters: SCHEMA } }];
const USER: Json = { role: 'user', content: 'Hi <|end|>' };
const VALID: [string, Json][] = [
  [
    '/v1/completions',
    {
      model: MODEL,
      prompt: 'The king',
      max_tokens: 2,
      temperature: 0.5,
      top_p: 0.9,
      seed: 1,
      n: 2,
      stop: ['x'],
      echo: true,
    },
  ],
  [
    '/v1/completions',
    { model: MODEL, prompt: [1, 2, 3], max_tokens: 1, stream: true, stream_options: { include_usage: true } },
  ],
  [
    '/v1/chat/completions',
    { model: MODEL, messages: [USER], max_tokens: 2, user: 'me', metadata: { a: 'b' } },
  ],
  [
    '/v1/chat/completions',
    {
      model: MODEL,
      messages: [{ role: 'system', content: [{ type: 'text', text: 'x' }] }, USER],
      max_completion_tokens: 1,
      tools: TOOLS,
      tool_choice: 'auto',
      stream: true,
    },
  ],
  [
    '/v1/chat/completions',
    {
      model: MODEL,
      messages: [USER],
      max_tokens: 1,
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: SCHEMA, strict: true } },
    },
  ],
  [
    '/v1/responses',
    {
      model: MODEL,
      input: [
        { role: 'user', content: 'x' },
        { type: 'function_call_output', call_id: 'c', output: 'y' },
      ],
      max_output_tokens: 1,
    },
  ],
  ['/v1/embeddings', { model: MODEL, input: ['a', 'b'] }],
];

class Damage {
  constructor(private readonly next: () => number) {}

  pick<T>(list: readonly T[]): T {
    return list[Math.floor(this.next() * list.length)];
  }

  junk(depth = 0): Json {
    const big = () => this.pick([-1, 0, 1e308, -1e308, 2 ** 53, 1e-320, 4294967296, 0.1]);
    return this.pick<() => Json>([
      () => null,
      () => this.next() < 0.5,
      big,
      () => Math.floor(this.next() * 300) - 100,
      () =>
        this.pick([
          '',
          'x',
          'auto',
          'NaN',
          '\ud800',
          '\0',
          '<|begin|>',
          '{{ x }}',
          '__proto__',
          'é'.repeat(300),
          '('.repeat(100),
          'function',
          'text',
          '#',
        ]),
      () =>
        depth > 3 ? [] : Array.from({ length: Math.floor(this.next() * 5) }, () => this.junk(depth + 1)),
      () =>
        depth > 3
          ? {}
          : Object.fromEntries(
              Array.from({ length: Math.floor(this.next() * 4) }, () => [
                this.pick(KEYS),
                this.junk(depth + 1),
              ]),
            ),
    ])();
  }

  /** One value somewhere inside is replaced, removed or joined by another. */
  value(json: Json): Json {
    if (typeof json !== 'object' || json === null || this.next() < 0.15) return this.junk();
    const copy = structuredClone(json) as Record<string, Json> | Json[];
    const keys = Object.keys(copy);
    const key = keys.length > 0 ? this.pick(keys) : 'x';
    const fields = copy as Record<string, Json>;
    const kind = this.next();
    if (kind < 0.15 && !Array.isArray(copy)) delete fields[key];
    else if (kind < 0.35 && !Array.isArray(copy)) fields[this.pick(KEYS)] = this.junk();
    else fields[key] = this.value(fields[key] ?? null);
    return copy;
  }

  /** Bytes of the text are changed, cut or repeated. */
  text(text: string): Buffer {
    const bytes = Buffer.from(text);
    const at = Math.floor(this.next() * bytes.length);
    const kind = this.next();
    if (kind < 0.3) return bytes.subarray(0, at);
    if (kind < 0.6) bytes[at] = Math.floor(this.next() * 256);
    else if (kind < 0.8) return Buffer.concat([bytes.subarray(0, at), bytes]);
    return bytes;
  }
}

const KEYS = [
  'model',
  'prompt',
  'messages',
  'n',
  'stop',
  'seed',
  'logprobs',
  'top_logprobs',
  'logit_bias',
  'role',
  'content',
  'type',
  'tools',
  'tool_choice',
  'response_format',
  'stream',
  'max_tokens',
  'temperature',
  '__proto__',
  'constructor',
  'pattern',
  'enum',
  '$ref',
  'anyOf',
  'items',
  'properties',
  'required',
  'minLength',
  'maximum',
  'x',
];
const TYPES = [
  'application/json',
  'application/json; charset=utf-8',
  'application/json; charset=utf-8',
  'text/plain',
  '',
  'application/json-seq',
];
const PATHS = ['x', '%zz', '%00', '..%2f..', '%F0%9F%98%80', '?a=b', '#', 'x'.repeat(5000)];
const METHODS = ['POST', 'POST', 'POST', 'POST', 'POST', 'POST', 'GET', 'DELETE', 'PUT', 'OPTIONS'] as const;

it(
  `${REQUESTS} damaged requests get answers of this API, and the server lives`,
  { timeout: 3_600_000 },
  async () => {
    const dispatcher = new Agent({ connections: CLIENTS, pipelining: 1 });
    const counts = new Map<number, number>();
    let slowest = 0;
    let sent = 0;
    const client = async (index: number): Promise<void> => {
      const next = random(SEED * 1000 + index);
      const damage = new Damage(next);
      while (sent < REQUESTS) {
        sent++;
        const [path, valid] = damage.pick(VALID);
        let json = valid;
        for (let i = Math.floor(next() * 4); i > 0; i--) json = damage.value(json);
        let body: string | Buffer = JSON.stringify(json);
        if (next() < 0.15) body = damage.text(body);
        const method = damage.pick(METHODS);
        const began = performance.now();
        const answer = await request(s.url + (next() < 0.03 ? `${path}/${damage.pick(PATHS)}` : path), {
          dispatcher,
          method,
          headers: { 'content-type': next() < 0.9 ? TYPES[0] : damage.pick(TYPES) },
          body: method === 'GET' ? undefined : body,
        });
        const text = await answer.body.text();
        slowest = Math.max(slowest, performance.now() - began);
        counts.set(answer.statusCode, (counts.get(answer.statusCode) ?? 0) + 1);
        const shown = `${method} ${path} ${body.toString().slice(0, 400)} -> ${answer.statusCode} ${text.slice(0, 300)}`;
        if (!STATUSES.includes(answer.statusCode)) throw new Error(shown);
        if (answer.statusCode !== 200) expect(JSON.parse(text), shown).toHaveProperty('error.message');
        else if (!text.startsWith('data:') && !text.startsWith('event:'))
          expect(JSON.parse(text), shown).toBeTypeOf('object');
      }
    };
    const before = process.memoryUsage().rss;
    await Promise.all(Array.from({ length: CLIENTS }, (_, index) => client(index)));
    await dispatcher.close();
    const [served] = s.service.models.values();
    expect([
      served.admission.running,
      served.admission.queued,
      Object.prototype.hasOwnProperty.call(Object.prototype, 'x'),
    ]).toEqual([0, 0, false]);
    expect(counts.get(200)).toBeGreaterThan(0);
    expect(counts.get(400)).toBeGreaterThan(REQUESTS / 10);
    if (process.env.FUZZ_REQUESTS) {
      const grown = Math.round((process.memoryUsage().rss - before) / 2 ** 20);
      console.log(
        JSON.stringify({
          requests: sent,
          statuses: Object.fromEntries(counts),
          slowestMs: Math.round(slowest),
          rssGrowthMiB: grown,
        }),
      );
    }
  },
);
