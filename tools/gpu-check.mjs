/**
 * Checks a machine with a GPU: the proof run, the correctness suite on each provider, and one table: CPU only,
 * hybrid at several budgets, everything on the GPU; FFNs dense, exact and predicted; WebGPU and CUDA.
 *
 *     npm run build && node tools/gpu-check.mjs [--provider webgpu,cuda] [--budgets 1,2,4,all]
 *         [--pack FILE [--profile FILE] [--predictor FILE]] [--ffn dense,exact,predicted] [--threads N]
 *         [--llama MODEL.gguf] [--tokens 32] [--rounds 3] [--fill] [--skip-tests] [--json FILE]
 *
 * Without --pack it synthesises the prosparse-7b shape in 4 bits with its predictor and profile (4 GB on disk,
 * a few minutes). Budgets are GiB on the device; `all` has no limit: WebGPU takes the whole model then. With --llama
 * and node-llama-cpp installed, llama.cpp's Vulkan layer offload of that file stands beside it at the same budgets.
 * A provider that cannot be used is named and left out. Exit code 1 when anything was wrong.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { performance } from 'node:perf_hooks';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = (path) => import(join(root, 'dist', path));
if (!existsSync(join(root, 'dist/gpu/open-gpu.js'))) {
  console.error('dist/ is missing: run npm run build first');
  process.exit(2);
}

const { values } = parseArgs({
  options: {
    provider: { type: 'string', default: 'webgpu,cuda' },
    pack: { type: 'string' },
    profile: { type: 'string' },
    predictor: { type: 'string' },
    budgets: { type: 'string', default: '1,2,4,all' },
    ffn: { type: 'string', default: 'dense,exact,predicted' },
    llama: { type: 'string' },
    tokens: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string' },
    // Move hot neurons even where the measured speeds say that nothing pays.
    fill: { type: 'boolean', default: false },
    'skip-tests': { type: 'boolean', default: false },
    json: { type: 'string' },
  },
});
const modes = values.ffn.split(',');
const threads = Number(values.threads ?? availableParallelism());
const tokens = Number(values.tokens);
const rounds = Number(values.rounds);
const GIB = 2 ** 30;
/** Prompt of the benchmark: enough that the KV cache is not empty, short beside the decoding. */
const PROMPT = Array.from({ length: 16 }, (_, i) => 3 + i * 17);
const BATCH_TOKENS = 64;
/**
 * Share of their norm by which logits of hybrid and CPU runs may differ before something must be wrong. The
 * suite checks every graph exactly; this prompt is noise, and the CPU rounds activations to 8 bits.
 */
const TOLERANCE = 5e-2;

const { probeProvider } = await dist('gpu/providers.js');
const { openGpu } = await dist('gpu/open-gpu.js');
const { openPack } = await dist('pack/reader.js');
const { Engine } = await dist('engine/engine.js');
const { resolveOptions } = await dist('engine/options.js');
const { BandwidthProbe } = await dist('bench/bandwidth.js');
const { GREEDY } = await dist('engine/sampler.js');
const { selectKernels } = await dist('kernels/select.js');
const { findPlan } = await dist('profiler/find-plan.js');

let failed = false;
let scratch;
const report = { cpu: cpus()[0]?.model, threads, probes: {}, rows: [] };
try {
  const providers = [];
  for (const provider of values.provider.split(',')) if (await proof(provider)) providers.push(provider);
  if (providers.length === 0) failed = true;
  if (!values['skip-tests']) for (const provider of providers) suite(provider);
  if (providers.length > 0) await benchmark(values.pack ?? synthesise(), providers);
} finally {
  if (scratch) rmSync(scratch, { recursive: true, force: true });
}
if (values.json) writeFileSync(values.json, JSON.stringify(report, null, 2));
process.exit(failed ? 1 : 0);

// ---- the provider -----------------------------------------------------------------------------------------

