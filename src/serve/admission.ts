/** Who may run: a number of slots, a queue of bounded length and patience, first come first served. */
import { clientGone, unavailable } from './api-error.js';

export interface AdmissionLimits {
  /** Sequences that run at once. */
  slots: number;
  /** Sequences that may wait. */
  queue: number;
  /** The longest wait. */
  waitMs: number;
}

/** A slot in use; `release` may be called again. */
export interface Slot {
  release(): void;
}

interface Waiting {
  start(slot: Slot): void;
}

/** Clients are told to come back after this: a queue moves within seconds. */
const RETRY_SECONDS = 2;

export class Admission {
  private free: number;
  private readonly waiting: Waiting[] = [];

  constructor(private readonly limits: AdmissionLimits) {
    this.free = limits.slots;
  }

  get running(): number {
    return this.limits.slots - this.free;
  }

  get queued(): number {
    return this.waiting.length;
  }

  /** @throws ApiError 503 with Retry-After when so many sequences more would not even find room to wait */
  requireRoom(sequences: number): void {
    if (this.queued + sequences > this.free + this.limits.queue) {
      throw unavailable(
        `the queue is full: ${this.queued} wait, ${this.running} run`,
        RETRY_SECONDS,
        'queue_full',
      );
    }
  }

  /** @throws ApiError 503 when the wait was too long; 499 when the signal fired */
  async acquire(signal: AbortSignal): Promise<Slot> {
    if (signal.aborted) throw clientGone();
    if (this.free > 0 && this.waiting.length === 0) return this.take();
    this.requireRoom(1);
    return new Promise((resolve, reject) => {
      const leave = (error: Error): void => {
        const at = this.waiting.indexOf(entry);
        if (at < 0) return;
        this.waiting.splice(at, 1);
        done();
        reject(error);
      };
      const onAbort = (): void => leave(clientGone());
      const timer = setTimeout(
        () => leave(unavailable('no slot became free in time', RETRY_SECONDS, 'queue_timeout')),
        this.limits.waitMs,
      );
      const done = (): void => {
        clearTimeout(timer);
        signal.removeEventListener('abort', onAbort);
      };
      const entry: Waiting = {
        start: (slot) => {
          done();
          resolve(slot);
        },
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.waiting.push(entry);
    });
  }

  private take(): Slot {
    this.free--;
    let held = true;
    return {
      release: () => {
        if (!held) return;
        held = false;
        this.free++;
        if (this.waiting.length > 0) this.waiting.shift()!.start(this.take());
      },
    };
  }
}
