/**
 * What one token dispatches and reads when a whole model is on a WebGPU device, by operation, against what must be
 * read: computed from the operations that run, on a device of paper (src/gpu/webgpu/on-paper.ts). No GPU, no model.
 */
import { openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readFlags } from './flags.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = (path) => import(join(root, 'dist', path));
const { values } = readFlags(
  `npm run build && node tools/gpu-bytes.mjs [options]

Must be read: codes and scales without any padding, of every row of the attention, of the gates, up rows and down columns
that the mode's own rule needs (dense: all), and the positions in the cache.

  --shape NAME     of tools/synthesize.mjs (prosparse-7b)
  --quant FORMAT   q4, q8 (q4)
  --context N      positions in the cache (1024)
  --record         writes docs/results/gpu-token-7b.json, from which npm run docs:tables makes the table of docs/gpu.md`,
  {
    shape: { type: 'string', default: 'prosparse-7b' },
    quant: { type: 'string', default: 'q4' },
    context: { type: 'string', default: '1024' },
    record: { type: 'boolean', default: false },
  },
  ['context'],
);
const { GROUP } = await dist('kernels/layout.js');
const { formatsFor } = await dist('pack/formats.js');
const { layoutSections } = await dist('pack/layout.js');
const { predictorRowBytes } = await dist('predictor/rows.js');
const { SHAPES } = await dist('synthesize/shapes.js');
const { tokenOnPaper } = await dist('gpu/webgpu/on-paper.js');
const { tablePages } = await dist('engine/gpu-step.js');

const { shape: name, quant, context } = values;
for (const [flag, known] of [
  ['shape', Object.keys(SHAPES)],
  ['quant', ['q4', 'q8']],
]) {
  if (known.includes(values[flag])) continue;
  console.error(`error: --${flag}: expected one of ${known.join(', ')}, found ${values[flag]}`);
  process.exit(2);
}
const { config, sparsity, predictedSparsity, recall, rank } = SHAPES[name];
const { hiddenSize: d, intermediateSize: n, layers, heads, kvHeads, headDim, vocabSize } = config;
const MODES = ['dense', 'exact', 'predicted'];

const active = Math.round(n * (1 - sparsity));
const found = Math.round(active * recall);
const candidates = Math.round(n * (1 - predictedSparsity));
const loads = {
  dense: { context, candidates: n, scored: 0, passed: n, active },
  exact: { context, candidates: n, scored: 0, passed: active, active },
  predicted: { context, candidates, scored: 0, passed: found, active: found },
};

// ---- what runs ------------------------------------------------------------------------------------------------

const header = { config, quant, ...layoutSections(config, formatsFor(quant, layers), 0) };
const weights = (rows, cols) => {
  const stride = predictorRowBytes(quant, cols);
  return { format: quant, rows, cols, stride, data: new Uint8Array(rows * stride) };
};
const layer = {
  mode: 'predicted',
  always: new Uint32Array(0),
  scored: Uint32Array.from({ length: n }, (_, i) => i),
  frequency: null,
  predictor: { rank, fc1: weights(rank, d), b1: new Float32Array(rank), fc2: weights(n, rank), cut: new Float32Array(n) }, // prettier-ignore
};
const { operations, deviceBytes } = await tokenOnPaper(
  {
    header,
    fd: openSync('/dev/zero'),
    packPath: '/dev/zero',
    batchTokens: 1,
    contextLength: context,
    slots: 1,
    kvPages: tablePages(context) + 1,
    kvFormat: 'q8',
    plan: { layers: Array.from({ length: layers }, () => layer) },
  },
  loads,
);

// ---- what must be read ---------------------------------------------------------------------------------------

const bytesOf = (format, count) =>
  format === 'f32' ? 4 * count : count * ({ q4: 4, q8: 8 }[format] / 8 + 2 / GROUP);
