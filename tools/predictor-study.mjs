/**
 * What each kind of predictor, start and training is worth on the demo model: the table of docs/predictors.md.
 *
 *     npm run build && node tools/predictor-study.mjs --text train.txt --held-out valid.txt [--only sketch]
 *
 * Every predictor is fitted to windows of the first text and measured on the second: predicted sparsity where
 * every layer has the recall in the column's head, by the engine's own kernels, and the perplexity of the
 * model when all layers run with those thresholds. Bits are per gate weight: rows, scales, biases and cuts.
 */
import { performance } from 'node:perf_hooks';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

const dist = (path) => import(new URL(`../dist/${path}`, import.meta.url));
const { Engine } = await dist('engine/engine.js');
const { evaluate } = await dist('evaluate/evaluate.js');
const { createTokenizer } = await dist('model/tokenizer.js');
const { packFor } = await dist('pack/cache.js');
const { openPack } = await dist('pack/reader.js');
const { cutsAt, pointAtRecall } = await dist('predictor/artifact.js');
const { fitLayer } = await dist('predictor/fit-layer.js');
const { measureCurve } = await dist('profiler/curve.js');
const { downNorms, gateRows } = await dist('profiler/pack-rows.js');
const { predictorBytes } = await dist('profiler/plan.js');
const { samplesInMemory } = await dist('predictor/samples.js');

const { values: args } = parseArgs({
  options: {
    model: { type: 'string', default: new URL('../models/tales-4m-relu', import.meta.url).pathname },
    text: { type: 'string' },
    'held-out': { type: 'string' },
    tokens: { type: 'string', default: '32768' },
    'held-out-tokens': { type: 'string', default: '16384' },
    quant: { type: 'string', default: 'q8' },
    epochs: { type: 'string', default: '6' },
    only: { type: 'string', default: '' },
    json: { type: 'boolean', default: false },
  },
});
if (!args.text || !args['held-out']) {
  console.error(
    'usage: node tools/predictor-study.mjs --text FILE --held-out FILE [--tokens N] [--only WORD]',
  );
  process.exit(2);
}
const RECALLS = [0.97, 0.99];
const WINDOW = 256;
const trained = (rank, hidden, start = 'whitened') => ({ kind: 'mlp', ranks: [rank], hidden, start });
const VARIANTS = {
  'sketch, 1 bit': { kind: 'sketch', sketches: ['q1'] },
  'sketch, 2 bits': { kind: 'sketch', sketches: ['q2'] },
  'sketch, 3 bits': { kind: 'sketch', sketches: ['q3'] },
  'low rank 32': { kind: 'lowrank', ranks: [32] },
  'low rank 64': { kind: 'lowrank', ranks: [64] },
  'low rank 96': { kind: 'lowrank', ranks: [96] },
  'low rank 128': { kind: 'lowrank', ranks: [128] },
  'rank 96, trained, linear': trained(96, 'linear'),
  'rank 96, trained, ReLU': trained(96, 'relu'),
  'rank 96, trained, ReLU, random start': trained(96, 'relu', 'random'),
  'rank 128, trained, ReLU': trained(128, 'relu'),
};

// ---- samples ------------------------------------------------------------------------------------------

const packPath = await packFor(args.model, args.quant);
const pack = openPack(packPath);
const { hiddenSize: d, intermediateSize: nFf, layers, activation } = pack.header.config;
const tokenizer = createTokenizer(pack.header.tokenizer);
const windowsOf = (file, tokens) => {
  const ids = tokenizer.encode(readFileSync(file, 'utf8'), { addSpecial: false });
  const all = Math.floor(ids.length / WINDOW);
  const count = Math.min(all, Math.floor(tokens / WINDOW));
  return Array.from({ length: count }, (_, i) => {
    const begin = Math.floor((i * all) / count) * WINDOW;
    return ids.slice(begin, begin + WINDOW);
  });
};
const training = windowsOf(args.text, Number(args.tokens));
const heldOut = windowsOf(args['held-out'], Number(args['held-out-tokens']));
const samples = await recordWindows([...training, ...heldOut]);
/** The study compares predictors at fixed recalls: the same text may choose the threshold and give the figure. */
const border = training.length * WINDOW;
const measuring = { begin: border, end: border + heldOut.length * WINDOW };
const parts = { train: { begin: 0, end: border }, choose: measuring, report: measuring };

