/**
 * Speculation from the text itself: where the last few tokens occurred before, what followed then is proposed
 * as what follows now. Proposals cost a look-up; whether they are right is checked by the next step's rows.
 */

/** Suffixes that are looked up, longest first: long ones are right more often, two tokens are the least that is. */
const LENGTHS = [4, 3, 2];

/** All n-grams of one sequence that something followed, by their latest position. */
export class NgramIndex {
  private readonly tokens: Int32Array; // [capacity]
  /** Per length, by hash: where the token after the latest such n-gram stands; 0: none. A later one may overwrite. */
  private readonly after: Int32Array[]; // [LENGTHS][slots]
  private readonly shift: number;
  private count = 0;

  /** @param capacity tokens of the longest sequence: the context length */
  constructor(capacity: number) {
    this.tokens = new Int32Array(capacity);
    // Half full at most, and no tiny table: few n-grams overwrite each other.
    const bits = Math.max(10, Math.ceil(Math.log2(2 * Math.max(1, capacity))));
    this.shift = 32 - bits;
    this.after = LENGTHS.map(() => new Int32Array(2 ** bits));
  }

  get length(): number {
    return this.count;
  }

  /** @throws RangeError beyond the capacity */
  append(token: number): void {
    const { tokens, count: at } = this;
    if (at >= tokens.length) throw new RangeError(`the n-gram index holds ${at} tokens and is full`);
    tokens[at] = token;
    // The n-grams that end before `token` now have a successor; the ones that end with it have none yet.
    for (let l = 0; l < LENGTHS.length; l++) {
      const n = LENGTHS[l];
      if (at >= n) this.after[l][this.slot(at - n, n)] = at;
    }
    this.count = at + 1;
  }

  /**
   * Proposes what may follow. Where the earlier occurrence reaches into the end of the text (the text repeats
   * itself with a short period), the proposal goes on with its own beginning.
   * @param out the proposed tokens; out.length >= most
   * @returns how many: `most`, or 0 when no suffix occurred before
   */
  propose(most: number, out: Int32Array): number {
    const { tokens, count } = this;
    if (most <= 0) return 0;
    for (let l = 0; l < LENGTHS.length; l++) {
      const n = LENGTHS[l];
      if (count <= n) continue;
      const at = this.after[l][this.slot(count - n, n)];
      if (at === 0 || !this.same(at - n, count - n, n)) continue;
      for (let i = 0; i < most; i++) out[i] = at + i < count ? tokens[at + i] : out[at + i - count];
      return most;
    }
    return 0;
  }

  /** Equal hashes are not equal n-grams. */
  private same(a: number, b: number, n: number): boolean {
    for (let i = 0; i < n; i++) if (this.tokens[a + i] !== this.tokens[b + i]) return false;
    return true;
  }

  private slot(from: number, n: number): number {
    let h = 0;
    for (let i = 0; i < n; i++) h = Math.imul(h ^ this.tokens[from + i], 0x9e3779b1) ^ (h >>> 15);
    return Math.imul(h, 0x85ebca6b) >>> this.shift;
  }
}

/** How much of what was measured before each new measurement leaves. */
const KEPT = 0.9;
/** Rows that a step's price is learned from: no more than drafts make. */
const MOST_ROWS = 32;
/** A step that took this many times as long as usual was interrupted. */
const INTERRUPTED = 4;

/**
 * What another row of a step costs, in steps of one row, as the machine has it now: nothing where weights come from
 * memory and are read once for all rows, nearly a whole step where a small model comes from the caches.
 */
export class RowPrice {
  private oneRow = 0;
  /** Rows are free until several steps have shown otherwise. */
  private price = 0;

  get value(): number {
    return this.price;
  }

  /** A step of `rows` rows took this long. */
  report(rows: number, ms: number): void {
    if (rows === 1) {
      if (this.oneRow === 0) this.oneRow = ms;
      else if (ms < INTERRUPTED * this.oneRow) this.oneRow = mix(this.oneRow, ms);
    } else if (rows <= MOST_ROWS && this.oneRow > 0 && ms < INTERRUPTED * rows * this.oneRow) {
      this.price = mix(this.price, Math.max(0, ms / this.oneRow - 1) / (rows - 1));
    }
  }
}

const mix = (old: number, fresh: number): number => KEPT * old + (1 - KEPT) * fresh;

/** The first drafts of a sequence are short: nothing is known about it. */
const FIRST_LENGTH = 2;
/** What drafts must be expected to gain: both what is expected and what a row costs are estimates. */
const LEAST_GAIN = 1.1;
/** Accepted and rejected drafts that a sequence is credited with before it had any. */
const FIRST_ACCEPTED = 2;
const FIRST_REJECTED = 1;
/**
 * Steps with a proposal at hand that go without it after a rejection, before one token is tried again; doubled
 * by each failed try. A row more makes a step up to about twice as long, so tries cost at most 1 part in 32.
 */
const FIRST_PAUSE = 32;
const LONGEST_PAUSE = 256;

/**
 * How many draft tokens a sequence's next step gets: doubled when all were accepted, one more than the accepted
 * ones when some were, halved when none was; and never more than pay for their rows. At 0 one token is tried now
 * and then.
 */
export class DraftLength {
  private length: number;
  private pause = FIRST_PAUSE;
  private waited = 0;
  private resting = false;
  /** Draft tokens that were right, and steps that ended at a wrong one; older ones count less. */
  private accepted = FIRST_ACCEPTED;
  private rejected = FIRST_REJECTED;

  constructor(private readonly most: number) {
    this.length = Math.min(FIRST_LENGTH, most);
  }

  /** Draft tokens for the next step. @param rowPrice of a row more, in steps of one row */
  next(rowPrice: number): number {
    const length = this.worth(rowPrice);
    this.resting = length === 0;
    if (length > 0 || this.most === 0) return length;
    return this.waited >= this.pause ? 1 : 0;
  }

  /** The length, up to `length`, that gives the most tokens for the time: (1 + a + .. + a^k) / (1 + k price). */
  private worth(rowPrice: number): number {
    const share = this.accepted / (this.accepted + this.rejected);
    let [best, most, expected, chance] = [0, LEAST_GAIN, 1, 1];
    for (let k = 1; k <= this.length; k++) {
      chance *= share;
      expected += chance;
      const rate = expected / (1 + k * rowPrice);
      if (rate > most) [best, most] = [k, rate];
    }
    return best;
  }

  /** After each step: how many draft tokens it had (0, too) and how many of them were right. */
  report(proposed: number, accepted: number): void {
    if (proposed === 0) {
      if (this.resting) this.waited++;
      return;
    }
    this.accepted = KEPT * this.accepted + accepted;
    this.rejected = KEPT * this.rejected + (accepted < proposed ? 1 : 0);
    if (accepted > 0) {
      this.length =
        accepted === proposed ? Math.max(this.length, 2 * proposed) : Math.min(this.length, accepted + 1);
      this.length = Math.min(this.most, Math.max(1, this.length));
      this.pause = FIRST_PAUSE;
    } else if (this.resting) {
      this.pause = Math.min(LONGEST_PAUSE, 2 * this.pause);
    } else {
      this.length >>= 1;
    }
    this.waited = 0;
  }
}
