/**
 * The mailbox between the lanes and the GPU worker: shared memory, one request at a time.
 *
 * A lane writes x, posts a unit and goes on computing; the worker runs the unit's graph and writes y;
 * any lane waits for the request when it needs y. Everything is plain shared memory because the lanes
 * never return to an event loop inside a token. What it costs: two copies of a few KB and, when a side
 * is asleep, one wake-up (tens of microseconds).
 *
 *     byte    0  words, i32[16]:
 *                  0 POSTED         number of the last request posted (wraps); the worker sleeps on it
 *                  1 DONE           number of the last request answered; lanes sleep on it
 *                  2 UNIT           graph to run, an index into the worker's units
 *                  3 TOKENS         rows of x, 1..maxTokens
 *                  4 FAILED         0, or 1 for good: y was not computed and never will be
 *                  5 STATE          0 starting, 1 serving, 2 gone; who ends the worker sleeps on it
 *                  6 SLEEPING_LANES lanes asleep on DONE
 *                  7 WORKER_ASLEEP  1 while the worker sleeps on POSTED
 *                  8 MESSAGE_BYTES  length of the failure message
 *                  9 STOP           1: the worker ends after the run under way
 *           64  times, f64[4]: 0 BEGIN, 1 END of the last run in microseconds (process.hrtime), 2 RUNS,
 *                  3 BUSY microseconds in all runs together
 *          128  failure message, UTF-8, at most 896 bytes
 *         1024  x  f32 [maxTokens][maxInput], rows packed to the unit's own input width
 *          ...  y  f32 [maxTokens][maxOutput], rows packed to the unit's own output width
 *
 * The block may be a SharedArrayBuffer of its own or a range of an arena (then kernels reach x and y).
 */
import { RuntimeFault } from '../errors.js';

export const GpuWord = {
  POSTED: 0,
  DONE: 1,
  UNIT: 2,
  TOKENS: 3,
  FAILED: 4,
  STATE: 5,
  SLEEPING_LANES: 6,
  WORKER_ASLEEP: 7,
  MESSAGE_BYTES: 8,
  STOP: 9,
} as const;

export const GpuState = { starting: 0, serving: 1, gone: 2 } as const;

const WORDS = 16;
const TIMES_OFFSET = 64;
const MESSAGE_OFFSET = 128;
const DATA_OFFSET = 1024;
const MAX_MESSAGE_BYTES = DATA_OFFSET - MESSAGE_OFFSET;
/** x and y begin at cache lines. */
const ALIGNMENT = 64;

/**
 * Polls before a waiting side sleeps: about 50 µs. A GPU call takes longer than that, so with a core to
 * spare it is worth it (no wake-up on the critical path), and without one it is not.
 */
const SPINS = 20_000;
const SPINS_OVERSUBSCRIBED = 20;
/** A sleeping lane looks around this often: bounds how long a dead worker goes unnoticed. */
const SLEEP_SLICE_MS = 50;
/**
 * No graph takes this long on a working device; the slowest is a first run, which compiles shaders (half a
 * second on a software adapter). A failed run or a dead worker is noticed at once, without the time-out.
 */
export const GPU_TIMEOUT_MS = 60_000;

/** Where things are and how large they may be. Plain data: goes to the lanes and the worker as it is. */
export interface MailboxLayout {
  maxTokens: number;
  /** Widest x row and y row of any unit, in floats. */
  maxInput: number;
  maxOutput: number;
  /** Byte offsets from the begin of the block; size of the block. */
  x: number;
  y: number;
  bytes: number;
}

export function mailboxLayout(maxTokens: number, maxInput: number, maxOutput: number): MailboxLayout {
  const up = (n: number) => Math.ceil(n / ALIGNMENT) * ALIGNMENT;
  const x = DATA_OFFSET;
  const y = x + up(maxTokens * maxInput * 4);
  return { maxTokens, maxInput, maxOutput, x, y, bytes: y + up(maxTokens * maxOutput * 4) };
}

