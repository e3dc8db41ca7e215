/**
 * Many clients at once against `serve`: errors, fairness, time to the first token, memory, and whether a text
 * depends on what runs beside it.
 *
 *     node tools/load-serve.mjs [--clients 64] [--seconds 300] [--tokens 48] [--compare 100] [-- serve options]
 *     node tools/load-serve.mjs --url http://127.0.0.1:9000   # another server with OpenAI's completions
 *
 * Without --url it starts `serve` itself (and then also reads its memory). Afterwards `--compare` of the requests
 * are made once more, each alone, and have to give the same texts. One JSON document on stdout.
 */
import { readFileSync } from 'node:fs';
import { performance } from 'node:perf_hooks';
import { clearInterval, setInterval } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { readFlags } from './flags.mjs';
import { startServer } from './served.mjs';

const { values, positionals } = readFlags(
  'usage: node tools/load-serve.mjs [--clients 64] [--seconds 300] [--tokens 48] [--compare 100] [--url URL [--pid PID]] [-- serve options]',
  {
    clients: { type: 'string', default: '64' },
    seconds: { type: 'string', default: '300' },
    tokens: { type: 'string', default: '48' },
    compare: { type: 'string', default: '100' },
    url: { type: 'string' },
    pid: { type: 'string' },
  },
  ['clients', 'seconds', 'tokens', 'compare'],
  true,
);
const { clients, seconds, tokens, compare } = values;

const server = values.url
  ? { url: values.url, pid: values.pid, stop: () => {} }
  : await startServer(['--max-queue', '1000', '--queue-timeout', '600', ...positionals]);
const dispatcher = new Agent({ connections: clients + 1, pipelining: 1 });
const PROMPTS = ['Once upon a time', 'The king', 'There was a wolf', 'KING HENRY:', 'In the forest'];

/** One streamed completion. */
async function complete({ prompt, seed }) {
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
      max_tokens: tokens,
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
  return { status: 200, text, first, generated };
}

const perClient = new Array(clients).fill(0);
const firsts = [];
const texts = [];
const statuses = new Map();
const memory = [];
let until;

async function client(index) {
  for (let round = 0; performance.now() < until; round++) {
    const asked = { prompt: PROMPTS[(index + round) % PROMPTS.length], seed: index * 1000 + round };
    let result;
    try {
      result = await complete(asked);
    } catch (error) {
      result = { status: error.code ?? error.message };
    }
    statuses.set(result.status, (statuses.get(result.status) ?? 0) + 1);
    if (result.status === 200) {
      perClient[index] += result.generated;
      firsts.push(result.first);
      texts.push({ ...asked, text: result.text });
    } else await sleep(result.retryAfter ? result.retryAfter * 1000 : 200);
  }
}

await complete({ prompt: PROMPTS[0], seed: 0 }); // the first request starts threads
const watch = setInterval(() => server.pid && memory.push(residentMiB(server.pid)), 1000);
const began = performance.now();
until = began + seconds * 1000;
await Promise.all(Array.from({ length: clients }, (_, index) => client(index)));
const took = (performance.now() - began) / 1000;
clearInterval(watch);

/** Spread over the whole run. */
const chosen = Array.from({ length: Math.min(compare, texts.length) }, (_, i) => {
  return texts[Math.floor((i * texts.length) / Math.min(compare, texts.length))];
});
let same = 0;
for (const { text, ...asked } of chosen) if ((await complete(asked)).text === text && text !== '') same++;

firsts.sort((a, b) => a - b);
const at = (share) => Math.round(firsts[Math.min(firsts.length - 1, Math.floor(share * firsts.length))]);
const total = perClient.reduce((a, b) => a + b, 0);
const quarter = Math.max(1, Math.floor(memory.length / 4));
const mean = (list) => Math.round(list.reduce((a, b) => a + b, 0) / list.length);
console.log(
  JSON.stringify(
    {
      clients,
      seconds: Math.round(took),
      maxTokens: tokens,
      answers: Object.fromEntries(statuses),
      tokensPerSecond: Math.round(total / took),
      firstTokenMs: { p50: at(0.5), p90: at(0.9), p99: at(0.99) },
      fairness: {
        slowest: Math.min(...perClient),
        fastest: Math.max(...perClient),
        ratio: Number((Math.min(...perClient) / Math.max(...perClient)).toFixed(3)),
      },
      aloneAgain: { compared: chosen.length, same },
      serverMiB: memory.length
        ? { firstQuarter: mean(memory.slice(0, quarter)), lastQuarter: mean(memory.slice(-quarter)) }
        : null,
    },
    null,
    2,
  ),
);
await dispatcher.close();
await server.stop();

function residentMiB(pid) {
  const match = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return Number(match[1]) / 1024;
}
