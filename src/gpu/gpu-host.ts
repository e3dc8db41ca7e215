/** The main thread's side of the GPU: starts the worker with a placement, knows what it holds, ends it. */
import { Worker } from 'node:worker_threads';

import {
  GpuMailbox,
  GpuState,
  mailboxLayout,
  type GpuUnits,
  type MailboxLayout,
} from '../engine/gpu-mailbox.js';
import { gpuStepLayout, stepShapeOf } from '../engine/gpu-step.js';
import type { FfnPlan } from '../engine/ffn-plan.js';
import { HybridError, type ErrorCode } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import type { Pack } from '../pack/types.js';
import { hasSpareCore, MAX_ROWS, type GpuProvider } from './providers.js';
import type { GpuWeights } from '../profiler/gpu-bytes.js';
import { engineUnits, planUnits, unitsMailbox, type GpuPlacement, type GpuUnit } from './hot-ffn.js';
import type { WholeShape } from './webgpu/fits.js';
import type { GpuWorkerData, GpuWorkerMessage } from './gpu-worker.js';

/**
 * The worker is never terminated from outside: onnxruntime's binding aborts the whole process when its thread
 * is taken down inside a run. It is asked to end, and left behind when a hanging driver keeps it.
 */
const CLOSE_TIMEOUT_MS = 10_000;
/**
 * When the process exits, so long for the run under way to end: runs take milliseconds. After that a driver
 * hangs, and Node would wait for its thread for ever: only a signal still ends the process.
 */
const EXIT_TIMEOUT_MS = 5_000;
/**
 * cuBLAS keeps a workspace per handle (32 MiB on Hopper), and every session has a handle: 100 units would
 * take gigabytes that no budget counted. Our graphs are matrix-vector products and need none to speak of.
 */
const CUBLAS_WORKSPACE = ':16:8';

export interface GpuHostOptions {
  pack: Pack;
  /** What lives there. A whole model: WebGPU only. */
  placement: GpuPlacement | { whole: WholeShape };
  /** `cpu` runs onnxruntime's graphs on its CPU provider: for tests. */
  provider: GpuProvider | 'cpu';
  /** Predictors and cuts of a whole model. */
  plan?: FfnPlan | null;
  deviceId?: number;
  /** Most tokens a lane posts at once. */
  maxTokens: number;
  /** Busy CPU lanes beside the worker: decides whether waiting sides may spin. */
  lanes: number;
  /** Called after every unit that was uploaded. */
  onUnit?: (done: number, total: number, bytes: number) => void;
  signal?: AbortSignal;
  /** Fault tests only: every run after this many fails as if the device was lost. */
  failAfterRuns?: number;
}

export class GpuHost {
  /** Bytes that the device holds for the units. */
  bytes = 0;
  /** The device as its driver names it; null: not known. */
  device: string | null = null;
  private closing: Promise<void> | undefined;

  private constructor(
    /** For the lanes. */
    readonly engine: GpuUnits,
    private readonly unitCount: number,
    private readonly worker: Worker,
    private readonly exited: Promise<number>,
    private readonly mailbox: GpuMailbox,
  ) {}

  /**
   * Uploads everything in `placement`; resolves when the worker serves.
   * @throws HybridError GPU_UNAVAILABLE, OUT_OF_MEMORY or GPU_FAILED (a graph was refused)
   */
  static async start(options: GpuHostOptions): Promise<GpuHost> {
    const { placement, provider } = options;
    const spareCore = hasSpareCore(options.lanes);
    const { work, layout, engine, unitCount, plannedBytes } =
      'whole' in placement ? planWhole(options, placement.whole) : planUnitsOf(options, placement);
    const block = { buffer: new SharedArrayBuffer(layout.bytes), byteOffset: 0, layout, spareCore };
    if (provider === 'cuda') process.env.CUBLAS_WORKSPACE_CONFIG ??= CUBLAS_WORKSPACE;
    const workerData: GpuWorkerData = { mailbox: block, work };
    const mailbox = new GpuMailbox(block.buffer, 0, layout);
    const worker = new Worker(workerUrl(import.meta.url, './gpu-worker.js'), {
      workerData,
      execArgv: [], // an inherited --input-type or --eval would keep the worker's file from loading
    });
    // A worker that dies without a word must not leave lanes waiting for their time-out.
    const beforeExit = () => {
      mailbox.stop();
      if (!mailbox.awaitGone(EXIT_TIMEOUT_MS)) process.kill(process.pid, 'SIGKILL');
    };
    process.once('exit', beforeExit);
    const exited = new Promise<number>((resolve) => {
      worker.once('exit', (code) => {
        process.removeListener('exit', beforeExit);
        mailbox.setState(GpuState.gone);
        resolve(code);
      });
    });
    const host = new GpuHost(engine(block), unitCount, worker, exited, mailbox);
    try {
      await host.loaded(options);
    } catch (error) {
      await host.close();
      throw error;
    }
    if (host.bytes < plannedBytes) {
      await host.close();
      throw new HybridError('GPU_FAILED', `the GPU holds ${host.bytes} bytes, ${plannedBytes} were planned`);
    }
    return host;
  }

