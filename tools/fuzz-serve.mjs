/**
 * Damaged requests, many at once, against `serve`: every answer has to be one of this API's, in OpenAI's form,
 * and the server has to live. One JSON document on stdout; exit code 1 when an answer was wrong.
 *
 *     node tools/fuzz-serve.mjs [--requests 100000] [--seed 1] [--clients 32]
 *
 * Most requests are refused before anything is generated; the others write a few tokens. The server runs as a
 * process of its own, so that its memory is its own.
 */
/* global fetch, structuredClone */
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { clearInterval, setInterval } from 'node:timers';
import { Agent, request } from 'undici';
import { readFlags } from './flags.mjs';
import { startServer } from './served.mjs';

const { requests, seed, clients } = readFlags(
  'usage: node tools/fuzz-serve.mjs [--requests 100000] [--seed 1] [--clients 32]',
  {
    requests: { type: 'string', default: '100000' },
    seed: { type: 'string', default: '1' },
    clients: { type: 'string', default: '32' },
  },
  ['requests', 'seed', 'clients'],
).values;

const MODEL = 'tales-4m-relu';
/** Documented in docs/serve.md; every other one is a defect. 429 is what a proxy before it might say. */
const REFUSALS = [400, 401, 403, 404, 405, 408, 413, 415, 431, 503];
const SOON_MS = 1000;
/** Of all requests; many of the damaged ones are good ones too. */
const UNDAMAGED = 0.03;
/** A timer that comes so late says that this process was stopped: no answer is late for that. */
const BEAT_MS = 100;
const STOPPED_MS = 400;
const SHOWN = 10;

// ---- requests ---------------------------------------------------------------------------------------------

const SCHEMA = {
  type: 'object',
  properties: { a: { type: 'integer' }, b: { type: 'string', pattern: '^[a-z]+$', maxLength: 8 } },
  required: ['a'],
  additionalProperties: false,
};
const TOOLS = [{ type: 'function', function: { name: 'f', parameters: SCHEMA } }];
const USER = { role: 'user', content: 'Hi <|end|>' };
const sampling = { temperature: 0.5, top_p: 0.9, top_k: 40, min_p: 0.01, seed: 1, presence_penalty: 0.1 };
const VALID = [
  ['/v1/completions', { prompt: 'The king', max_tokens: 2, n: 2, stop: ['x'], echo: true, ...sampling }],
  [
    '/v1/completions',
    { prompt: [1, 2, 3], max_tokens: 1, logprobs: 2, stream: true, stream_options: { include_usage: true } },
  ],
  [
    '/v1/completions',
    { prompt: ['a', 'b'], max_tokens: 1, logit_bias: { 5: -3 }, hybrid_infer: { layers: true } },
  ],
  [
    '/v1/chat/completions',
    { messages: [USER], max_tokens: 2, user: 'me', metadata: { a: 'b' }, ...sampling },
  ],
  [
    '/v1/chat/completions',
    {
      messages: [{ role: 'system', content: [{ type: 'text', text: 'x' }] }, USER],
      max_completion_tokens: 1,
      logprobs: true,
      top_logprobs: 2,
      tools: TOOLS,
      tool_choice: 'auto',
      stream: true,
    },
  ],
  [
    '/v1/chat/completions',
    {
      messages: [USER],
      max_tokens: 1,
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema: SCHEMA, strict: true } },
    },
  ],
  [
    '/v1/responses',
    {
      input: [
        { role: 'user', content: 'x' },
        { type: 'function_call', call_id: 'c', name: 'f', arguments: '{}' },
        { type: 'function_call_output', call_id: 'c', output: 'y' },
      ],
      max_output_tokens: 1,
      text: { format: { type: 'json_schema', name: 'x', schema: SCHEMA } },
    },
  ],
  ['/v1/responses', { input: 'x', instructions: 'y', max_output_tokens: 1, stream: true }],
  ['/v1/embeddings', { input: ['a', 'b'], encoding_format: 'base64' }],
].map(([path, body]) => [path, { model: MODEL, ...body }]);