/** What the engine needs to use the GPU: plain data, made by gpu/, sent to the lanes as it is. */
export interface GpuUnits {
  mailbox: { buffer: SharedArrayBuffer; byteOffset: number; layout: MailboxLayout; spareCore: boolean };
  /** Unit numbers for `post`, -1 where the CPU does the work. */
  layers: { qkv: number; o: number; ffn: number }[];
  lmHead: number;
  /** A whole step (gpu-step.ts) on a GPU that holds the model and its KV cache; then there are no other units. */
  whole: number;
  /** Per layer: model ids of the neurons that `ffn` computes, ascending; empty without one. */
  hotNeurons: Uint32Array[];
  /** How long a lane waits for an answer. @default GPU_TIMEOUT_MS; fault tests have less patience */
  timeoutMs?: number;
}

export interface GpuTimes {
  /** Begin and end of the last run, microseconds of process.hrtime. */
  beginUs: number;
  endUs: number;
  runs: number;
  busyUs: number;
}

export class GpuMailbox {
  private readonly words: Int32Array;
  private readonly times: Float64Array;
  private readonly message: Uint8Array;
  /** [maxTokens * maxInput]: row t of a unit with input width w is at t * w. */
  readonly x: Float32Array;
  /** [maxTokens * maxOutput]: row t of a unit with output width w is at t * w. */
  readonly y: Float32Array;
  private readonly spins: number;

  /**
   * @param buffer shared memory; the block begins at `byteOffset`, a multiple of 64, zeroed
   * @param spareCore true when the GPU worker has a core to itself beside the lanes
   */
  constructor(
    buffer: SharedArrayBuffer,
    byteOffset: number,
    readonly layout: MailboxLayout,
    spareCore = false,
  ) {
    this.words = new Int32Array(buffer, byteOffset, WORDS);
    this.times = new Float64Array(buffer, byteOffset + TIMES_OFFSET, 4);
    this.message = new Uint8Array(buffer, byteOffset + MESSAGE_OFFSET, MAX_MESSAGE_BYTES);
    this.x = new Float32Array(buffer, byteOffset + layout.x, layout.maxTokens * layout.maxInput);
    this.y = new Float32Array(buffer, byteOffset + layout.y, layout.maxTokens * layout.maxOutput);
    this.spins = spareCore ? SPINS : SPINS_OVERSUBSCRIBED;
  }

  // ---- lanes -----------------------------------------------------------------------------------------

  /**
   * Starts a unit on the `tokens` rows that stand in `x`. One request may be under way; only one lane
   * posts. The other lanes learn the number from it or read `lastPosted` after a barrier.
   * @returns the request's number, for `wait`
   */
  post(unit: number, tokens: number): number {
    const w = this.words;
    Atomics.store(w, GpuWord.UNIT, unit);
    Atomics.store(w, GpuWord.TOKENS, tokens);
    const request = (Atomics.add(w, GpuWord.POSTED, 1) + 1) | 0;
    if (Atomics.load(w, GpuWord.WORKER_ASLEEP) !== 0) Atomics.notify(w, GpuWord.POSTED);
    return request;
  }

  get lastPosted(): number {
    return Atomics.load(this.words, GpuWord.POSTED);
  }

  /**
   * Returns when the request's y is complete.
   * @param onSlice called while asleep, every 50 ms: may throw (another lane failed, aborted)
   * @throws RuntimeFault GPU_FAILED when the run failed, the worker is gone or nothing came in time;
   *   y then holds nothing of use
   */
  wait(request: number, timeoutMs = GPU_TIMEOUT_MS, onSlice?: () => void): void {
    const w = this.words;
    for (let i = 0; i < this.spins; i++) {
      if (Atomics.load(w, GpuWord.DONE) === request) return this.checkFailure();
    }
    const deadline = performance.now() + timeoutMs;
    // SLEEPING_LANES is raised before DONE is compared, and the worker sets DONE before it reads
    // SLEEPING_LANES: one of the two always sees the other, so no wake-up is lost.
    Atomics.add(w, GpuWord.SLEEPING_LANES, 1);
    try {
      for (;;) {
        const done = Atomics.load(w, GpuWord.DONE);
        if (done === request) break;
        this.checkFailure();
        Atomics.wait(w, GpuWord.DONE, done, SLEEP_SLICE_MS);
        onSlice?.();
        if (performance.now() > deadline) {
          throw gpuFault(`the GPU did not answer within ${timeoutMs / 1000} s`);
        }
      }
    } finally {
      Atomics.sub(w, GpuWord.SLEEPING_LANES, 1);
    }
    this.checkFailure();
  }

