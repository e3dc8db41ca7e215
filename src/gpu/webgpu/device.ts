/**
 * One GPU: its adapter's real limits and features, its failures as one typed error each, and its end.
 *
 *     const gpu = await GpuDevice.open();
 *     try { ... } finally { await gpu.close(); }
 */
import { HybridError } from '../../errors.js';
import { loadDawn } from './dawn.js';
import { compileKernel, type Kernel, type KernelText } from './kernel.js';

export interface AdapterFacts {
  /** As the driver names it. */
  name: string;
  vendor: string;
  architecture: string;
  /** Runs on the CPU (SwiftShader, llvmpipe, WARP): right results, and no speeds worth showing. */
  software: boolean;
  /** Sizes of subgroups that its shaders may get; null without subgroups. */
  subgroups: { min: number; max: number } | null;
  timestamps: boolean;
  halves: boolean;
  /** Most bytes that a kernel sees of one buffer: matrices are cut into parts below it. */
  maxBindingBytes: number;
  maxBufferBytes: number;
  maxWorkgroupInvocations: number;
  maxWorkgroupBytes: number;
  maxWorkgroups: number;
  storageBuffersPerKernel: number;
  /** Bindings inside a buffer begin at multiples of this. */
  bindingAlignment: number;
}

export interface OpenDeviceOptions {
  /** Part of the name that is wanted; without it the fast one of several. */
  name?: string;
}

const FEATURES: readonly GPUFeatureName[] = ['subgroups', 'timestamp-query', 'shader-f16'];

/** Limits that are asked for as the adapter has them; all others keep WebGPU's defaults. */
const LIMITS = [
  'maxStorageBufferBindingSize',
  'maxBufferSize',
  'maxComputeInvocationsPerWorkgroup',
  'maxComputeWorkgroupSizeX',
  'maxComputeWorkgroupStorageSize',
  'maxComputeWorkgroupsPerDimension',
  'maxStorageBuffersPerShaderStage',
] as const satisfies readonly (keyof GPUSupportedLimits)[];

/** What software adapters call themselves where the driver does not say what it is. */
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|warp/i;

export class GpuDevice {
  /** Bytes of all buffers that are there now. */
  allocatedBytes = 0;
  /** What went wrong first: a lost device, an error of Dawn's. Nothing is to be believed afterwards. */
  failure: HybridError | null = null;
  /** Resolves with the error when the device is lost, never when it is closed. */
  readonly lost: Promise<HybridError>;

  private closing = false;
  private readonly kernels = new Map<string, Promise<Kernel>>();
  /** Dawn's promises that are under way: a thread must not end before them (dawn.ts). */
  private readonly pending = new Set<Promise<unknown>>();

  private constructor(
    readonly facts: AdapterFacts,
    /** Dawn's own. */
    readonly raw: GPUDevice,
  ) {
    raw.onuncapturederror = (event) => this.fail(`WebGPU reports: ${event.error.message}`);
    this.lost = new Promise((resolve) => {
      void raw.lost.then(({ reason, message }) => {
        if (this.closing) return;
        const lost = new HybridError('GPU_FAILED', `the GPU was lost (${reason}): ${message}`, {
          hint: 'Its driver was reset, or its memory ran out. Run again, or with --gpu off.',
        });
        this.failure ??= lost;
        resolve(lost);
      });
    });
  }

  /** @throws HybridError GPU_UNAVAILABLE without the package, an adapter or a device; its message says which */
  static async open(options: OpenDeviceOptions = {}): Promise<GpuDevice> {
    const adapter = await requestAdapter(options.name);
    const facts = adapterFacts(adapter);
    const { limits, features } = adapter;
    let raw: GPUDevice;
    try {
      raw = await adapter.requestDevice({
        requiredFeatures: FEATURES.filter((feature) => features.has(feature)),
        requiredLimits: Object.fromEntries(LIMITS.map((limit) => [limit, limits[limit]])),
      });
    } catch (cause) {
      throw new HybridError('GPU_UNAVAILABLE', `${facts.name} gave no device: ${(cause as Error).message}`, {
        cause,
        hint: 'hybrid-infer doctor shows what this machine has.',
      });
    }
    return new GpuDevice(facts, raw);
  }

  /** Of a device that is there. */
  static on(facts: AdapterFacts, raw: GPUDevice): GpuDevice {
    return new GpuDevice(facts, raw);
  }

  /** @throws HybridError GPU_FAILED when something went wrong before */
  check(): void {
    if (this.closing) throw new HybridError('CLOSED', 'the GPU was closed');
    if (this.failure) throw this.failure;
  }

