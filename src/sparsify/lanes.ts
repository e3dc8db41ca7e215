/** The training's lanes from the main thread's side: threads, jobs for all of them, and what one fails with. */
import { Worker } from 'node:worker_threads';
import { HybridError, type ErrorCode } from '../errors.js';
import { workerUrl } from '../io/worker-path.js';
import type { METRICS } from './graphs.js';
import type { Parameter } from './parameters.js';

/** Inputs and what follows each of them; both [windows * tokens], as onnxruntime wants whole numbers. */
export interface Tokens {
  ids: BigInt64Array;
  labels: BigInt64Array;
}

export type StepMetrics = Record<(typeof METRICS)[number], number>;

export interface MeasuredPart {
  /** Sum over scored positions. */
  nll: number;
  /** Neurons with x1 = 0 per layer, over all positions. */
  zeros: number[];
}

export interface LaneInit {
  parameters: readonly Parameter[];
  training: Uint8Array;
  measuring: Uint8Array;
  weights: SharedArrayBuffer;
  teacher: SharedArrayBuffer | null;
  /** Gradient sums of the trained parameters, one after the other. */
  sums: SharedArrayBuffer;
  /** onnxruntime's threads in this lane. */
  threads: number;
}

export type LaneJob = (
  | { type: 'train'; parts: Tokens[]; lambda: number }
  | { type: 'measure'; parts: (Tokens & { scored: Float32Array })[]; threshold: number }
) & {
  /** Someone changed weights that are not trained: read all of them again. */
  reload?: boolean;
};

export type LaneReply =
  { ok: true; result: StepMetrics[] | MeasuredPart[] } | { ok: false; code: ErrorCode; message: string };

class Lane {
  private waiting: { resolve: (reply: LaneReply) => void; reject: (error: Error) => void } | null = null;
  private failure: HybridError | null = null;

  constructor(private readonly worker: Worker) {
    worker.on('message', (reply: LaneReply) => {
      this.waiting?.resolve(reply);
      this.waiting = null;
    });
    worker.on('error', (cause) => this.fail(`a training thread failed: ${(cause as Error).message}`, cause));
    worker.on('exit', (code) => this.fail(`a training thread ended with code ${code}`));
  }

  async run(job: LaneJob): Promise<LaneReply> {
    if (this.failure) throw this.failure;
    return new Promise((resolve, reject) => {
      this.waiting = { resolve, reject };
      this.worker.postMessage(job);
    });
  }

  async end(): Promise<void> {
    await this.worker.terminate();
  }

  private fail(message: string, cause?: unknown): void {
    this.failure ??= new HybridError('LANE_FAILED', message, {
      hint: 'If memory ran out, lower --micro-batch or --threads. The same command goes on where it was.',
      cause,
    });
    this.waiting?.reject(this.failure);
    this.waiting = null;
  }
}

export class Lanes {
  /** Set where untrained weights were changed: the lanes' next job reads them too. */
  reload = false;

  private constructor(private readonly lanes: readonly Lane[]) {}

  static start(inits: readonly LaneInit[]): Lanes {
    const url = workerUrl(import.meta.url, './lane-worker.js');
    return new Lanes(inits.map((workerData) => new Lane(new Worker(url, { workerData }))));
  }

  /** Each lane gets a run of neighbouring parts. @returns metrics of every part, in order */
  train(parts: readonly Tokens[], lambda: number): Promise<StepMetrics[]> {
    return this.share(parts, (own) => ({ type: 'train', parts: own, lambda }));
  }

  measure(parts: readonly (Tokens & { scored: Float32Array })[], threshold: number): Promise<MeasuredPart[]> {
    return this.share(parts, (own) => ({ type: 'measure', parts: own, threshold }));
  }

  async end(): Promise<void> {
    await Promise.all(this.lanes.map((lane) => lane.end()));
  }

  private async share<P, R>(parts: readonly P[], jobFor: (own: P[]) => LaneJob): Promise<R[]> {
    const count = this.lanes.length;
    const { reload } = this;
    this.reload = false;
    const at = (i: number): number => Math.floor((i * parts.length) / count);
    const replies = await Promise.all(
      this.lanes.map((lane, i) => lane.run({ ...jobFor(parts.slice(at(i), at(i + 1))), reload })),
    );
    return replies.flatMap((reply) => {
      if (!reply.ok) throw new HybridError(reply.code, reply.message);
      return reply.result as R[];
    });
  }
}
