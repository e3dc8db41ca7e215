#!/usr/bin/env node
/* global AbortController */
/**
 * What serving several sequences is worth, and whether it holds: one experiment a run, a table on stdout.
 *
 *   node tools/serving.mjs parallel --pack FILE [--sequences 1,2,4,8] [--prompt 16] [--generate 32] [--rounds 3]
 *   node tools/serving.mjs conversation --pack FILE [--turns 5] [--tokens 1500]
 *   node tools/serving.mjs speculation [--pack FILE] [--rounds 5]
 *   node tools/serving.mjs soak [--pack FILE] [--minutes 20]
 *
 * Without --pack: the demo model. Other options: --ffn MODE, --threads N, --json.
 */
import { cpus } from 'node:os';
import { performance } from 'node:perf_hooks';
import { setTimeout as later } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { HybridModel } from '../dist/index.js';
import { readFlags } from './flags.mjs';

const EXPERIMENTS = { parallel, conversation, speculation, soak };
const USAGE = `usage: node tools/serving.mjs ${Object.keys(EXPERIMENTS).join('|')} [--pack FILE] [options]

  parallel       [--sequences 1,2,4,8] [--prompt 16] [--generate 32] [--rounds 3]
  conversation   [--turns 5] [--tokens 1500]
  speculation    [--rounds 3]
  soak           [--minutes 20]
  any            [--ffn MODE] [--threads N] [--json]; without --pack the demo model`;
const { values: flags, positionals } = readFlags(
  USAGE,
  {
    pack: { type: 'string', default: new URL('../models/tales-4m-relu', import.meta.url).pathname },
    sequences: { type: 'string', default: '1,2,4,8' },
    prompt: { type: 'string', default: '16' },
    generate: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '3' },
    turns: { type: 'string', default: '5' },
    tokens: { type: 'string', default: '1500' },
    minutes: { type: 'string', default: '20' },
    ffn: { type: 'string', default: 'auto' },
    threads: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
  ['prompt', 'generate', 'rounds', 'turns', 'tokens', 'minutes', 'threads'],
  true,
);
const run = EXPERIMENTS[positionals[0]];
if (!run || !/^[1-9]\d*(,[1-9]\d*)*$/.test(flags.sequences)) {
  console.error(run ? `error: --sequences is "${flags.sequences}", expected numbers such as 1,2,4` : USAGE);
  process.exit(2);
}
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const load = (options) =>
  HybridModel.load(flags.pack, {
    ffn: flags.ffn,
    threads: flags.threads,
    ...options,
  });
const GREEDY = { temperature: 0, ignoreEos: true, cachePrompt: false };

/** @param rows array of objects with the same keys */
function table(rows) {
  if (flags.json)
    return console.log(JSON.stringify({ machine: cpus()[0].model, cores: cpus().length, rows }));
  console.log(`${cpus()[0].model}, ${cpus().length} cores`);
  console.table(rows);
}

/** Tokens per second of all sequences together, decoding side by side. */
async function parallel() {
  const counts = flags.sequences.split(',').map(Number);
  const most = Math.max(...counts);
  const { prompt, generate } = flags;
  const model = await load({ slots: most, contextLength: prompt + generate, kvMemory: undefined });
  const ids = (i) => Array.from({ length: prompt }, (_, k) => (k * 31 + i * 7 + 5) % model.config.vocabSize);
  const speeds = new Map(counts.map((n) => [n, []]));
  for (let round = 0; round <= flags.rounds; round++) {
    for (const n of counts) {
      // When each sequence got each of its tokens.
      const times = await Promise.all(
        Array.from({ length: n }, async (_, i) => {
          const at = [];
          const answer = model.generate(ids(i), { ...GREEDY, maxTokens: generate });
          for await (const { tokens } of answer.pieces()) at.push(...tokens.map(() => performance.now()));
          return at;
        }),
      );
      // From when the last one began to write until the first one was done: all write, nobody reads a prompt.
      const begin = Math.max(...times.map((at) => at[0]));
      const end = Math.min(...times.map((at) => at.at(-1)));
      const tokens = times.flat().filter((at) => at > begin && at <= end).length;
      const seconds = (end - begin) / 1000;
      if (round > 0) speeds.get(n).push(tokens / seconds);
    }
  }
  await model.close();
  const one = median(speeds.get(counts[0]));
  table(
    counts.map((n) => ({
      sequences: n,
      tokensPerSecond: +median(speeds.get(n)).toFixed(2),
      ofFirst: +(median(speeds.get(n)) / one).toFixed(2),
    })),
  );
}

/** Time to the first token of each turn of a conversation, with the cache of prefixes and without. */
async function conversation() {
  const { turns, tokens } = flags;
  const each = Math.floor(tokens / turns / 2);
  const model = await load({ contextLength: tokens + 64, slots: 1 });
  const rows = [];
  for (const cachePrompt of [true, false]) {
    let history = [];
    for (let turn = 1; turn <= turns; turn++) {
      const asked = Array.from({ length: each }, (_, k) => (k * 31 + turn * 97 + 5) % model.config.vocabSize);
      const prompt = [...history, ...asked];
      const begin = performance.now();
      let first = 0;
      const answer = model.generate(prompt, { ...GREEDY, cachePrompt, maxTokens: each });
      for await (const piece of answer.pieces()) if (piece.tokens.length) first ||= performance.now() - begin;
      const { stats, tokens: said } = await answer;
      history = [...prompt, ...said];
      rows.push({
        prefixCache: cachePrompt ? 'on' : 'off',
        turn,
        promptTokens: stats.promptTokens,
        cachedTokens: stats.cachedPromptTokens,
        firstTokenMs: +first.toFixed(1),
      });
    }
  }
  await model.close();
  table(rows);
}

