/**
 * How a phase's work (matrix rows, heads, chunks of neurons) is shared out between two barriers. Every lane begins
 * with a share of its own, always the same, whose weights its caches may still hold. It takes a third of what is
 * left of it at a time, then a third of what is left of the other lanes' shares: blocks become smaller towards the
 * end, and nobody waits longer for a lane that the system stopped than for the block it has in hand.
 *
 * Phases whose work can be taken from others use two sets of counters in turn: while all lanes are in one phase,
 * nobody is in the one before or after it, and each lane puts its counter of the other set back.
 *
 * Who computes a unit makes no difference to what it becomes, so results are the same whatever was taken by whom.
 */
import { workCursor, shareBegin } from './control.js';

/**
 * Shares that take less to read are not taken from: going there costs a small layer more than it waits (a lane reads
 * this in some 15 microseconds), and its weights lie in its lane's own caches.
 */
const LEAST_SHARE_BYTES = 256 * 1024;

export class Work {
  /** Units [first, end) are this lane's to do, after `take` returned true. */
  first = 0;
  end = 0;
  private units = 0;
  private least = 1;
  private owner = 0;
  private whole = true;
  /** The set of counters of the phase under way. */
  private odd = 0;

  constructor(
    private readonly control: Int32Array,
    private readonly lane: number,
    private readonly lanes: number,
  ) {}

  /** Before a job's first barrier: lanes that left the one before in the middle of a phase count alike again. */
  reset(): void {
    this.odd = 0;
    for (const odd of [0, 1]) Atomics.store(this.control, workCursor(this.lane, odd), 0);
  }

  /**
   * Begin a phase of `units` units; all lanes call it alike, at most once between two barriers.
   * @param bytes a unit reads from memory
   * @param least units of a block, but for what is left at the end of a share
   */
  begin(units: number, bytes: number, least = 1): void {
    this.units = units;
    this.least = least;
    this.owner = 0;
    this.whole = this.lanes === 1 || units * bytes < LEAST_SHARE_BYTES * this.lanes;
    if (this.whole) return;
    this.odd = 1 - this.odd;
    Atomics.store(this.control, workCursor(this.lane, 1 - this.odd), 0);
  }

  /** Take a block. @returns false when nothing is left */
  take(): boolean {
    const { control, lane, lanes, units, odd } = this;
    for (; this.owner < lanes; this.owner++) {
      const owner = (lane + this.owner) % lanes;
      const begin = shareBegin(units, owner, lanes);
      const size = shareBegin(units, owner + 1, lanes) - begin;
      if (this.whole) {
        this.owner = lanes;
        this.first = begin;
        this.end = begin + size;
        return size > 0;
      }
      const cursor = workCursor(owner, odd);
      const left = size - Atomics.load(control, cursor);
      if (left <= 0) continue;
      const block = Math.max(this.least, Math.ceil(left / 3));
      const at = Atomics.add(control, cursor, block);
      if (at >= size) continue;
      this.first = begin + at;
      this.end = begin + Math.min(size, at + block);
      return true;
    }
    return false;
  }
}
