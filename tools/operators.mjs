/**
 * The FFN's sparse operators alone, against dense: S2 (up rows of the active neurons) and S3 (their down
 * columns), q4, at the densities published for ProSparse models, beside the published GPU speed-ups.
 *
 *     npm run build && node tools/operators.mjs [--threads 2] [--kernels auto] [--rounds 15] [--json]
 *                      node tools/operators.mjs --gpu [--rounds 30] [--shape 7B] [--json]      (operators-gpu.mjs)
 *
 * Dense reads rows that lie one after the other, its best case; sparse reads half of each active neuron's record,
 * as the engine does. Every round runs all of them in turn on all threads; the layers are rotated, so that the
 * weights come from memory and not from a cache. Times are medians; a time ends when the last thread is done.
 */
import { once } from 'node:events';
import { cpus } from 'node:os';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

import { readFlags } from './flags.mjs';
import { SHAPES } from './prosparse-card.mjs';

const { createArena } = await import(new URL('../dist/engine/arena.js', import.meta.url));
const { activationBytes, alignUp, rowBytes } = await import(
  new URL('../dist/kernels/layout.js', import.meta.url)
);
const { adviseHugePages, instantiateKernels, selectKernels } = await import(
  new URL('../dist/kernels/select.js', import.meta.url)
);

/** Together more than the last-level cache of any server. */
const LAYERS = 8;

const USAGE = `node tools/operators.mjs [--threads <n>] [--kernels auto|native|wasm|reference] [--rounds <n>]
node tools/operators.mjs --gpu [--rounds <n>]
both: [--shape 7B|13B] [--json]`;

if (isMainThread) await main();
else await work();

async function main() {
  const text = { type: 'string' };
  const options = { threads: text, kernels: text, rounds: text, shape: text };
  const flags = { gpu: { type: 'boolean' }, json: { type: 'boolean' } };
  const { values } = readFlags(USAGE, { ...options, ...flags }, ['threads', 'rounds']);
  const shapes = SHAPES.filter(({ name }) => name.startsWith(values.shape ?? ''));
  if (shapes.length === 0) {
    console.error(`error: --shape ${values.shape}: expected 7B or 13B\n\n${USAGE}`);
    process.exit(2);
  }
  if (values.gpu) return gpuMain(shapes, values);
  await cpuMain(shapes, values);
}

async function gpuMain(shapes, { rounds, json }) {
  const { gpuTable, measureGpu } = await import('./operators-gpu.mjs');
  try {
    const report = await measureGpu(shapes, rounds ?? null, (step) => console.error(`${step} ...`));
    console.log(json ? JSON.stringify(report) : gpuTable(report));
  } catch (error) {
    if (error.code === undefined) throw error;
    console.error(`error: ${error.message}\n${error.hint ?? ''}`);
    process.exitCode = error.exitCode ?? 1;
  }
}

async function cpuMain(shapes, { threads = cpus().length, kernels = 'auto', rounds = 15, json }) {
  const values = { kernels, rounds, json };
  const choice = selectKernels(values.kernels);
  const rows = [];
  for (const shape of shapes) {
    const bytes = LAYERS * shape.nFf * 2 * rowBytes('q4', shape.d) + threads * 2 ** 22;
    const memory = createArena(bytes);
    adviseHugePages(choice, memory);
    const workers = Array.from({ length: threads }, (_, thread) => {
      return new Worker(new URL(import.meta.url), { workerData: { memory, choice, shape, thread, threads } });
    });
    await Promise.all(workers.map((w) => once(w, 'message')));
    const time = async (message) => {
      const replies = workers.map((w) => once(w, 'message'));
      for (const w of workers) w.postMessage(message);
      const spans = (await Promise.all(replies)).map(([r]) => r);
      return (
        Number(
          spans.reduce((m, s) => (s.end > m ? s.end : m), 0n) -
            spans.reduce((m, s) => (s.begin < m ? s.begin : m), spans[0].begin),
        ) / 1e3
      );
    };
    for (const { sparsity, setting, s2: s2Gpu, s3: s3Gpu } of shape.rows) {
      const samples = { up: [], s2: [], down: [], s3: [] };
      for (let round = 0; round < Number(values.rounds) + 2; round++) {
        const us = {};
        for (const op of Object.keys(samples))
          us[op] = await time({ op, sparsity, layer: round % LAYERS, half: (round >> 3) & 1 });
        if (round >= 2) for (const op of Object.keys(samples)) samples[op].push(us[op]);
      }
      const us = Object.fromEntries(Object.entries(samples).map(([op, list]) => [op, median(list)]));
      rows.push({
        shape: shape.name,
        setting,
        sparsity,
        denseUpUs: us.up,
        s2Us: us.s2,
        s2SpeedUp: us.up / us.s2,
        s2Published: s2Gpu,
        denseDownUs: us.down,
        s3Us: us.s3,
        s3SpeedUp: us.down / us.s3,
        s3Published: s3Gpu,
      });
    }
    await Promise.all(workers.map((w) => w.terminate()));
  }
  if (values.json) {
    console.log(
      JSON.stringify({
        machine: { cpu: cpus()[0].model, cores: cpus().length },
        kernels: choice.name,
        threads,
        rows,
      }),
    );
    return;
  }
  console.log(
    `${cpus()[0].model}, ${choice.name}, ${threads} threads, q4, medians of ${values.rounds} alternating rounds`,
  );
  console.log(
    '| shape | setting | sparsity | dense up µs | S2 µs | speed-up | published (GPU) | dense down µs | S3 µs | speed-up | published (GPU) |',
  );
  console.log('|---|---|---|---|---|---|---|---|---|---|---|');
  for (const r of rows) {
    const cells = [
      r.shape,
      r.setting,
      r.sparsity,
      r.denseUpUs.toFixed(0),
      r.s2Us.toFixed(0),
      r.s2SpeedUp.toFixed(2),
      r.s2Published.toFixed(2),
      r.denseDownUs.toFixed(0),
      r.s3Us.toFixed(0),
      r.s3SpeedUp.toFixed(2),
      r.s3Published.toFixed(2),
    ];
    console.log(`| ${cells.join(' | ')} |`);
  }
}

