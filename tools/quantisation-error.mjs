#!/usr/bin/env node
/**
 * How far quantised arithmetic is from reference logits, and which part of it is: the engine with packs of f32 and q8,
 * and the plain forward pass of the test suite in float64, with weights and vectors rounded one way at a time.
 *
 *     npm run build && node tools/quantisation-error.mjs FOLDER... [--json]
 *
 * A folder is a model with `expected.json` ({tokens, shape}) and `expected.f32` (logits of another program), as in
 * reference/architectures. A figure is the largest difference of a logit over the largest logit of the reference.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { loadTestModules } from './test-modules.mjs';
import { Engine } from '../dist/engine/engine.js';
import { openModel } from '../dist/model/index.js';
import { convert } from '../dist/pack/convert.js';
import { openPack } from '../dist/pack/reader.js';

const HELP = `Usage: node tools/quantisation-error.mjs FOLDER... [--json]

Largest difference from reference logits (expected.json, expected.f32 in each folder) over the largest logit:
of the engine, and of float64 simulations that round only one thing. --json prints shares instead of per cent.
`;

const { values: flags, positionals: folders } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'boolean', default: false }, help: { type: 'boolean', default: false } },
});
if (flags.help || folders.length === 0) {
  process.stdout.write(HELP);
  process.exit(flags.help ? 0 : 2);
}

/** What the issue of these models asks for. */
const BOUND = 0.02;
const [FEWEST_BITS, MOST_BITS] = [7, 16];

/**
 * Symmetric codes of `bits` bits, one scale for each group of columns: `weights` of the rows that the pack stores
 * (down projections by neuron), `activations` of the vectors that meet them.
 */
const SIMULATIONS = [
  { key: 'weights7', title: 'weights 7 bits / 128', weights: [7, 128] },
  { key: 'weights8', title: 'weights 8 bits / 128', weights: [8, 128] },
  { key: 'weights8by32', title: 'weights 8 bits / 32', weights: [8, 32] },
  { key: 'activations8', title: 'activations 8 bits / 128', activations: [8, 128] },
  { key: 'both7', title: 'as q8', weights: [7, 128], activations: [8, 128] },
  { key: 'both8', title: 'q8 of 8-bit codes', weights: [8, 128], activations: [8, 128] },
  {
    key: 'endsExact',
    title: 'as q8, embedding and head exact',
    weights: [7, 128],
    activations: [8, 128],
    ends: false,
  },
  {
    key: 'exactExperts',
    title: 'as q8, the exact experts',
    weights: [7, 128],
    activations: [8, 128],
    experts: true,
  },
];

const { plainForward } = await loadTestModules(['engine/plain-forward']);
const rows = [];
for (const folder of folders) rows.push(await measure(folder));
if (flags.json) process.stdout.write(`${JSON.stringify({ bound: BOUND, rows }, null, 2)}\n`);
else process.stdout.write(`${rows.map(described).join('\n\n')}\n`);

async function measure(folder) {
  const { tokens, shape } = JSON.parse(readFileSync(path.join(folder, 'expected.json'), 'utf8'));
  const bytes = readFileSync(path.join(folder, 'expected.f32'));
  const expected = new Float32Array(bytes.buffer, bytes.byteOffset, shape[0] * shape[1]);
  const largest = expected.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
  const error = (logits) =>
    logits.reduce((most, v, i) => Math.max(most, Math.abs(v - expected[i])), 0) / largest;

  const source = await openModel(folder);
  const result = { model: source.name };
  process.stderr.write(`${source.name} ...\n`);
  const scratch = mkdtempSync(path.join(tmpdir(), 'quantisation-error-'));
  try {
    for (const quant of ['f32', 'q8']) {
      const file = path.join(scratch, `${quant}.hpack`);
      await convert(source, file, { quant });
      for (const kvCache of quant === 'f32' ? ['f32'] : ['q8', 'f32']) {
        const engine = await Engine.open(openPack(file), { ffn: 'dense', kvCache, batchTokens: 16 });
        result[kvCache === quant ? quant : 'q8cacheF32'] = error((await engine.logits({ tokens })).logits);
        await engine.close();
      }
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }

  const exact = new Map();
  const kept = (layer, token, chosen) => (exact.set(`${layer} ${token}`, chosen), chosen);
  await plainForward(source, tokens, { route: kept });
  const simulate = async ({ weights, activations, ends = true, experts = false }) => {
    const { logits } = await plainForward(weights ? withRows(source, weights, ends) : source, tokens, {
      roundActivations: activations && ((x) => rounded(x, ...activations)),
      route: experts ? (layer, token) => exact.get(`${layer} ${token}`) : undefined,
    });
    return error(Float64Array.from(logits.flatMap((row) => [...row])));
  };
  for (const { key, ...how } of SIMULATIONS) {
    if (how.experts && source.config.block.ffn.experts === null) continue;
    result[key] = await simulate(how);
  }
  // From above: with few bits a mixture may meet its experts by luck.
  for (let bits = MOST_BITS; bits >= FEWEST_BITS; bits--) {
    if ((await simulate({ weights: [bits, 32], activations: [bits, 32] })) > BOUND) break;
    result.bitsWithinBound = bits;
  }
  await source.close();
  return result;
}

/** The model with its matrices rounded; routers stay as they are, `ends`: embedding and head too. */
function withRows(source, [bits, group], ends) {
  const readRows = async (name, begin, end) => {
    const values = await source.readRows(name, begin, end);
    const { shape } = source.tensors.get(name);
    const exact = name.endsWith('.router') || (!ends && (name === 'embed' || name === 'lmHead'));
    if (shape.length < 2 || exact) return values;
    const [n, cols] = shape; // plainForward reads whole matrices
    if (!name.endsWith('.down')) return roundedRows(values, cols, bits, group);
    return transposed(roundedRows(transposed(values, n, cols), n, bits, group), cols, n);
  };
  return { config: source.config, tensors: source.tensors, readRows };
}

function transposed(m, rows, cols) {
  return m.map((_, i) => m[(i % rows) * cols + Math.floor(i / rows)]);
}

function roundedRows(values, cols, bits, group) {
  const out = new Float32Array(values.length);
  for (let at = 0; at < values.length; at += cols)
    out.set(rounded(values.subarray(at, at + cols), bits, group), at);
  return out;
}

function rounded(x, bits, group) {
  const most = 2 ** (bits - 1) - 1;
  const out = x.slice();
  for (let begin = 0; begin < x.length; begin += group) {
    const part = x.subarray(begin, begin + group);
    const scale = part.reduce((max, v) => Math.max(max, Math.abs(v)), 0) / most;
    if (scale > 0) part.forEach((v, i) => (out[begin + i] = Math.round(v / scale) * scale));
  }
  return out;
}

function described({ model, f32, q8, q8cacheF32, bitsWithinBound, ...simulated }) {
  const percent = (share) => `${(100 * share).toFixed(2)} %`.padStart(9);
  const lines = [
    ['engine, f32', percent(f32)],
    ['engine, q8', percent(q8)],
    ['engine, q8, cache f32', percent(q8cacheF32)],
    ...SIMULATIONS.filter(({ key }) => key in simulated).map(({ key, title }) => [
      title,
      percent(simulated[key]),
    ]),
    [`bits / 32 within ${100 * BOUND} %`, `${bitsWithinBound ?? `> ${MOST_BITS}`}`.padStart(7)],
  ];
  return [model, ...lines.map(([title, figure]) => `  ${title.padEnd(34)}${figure}`)].join('\n');
}