const KEYS = [...new Set(VALID.flatMap(([, body]) => keysOf(body)))].concat([
  '__proto__',
  'constructor',
  'enum',
  '$ref',
  'anyOf',
  'items',
  'minLength',
  'maximum',
  'not',
]);
const TEXTS = [
  '',
  'x',
  'auto',
  'NaN',
  '\ud800',
  '\0',
  '<|begin|>',
  '{{ x }}',
  '{% for i in range(10**9) %}',
  '__proto__',
  'é'.repeat(300),
  '('.repeat(100),
  '(a*)*b{1000}',
  'function',
  'text',
  '#',
  '1e999',
];
const NUMBERS = [-1, 0, 1, 1e308, -1e308, 2 ** 53, 1e-320, 4294967296, 0.1, 16, 128];
const HEADERS = [
  { authorization: 'Bearer x' },
  { 'content-encoding': 'gzip' },
  { 'content-type': 'text/plain' },
  { 'content-type': 'application/json; charset=utf-8' },
  { 'content-type': '' },
  { accept: 'text/event-stream' },
  { 'x-long': 'x'.repeat(20_000) },
  { host: 'evil.example' },
  { origin: 'https://evil.example' },
];
const PATHS = ['x', '%zz', '%00', '..%2f..', '%F0%9F%98%80', '?a=b', '#', 'x'.repeat(5000)];
const METHODS = ['GET', 'DELETE', 'PUT', 'OPTIONS'];

function keysOf(value) {
  if (typeof value !== 'object' || value === null) return [];
  const own = Array.isArray(value) ? [] : Object.keys(value);
  return [...own, ...Object.values(value).flatMap(keysOf)];
}

class Damage {
  /** @param state of a random source of its own */
  constructor(state) {
    this.state = state >>> 0;
  }

  /** From 0 to 1 (Mulberry32). */
  next() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let z = this.state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  }

  pick(list) {
    return list[Math.floor(this.next() * list.length)];
  }

  junk(depth = 0) {
    const some = (make) => Array.from({ length: Math.floor(this.next() * 5) }, make);
    return this.pick([
      () => null,
      () => this.next() < 0.5,
      () => this.pick(NUMBERS),
      () => Math.floor(this.next() * 300) - 100,
      () => this.pick(TEXTS),
      () => (depth > 3 ? [] : some(() => this.junk(depth + 1))),
      () => (depth > 3 ? {} : Object.fromEntries(some(() => [this.pick(KEYS), this.junk(depth + 1)]))),
    ])();
  }

  /** One value somewhere inside is replaced, removed or joined by another. */
  value(json) {
    if (typeof json !== 'object' || json === null || this.next() < 0.1) return this.junk();
    const copy = structuredClone(json);
    const keys = Object.keys(copy);
    const key = keys.length > 0 ? this.pick(keys) : 'x';
    const kind = this.next();
    if (kind < 0.15 && !Array.isArray(copy)) delete copy[key];
    else if (kind < 0.35 && !Array.isArray(copy)) copy[this.pick(KEYS)] = this.junk();
    else copy[key] = this.value(copy[key] ?? null);
    return copy;
  }

  /** Bytes of the text are changed, cut or repeated. */
  text(text) {
    const bytes = Buffer.from(text);
    const at = Math.floor(this.next() * bytes.length);
    const kind = this.next();
    if (kind < 0.3) return bytes.subarray(0, at);
    if (kind < 0.6) bytes[at] = Math.floor(this.next() * 256);
    else if (kind < 0.8) return Buffer.concat([bytes.subarray(0, at), bytes]);
    return bytes;
  }

  request() {
    const [path, valid] = this.pick(VALID);
    let json = valid;
    const rounds = this.next() < UNDAMAGED ? 0 : 1 + Math.floor(this.next() * 3);
    for (let i = 0; i < rounds; i++) json = this.value(json);
    let body = JSON.stringify(json);
    if (this.next() < 0.15) body = this.text(body);
    const method = this.next() < 0.95 ? 'POST' : this.pick(METHODS);
    return {
      path: this.next() < 0.03 ? `${path}/${this.pick(PATHS)}` : path,
      method,
      headers: { 'content-type': 'application/json', ...(this.next() < 0.05 ? this.pick(HEADERS) : {}) },
      body: method === 'GET' ? undefined : body,
    };
  }
}

// ---- answers ----------------------------------------------------------------------------------------------

const isError = (value) =>
  typeof value?.error?.message === 'string' &&
  value.error.message !== '' &&
  ['type', 'param', 'code'].every((key) => key in value.error);

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** What is wrong with an answer; null: nothing. */
function fault({ status, headers, text }, method) {
  if (status === 200 && /^text\/event-stream/.test(headers['content-type'] ?? '')) return faultOfStream(text);
  const value = parsed(text);
  if (status === 200) return typeof value === 'object' ? null : 'the answer is not JSON';
  if (!REFUSALS.includes(status)) return `status ${status} is not one of this API's`;
  if (status === 503 && !(Number(headers['retry-after']) > 0)) return '503 without Retry-After';
  if (method === 'HEAD') return null;
  return isError(value) ? null : 'the refusal is not in OpenAI’s form';
}

