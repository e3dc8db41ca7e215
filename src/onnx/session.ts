/** onnxruntime sessions with typed errors. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';

import { HybridError, RuntimeFault } from '../errors.js';
import { loadOnnxRuntime, type Ort } from './runtime.js';
import type { DataType } from './schema.js';

export interface SessionOptions {
  /**
   * onnxruntime's provider name. Anything but `cpu` keeps CPU as the fallback for nodes the device
   * lacks; whether nodes really went to the device is for the caller to prove.
   * @default 'cpu'
   */
  provider?: string;
  /** Extra options of that provider, such as `{ deviceId: 1 }`. */
  providerOptions?: Readonly<Record<string, unknown>>;
  /** Threads of the CPU provider. @default 1, since callers bring their own parallelism */
  threads?: number;
  /** Write a profile of every run to `<prefix>_<time>.json` when the session ends. @default none */
  profilePrefix?: string;
  /**
   * Refuse the graph when any node would run on the CPU instead of `provider`.
   * @default false
   */
  deviceOnly?: boolean;
}

/** A tensor in or out: row-major values and their shape. */
export interface TensorValue {
  type: DataType;
  dims: readonly number[];
  data: Float32Array | Uint16Array | Int32Array | BigInt64Array | Uint8Array | Int8Array;
}

export const f32Tensor = (data: Float32Array, dims: readonly number[]): TensorValue => ({
  type: 'float32',
  dims,
  data,
});

export class OnnxSession {
  private released = false;

  private constructor(
    private readonly ort: Ort,
    private readonly session: InferenceSession,
    readonly provider: string,
  ) {}

  /**
   * @param model bytes of `GraphBuilder.build()` or the path of `GraphBuilder.save()`
   * @throws HybridError ONNX_FAILED (cpu) or GPU_UNAVAILABLE (any other provider)
   */
  static async create(model: Uint8Array | string, options: SessionOptions = {}): Promise<OnnxSession> {
    const ort = await loadOnnxRuntime();
    const provider = options.provider ?? 'cpu';
    const sessionOptions: InferenceSession.SessionOptions = {
      executionProviders: [{ name: provider, ...options.providerOptions }],
      intraOpNumThreads: options.threads ?? 1,
      interOpNumThreads: 1,
      graphOptimizationLevel: 'all',
      logSeverityLevel: 4, // errors come back as exceptions; onnxruntime would print them a second time
      ...(provider !== 'cpu' && { extra: { session: deviceConfig(options.deviceOnly ?? false) } }),
      ...(options.profilePrefix && { enableProfiling: true, profileFilePrefix: options.profilePrefix }),
    };
    try {
      const session =
        typeof model === 'string'
          ? await ort.InferenceSession.create(model, sessionOptions)
          : await ort.InferenceSession.create(model, sessionOptions);
      return new OnnxSession(ort, session, provider);
    } catch (cause) {
      const code = provider === 'cpu' ? 'ONNX_FAILED' : 'GPU_UNAVAILABLE';
      throw new HybridError(code, `onnxruntime (${provider}) refused a graph: ${messageOf(cause)}`, {
        cause,
        hint: provider === 'cpu' ? '' : 'hybrid-infer doctor lists the providers of this machine.',
      });
    }
  }

  /**
   * Runs the graph. Arrays over shared memory are copied first, because onnxruntime refuses them.
   * @param outputs names of the outputs to compute; all when absent
   * @throws RuntimeFault ONNX_FAILED or GPU_FAILED; the session should not be used again
   */
  async run(
    feeds: Readonly<Record<string, TensorValue>>,
    outputs?: readonly string[],
  ): Promise<Record<string, TensorValue>> {
    if (this.released) throw new HybridError('CLOSED', `onnxruntime session (${this.provider}) was released`);
    try {
      const tensors: Record<string, Tensor> = {};
      for (const [name, value] of Object.entries(feeds)) tensors[name] = this.tensorOf(value);
      const results =
        outputs === undefined ? await this.session.run(tensors) : await this.session.run(tensors, outputs);
      return results as unknown as Record<string, TensorValue>;
    } catch (cause) {
      const code = this.provider === 'cpu' ? 'ONNX_FAILED' : 'GPU_FAILED';
      throw new RuntimeFault(code, `onnxruntime (${this.provider}) failed in a run: ${messageOf(cause)}`, {
        cause,
      });
    }
  }

  get inputNames(): readonly string[] {
    return this.session.inputNames;
  }

  get outputNames(): readonly string[] {
    return this.session.outputNames;
  }

  /** Ends profiling: the file under `profilePrefix` is complete afterwards. */
  endProfiling(): void {
    this.session.endProfiling();
  }

  async release(): Promise<void> {
    if (this.released) return;
    this.released = true;
    await this.session.release();
  }

  private tensorOf(value: TensorValue): Tensor {
    const data = value.data.buffer instanceof ArrayBuffer ? value.data : value.data.slice();
    return new this.ort.Tensor(value.type as 'float32', data as Float32Array, value.dims);
  }
}

/**
 * Weights straight from the device allocator: onnxruntime's arena would round each block up to a power of
 * two, and a memory budget could not be kept.
 */
const deviceConfig = (deviceOnly: boolean): Record<string, string> => ({
  use_device_allocator_for_initializers: '1',
  ...(deviceOnly && { disable_cpu_ep_fallback: '1' }),
});

const messageOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause));