/** @returns whether it can be used */
async function proof(provider) {
  const probe = await probeProvider(provider, { measure: true });
  report.probes[provider] = probe;
  if (!probe.ok) {
    console.error(`${provider} cannot be used: ${probe.reason}`);
    if (probe.missingLibraries.length > 0) console.error(`missing: ${probe.missingLibraries.join(', ')}`);
    return false;
  }
  const { crossingUs, bytesPerSecond, software } = probe.report;
  console.log(`${provider}: ${probe.reason}`);
  console.log(
    `crossing ${crossingUs.toFixed(0)} us` +
      (software ? '; a software adapter: its speeds mean nothing' : `, 4-bit weights at ${(bytesPerSecond / 1e9).toFixed(1)} GB/s`), // prettier-ignore
  );
  return true;
}

/** The tests of kernels, graphs and worker on the provider itself. */
function suite(provider) {
  const files =
    provider === 'webgpu'
      ? ['test/gpu/webgpu', 'test/gpu/gpu-host.test.ts']
      : ['test/gpu/graph.test.ts', 'test/gpu/gpu-host.test.ts'];
  const env = { ...process.env, ...(provider === 'webgpu' ? {} : { HYBRID_TEST_GPU: provider }) };
  const { status } = spawnSync('npx', ['vitest', 'run', ...files], { cwd: root, stdio: 'inherit', env });
  failed ||= status !== 0;
}

// ---- the benchmark ----------------------------------------------------------------------------------------

/** Makes the pack, its predictor and its profile; fills `values` in. @returns the pack's path */
function synthesise() {
  scratch = mkdtempSync(join(tmpdir(), 'hybrid-gpu-check-'));
  const tool = join(root, 'tools/synthesize.mjs');
  execFileSync(process.execPath, [tool, 'prosparse-7b', '-o', scratch, '--quant', 'q4'], {
    stdio: 'inherit',
  });
  const files = readdirSync(scratch, { recursive: true });
  const find = (suffix) => {
    const file = files.find((name) => name.endsWith(suffix));
    return file && join(scratch, file);
  };
  values.profile ??= find('.profile');
  values.predictor ??= find('.predictor');
  return find('.hpack');
}

async function benchmark(path, providers) {
  const bandwidth = await BandwidthProbe.start(threads, selectKernels('auto'));
  for (let i = 0; i < 3; i++) await bandwidth.sample();
  const cpuBytesPerSecond = Math.max(...bandwidth.samples) * 1e9;
  await bandwidth.close();
  report.memoryBandwidthGBps = cpuBytesPerSecond / 1e9;
  console.log(`CPU: ${report.cpu}, ${threads} threads, ${report.memoryBandwidthGBps.toFixed(1)} GB/s`);

  const budgets = values.budgets
    .split(',')
    .map((gib) => (gib === 'all' ? Number.MAX_SAFE_INTEGER : Number(gib) * GIB));
  for (const ffn of modes) {
    const cpu = await measure(path, { ffn });
    report.rows.push(cpu);
    for (const provider of providers) {
      for (const budgetBytes of budgets) {
        report.rows.push(
          await measure(path, { ffn, provider, budgetBytes, cpuBytesPerSecond, baseline: cpu }),
        );
      }
    }
  }
  if (values.llama) for (const budget of budgets) report.rows.push(await measureLlama(values.llama, budget));
  for (const row of report.rows) delete row.logits;
  console.table(
    report.rows.map((row) => ({
      run: row.name,
      ffn: row.ffn ?? '',
      'GPU MiB': (row.bytes / 2 ** 20).toFixed(0),
      'device memory MiB': row.deviceMiB ?? '',
      'hot neurons': row.hotNeurons ?? '',
      'tokens/s': row.tokensPerSecond.toFixed(2),
      'prompt tokens/s': row.promptTokensPerSecond?.toFixed(1) ?? '',
      'expected tokens/s': row.expected?.toFixed(2) ?? '',
      'logit difference': row.difference?.toExponential(1) ?? '',
    })),
  );
}

const budgetName = (bytes) => (bytes === Number.MAX_SAFE_INTEGER ? 'no limit' : `${bytes / GIB} GiB`);

