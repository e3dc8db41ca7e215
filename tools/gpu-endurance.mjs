/**
 * What a WebGPU device keeps: memory over one long text, and over many models opened and closed, with the whole model
 * on the device and with units of it beside the lanes.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { readFlags } from './flags.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = (path) => import(join(root, 'dist', path));
const usage = `npm run build && node tools/gpu-endurance.mjs [options]

Prints this process's resident memory as it goes (with a software adapter that is the device's memory too). Exit code 1
when the least figure of the later half is more than a tenth above the least of the earlier one: single figures have what
the last model left.

  --pack FILE      a pack; without it the shape least-test is synthesised (two layers of 64, q4, with its predictor): what
                   could leak is the same in a small model, and a software adapter is fast enough for it
  --tokens N       of the long text; 0: none (2000)
  --models N       opened and closed, each with a text; 0: none (100)
  --where LIST     what is on the device: whole,units
  --json FILE      writes the figures`;
const text = { type: 'string' };
const { values } = readFlags(
  usage,
  {
    pack: text,
    tokens: { ...text, default: '2000' },
    models: { ...text, default: '100' },
    where: { ...text, default: 'whole,units' },
    json: text,
  },
  [],
);
const refuse = (message) => {
  console.error(`error: ${message}\n\n${usage}`);
  process.exit(2);
};
for (const name of ['tokens', 'models'])
  if (!/^\d{1,9}$/.test(values[name]))
    refuse(`--${name} is "${values[name]}", expected a whole number from 0`);
const places = values.where.split(',');
for (const where of places)
  if (!['whole', 'units'].includes(where)) refuse(`--where: expected whole, units, found "${where}"`);
const [tokens, models] = [Number(values.tokens), Number(values.models)];
/** Allocators keep some. */
const GROWTH = 0.1;
/** Memory that nobody holds any more is given back when the collector runs: before every figure. */
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');
/** A busy machine makes a software adapter wait for minutes. */
const PATIENCE_MS = 600_000;
/** How often a figure is taken. */
const FIGURES = 10;

const { openPack } = await dist('pack/reader.js');
const { Engine } = await dist('engine/engine.js');
const { resolveOptions } = await dist('engine/options.js');
const { GREEDY } = await dist('engine/sampler.js');
const { GpuHost } = await dist('gpu/gpu-host.js');
const { findPlan } = await dist('profiler/find-plan.js');
const { writeSynthetic } = await dist('synthesize/write-synthetic.js');

const scratch = mkdtempSync(join(tmpdir(), 'hybrid-gpu-endurance-'));
const report = { pack: values.pack ?? 'least-test', runs: [] };
try {
  const path = values.pack ?? (await writeSynthetic({ shape: 'least-test' }, scratch, { quant: 'q4' })).pack;
  for (const where of places) {
    if (tokens > 0) await longText(path, where);
    if (models > 0) await manyModels(path, where);
  }
} catch (error) {
  console.error(`error: ${error.message}${error.hint ? `\nhint: ${error.hint}` : ''}`);
  process.exitCode = error.exitCode ?? 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
if (values.json) writeFileSync(values.json, JSON.stringify(report, null, 2));
const least = (figures) => Math.min(...figures.map(({ residentMiB }) => residentMiB));
const grew = report.runs.filter(({ figures }) => {
  const half = figures.length >> 1;
  return half > 0 && least(figures.slice(half)) > least(figures.slice(0, half)) * (1 + GROWTH);
});
for (const { where, what } of grew) console.error(`${where}: memory grew over ${what}`);
process.exit(grew.length > 0 ? 1 : process.exitCode);

async function longText(path, where) {
  const watch = watcher(where, 'tokens of one text', tokens);
  const { engine, bytes, close } = await open(path, where, tokens + 8);
  let done = 0;
  const onTokens = (fresh) => fresh.forEach(() => watch(++done, bytes));
  await engine.generate({ prompt: [1, 2, 3], maxTokens: tokens, sampling: GREEDY, stopIds: [], onTokens });
  if (done < tokens) throw new Error(`${done} tokens were made, ${tokens} were asked for`);
  await close();
}

async function manyModels(path, where) {
  const watch = watcher(where, 'models opened and closed', models);
  for (let i = 1; i <= models; i++) {
    const { engine, bytes, close } = await open(path, where, 64);
    await engine.generate({ prompt: [1, 2, 3], maxTokens: 2, sampling: GREEDY, stopIds: [] });
    await close();
    watch(i, bytes);
  }
}

async function open(path, where, contextLength) {
  const pack = openPack(path);
  const plan = findPlan(pack);
  const settings = { threads: 1, batchTokens: 8, contextLength, slots: 2, plan, ffn: 'predicted' };
  const { batchTokens, slots, kvPages, kvFormat } = resolveOptions(pack.header, settings);
  const placement =
    where === 'whole' ? { whole: { contextLength, slots, kvPages, kvFormat } } : halfOf(pack.header.config);
  const host = await GpuHost.start({ pack, provider: 'webgpu', placement, plan, maxTokens: batchTokens, lanes: 1 }); // prettier-ignore
  const { engine: units, device, bytes } = host;
  report.device = device;
  const gpu = {
    units: { ...units, timeoutMs: PATIENCE_MS },
    provider: 'webgpu',
    device,
    bytes,
    onFailure: 'error',
  };
  const engine = await Engine.open(pack, { ...settings, gpu });
  return { engine, bytes, close: async () => (await engine.close(), await host.close()) };
}

/** Every other neuron, all projections and the head. */
function halfOf({ layers, intermediateSize }) {
  const hotNeurons = Uint32Array.from({ length: intermediateSize / 2 }, (_, i) => 2 * i);
  const layer = { qkv: true, o: true, hotNeurons };
  return { weights: 'rows', lmHead: true, layers: Array.from({ length: layers }, () => layer) };
}

/** Takes a figure now and then. */
function watcher(where, what, total) {
  const began = performance.now();
  const figures = [];
  report.runs.push({ where, what, total, figures });
  return (done, deviceBytes) => {
    if (done % Math.ceil(total / FIGURES) > 0 && done < total) return;
    collect();
    const residentMiB = Math.round(process.memoryUsage().rss / 2 ** 20);
    const seconds = Math.round((performance.now() - began) / 1000);
    figures.push({ done, residentMiB, deviceMiB: deviceBytes / 2 ** 20, seconds });
    console.log(`${where}: ${done} ${what}, ${residentMiB} MiB, ${seconds} s`);
  };
}