/** Samples of every layer, from windows run in exact mode. */
async function recordWindows(windows) {
  const engine = await Engine.open(openPack(packPath), {
    ffn: 'exact',
    contextLength: WINDOW,
    batchTokens: WINDOW,
  });
  const count = windows.length * WINDOW;
  const bytes = Math.ceil(nFf / 8);
  const of = Array.from({ length: layers }, () => ({
    values: new Float32Array(count * d),
    bits: new Uint8Array(count * bytes),
    magnitudeAt: new Uint32Array(count + 1),
    magnitudes: [],
  }));
  for (const [w, tokens] of windows.entries()) {
    const trace = await engine.logits({ tokens, logits: false, trace: { inputs: true, activations: true } });
    of.forEach((layer, l) => {
      layer.values.set(trace.inputs.subarray(l * WINDOW * d, (l + 1) * WINDOW * d), w * WINDOW * d);
      const x1 = trace.activations.subarray(l * WINDOW * nFf, (l + 1) * WINDOW * nFf);
      for (let t = 0; t < WINDOW; t++) {
        const row = w * WINDOW + t;
        for (let i = 0; i < nFf; i++) {
          if (x1[t * nFf + i] === 0) continue;
          layer.bits[row * bytes + (i >> 3)] |= 1 << (i & 7);
          layer.magnitudes.push(Math.abs(x1[t * nFf + i]));
        }
        layer.magnitudeAt[row + 1] = layer.magnitudes.length;
      }
    });
  }
  await engine.close();
  return of.map((layer) =>
    samplesInMemory({
      ...layer,
      magnitudes: Float32Array.from(layer.magnitudes),
      samples: count,
      d,
      nFf,
    }),
  );
}

// ---- variants -----------------------------------------------------------------------------------------

const rows = [];
for (const [name, variant] of Object.entries(VARIANTS)) {
  if (!name.includes(args.only)) continue;
  const begin = performance.now();
  const fitted = [];
  for (let l = 0; l < layers; l++) {
    const norms = downNorms(pack, l);
    const { gate, ffn } = pack.header.layers[l];
    const { predictor } = await fitLayer(
      {
        layer: l,
        recall: 0.99,
        maxBits: Infinity,
        epochs: Number(args.epochs),
        seed: 1,
        gateRows: gateRows(pack, l),
        downNorms: norms,
        gateThreshold: activation.threshold,
        gateRowBytes: gate.stride,
        recordBytes: ffn.stride,
        provider: 'cpu',
        ...variant,
      },
      samples[l],
      parts,
    );
    const { choose, report } = parts;
    const decisions = (range) => nFf * (range.end - range.begin);
    const own = [{ predictor, samples: samples[l], parts, norms }];
    const curve = measureCurve(own, { choose: decisions(choose), report: decisions(report) });
    fitted.push({ predictor, ...curve });
  }
  const seconds = (performance.now() - begin) / 1000;
  const bits =
    fitted.reduce((sum, { predictor }) => sum + (8 * predictorBytes(predictor)) / (nFf * d), 0) / layers;
  const at = [];
  for (const recall of RECALLS) at.push(await measure(fitted, recall));
  rows.push({ name, bits, seconds, at });
  if (!args.json) print(rows[rows.length - 1]);
}
pack.close();
if (args.json) console.log(JSON.stringify({ rows }));

async function measure(fitted, recall) {
  const points = fitted.map(({ curve }) => pointAtRecall(curve, recall));
  const mean = (pick) => fitted.reduce((sum, layer, l) => sum + pick(layer, points[l]), 0) / layers;
  const plan = {
    layers: fitted.map(({ predictor, curve }, l) => ({
      mode: 'predicted',
      always: predictor.always,
      scored: predictor.scoredIds,
      predictor: { ...predictor, cut: cutsAt(predictor, curve.threshold[points[l]]) },
      frequency: null,
    })),
  };
  const engine = await Engine.open(openPack(packPath), {
    ffn: 'predicted',
    contextLength: WINDOW,
    batchTokens: WINDOW,
    plan,
  });
  const result = await evaluate(engine, heldOut.flat(), { window: WINDOW });
  await engine.close();
  return {
    recall,
    predictedSparsity: mean(({ curve }, p) => curve.predictedSparsity[p]),
    perLayer: fitted.map(({ curve }, l) => curve.predictedSparsity[points[l]]),
    weightedRecall: mean(({ curve }, p) => curve.weightedRecall[p]),
    perplexityIncrease: result.perplexity / result.densePerplexity - 1,
  };
}

function print({ name, bits, seconds, at }) {
  const cells = at.map(
    (p) =>
      `@${p.recall}: ${p.predictedSparsity.toFixed(4)} (weighted ${p.weightedRecall.toFixed(4)}, ` +
      `perplexity ${(100 * p.perplexityIncrease).toFixed(2)} %, layers ${p.perLayer.map((s) => s.toFixed(3)).join(' ')})`,
  );
  console.log(`${name.padEnd(40)} ${bits.toFixed(2)} bits  ${cells.join('  ')}  ${seconds.toFixed(0)} s`);
}