function faultOfStream(text) {
  const events = text
    .split('\n\n')
    .flatMap((event) => event.split('\n').filter((line) => line.startsWith('data: ')))
    .map((line) => line.slice(6));
  const last = events.at(-1);
  const values = events.filter((data) => data !== '[DONE]').map(parsed);
  if (values.includes(undefined)) return 'an event is not JSON';
  const failed = values.find((value) => value.error);
  if (failed) return isError(failed) ? null : 'an error event is not in OpenAI’s form';
  const ended = last === '[DONE]' || /"response\.(completed|incomplete)"/.test(last ?? '');
  return ended ? null : 'the stream does not say that it ended';
}

const residentMiB = (pid) =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;

// ---- the run ----------------------------------------------------------------------------------------------

const server = await startServer(
  ['--chat-template', 'plain', '--context', '64', '--threads', '1', '--max-queue', '1000'],
  // So little that garbage has to go: what grows beyond it is kept by somebody, and ends the server.
  ['--max-old-space-size=96'],
);
const dispatcher = new Agent({ connections: clients, pipelining: 1, maxHeaderSize: 1 << 16 });
const statuses = {};
const wrong = [];
const slow = [];
const memory = [];
let sent = 0;
let wrongCount = 0;
let slowCount = 0;
let stoppedMs = 0;
const slowest = { refusal: 0, answer: 0 };

async function client(index) {
  const damage = new Damage(seed * 1_000_003 + index);
  while (sent < requests) {
    if (sent++ % Math.ceil(requests / 40) === 0) memory.push(Math.round(residentMiB(server.pid)));
    const asked = damage.request();
    const began = performance.now() - stoppedMs;
    let answer;
    let why;
    try {
      const { path, ...options } = asked;
      const { statusCode, headers, body } = await request(server.url + path, { dispatcher, ...options });
      answer = { status: statusCode, headers, text: await body.text() };
      why = fault(answer, asked.method);
    } catch (error) {
      answer = { status: error.code ?? String(error), text: '' };
      why = `the connection ended: ${error.message}`;
    }
    const ms = Math.round(performance.now() - stoppedMs - began);
    statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
    const kind = answer.status === 200 ? 'answer' : 'refusal';
    slowest[kind] = Math.max(slowest[kind], ms);
    const shown = () => ({
      ...asked,
      path: asked.path.slice(0, 100),
      body: asked.body?.toString().slice(0, 600),
      ms,
    });
    if (ms > SOON_MS && slowCount++ < SHOWN) slow.push({ ...shown(), status: answer.status });
    if (why && wrongCount++ < SHOWN) wrong.push({ why, ...shown(), answer: answer.text.slice(0, 300) });
  }
}

let last = performance.now();
const beat = setInterval(() => {
  const late = performance.now() - last - BEAT_MS;
  if (late > STOPPED_MS) stoppedMs += late;
  last = performance.now();
}, BEAT_MS);
const began = performance.now();
await Promise.all(Array.from({ length: clients }, (_, index) => client(index)));
const seconds = Math.round((performance.now() - began) / 1000);
clearInterval(beat);
await dispatcher.close();
const { models } = await (await fetch(`${server.url}/ready`)).json();
const [{ running, queued }] = models;
if (running + queued > 0)
  wrong.push({ why: `${running} sequences run and ${queued} wait after all was answered` });
const metrics = await (await fetch(`${server.url}/metrics`)).text();
const exitCode = await server.stop();
if (exitCode !== 0) wrong.push({ why: `the server ended with exit code ${exitCode}` });

const metric = (name) => Math.round(new RegExp(`^${name} (\\S+)`, 'm').exec(metrics)[1] / 2 ** 20);
const mean = (list) => Math.round(list.reduce((a, b) => a + b, 0) / list.length);
const quarter = Math.ceil(memory.length / 4);
console.log(
  JSON.stringify(
    {
      requests: sent,
      seconds,
      stoppedSeconds: Math.round(stoppedMs / 1000),
      statuses,
      wrongCount,
      wrong,
      overOneSecond: slowCount,
      slowestMs: slowest,
      slow,
      serverMiB: {
        begin: memory[0],
        firstQuarter: mean(memory.slice(1, 1 + quarter)),
        lastQuarter: mean(memory.slice(-quarter)),
        heap: metric('nodejs_heap_size_used_bytes'),
        external: metric('nodejs_external_memory_bytes'),
      },
    },
    null,
    2,
  ),
);
process.exitCode = wrong.length > 0 ? 1 : 0;