  /** @throws RuntimeFault GPU_FAILED once a run has failed or the worker is gone */
  checkFailure(): void {
    if (Atomics.load(this.words, GpuWord.FAILED) !== 0) throw gpuFault(this.failure);
    if (Atomics.load(this.words, GpuWord.STATE) === GpuState.gone) throw gpuFault('the GPU worker is gone');
  }

  get failed(): boolean {
    return Atomics.load(this.words, GpuWord.FAILED) !== 0;
  }

  /** The worker's message, empty when nothing failed. */
  get failure(): string {
    const bytes = Atomics.load(this.words, GpuWord.MESSAGE_BYTES);
    return Buffer.from(this.message.slice(0, bytes)).toString('utf8');
  }

  /** Times of the last answered request. Read by the poster between `wait` and the next `post`. */
  lastTimes(): GpuTimes {
    return {
      beginUs: this.times[0],
      endUs: this.times[1],
      runs: this.times[2],
      busyUs: this.times[3],
    };
  }

  // ---- the worker ------------------------------------------------------------------------------------

  /**
   * Blocks until a request other than `last` is posted.
   * @returns its number, unit and tokens; null when the worker is to end
   */
  nextRequest(last: number): { request: number; unit: number; tokens: number } | null {
    const w = this.words;
    let request = Atomics.load(w, GpuWord.POSTED);
    for (let i = 0; i < this.spins && request === last; i++) request = Atomics.load(w, GpuWord.POSTED);
    if (request === last) {
      Atomics.store(w, GpuWord.WORKER_ASLEEP, 1);
      while ((request = Atomics.load(w, GpuWord.POSTED)) === last) Atomics.wait(w, GpuWord.POSTED, last);
      Atomics.store(w, GpuWord.WORKER_ASLEEP, 0);
    }
    if (this.stopping) return null;
    return { request, unit: Atomics.load(w, GpuWord.UNIT), tokens: Atomics.load(w, GpuWord.TOKENS) };
  }

  get stopping(): boolean {
    return Atomics.load(this.words, GpuWord.STOP) !== 0;
  }

  /** The worker's answer: y is complete. */
  finish(request: number, beginUs: number, endUs: number): void {
    this.times[0] = beginUs;
    this.times[1] = endUs;
    this.times[2] += 1;
    this.times[3] += endUs - beginUs;
    this.answer(request);
  }

  /** The worker's answer when there is no y: every later wait fails too. */
  fail(request: number, message: string): void {
    const bytes = Buffer.from(message, 'utf8').subarray(0, MAX_MESSAGE_BYTES);
    this.message.set(bytes);
    Atomics.store(this.words, GpuWord.MESSAGE_BYTES, bytes.length);
    Atomics.store(this.words, GpuWord.FAILED, 1);
    this.answer(request);
  }

  setState(state: number): void {
    Atomics.store(this.words, GpuWord.STATE, state);
    Atomics.notify(this.words, GpuWord.STATE);
    Atomics.notify(this.words, GpuWord.DONE);
  }

  // ---- whoever ends the worker -------------------------------------------------------------------------

  /** Asks the worker to end. Lanes that wait for it fail; ask when none does. */
  stop(): void {
    Atomics.store(this.words, GpuWord.STOP, 1);
    Atomics.add(this.words, GpuWord.POSTED, 1); // a change wakes it
    Atomics.notify(this.words, GpuWord.POSTED);
  }

  /** Blocks until the worker has ended. @returns false when it has not in time */
  awaitGone(timeoutMs: number): boolean {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const state = Atomics.load(this.words, GpuWord.STATE);
      if (state === GpuState.gone) return true;
      const left = deadline - performance.now();
      if (left <= 0) return false;
      Atomics.wait(this.words, GpuWord.STATE, state, left);
    }
  }

  private answer(request: number): void {
    Atomics.store(this.words, GpuWord.DONE, request);
    if (Atomics.load(this.words, GpuWord.SLEEPING_LANES) > 0) Atomics.notify(this.words, GpuWord.DONE);
  }
}

const gpuFault = (message: string): RuntimeFault =>
  new RuntimeFault('GPU_FAILED', `GPU: ${message}`, {
    hint: 'Run again with --gpu off, or see hybrid-infer doctor.',
  });