async function measure(path, { ffn, provider, budgetBytes, cpuBytesPerSecond, baseline }) {
  const pack = openPack(path);
  const plan = findPlan(pack, values);
  const settings = {
    threads,
    ffn,
    plan,
    contextLength: PROMPT.length + tokens + 16,
    batchTokens: BATCH_TOKENS,
  };
  const { contextLength, slots, kvPages, kvFormat } = resolveOptions(pack.header, settings);
  const opened = provider
    ? await openGpu({
        pack,
        choice: provider,
        policy: values.fill ? 'use' : 'fastest',
        budgetBytes,
        plan,
        ffn,
        lanes: threads,
        maxTokens: BATCH_TOKENS,
        whole: { contextLength, slots, kvPages, kvFormat },
        cpuBytesPerSecond,
      })
    : null;
  const engine = await Engine.open(pack, { ...settings, gpu: opened?.gpu ?? null });
  const { logits } = await engine.logits({ tokens: PROMPT });
  const stats = [];
  for (let round = 0; round < rounds; round++) {
    const run = await engine.generate({ prompt: PROMPT, maxTokens: tokens, sampling: GREEDY });
    stats.push(run.stats);
  }
  const deviceMiB = deviceMemory();
  await engine.close();
  await opened?.close();
  const difference = baseline ? distance(logits, baseline.logits) : undefined;
  if (difference !== undefined && !(difference < TOLERANCE)) failed = true;
  const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  const name = provider ? `${provider}, ${budgetName(budgetBytes)}${opened.whole ? ': whole model' : ''}` : 'CPU only'; // prettier-ignore
  return {
    name: opened && !opened.gpu ? `${name}: ${opened.note}` : name,
    ffn,
    bytes: opened?.gpu?.bytes ?? 0,
    deviceMiB,
    hotNeurons: opened?.placement?.layers.reduce((sum, layer) => sum + layer.hotNeurons.length, 0) ?? 0,
    tokensPerSecond: middle(stats.map((s) => s.decodeTokensPerSecond)),
    promptTokensPerSecond: middle(stats.map((s) => s.promptTokensPerSecond)),
    expected: opened?.seconds ? 1 / opened.seconds : undefined,
    difference,
    logits,
  };
}

/** llama.cpp through node-llama-cpp's Vulkan build: as many layers on the GPU as the budget holds. */
async function measureLlama(modelPath, budgetBytes) {
  const { getLlama } = await import('node-llama-cpp').catch(() => ({}));
  const name = `llama.cpp Vulkan, ${budgetName(budgetBytes)}`;
  if (!getLlama) return { name: `${name}: node-llama-cpp is not installed`, bytes: 0, tokensPerSecond: 0 };
  const llama = await getLlama({ gpu: 'vulkan' });
  const { blockCount, size } = await layersOf(llama, modelPath);
  const gpuLayers = Math.min(blockCount + 1, Math.floor((budgetBytes / size) * blockCount));
  const model = await llama.loadModel({ modelPath, gpuLayers });
  const context = await model.createContext({ contextSize: PROMPT.length + tokens + 16, threads });
  const sequence = context.getSequence();
  const times = [];
  for (let round = 0; round < rounds; round++) {
    await sequence.clearHistory();
    let [count, began] = [0, 0];
    for await (const token of sequence.evaluate(PROMPT, { temperature: 0 })) {
      if (count++ === 0) began = performance.now();
      if (count > tokens || token === undefined) break;
    }
    times.push((count - 1) / ((performance.now() - began) / 1000));
  }
  await context.dispose();
  await model.dispose();
  times.sort((a, b) => a - b);
  return { name: `${name}: ${gpuLayers} layers`, bytes: Math.min(budgetBytes, size), tokensPerSecond: times[times.length >> 1] }; // prettier-ignore
}

async function layersOf(llama, modelPath) {
  const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
  const facts = { blockCount: model.fileInsights.totalLayers - 1, size: model.size };
  await model.dispose();
  return facts;
}

function distance(a, b) {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** What the driver says is in use on the device by everybody, MiB; undefined without nvidia-smi. */
function deviceMemory() {
  try {
    const args = ['--query-gpu=memory.used', '--format=csv,noheader,nounits', '-i', '0'];
    return Number(
      execFileSync('nvidia-smi', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }),
    );
  } catch {
    return undefined;
  }
}