  /** A kernel for its text, compiled once. @throws HybridError GPU_FAILED with the compiler's lines */
  kernel(text: KernelText): Promise<Kernel> {
    const key = JSON.stringify(text);
    let found = this.kernels.get(key);
    if (!found) {
      found = this.track(compileKernel(this, text));
      this.kernels.set(key, found);
    }
    return found;
  }

  /** Records commands by `record` and submits them as one buffer. */
  submit(record: (encoder: GPUCommandEncoder) => void): void {
    this.check();
    const encoder = this.raw.createCommandEncoder();
    record(encoder);
    this.raw.queue.submit([encoder.finish()]);
  }

  /** When everything submitted so far is done. @throws HybridError GPU_FAILED */
  async finished(): Promise<void> {
    await this.waitFor(this.raw.queue.onSubmittedWorkDone());
  }

  /** A promise of Dawn's: its rejection as this device's failure. */
  async waitFor<T>(promise: Promise<T>): Promise<T> {
    try {
      const value = await this.track(promise);
      this.check();
      return value;
    } catch (cause) {
      if (cause instanceof HybridError) throw cause;
      // A lost device is told twice: by the promise that waited, and, a turn later, by `lost`.
      await new Promise((resolve) => setImmediate(resolve));
      this.check();
      throw this.fail(`the GPU did not finish: ${(cause as Error).message}`, cause);
    }
  }

  /** Ends the device and all its buffers; resolves when nothing of it is under way. Can be called again. */
  async close(): Promise<void> {
    this.closing = true;
    this.raw.destroy();
    await this.raw.lost;
    while (this.pending.size > 0) await Promise.allSettled(this.pending);
    this.allocatedBytes = 0;
  }

  private track<T>(promise: Promise<T>): Promise<T> {
    this.pending.add(promise);
    const done = (): void => void this.pending.delete(promise);
    promise.then(done, done);
    return promise;
  }

  private fail(message: string, cause?: unknown): HybridError {
    this.failure ??= new HybridError('GPU_FAILED', message, { cause });
    return this.failure;
  }
}

async function requestAdapter(name: string | undefined): Promise<GPUAdapter> {
  const gpu = await loadDawn();
  const preferences: GPURequestAdapterOptions[] = [
    { powerPreference: 'high-performance' },
    { powerPreference: 'low-power' },
    { forceFallbackAdapter: true },
  ];
  const seen = new Set<string>();
  for (const preference of name === undefined ? preferences.slice(0, 1) : preferences) {
    const adapter = await gpu.requestAdapter(preference);
    if (adapter === null) continue;
    const facts = adapterFacts(adapter);
    if (name === undefined || facts.name.toLowerCase().includes(name.toLowerCase())) return adapter;
    seen.add(facts.name);
  }
  const found = seen.size > 0 ? `found ${[...seen].join(', ')}` : 'found none';
  const wanted = name === undefined ? 'a WebGPU adapter' : `a WebGPU adapter called "${name}"`;
  throw new HybridError('GPU_UNAVAILABLE', `expected ${wanted}, ${found}`, {
    hint: 'Install the GPU’s Vulkan driver (Linux: and libvulkan1), or run with --gpu off.',
  });
}

function adapterFacts({ info, limits, features }: GPUAdapter): AdapterFacts {
  const name = [info.device, info.description].filter((part) => part !== '').join(', ') || info.vendor;
  return {
    name,
    vendor: info.vendor,
    architecture: info.architecture,
    software: info.isFallbackAdapter || SOFTWARE.test(`${name} ${info.architecture}`),
    subgroups: features.has('subgroups')
      ? { min: info.subgroupMinSize ?? 4, max: info.subgroupMaxSize ?? 128 }
      : null,
    timestamps: features.has('timestamp-query'),
    halves: features.has('shader-f16'),
    maxBindingBytes: limits.maxStorageBufferBindingSize,
    maxBufferBytes: limits.maxBufferSize,
    maxWorkgroupInvocations: Math.min(
      limits.maxComputeInvocationsPerWorkgroup,
      limits.maxComputeWorkgroupSizeX,
    ),
    maxWorkgroupBytes: limits.maxComputeWorkgroupStorageSize,
    maxWorkgroups: limits.maxComputeWorkgroupsPerDimension,
    storageBuffersPerKernel: limits.maxStorageBuffersPerShaderStage,
    bindingAlignment: limits.minStorageBufferOffsetAlignment,
  };
}
