/**
 * Many clients at once against `serve`: errors, fairness, time to the first token, memory, and whether a text
 * depends on what runs beside it.
 *
 *     node tools/load-serve.mjs [--clients 64] [--seconds 300] [--tokens 48] [--url http://...] [-- serve options]
 *
 * Without --url it starts `serve` itself (and then also reads its memory). One JSON document on stdout.
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { clearInterval, setInterval } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { Agent, request } from 'undici';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    clients: { type: 'string', default: '64' },
    seconds: { type: 'string', default: '300' },
    tokens: { type: 'string', default: '48' },
    url: { type: 'string' },
  },
});
const [clients, seconds, tokens] = [values.clients, values.seconds, values.tokens].map(Number);

const server = values.url ? { url: values.url, pid: null } : await startServer();
const dispatcher = new Agent({ connections: clients + 1, pipelining: 1 });
const PROMPTS = ['Once upon a time', 'The king', 'There was a wolf', 'KING HENRY:', 'In the forest'];

/** One streamed completion. */
async function complete(prompt, seed, maxTokens) {
  const began = performance.now();
  const answer = await request(`${server.url}/v1/completions`, {
    dispatcher,
    method: 'POST',
    headersTimeout: 0,
    bodyTimeout: 0,
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      prompt,
      seed,
      max_tokens: maxTokens,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  if (answer.statusCode !== 200) {
    await answer.body.dump();
    return { status: answer.statusCode, retryAfter: Number(answer.headers['retry-after']) };
  }
  let text = '';
  let first = null;
  let generated = 0;
  let held = '';
  for await (const chunk of answer.body) {
    held += chunk;
    const events = held.split('\n\n');
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith('data: {')) continue;
      const data = JSON.parse(event.slice(6));
      if (data.error) return { status: data.error.message };
      const piece = data.choices[0]?.text ?? '';
      if (piece && first === null) first = performance.now() - began;
      text += piece;
      generated = data.usage?.completion_tokens ?? generated;
    }
  }
  return { status: 200, text, first, generated, total: performance.now() - began };
}

const alone = await complete('Once upon a time', 12345, tokens);
const until = performance.now() + seconds * 1000;
const perClient = new Array(clients).fill(0);
const firsts = [];
const statuses = new Map();
const memory = [];
const count = (status) => statuses.set(status, (statuses.get(status) ?? 0) + 1);

async function client(index) {
  for (let round = 0; performance.now() < until; round++) {
    let result;
    try {
      result = await complete(PROMPTS[(index + round) % PROMPTS.length], index * 1000 + round, tokens);
    } catch (error) {
      result = { status: error.code ?? error.message };
    }
    count(result.status);
    if (result.status === 200) {
      perClient[index] += result.generated;
      firsts.push(result.first);
    } else if (result.retryAfter) await sleep(result.retryAfter * 1000);
    else await sleep(200);
  }
}

const watch = setInterval(() => server.pid && memory.push(residentMiB(server.pid)), 1000);
const load = Promise.all(Array.from({ length: clients }, (_, index) => client(index)));
await sleep((seconds * 1000) / 2);
const amid = await complete('Once upon a time', 12345, tokens);
await load;
clearInterval(watch);

firsts.sort((a, b) => a - b);
const at = (share) => Math.round(firsts[Math.min(firsts.length - 1, Math.floor(share * firsts.length))]);
const total = perClient.reduce((a, b) => a + b, 0);
const quarter = Math.max(1, Math.floor(memory.length / 4));
const mean = (list) => Math.round(list.reduce((a, b) => a + b, 0) / list.length);
console.log(
  JSON.stringify(
    {
      clients,
      seconds,
      maxTokens: tokens,
      answers: Object.fromEntries(statuses),
      tokensPerSecond: Math.round(total / seconds),
      firstTokenMs: { p50: at(0.5), p90: at(0.9), p99: at(0.99) },
      fairness: {
        slowest: Math.min(...perClient),
        fastest: Math.max(...perClient),
        ratio: Math.min(...perClient) / Math.max(...perClient),
      },
      sameTextUnderLoad: alone.text === amid.text && alone.text.length > 0,
      serverMiB: memory.length
        ? { firstQuarter: mean(memory.slice(0, quarter)), lastQuarter: mean(memory.slice(-quarter)) }
        : null,
    },
    null,
    2,
  ),
);
await dispatcher.close();
server.stop?.();

async function startServer() {
  const child = spawn(
    process.execPath,
    [
      'dist/cli/main.js',
      'serve',
      '--port',
      '0',
      '--json',
      '--log-level',
      'error',
      '--max-queue',
      '1000',
      '--queue-timeout',
      '600',
      ...positionals,
    ],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  let text = '';
  for await (const chunk of child.stdout) {
    text += chunk;
    if (text.includes('\n')) break;
  }
  return { url: JSON.parse(text).url, pid: child.pid, stop: () => child.kill() };
}

function residentMiB(pid) {
  const match = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(match[1]) / 1024;
}
