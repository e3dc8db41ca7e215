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

/** The first drafts of a sequence are short: nothing is known about it. */
const FIRST_LENGTH = 2;
/**
 * Steps with a proposal at hand that go without it after a rejection, before one token is tried again; doubled
 * by each failed try. A row more makes a step up to about twice as long, so tries cost at most 1 part in 32.
 */
const FIRST_PAUSE = 32;
const LONGEST_PAUSE = 256;

/**
 * How many draft tokens a sequence's next step gets: doubled when all were accepted, one more than the accepted
 * ones when some were, halved when none was; at 0 one token is tried now and then.
 */
export class DraftLength {
  private length: number;
  private pause = FIRST_PAUSE;
  private waited = 0;

  constructor(private readonly most: number) {
    this.length = Math.min(FIRST_LENGTH, most);
  }

  /** Draft tokens for the next step. */
  get next(): number {
    if (this.length > 0 || this.most === 0) return this.length;
    return this.waited >= this.pause ? 1 : 0;
  }

  /** After each step: how many draft tokens it had (0, too) and how many of them were right. */
  report(proposed: number, accepted: number): void {
    if (proposed === 0) {
      if (this.length === 0) this.waited++;
      return;
    }
    if (accepted > 0) {
      this.length =
        accepted === proposed ? Math.max(this.length, 2 * proposed) : Math.min(this.length, accepted + 1);
      this.length = Math.min(this.most, Math.max(1, this.length));
      this.pause = FIRST_PAUSE;
    } else if (this.length === 0) {
      this.pause = Math.min(LONGEST_PAUSE, 2 * this.pause);
    } else {
      this.length >>= 1;
    }
    this.waited = 0;
  }
}