/** n-gram speculation on text that repeats itself, and on text that does not. */
async function speculation() {
  const model = await load({ slots: 1 });
  const line = 'for (let i = 0; i < n; i++) sum += a[i] * b[i];\n';
  const texts = {
    'code that repeats': line.repeat(3),
    'a story': 'Once upon a time there was a king who had three daughters, and',
  };
  const rows = [];
  for (const [name, text] of Object.entries(texts)) {
    const speeds = { off: [], ngram: [] };
    let drafts = '';
    for (let round = 0; round <= flags.rounds; round++) {
      for (const speculate of [false, 'ngram']) {
        const options = { temperature: 0, ignoreEos: true, maxTokens: 160, speculate };
        const { stats } = await model.generate(text, options);
        if (round > 0) speeds[speculate || 'off'].push(stats.decodeTokensPerSecond);
        if (speculate) drafts = `${stats.acceptedTokens} of ${stats.draftTokens}`;
      }
    }
    const ratios = speeds.ngram.map((s, i) => s / speeds.off[i]);
    rows.push({
      text: name,
      off: +median(speeds.off).toFixed(1),
      ngram: +median(speeds.ngram).toFixed(1),
      ratio: +median(ratios).toFixed(2),
      draftsAccepted: drafts,
    });
  }
  await model.close();
  table(rows);
}

/** Requests that arrive, are cancelled, fail and finish at random: memory stays flat, pages come back, none is lost. */
async function soak() {
  const until = performance.now() + flags.minutes * 60_000;
  const model = await load({ slots: 4 });
  const { vocabSize } = model.config;
  const counts = { finished: 0, cancelled: 0, refused: 0, failed: 0, lost: 0 };
  let seed = 1;
  const random = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
  const one = async () => {
    const kind = random();
    const controller = new AbortController();
    const length = 1 + Math.floor(random() * 200);
    const stem = Math.floor(random() * 5);
    const prompt = Array.from({ length }, (_, k) => (k * (31 + 2 * stem) + 5) % vocabSize);
    const options = {
      maxTokens: Math.floor(random() * 120),
      temperature: random() < 0.5 ? 0 : 1,
      seed: Math.floor(random() * 1e6),
      speculate: random() < 0.3 ? 'ngram' : false,
      cachePrompt: random() < 0.8,
      signal: controller.signal,
    };
    try {
      if (kind < 0.05) {
        await model.generate(Array(100_000).fill(1), options); // longer than any context
      } else if (kind < 0.1) {
        await model.generate(prompt, { ...options, mask: () => new Uint32Array(Math.ceil(vocabSize / 32)) });
      } else {
        const run = model.generate(prompt, options);
        if (kind < 0.35) later(() => controller.abort(), random() * 60);
        const { stopReason } = await run;
        counts[stopReason === 'abort' ? 'cancelled' : 'finished']++;
      }
    } catch (error) {
      if (error.code === 'CONTEXT_FULL') counts.refused++;
      else if (error.code === 'USAGE') counts.failed++;
      else throw error;
    }
  };
  const rows = [];
  let started = 0;
  let ended = 0;
  const report = () => {
    const { rss, heapUsed } = process.memoryUsage();
    const { used, cached, total } = model.engine.pages;
    rows.push({
      minute: +((performance.now() - began) / 60_000).toFixed(1),
      requests: ended,
      rssMiB: Math.round(rss / 2 ** 20),
      heapMiB: Math.round(heapUsed / 2 ** 20),
      pagesUsed: used,
      pagesCached: cached,
      pagesTotal: total,
    });
  };
  const began = performance.now();
  let nextReport = began;
  const active = new Set();
  while (performance.now() < until) {
    while (active.size < 1 + Math.floor(random() * 10)) {
      started++;
      const request = one().finally(() => {
        ended++;
        active.delete(request);
      });
      active.add(request);
    }
    await Promise.race([...active, sleep(20)]);
    if (performance.now() >= nextReport) {
      report();
      nextReport += Math.max(1000, (flags.minutes * 60_000) / 20);
    }
  }
  await Promise.all(active);
  await sleep(200);
  report();
  counts.lost = started - ended;
  const last = model.engine.pages;
  await model.close();
  table(rows);
  console.log(JSON.stringify({ started, ...counts, pagesLeaked: last.used }));
  process.exitCode = counts.lost === 0 && last.used === 0 ? 0 : 1;
}

try {
  await run();
} catch (error) {
  console.error(`error: ${error.message}${error.hint ? `\nhint: ${error.hint}` : ''}`);
  process.exitCode = error.exitCode ?? 1;
}
