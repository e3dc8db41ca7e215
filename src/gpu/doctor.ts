/** What this machine can do, for `hybrid-infer doctor`: facts only, the CLI prints them. */
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, freemem, totalmem } from 'node:os';
import { join, relative } from 'node:path';

import { addOnnxRuntime, onnxRuntimeFolder } from '../onnx/runtime.js';
import { selectKernels } from '../kernels/select.js';
import { bindingFolder, CUDA_PROVIDER_FILES } from './libraries.js';
import { platformProviders, probeProvider, type GpuProvider, type ProviderProbe } from './providers.js';

/** Instruction-set extensions that the native kernels look for, as Linux names them. */
const INTERESTING_FLAGS = [
  'avx2',
  'fma',
  'f16c',
  'avx_vnni',
  'avx512f',
  'avx512bw',
  'avx512_vnni',
  'amx_int8',
  'asimd', // NEON
  'asimddp',
  'i8mm',
];

export interface DoctorReport {
  node: string;
  platform: string;
  cpu: string;
  /** Cores this process may use. */
  cores: number;
  memoryBytes: number;
  availableMemoryBytes: number;
  /** The backend `--kernels auto` takes, why no better one, and what WASM offers here. */
  kernels: { name: string; reasons: string[]; wasm: string; simd: string[] };
  onnxruntime: {
    version: string | null;
    /** Its binding for this platform is there. */
    installed: boolean;
    /** The command that adds the package. */
    add: string;
  };
  /** Every provider of this platform, tried. */
  providers: ProviderProbe[];
  /** What `--gpu auto` takes. */
  chosenProvider: GpuProvider | null;
  /** Commands and packages that bring the CUDA provider; empty where it works or cannot exist. */
  installCuda: string[];
  /** Sequential read of memory by all cores, 10^9 bytes a second; null when not measured. */
  memoryBandwidthGBps: number | null;
}

export interface DoctorOptions {
  /** Measures memory bandwidth (bench/ knows how). @default not measured */
  memoryBandwidth?: () => Promise<number>;
  /** Measure the weight bandwidth of every working provider. @default true */
  measureGpu?: boolean;
  /** Called before each step that takes a moment. */
  onStep?: (step: string) => void;
}

export async function runDoctor(options: DoctorOptions = {}): Promise<DoctorReport> {
  const step = options.onStep ?? (() => {});
  const providers: ProviderProbe[] = [];
  for (const provider of platformProviders()) {
    step(`provider ${provider}`);
    providers.push(await probeProvider(provider, { measure: options.measureGpu ?? true }));
  }
  step('memory bandwidth');
  const memoryBandwidthGBps = options.memoryBandwidth ? await options.memoryBandwidth() : null;
  const kernels = selectKernels('auto');
  return {
    node: process.version,
    platform: `${process.platform}/${process.arch}`,
    cpu: cpus()[0]?.model.trim() || process.arch,
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    availableMemoryBytes: availableMemory(),
    kernels: { name: kernels.name, reasons: kernels.reasons, wasm: wasmName(), simd: simdFeatures() },
    onnxruntime: {
      version: onnxruntimeVersion(),
      installed: bindingFolder() !== null,
      add: addOnnxRuntime(),
    },
    providers,
    chosenProvider: providers.find((p) => p.ok)?.provider ?? null,
    installCuda: cudaInstructions(providers.find((p) => p.provider === 'cuda')),
    memoryBandwidthGBps,
  };
}

/** How to make the CUDA provider work here, from what its probe found missing. */
export function cudaInstructions(probe: ProviderProbe | undefined): string[] {
  if (probe === undefined || probe.ok) return [];
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    return [`onnxruntime-node has no CUDA provider for ${process.platform}/${process.arch}.`];
  }
  const folder = bindingFolder();
  if (folder === null) return [`First ${addOnnxRuntime()}`];
  const version = onnxruntimeVersion() ?? 'this version';
  const missing = new Set(probe.missingLibraries);
  const steps: string[] = [];
  if (missing.delete('libcuda.so.1')) steps.push('Install the NVIDIA driver (libcuda.so.1 is missing).');
  if (CUDA_PROVIDER_FILES.filter((file) => missing.delete(file)).length > 0) {
    const script = relative(process.cwd(), join(folder, '..', '..', '..', '..', 'script', 'install.js'));
    steps.push(
      `Fetch the CUDA provider of onnxruntime ${version}: ` +
        `node ${script} --onnxruntime-node-install=true ` +
        `(or copy ${CUDA_PROVIDER_FILES.join(' and ')} of the NuGet package ` +
        `Microsoft.ML.OnnxRuntime.Gpu.Linux ${version} to ${folder}).`,
    );
  }
  if (missing.size > 0) {
    steps.push(
      `Install the CUDA toolkit and cuDNN that have ${[...missing].join(', ')}, ` +
        'and add their folders to LD_LIBRARY_PATH or the loader cache (ldconfig).',
    );
  }
  return steps.length > 0 ? steps : [`Everything was found, but: ${probe.reason}`];
}

function wasmName(): string {
  try {
    return selectKernels('wasm').name;
  } catch (error) {
    return `not available: ${(error as Error).message}`;
  }
}

/** Linux only: elsewhere the native kernels' own choice (in `kernels.name`) is all there is. */
function simdFeatures(): string[] {
  try {
    const flags = /^(?:flags|Features)\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '';
    const present = new Set(flags.trim().split(/\s+/));
    return INTERESTING_FLAGS.filter((flag) => present.has(flag));
  } catch {
    return [];
  }
}

function onnxruntimeVersion(): string | null {
  const folder = onnxRuntimeFolder();
  if (folder === null) return null;
  try {
    const file = join(folder, 'package.json');
    return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version;
  } catch {
    return null;
  }
}

function availableMemory(): number {
  const found = process.platform === 'linux' ? /^MemAvailable:\s+(\d+) kB$/m.exec(memoryInfo()) : null;
  return found ? Number(found[1]) * 1024 : freemem();
}

function memoryInfo(): string {
  try {
    return readFileSync('/proc/meminfo', 'utf8');
  } catch {
    return '';
  }
}
