/**
 * Checks a machine with a GPU: the proof run, the correctness suite on that provider, and the hybrid
 * benchmark as a table (CPU only, hybrid at several budgets, everything on the GPU).
 *
 *     npm run build && node tools/gpu-check.mjs [--provider cuda] [--budgets 1,2,4,all]
 *         [--pack FILE [--profile FILE] [--predictor FILE]] [--ffn MODE] [--threads N]
 *         [--tokens 32] [--rounds 3] [--fill] [--skip-tests] [--json FILE]
 *
 * Without --pack it synthesises the prosparse-7b shape in 4 bits with its predictor and profile (4 GB on disk,
 * a few minutes) and decodes with --ffn predicted. Budgets are GiB of weights; `all` has no limit.
 * Exit code 1 when anything was wrong.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = (path) => import(join(root, 'dist', path));
if (!existsSync(join(root, 'dist/gpu/open-gpu.js'))) {
  console.error('dist/ is missing: run npm run build first');
  process.exit(2);
}

const { values } = parseArgs({
  options: {
    provider: { type: 'string', default: 'cuda' },
    pack: { type: 'string' },
    profile: { type: 'string' },
    predictor: { type: 'string' },
    budgets: { type: 'string', default: '1,2,4,all' },
    ffn: { type: 'string' },
    tokens: { type: 'string', default: '32' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string' },
    // Move hot neurons even where the measured speeds say that nothing pays.
    fill: { type: 'boolean', default: false },
    'skip-tests': { type: 'boolean', default: false },
    json: { type: 'string' },
  },
});
const { provider } = values;
const ffn = values.ffn ?? (values.pack ? 'exact' : 'predicted');
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
const { BandwidthProbe } = await dist('bench/bandwidth.js');
const { GREEDY } = await dist('engine/sampler.js');
const { selectKernels } = await dist('kernels/select.js');
const { findPlan } = await dist('profiler/find-plan.js');

let failed = false;
let scratch;
const report = { provider, cpu: cpus()[0]?.model, threads };
try {
  await proof();
  if (!values['skip-tests']) suite();
  await benchmark(values.pack ?? synthesise());
} finally {
  if (scratch) rmSync(scratch, { recursive: true, force: true });
}
if (values.json) writeFileSync(values.json, JSON.stringify(report, null, 2));
process.exit(failed ? 1 : 0);

// ---- the provider -----------------------------------------------------------------------------------------

async function proof() {
  const probe = await probeProvider(provider, { measure: true });
  report.probe = probe;
  if (!probe.ok) {
    console.error(`${provider} cannot be used: ${probe.reason}`);
    if (probe.missingLibraries.length > 0) console.error(`missing: ${probe.missingLibraries.join(', ')}`);
    process.exit(1);
  }
  const { crossingUs, bytesPerSecond, half } = probe.report;
  console.log(`${provider}: ${probe.reason}`);
  console.log(
    `crossing ${crossingUs.toFixed(0)} us, 4-bit weights at ${(bytesPerSecond / 1e9).toFixed(1)} GB/s, ` +
      `halves ${half ? 'yes' : 'no'}`,
  );
}

/** The graph and worker tests on the provider itself. */
function suite() {
  const { status } = spawnSync(
    'npx',
    ['vitest', 'run', 'test/gpu/graph.test.ts', 'test/gpu/gpu-host.test.ts'],
    {
      cwd: root,
      stdio: 'inherit',
      env: { ...process.env, HYBRID_TEST_GPU: provider },
    },
  );
  report.tests = status === 0;
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

async function benchmark(path) {
  const bandwidth = await BandwidthProbe.start(threads, selectKernels('auto'));
  for (let i = 0; i < 3; i++) await bandwidth.sample();
  const cpuBytesPerSecond = Math.max(...bandwidth.samples) * 1e9;
  await bandwidth.close();
  report.memoryBandwidthGBps = cpuBytesPerSecond / 1e9;
  console.log(`CPU: ${report.cpu}, ${threads} threads, ${report.memoryBandwidthGBps.toFixed(1)} GB/s`);

  const budgets = values.budgets
    .split(',')
    .map((gib) => (gib === 'all' ? Number.MAX_SAFE_INTEGER : Number(gib) * GIB));
  const rows = [await measure(path, null, cpuBytesPerSecond)];
  for (const budget of budgets) {
    rows.push(await measure(path, budget, cpuBytesPerSecond, rows[0]));
  }
  report.rows = rows.map(({ logits: _, ...row }) => row);
  console.table(
    rows.map((row) => ({
      run: row.name,
      'GPU weights MiB': (row.bytes / 2 ** 20).toFixed(0),
      'device memory MiB': row.deviceMiB ?? '',
      'hot neurons': row.hotNeurons,
      'tokens/s': row.tokensPerSecond.toFixed(2),
      'prompt tokens/s': row.promptTokensPerSecond.toFixed(1),
      'expected tokens/s': row.expected?.toFixed(2) ?? '',
      'logit difference': row.difference?.toExponential(1) ?? '',
    })),
  );
}

async function measure(path, budgetBytes, cpuBytesPerSecond, baseline) {
  const pack = openPack(path);
  const plan = findPlan(pack, values);
  const opened =
    budgetBytes === null
      ? null
      : await openGpu({
          pack,
          choice: provider,
          policy: values.fill ? 'use' : 'fastest',
          budgetBytes,
          plan,
          ffn,
          lanes: threads,
          maxTokens: BATCH_TOKENS,
          cpuBytesPerSecond,
        });
  const engine = await Engine.open(pack, {
    threads,
    ffn,
    plan,
    contextLength: PROMPT.length + tokens + 16,
    batchTokens: BATCH_TOKENS,
    gpu: opened?.gpu ?? null,
  });
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
  const name =
    budgetBytes === null
      ? 'CPU only'
      : budgetBytes === Number.MAX_SAFE_INTEGER
        ? 'no limit'
        : `${budgetBytes / GIB} GiB`;
  return {
    name: opened && !opened.gpu ? `${name}: ${opened.note}` : name,
    bytes: opened?.gpu?.bytes ?? 0,
    deviceMiB,
    hotNeurons: opened?.placement?.layers.reduce((sum, layer) => sum + layer.hotNeurons.length, 0) ?? 0,
    tokensPerSecond: middle(stats.map((s) => s.decodeTokensPerSecond)),
    promptTokensPerSecond: middle(stats.map((s) => s.promptTokensPerSecond)),
    expected: opened?.result ? 1 / opened.result.seconds : undefined,
    difference,
    logits,
  };
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
