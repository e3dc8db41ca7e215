/**
 * Sequences from the main thread's side: requests go to lane 0, its events come back to whoever asked, and a
 * `serve` job runs as long as there is one.
 */
import { HybridError, RuntimeFault } from '../errors.js';
import type { ActivationCut, FfnMode } from './ffn-plan.js';
import type {
  Failure,
  SequenceAccount,
  SequenceEvent,
  SequenceRequest,
  ServeJob,
  StopReason,
  TokenLogprob,
} from './jobs.js';
import type { LanePool } from './lanes.js';
import type { TraceRequest } from './trace.js';

export interface SequenceHandlers {
  onPrompt?: (done: number) => void;
  onTokens?: (tokens: number[], logprobs: TokenLogprob[] | null) => void;
  /** @param counters of the answer, since the last call: stats.ts, [layers][STATS_PER_LAYER] */
  onCounters?: (counters: Float64Array) => void;
  /** Lane 0 waits until these have answered. */
  onMask?: () => void;
  onDraft?: () => Promise<void>;
}

export interface SequenceOutcome {
  stopReason: StopReason;
  account: SequenceAccount;
}

/** How the next `serve` job runs; asked anew for each. */
export interface ServeSettings {
  modes: FfnMode[];
  cuts: ActivationCut[];
  gpu: boolean;
  forget: boolean;
}

interface Open extends SequenceHandlers {
  resolve: (outcome: SequenceOutcome) => void;
  reject: (error: unknown) => void;
}

export class Serving {
  private readonly open = new Map<number, Open>();
  private job: Promise<void> | null = null;
  private nextId = 1;

  /**
   * @param survives called with the failure of a job: true when the sequences can go on in another one (the
   *   GPU failed and is not used any more), false when they are lost
   */
  constructor(
    private readonly lanes: LanePool,
    private readonly settings: () => ServeSettings,
    private readonly survives: (error: unknown) => boolean,
  ) {}

  /** Sequences under way. */
  get size(): number {
    return this.open.size;
  }

  /**
   * Run a sequence to its end. Aborting ends it after the step under way, with stop reason `abort`.
   * @param trace only while nothing else runs
   */
  run(
    request: Omit<SequenceRequest, 'id'>,
    handlers: SequenceHandlers,
    signal?: AbortSignal,
    trace: TraceRequest | null = null,
  ): Promise<SequenceOutcome> {
    const id = this.nextId++;
    const cancel = (): void => {
      if (this.open.has(id)) this.lanes.send({ type: 'cancel', id });
    };
    const outcome = new Promise<SequenceOutcome>((resolve, reject) => {
      this.open.set(id, { ...handlers, resolve, reject });
    }).finally(() => signal?.removeEventListener('abort', cancel));
    this.lanes.send({ type: 'submit', request: { ...request, id } });
    signal?.addEventListener('abort', cancel, { once: true });
    if (signal?.aborted) cancel();
    this.job ??= this.serve(trace);
    return outcome;
  }

  /** End every sequence after the step under way. */
  cancelAll(): void {
    for (const id of this.open.keys()) this.lanes.send({ type: 'cancel', id });
  }

  /** Resolves when the lanes have left the last job. */
  async settled(): Promise<void> {
    while (this.job) await this.job;
  }

  /** Jobs, one after the other while there are sequences; never rejects. */
  private async serve(trace: TraceRequest | null): Promise<void> {
    let culprit: Failure | null = null;
    do {
      try {
        const job: ServeJob = { type: 'serve', ...this.settings(), trace, culprit };
        culprit = null;
        await this.lanes.run(job, { onEvents: (events) => this.take(events) });
      } catch (error) {
        if (this.oneRowFailed(error))
          culprit = { code: error.code, message: error.message, hint: error.hint };
        else if (!this.survives(error)) this.fail(error);
      }
    } while (this.open.size > 0);
    this.job = null;
  }

  private oneRowFailed(error: unknown): error is HybridError {
    return error instanceof HybridError && error.code === 'NUMERIC' && this.lanes.failedRow;
  }

  private fail(error: unknown): void {
    if (!this.lanes.dead) this.lanes.send({ type: 'reset' });
    for (const { reject } of this.open.values()) reject(error);
    this.open.clear();
  }

  private take(events: SequenceEvent[]): void {
    for (const event of events) {
      const sequence = this.open.get(event.id);
      if (!sequence) continue;
      try {
        this.handle(sequence, event);
      } catch (error) {
        this.giveUp(event.id, error);
      }
    }
  }

  /** The caller's own function failed: that ends its request and no other. */
  private giveUp(id: number, error: unknown): void {
    const sequence = this.open.get(id);
    if (!sequence) return;
    this.open.delete(id);
    this.lanes.send({ type: 'cancel', id });
    sequence.reject(error);
  }

  private handle(sequence: Open, event: SequenceEvent): void {
    switch (event.type) {
      case 'prompt':
        return sequence.onPrompt?.(event.done);
      case 'tokens':
        return sequence.onTokens?.(event.tokens, event.logprobs);
      case 'counters':
        return sequence.onCounters?.(event.counters);
      case 'mask':
        sequence.onMask?.();
        return this.lanes.wake();
      case 'draft':
        void sequence.onDraft?.().then(
          () => this.lanes.wake(),
          (error) => this.giveUp(event.id, error),
        );
        return;
      case 'end':
        this.open.delete(event.id);
        return sequence.resolve({ stopReason: event.stopReason, account: event.account });
      case 'failed':
        this.open.delete(event.id);
        return sequence.reject(
          event.code === 'USAGE'
            ? new HybridError(event.code, event.message, { hint: event.hint })
            : new RuntimeFault(event.code, event.message, { hint: event.hint }),
        );
    }
  }
}