const outer = formatsFor(quant, 1).lmHead;
const must = (mode) => {
  const { candidates: gates, passed } = loads[mode];
  const columns = mode === 'dense' ? n : loads[mode].active;
  return {
    embed: bytesOf(outer, d),
    'q, k, v': layers * bytesOf(quant, (heads + 2 * kvHeads) * headDim * d),
    attention: layers * 2 * context * kvHeads * (headDim + 4),
    'output projection': layers * bytesOf(quant, heads * headDim * d),
    predictor: layers * bytesOf(quant, rank * (d + n)),
    'gate and up': layers * bytesOf(quant, (gates + passed) * d),
    down: layers * bytesOf(quant, columns * d),
    head: bytesOf(outer, vocabSize * d),
  };
};

// ---- the table -----------------------------------------------------------------------------------------------

const MB = 1e6;
const of = (mode, name) => operations[mode].find((operation) => operation.name === name);
const names = [
  ...new Set(['predicted', 'dense'].flatMap((mode) => operations[mode].map(({ name }) => name))),
];
const rows = names.map((name) => ({
  operation: name,
  dispatches: MODES.map((mode) => of(mode, name)?.dispatches ?? 0),
  ...Object.fromEntries(MODES.map((mode) => [mode, (of(mode, name)?.bytes ?? 0) / MB])),
  ...Object.fromEntries(
    MODES.map((mode) => [`${mode}Must`, of(mode, name) ? (must(mode)[name] ?? 0) / MB : 0]),
  ),
}));
const sum = (value) => rows.reduce((total, row) => total + value(row), 0);
rows.push({
  operation: 'all',
  dispatches: MODES.map((_, i) => sum((row) => row.dispatches[i])),
  ...Object.fromEntries(
    MODES.flatMap((mode) => [mode, `${mode}Must`]).map((key) => [key, sum((row) => row[key])]),
  ),
});

const perLayer = MODES.map((mode) => {
  const outside = ['embed', 'head', 'choose'].map((name) => of(mode, name).dispatches);
  // One norm stands before the head.
  return (operations[mode].reduce((total, { dispatches }) => total + dispatches, 0) - outside.reduce((a, b) => a + b) - 1) / layers; // prettier-ignore
});
console.log(`${name}, ${quant}, ${context} positions in the cache (q8); MB read, (what must be read)`);
console.table(
  rows.map((row) => ({
    operation: row.operation,
    dispatches: row.dispatches.join(' / '),
    ...Object.fromEntries(
      MODES.map((mode) => [mode, `${row[mode].toFixed(1)} (${row[`${mode}Must`].toFixed(1)})`]),
    ),
  })),
);
console.log(`dispatches of a layer: ${MODES.map((mode, i) => `${mode} ${perLayer[i]}`).join(', ')}`);
console.log(`on the device: ${(deviceBytes / 2 ** 20).toFixed(0)} MiB`);

if (values.record) {
  const megabytes = (title, key) => ({ title, key, digits: 1 });
  const file = join(root, 'docs/results/gpu-token-7b.json');
  const result = {
    what: `One token of ${name} in ${quant}, whole model on a WebGPU device, ${context} positions in a cache of q8: MB read by operation, and MB that must be read; ${n} neurons a layer, ${active} active (${found} found by the predictor among ${candidates} candidates)`,
    machine: 'computed, no device',
    recorded: new Date().toISOString().slice(0, 10),
    commands: [`node tools/gpu-bytes.mjs --shape ${name} --quant ${quant} --context ${context} --record`],
    dispatchesPerLayer: Object.fromEntries(MODES.map((mode, i) => [mode, perLayer[i]])),
    deviceBytes,
    views: {
      default: [
        { title: 'operation', key: 'operation' },
        { title: 'dispatches: dense / exact / predicted', key: 'dispatches' },
        ...MODES.flatMap((mode) => [megabytes(`${mode}, MB`, mode), megabytes('must be', `${mode}Must`)]),
      ],
    },
    rows,
  };
  writeFileSync(file, `${JSON.stringify(result, null, 2)}\n`);
}
