/**
 * Choosing the device. A provider counts as available only when a child process ran something there and got the
 * right numbers: a kernel of ours through WebGPU, a graph through onnxruntime, whose own profile must say *that*
 * every node ran there (onnxruntime may fall back to the CPU without a word). The child keeps native crashes and
 * the libraries' own stderr chatter away from the caller.
 */
import { fork } from 'node:child_process';
import { availableParallelism } from 'node:os';

import { HybridError, UsageError } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import { addOnnxRuntime, onnxRuntimeFolder } from '../onnx/runtime.js';
import { missingLibraries } from './libraries.js';
import { addWebGpu, webGpuInstalled } from './webgpu/dawn.js';

export type GpuProvider = 'cuda' | 'webgpu' | 'dml' | 'coreml';
export type GpuChoice = 'auto' | 'off' | GpuProvider;
export const GPU_CHOICES: readonly GpuChoice[] = ['auto', 'off', 'cuda', 'webgpu', 'dml', 'coreml'];

/**
 * What `auto` tries, in this order. CUDA reads weights fastest; DirectML and CoreML know no sparse operators, and
 * CoreML no MatMulNBits either.
 */
const AUTO_ORDER: Partial<Record<NodeJS.Platform, readonly GpuProvider[]>> = {
  linux: ['cuda', 'webgpu'],
  win32: ['webgpu', 'dml'],
  darwin: ['webgpu', 'coreml'],
};

/** Providers that this platform may have, in the order in which `auto` tries them. */
export const platformProviders = (): readonly GpuProvider[] => AUTO_ORDER[process.platform] ?? [];

/** Providers that are onnxruntime's; WebGPU is Dawn's, with kernels of ours. */
export type OnnxProvider = Exclude<GpuProvider, 'webgpu'>;

/** How onnxruntime's profile names a provider. */
export const PROFILE_NAME: Record<OnnxProvider, string> = {
  cuda: 'CUDAExecutionProvider',
  dml: 'DmlExecutionProvider',
  coreml: 'CoreMLExecutionProvider',
};

/**
 * Most rows of x in one run; longer batches go in several. CUDA's MatMulNBits streams 4-bit weights for up
 * to 16 rows; above that it would unpack the whole matrix into scratch memory that each session keeps.
 */
export const MAX_ROWS: Record<OnnxProvider, number> = { cuda: 16, dml: 128, coreml: 128 };

/** A driver that hangs must not hang us. Shader compilers on slow adapters need seconds. */
const PROBE_TIMEOUT_MS = 60_000;
/** Lines of the child's stderr that say why a provider failed. */
const TELLING = /cannot open shared object|cannot load|not found|no drivers|incompatible|insufficient|error/i;
/** What drivers say of a desktop that nobody asked for. */
const OF_THE_DESKTOP = /XDG_RUNTIME_DIR/;
const MAX_DETAIL_LINES = 2;

/** What the child measured and proved (sent over its IPC channel). */
export interface ProbeReport {
  /** `op: provider` for every node of the run's profile; WebGPU: none. */
  nodes: string[];
  /** As its driver names it; null: not known. */
  device: string | null;
  /** It runs on the CPU: right results, slowly. */
  software: boolean;
  createMs: number;
  /** Median time of a run with almost no work: what one crossing costs. */
  crossingUs: number;
  /** What one dispatch more in a run costs; null: not known. */
  dispatchUs: number | null;
  /** Half-precision graphs run. */
  half: boolean;
  /** Products with 4-bit weights run. */
  packed: boolean;
  /** Sequential weight bandwidth of a large 4-bit product, bytes a second; null when not asked for. */
  bytesPerSecond: number | null;
}

export interface ProviderProbe {
  provider: GpuProvider;
  ok: boolean;
  /** What proved it, or why it cannot be used: one line. */
  reason: string;
  /** Shared libraries that were looked for and not found. */
  missingLibraries: string[];
  report: ProbeReport | null;
}

export interface ProbeOptions {
  /** GPU number where there are several. @default 0 */
  deviceId?: number;
  /** Measure weight bandwidth too: a second or so more. @default false */
  measure?: boolean;
}

export interface GpuSelection {
  /** null: CPU only. */
  chosen: ProviderProbe | null;
  /** Everything that was tried, in order. */
  tried: ProviderProbe[];
}

/**
 * @throws HybridError GPU_UNAVAILABLE when a provider asked for by name cannot be used; `auto` and `off`
 *   never throw
 */
export async function selectProvider(choice: GpuChoice, options: ProbeOptions = {}): Promise<GpuSelection> {
  if (!GPU_CHOICES.includes(choice)) {
    throw new UsageError(`--gpu ${String(choice)}: expected one of ${GPU_CHOICES.join(', ')}`);
  }
  if (choice === 'off') return { chosen: null, tried: [] };
  const order = choice === 'auto' ? platformProviders() : [choice];
  const tried: ProviderProbe[] = [];
  for (const provider of order) {
    const probe = await probeProvider(provider, options);
    tried.push(probe);
    if (probe.ok) return { chosen: probe, tried };
  }
  if (choice === 'auto') return { chosen: null, tried };
  const [{ reason, missingLibraries: missing }] = tried;
  const libraries = missing.length > 0 ? `; missing libraries: ${missing.join(', ')}` : '';
  throw new HybridError('GPU_UNAVAILABLE', `--gpu ${choice} cannot be used: ${reason}${libraries}`, {
    hint: 'hybrid-infer doctor says what is missing; --gpu auto takes what there is.',
  });
}