  /** Work was refused or lost; the statistics say so. Empty while everything is well. */
  get failure(): string {
    return this.mailbox.failed ? this.mailbox.failure : '';
  }

  /** Ends the worker. Call it when no lane has a request under way. Never throws. */
  async close(): Promise<void> {
    this.closing ??= this.end();
    return this.closing;
  }

  private async end(): Promise<void> {
    this.mailbox.stop();
    let timer: NodeJS.Timeout | undefined;
    const tooLong = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        this.worker.unref();
        resolve();
      }, CLOSE_TIMEOUT_MS);
    });
    await Promise.race([this.exited, tooLong]);
    clearTimeout(timer);
  }

  private loaded(options: GpuHostOptions): Promise<void> {
    const { worker } = this;
    return new Promise((resolve, reject) => {
      let done = 0;
      const aborted = () => reject(new HybridError('ABORTED', 'loading weights onto the GPU was aborted'));
      if (options.signal?.aborted) return aborted();
      options.signal?.addEventListener('abort', aborted, { once: true });
      worker.on('message', (message: GpuWorkerMessage) => {
        if (message.type === 'unit') {
          options.onUnit?.(++done, this.unitCount, message.bytes);
        } else if (message.type === 'ready') {
          this.bytes = message.bytes;
          this.device = message.device;
          options.signal?.removeEventListener('abort', aborted);
          resolve();
        } else {
          reject(startError(message.code, message.message));
        }
      });
      worker.once('error', (cause) => reject(startError(null, cause.message, cause)));
      void this.exited.then((code) => reject(startError(null, `the GPU worker ended with code ${code}`)));
    });
  }
}

const startError = (code: ErrorCode | null, message: string, cause?: unknown): HybridError =>
  new HybridError(code ?? 'GPU_FAILED', `GPU: ${message}`, {
    cause,
    hint: 'Use less --gpu-memory or --gpu off; hybrid-infer doctor checks the device.',
  });

// ---- what the worker does, and what the engine is told of it -------------------------------------------------

interface Plan {
  work: GpuWorkerData['work'];
  layout: MailboxLayout;
  engine: (mailbox: GpuUnits['mailbox']) => GpuUnits;
  unitCount: number;
  /** The least that the device must hold afterwards. */
  plannedBytes: number;
}

function planUnitsOf(options: GpuHostOptions, placement: GpuPlacement): Plan {
  const { pack, maxTokens } = options;
  const units = planUnits(pack.header, placement);
  return {
    work: unitsWork(options, units, placement.weights),
    layout: unitsMailbox(units, maxTokens),
    engine: (mailbox) => engineUnits(units, placement, mailbox),
    unitCount: units.length,
    plannedBytes: units.reduce((sum, unit) => sum + unit.bytes, 0),
  };
}

/** @throws HybridError GPU_FAILED when the weights are to have a form that the provider does not read */
function unitsWork(options: GpuHostOptions, units: GpuUnit[], weights: GpuWeights): GpuWorkerData['work'] {
  const { pack, provider, maxTokens } = options;
  const common = {
    fd: pack.fd,
    packPath: pack.path,
    header: pack.header,
    failAfterRuns: options.failAfterRuns ?? null,
  };
  if (provider === 'webgpu' && weights === 'rows') {
    return { by: 'webgpu', data: { ...common, adapter: null, work: { units, maxTokens } } };
  }
  if (provider === 'webgpu' || weights === 'rows') {
    throw new HybridError('GPU_FAILED', `${provider} does not read weights as ${weights}`);
  }
  return {
    by: 'onnxruntime',
    data: {
      ...common,
      units,
      weights,
      provider,
      providerOptions: provider === 'cuda' || provider === 'dml' ? { deviceId: options.deviceId ?? 0 } : {},
      maxRows: provider === 'cpu' ? maxTokens : MAX_ROWS[provider],
    },
  };
}

function planWhole(options: GpuHostOptions, shape: WholeShape): Plan {
  const { pack, maxTokens } = options;
  const { header } = pack;
  const common = { fd: pack.fd, packPath: pack.path, header, failAfterRuns: options.failAfterRuns ?? null };
  const work = { whole: { ...shape, batchTokens: maxTokens, plan: options.plan ?? null } };
  const { request, answer } = gpuStepLayout(stepShapeOf({ ...work.whole, header }));
  const none = { qkv: -1, o: -1, ffn: -1 };
  return {
    work: { by: 'webgpu', data: { ...common, adapter: null, work } },
    layout: mailboxLayout(
      maxTokens,
      Math.ceil(request.words / maxTokens),
      Math.ceil(answer.words / maxTokens),
    ),
    engine: (mailbox) => ({
      mailbox,
      layers: header.layers.map(() => none),
      lmHead: -1,
      whole: 0,
      hotNeurons: header.layers.map(() => new Uint32Array(0)),
    }),
    unitCount: header.layers.length + 2,
    plannedBytes: 0,
  };
}
