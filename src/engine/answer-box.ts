/**
 * Answers of the main thread to lane 0, in shared memory: lane 0 asks with an event, the main thread calls the
 * user's function and answers here. Masks of constrained decoding and drafts of another model come this way.
 *
 *     i32[4]  0 ASKED     questions so far
 *             1 ANSWERED  the last question that was answered
 *             2 COUNT     values of that answer; -1: none
 *     u32 [capacity] from byte 16: the answer
 */
const VALUES_AT = 16;
const [ASKED, ANSWERED, COUNT] = [0, 1, 2];

export class AnswerBox {
  private readonly words: Int32Array;
  private readonly values: Uint32Array;

  constructor(readonly buffer: SharedArrayBuffer) {
    this.words = new Int32Array(buffer, 0, 4);
    this.values = new Uint32Array(buffer, VALUES_AT);
  }

  static make(capacity: number): AnswerBox {
    return new AnswerBox(new SharedArrayBuffer(VALUES_AT + 4 * capacity));
  }

  get capacity(): number {
    return this.values.length;
  }

  // ---- lane 0 ------------------------------------------------------------------------------------------
  ask(): void {
    this.words[ASKED]++;
  }
  get answered(): boolean {
    return Atomics.load(this.words, ANSWERED) === this.words[ASKED];
  }
  /** The last answer, a view of the box; null: none. */
  get answer(): Uint32Array | null {
    const count = this.words[COUNT];
    return count < 0 ? null : this.values.subarray(0, count);
  }

  // ---- the main thread -----------------------------------------------------------------------------------
  /** @throws RangeError when the answer has more values than the box */
  reply(answer: ArrayLike<number> | null): void {
    if (answer) this.values.set(answer);
    this.words[COUNT] = answer ? answer.length : -1;
    Atomics.store(this.words, ANSWERED, Atomics.load(this.words, ASKED));
  }
}
