/**
 * How fast `sparsify` trains, against the floor that its multiplications set on this machine:
 *
 *     node tools/training-speed.mjs <model> [--steps 8] [--threads 2] [--micro-batch 2]
 *
 * The floor is what the same onnxruntime products of the model's largest matrices take alone, one on each thread at
 * once: three products forward and backward for every weight and token, and three for the scores and the mixing of
 * the attention. All in one process, products and training in turn, medians.
 */
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { performance } from 'node:perf_hooks';
import { f32Tensor, OnnxSession } from '../dist/onnx/session.js';
import { GraphBuilder, int } from '../dist/onnx/graph-builder.js';
import { readFlags } from './flags.mjs';

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const WINDOW = 256;
const STEP_TOKENS = 4096;
const PRODUCTS = 20;

if (isMainThread) await main();
else await products(workerData);

/** A thread that multiplies when it is told to: [rows, inner] x [inner, columns]. */
async function products({ rows, inner, columns }) {
  const g = new GraphBuilder('product');
  const [a, b] = [g.input('a', 'float32', [rows, inner]), g.input('b', 'float32', [columns, inner])];
  g.op('Gemm', [a, b], { transB: int(1) }, 'y');
  g.output('y', 'float32', [rows, columns]);
  const session = await OnnxSession.create(g.build());
  const values = (n) => Float32Array.from({ length: n }, (_, i) => Math.sin(i));
  const feeds = {
    a: f32Tensor(values(rows * inner), [rows, inner]),
    b: f32Tensor(values(columns * inner), [columns, inner]),
  };
  await session.run(feeds);
  parentPort.on('message', async () => {
    const begin = performance.now();
    for (let i = 0; i < PRODUCTS; i++) await session.run(feeds);
    parentPort.postMessage((PRODUCTS * rows * inner * columns) / (performance.now() - begin) / 1e6);
  });
  parentPort.postMessage(null);
}

async function main() {
  const usage = 'usage: node tools/training-speed.mjs <model> [--steps N] [--threads N] [--micro-batch N]';
  const { values, positionals } = readFlags(
    usage,
    {
      steps: { type: 'string', default: '8' },
      threads: { type: 'string', default: `${availableParallelism()}` },
      'micro-batch': { type: 'string', default: '2' },
    },
    ['steps', 'threads', 'micro-batch'],
    true,
  );
  if (positionals.length !== 1) {
    console.error(usage);
    process.exit(2);
  }
  const [{ openModel }, { parametersOf }, { readWeights }, { Trainer }] = await Promise.all([
    import('../dist/model/open-model.js'),
    import('../dist/sparsify/parameters.js'),
    import('../dist/sparsify/read-weights.js'),
    import('../dist/sparsify/trainer.js'),
  ]);
  const [threads, steps, windows] = [values.threads, values.steps, values['micro-batch']].map(Number);
  const source = await openModel(positionals[0]);
  const { config } = source;
  const parameters = parametersOf(config, { part: 'all', adapterRank: 0 });
  const start = await readWeights(source, parameters, 1);
  const perToken = multiplications(config, parameters);
  const batch = { windows, tokens: WINDOW };
  const parts = STEP_TOKENS / (windows * WINDOW);

  const shape = { rows: windows * WINDOW, inner: config.hiddenSize, columns: config.intermediateSize };
  const workers = await Promise.all(
    Array.from({ length: threads }, async () => {
      const worker = new Worker(new URL(import.meta.url), { workerData: shape });
      await answer(worker, null);
      return worker;
    }),
  );
  const rate = async () => {
    const rates = await Promise.all(workers.map((worker) => answer(worker, 'go')));
    return rates.reduce((a, b) => a + b, 0);
  };

  console.log(
    `${source.name}: ${STEP_TOKENS} tokens a step, ${threads} threads, ${windows} windows of ${WINDOW} at once; ` +
      `${(perToken / 1e6).toFixed(1)} million multiplications a token`,
  );
  for (const [name, kind, l1, distill] of [
    ['SiLU', 'silu', false, 0],
    ['ReLU', 'relu', false, 0],
    ['ReLU and L1', 'relu', true, 0],
    ['ReLU, L1, distilled', 'relu', true, 0.9],
  ]) {
    const trainer = Trainer.start(
      {
        ...{ config, parameters, batch, l1, distill, lanes: threads, threadsPerLane: 1 },
        activation: { kind },
        optimizer: { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, clip: 1 },
      },
      start,
      distill > 0 ? start : null,
    );
    const tokens = (step) =>
      Array.from({ length: parts }, (_, part) => {
        const id = (i) => BigInt((i * 7919 + part * 104729 + step * 1299709) % config.vocabSize);
        const ids = (shift) => BigInt64Array.from({ length: windows * WINDOW }, (_, i) => id(i + shift));
        return { ids: ids(0), labels: ids(1) };
      });
    await trainer.train(tokens(0), 1e-6, 1e-4);
    const [speeds, rates] = [[], []];
    for (let step = 1; step <= steps; step++) {
      rates.push(await rate());
      const begin = performance.now();
      await trainer.train(tokens(step), 1e-6, 1e-4);
      speeds.push((1000 * STEP_TOKENS) / (performance.now() - begin));
    }
    await trainer.end();
    const [speed, most] = [median(speeds), median(rates)];
    // The original runs forward only.
    const floor = (most * 1e9) / (perToken * (distill > 0 ? 4 / 3 : 1));
    console.log(
      `${name.padEnd(20)} ${speed.toFixed(0).padStart(6)} tokens/s; products ${most.toFixed(1)} G/s, floor ` +
        `${floor.toFixed(0)} tokens/s: ${((100 * speed) / floor).toFixed(0)} %`,
    );
  }
  await Promise.all(workers.map((worker) => worker.terminate()));
  await source.close();
}

/** Forward and backward: every product of the forward pass has two in the backward pass. */
function multiplications(config, parameters) {
  const matrices = parameters.filter(({ name, shape }) => shape.length === 2 && name !== 'embed');
  const head = config.tiedEmbeddings ? config.vocabSize * config.hiddenSize : 0;
  const weights = matrices.reduce((sum, { size }) => sum + size, head);
  const attention = 2 * config.layers * config.heads * config.headDim * WINDOW;
  return 3 * (weights + attention);
}

/** The worker's next message. @param message sent to it first, unless null */
async function answer(worker, message) {
  const next = once(worker, 'message');
  if (message !== null) worker.postMessage(message);
  return (await next)[0];
}