function median(list) {
  const sorted = [...list].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

/** One thread: its share of the neurons of every layer. */
async function work() {
  const { memory, choice, shape, thread, threads } = workerData;
  const { d, nFf } = shape;
  const kernels = instantiateKernels(choice, memory);
  const [f32, u32, u8] = [Float32Array, Uint32Array, Uint8Array].map((T) => new T(memory.buffer));
  const row = rowBytes('q4', d);
  const record = 2 * row;
  const first = Math.floor((nFf * thread) / threads);
  const count = Math.floor((nFf * (thread + 1)) / threads) - first;
  // Weights first, then 4 MiB of scratch a thread.
  const weights = 64;
  let at = alignUp(weights + LAYERS * nFf * record, 4096) + thread * (2 ** 22 - 8192);
  const take = (bytes) => {
    at = alignUp(at, 64) + bytes;
    return at - bytes;
  };
  const source = take(16 * d * 4);
  const x = take(activationBytes('q4', d));
  const out = take(Math.max(count, d) * 4);
  const list = take(count * 4);
  const offsets = take(8);
  const coef = take(count * 4);

  let state = thread + 1;
  const random = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
  for (let i = 0; i < 16 * d; i++) f32[source / 4 + i] = 2 * random() - 1;
  kernels.quantize(source, x, d);
  const mine = (layer) => weights + (layer * nFf + first) * record;
  for (let layer = 0; layer < LAYERS; layer++) {
    kernels.quantizeRows('q4', source, d * 4, 16, mine(layer), row, d);
    for (let filled = 16 * row; filled < count * record; filled *= 2) {
      const to = mine(layer) + filled;
      u8.copyWithin(to, mine(layer), mine(layer) + Math.min(filled, count * record - filled));
    }
  }
  for (let i = 0; i < count; i++) f32[coef / 4 + i] = random() - 0.5;

  /** Active neurons in ascending order; all of them for dense. */
  const choose = (share) => {
    let n = 0;
    for (let i = 0; i < count; i++) if (random() < share) u32[list / 4 + n++] = i;
    return n;
  };
  parentPort.on('message', ({ op, sparsity, layer, half }) => {
    const dense = op === 'up' || op === 'down';
    const n = choose(dense ? 2 : 1 - sparsity);
    const w = mine(layer);
    // Dense gets its best layout: rows one after the other, nothing between them.
    const plain = w + half * count * row;
    const begin = process.hrtime.bigint();
    u32.set([0, n], offsets / 4);
    if (op === 'up') kernels.dot('q4', plain, row, count, x, 0, 1, out, count, d);
    else if (op === 's2') kernels.dotLists('q4', w, record, offsets, list, 1, x, 0, out, d);
    else if (op === 'down') kernels.sumLists('q4', plain, row, offsets, list, 1, coef, out, d, d);
    else kernels.sumLists('q4', w + row, record, offsets, list, 1, coef, out, d, d);
    parentPort.postMessage({ begin, end: process.hrtime.bigint() });
  });
  parentPort.postMessage('ready');
}
