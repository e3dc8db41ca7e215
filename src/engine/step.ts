/**
 * One step: the rows that go through the model together, in shared memory. Lane 0 fills it between two
 * barriers; everything below knows only this. A row is one token of one sequence at one position.
 *
 *     i32 header  0 ROWS      rows of this step; 0: nothing left to do, lanes leave their job
 *                 1 OUTPUTS   rows whose logits are wanted
 *     i32 [T]     token, position, slot, flags      of each row
 *     i32 [T]     output      row of the i-th wanted logits, ascending
 *
 * Page tables stand in the arenas, where the attention kernels read them (layout.ts, `tables`): one per slot.
 */
const HEADER = 16;
const ROWS = 0;
const OUTPUTS = 1;

/** Bits of a row's flags. */
export const RowFlag = {
  /** Count true activity beside the predictor's choice. */
  MEASURE: 1,
  /** This row is the answer, not the prompt: it counts into the slot's second set of counters. */
  ANSWER: 2,
} as const;

export const stepBytes = (batchTokens: number): number => (HEADER + 5 * batchTokens) * 4;

export class Step {
  private readonly header: Int32Array;
  readonly token: Int32Array;
  readonly position: Int32Array;
  readonly slot: Int32Array;
  readonly flags: Int32Array;
  readonly output: Int32Array;

  constructor(
    buffer: SharedArrayBuffer,
    readonly capacity: number,
  ) {
    const part = (i: number): Int32Array => new Int32Array(buffer, (HEADER + i * capacity) * 4, capacity);
    this.header = new Int32Array(buffer, 0, HEADER);
    this.token = part(0);
    this.position = part(1);
    this.slot = part(2);
    this.flags = part(3);
    this.output = part(4);
  }

  get rows(): number {
    return this.header[ROWS];
  }
  get outputs(): number {
    return this.header[OUTPUTS];
  }

  clear(): void {
    this.header[ROWS] = 0;
    this.header[OUTPUTS] = 0;
  }

  /** @returns the row's number */
  add(token: number, position: number, slot: number, flags: number): number {
    const row = this.header[ROWS]++;
    this.token[row] = token;
    this.position[row] = position;
    this.slot[row] = slot;
    this.flags[row] = flags;
    return row;
  }

  /** Ask for the logits of `row`, which is later than all asked for so far. @returns their number */
  want(row: number): number {
    const index = this.header[OUTPUTS]++;
    this.output[index] = row;
    return index;
  }
}