/** One line for statistics and doctor: `webgpu (cuda: ...)`, or `off (cuda: ...; webgpu: ...)`. */
export function describeSelection({ chosen, tried }: GpuSelection): string {
  const refused = tried.filter((p) => !p.ok).map((p) => `${p.provider}: ${p.reason}`);
  const name = chosen?.provider ?? 'off';
  return refused.length > 0 ? `${name} (${refused.join('; ')})` : name;
}

/** Tries one provider in a child process. Never throws for a provider that does not work. */
export async function probeProvider(
  provider: GpuProvider,
  options: ProbeOptions = {},
): Promise<ProviderProbe> {
  const libraries = missingLibraries(provider);
  const absent = missingPackage(provider);
  if (absent !== null)
    return { provider, ok: false, reason: absent, missingLibraries: libraries, report: null };
  const outcome = await runProbe(provider, options);
  if ('failure' in outcome) {
    return {
      provider,
      ok: false,
      reason: outcome.failure,
      missingLibraries: libraries,
      report: null,
    };
  }
  const { report } = outcome;
  if (provider === 'webgpu') {
    const what = report.software ? 'a software adapter' : 'the adapter';
    const reason = `proof run on ${what} ${report.device}`;
    return { provider, ok: true, reason, missingLibraries: libraries, report };
  }
  const elsewhere = report.nodes.filter((node) => !node.endsWith(PROFILE_NAME[provider]));
  const ok = report.nodes.length > 0 && elsewhere.length === 0;
  const reason = ok
    ? `proof run placed ${report.nodes.join(', ')}`
    : `onnxruntime put ${elsewhere.join(', ') || 'no node'} elsewhere than on ${PROFILE_NAME[provider]}`;
  return { provider, ok, reason, missingLibraries: libraries, report };
}

function missingPackage(provider: GpuProvider): string | null {
  if (provider === 'webgpu') return webGpuInstalled() ? null : `webgpu is not installed (${addWebGpu()})`;
  return onnxRuntimeFolder() === null ? `onnxruntime-node is not installed (${addOnnxRuntime()})` : null;
}

type ProbeOutcome = { report: ProbeReport } | { failure: string };

function runProbe(provider: GpuProvider, options: ProbeOptions): Promise<ProbeOutcome> {
  const script = workerUrl(import.meta.url, './probe-process.js');
  const args = [provider, String(options.deviceId ?? 0), options.measure ? 'measure' : ''];
  return new Promise((resolve) => {
    const child = fork(script, args, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'], execArgv: [] });
    let stderr = '';
    let answer: ProbeOutcome | undefined;
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    const timer = setTimeout(() => {
      answer ??= { failure: `the proof run took longer than ${PROBE_TIMEOUT_MS / 1000} s` };
      child.kill('SIGKILL');
    }, PROBE_TIMEOUT_MS);
    child.on('message', (message: ProbeOutcome) => (answer = message));
    child.on('error', (error) => (answer ??= { failure: error.message }));
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      answer ??= { failure: `the proof run ended with ${signal ?? `exit code ${code}`}` };
      if ('failure' in answer) answer.failure = withDetail(answer.failure, stderr);
      resolve(answer);
    });
  });
}

/** Adds what the native libraries wrote to stderr, without colours, time stamps and source positions. */
function withDetail(failure: string, stderr: string): string {
  const lines = stderr
    // eslint-disable-next-line no-control-regex
    .replace(/\u001b\[[0-9;]*m/g, '')
    .split('\n')
    .filter((line) => TELLING.test(line) && !OF_THE_DESKTOP.test(line))
    .map((line) => line.replace(/^.*\[ONNXRuntimeError\] : \d+ : \w+ : /, '').trim())
    .map((line) => line.replace(/^Failed to load library \S+ with error: (?:\S*\/)?/, ''));
  const details = [...new Set(lines)].filter((line) => !failure.includes(line)).slice(0, MAX_DETAIL_LINES);
  return [oneLine(failure), ...details].join('; ');
}

/** onnxruntime's messages begin with a source position and signature; what matters comes last. */
const oneLine = (message: string): string =>
  message
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean)
    .join(' ')
    .replace(/\/onnxruntime_src\/\S+ .* was false\. /, '')
    .replace(/^onnxruntime \(\w+\) (?:refused a graph|failed in a run): /, '');

/** True when the GPU worker has a core to itself beside `lanes` busy lanes. */
export const hasSpareCore = (lanes: number): boolean => availableParallelism() > lanes;
