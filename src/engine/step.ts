/**
 * One step: the rows that go through the model together, in shared memory. Lane 0 fills it between two
 * barriers; everything below knows only this. A row is one token of one sequence at one position.
 *
 *     i32 header  0 ROWS      rows of this step; 0: nothing left to do, lanes leave their job
 *                 1 OUTPUTS   rows whose logits are wanted
 *     i32 [T]     token, position, slot, flags      of each row
 *     i32 [T]     output      row of the i-th wanted logits, ascending
 *     i32 [T]     wanted      what is wanted of that output (Wanted)
 *     f32 [T][4]  draws       temperature, topP, minP, the random number of an output that is drawn
 *     i32 [T]     topK        of an output that is drawn
 *     i32 [T]     chosen      afterwards, where a GPU chose: the output's token, or NOT_FINITE; else NOT_CHOSEN
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

/** Bits of what is wanted of an output. A GPU that holds the whole model sends no more than that. */
export const Wanted = {
  LOGITS: 1,
  /** The hidden state after the final norm. */
  HIDDEN: 2,
  /** The likeliest token. */
  GREEDY: 4,
  /** A token drawn with the output's `draws` and `topK`. */
  DRAW: 8,
} as const;

/** Values of `chosen` that are no tokens. */
export const NOT_CHOSEN = -1;
export const NOT_FINITE = -2;

/** How a token is drawn (sampler.ts); topK at least 1. */
export interface Draw {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  /** In [0, 1). */
  random: number;
}
export const DRAW_FLOATS = 4;

const PARTS = 8 + DRAW_FLOATS;
export const stepBytes = (batchTokens: number): number => (HEADER + PARTS * batchTokens) * 4;

export class Step {
  readonly header: Int32Array;
  readonly token: Int32Array;
  readonly position: Int32Array;
  readonly slot: Int32Array;
  readonly flags: Int32Array;
  readonly output: Int32Array;
  readonly wanted: Int32Array;
  readonly topK: Int32Array;
  readonly chosen: Int32Array;
  readonly draws: Float32Array; // [T][DRAW_FLOATS]

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
    this.wanted = part(5);
    this.topK = part(6);
    this.chosen = part(7);
    this.draws = new Float32Array(buffer, (HEADER + 8 * capacity) * 4, DRAW_FLOATS * capacity);
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

  /**
   * Ask for the output of `row`, which is later than all asked for so far.
   * @param draw how its token is drawn, for Wanted.DRAW
   * @returns its number
   */
  want(row: number, wanted: number = Wanted.LOGITS, draw: Draw | null = null): number {
    const index = this.header[OUTPUTS]++;
    this.output[index] = row;
    this.wanted[index] = wanted;
    this.chosen[index] = NOT_CHOSEN;
    if (draw) {
      this.topK[index] = draw.topK;
      this.draws.set([draw.temperature, draw.topP, draw.minP, draw.random], index * DRAW_FLOATS);
    }
    return index;
  }
}
