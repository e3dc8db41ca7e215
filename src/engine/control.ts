/**
 * The lanes' shared control block and their barrier.
 *
 *     word  0 JOB         bumped by the main thread when a job is posted; lanes sleep on it
 *           1 ARRIVED     lanes at the barrier
 *           2 GENERATION  bumped when all have arrived; late lanes sleep on it
 *           3 SLEEPERS    lanes asleep on GENERATION, so that a barrier nobody sleeps at costs no system call
 *           4 FAULT       1: leave the job now (a lane failed); checked at every barrier
 *           5 INBOX       bumped by the main thread when it sent lane 0 a message about sequences
 *           6 MAIL        1: events for the main thread are under way (at most one message at a time)
 *           7 HEARTBEAT   bumped by a lane that waits for something outside on purpose (GPU, main thread)
 *           8 PAGES_USED  pages of the KV cache that sequences hold, as of the last step
 *           9 PAGES_CACHED  pages that nobody holds and whose prefix is kept
 *          10 FAILED_ROW  1 + the row of the step that made a job fail; 0: no single one did
 *     words 16 + 32 l     units taken of lane l's share of a phase's work, and 16 further on of the next phase's
 *                           (work.ts); one cache line each
 */
const CURSORS = 16;
const CURSOR_STRIDE = 16;
export const controlWords = (lanes: number): number => CURSORS + 2 * CURSOR_STRIDE * lanes;
export const workCursor = (lane: number, odd: number): number => CURSORS + CURSOR_STRIDE * (2 * lane + odd);

export const Word = {
  JOB: 0,
  ARRIVED: 1,
  GENERATION: 2,
  SLEEPERS: 3,
  FAULT: 4,
  INBOX: 5,
  MAIL: 6,
  HEARTBEAT: 7,
  PAGES_USED: 8,
  PAGES_CACHED: 9,
  FAILED_ROW: 10,
} as const;

/**
 * Polls before a waiting lane goes to sleep: about 50 µs, longer than any balanced phase leaves a lane
 * waiting. With more lanes than cores the lane waited for may need this very core, so sleep almost at once.
 */
const SPINS = 20_000;
const SPINS_OVERSUBSCRIBED = 20;
/** A sleeping lane looks for FAULT this often; bounds how long a dead lane can go unnoticed. */
export const SLEEP_SLICE_MS = 50;

/** Thrown inside a lane to unwind to its job loop because another lane failed first. */
export class LaneInterrupted extends Error {}

/**
 * Called in every slice of a wait for something outside the lanes (the GPU, the main thread): the pool's watch
 * sees that nobody hangs, and a failure elsewhere ends the wait.
 */
export function beat(control: Int32Array): void {
  Atomics.add(control, Word.HEARTBEAT, 1);
  if (Atomics.load(control, Word.FAULT) !== 0) throw new LaneInterrupted();
}

/**
 * Where all lanes meet. A lane that never comes is noticed by the pool (lanes.ts), which watches GENERATION
 * and sets FAULT.
 */
export class Barrier {
  private readonly spins: number;

  constructor(
    private readonly control: Int32Array,
    private readonly lanes: number,
    cores: number,
  ) {
    this.spins = lanes <= cores ? SPINS : SPINS_OVERSUBSCRIBED;
  }

  /** Returns when all lanes have called it. @throws LaneInterrupted when FAULT is set meanwhile */
  wait(): void {
    const c = this.control;
    const generation = Atomics.load(c, Word.GENERATION);
    if (this.lanes === 1) {
      Atomics.store(c, Word.GENERATION, generation + 1);
    } else if (Atomics.add(c, Word.ARRIVED, 1) === this.lanes - 1) {
      Atomics.store(c, Word.ARRIVED, 0);
      Atomics.add(c, Word.GENERATION, 1);
      if (Atomics.load(c, Word.SLEEPERS) > 0) Atomics.notify(c, Word.GENERATION);
    } else {
      this.awaitGeneration(generation);
    }
    if (Atomics.load(c, Word.FAULT) !== 0) throw new LaneInterrupted();
  }

  private awaitGeneration(generation: number): void {
    const c = this.control;
    for (let i = 0; i < this.spins; i++) {
      if (Atomics.load(c, Word.GENERATION) !== generation) return;
    }
    // SLEEPERS is raised before the wait compares GENERATION, and the last lane bumps GENERATION before it
    // reads SLEEPERS: one of the two always sees the other, so no wake-up is lost.
    Atomics.add(c, Word.SLEEPERS, 1);
    try {
      while (Atomics.load(c, Word.GENERATION) === generation) {
        Atomics.wait(c, Word.GENERATION, generation, SLEEP_SLICE_MS);
        if (Atomics.load(c, Word.FAULT) !== 0) throw new LaneInterrupted();
      }
    } finally {
      Atomics.sub(c, Word.SLEEPERS, 1);
    }
  }
}

/** Begin of part `index` when `total` items are split as evenly as possible into `parts`. */
export const shareBegin = (total: number, index: number, parts: number): number =>
  Math.floor((total * index) / parts);

/** Row shares begin at multiples of 16 rows: outputs stay 64-byte aligned, no cache line has two writers. */
export const rowShare = (rows: number, lane: number, lanes: number): number =>
  lane === lanes ? rows : Math.min(rows, Math.floor((rows * lane) / lanes / 16) * 16);
