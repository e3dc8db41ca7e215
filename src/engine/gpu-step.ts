/**
 * A step on a GPU that holds the whole model and its KV cache: lane 0 sends the rows and gets tokens. Both go
 * through the mailbox, as 32-bit words; the GPU reads the request as it stands there.
 *
 *     request  header   ROWS, OUTPUTS, POSITIONS (the largest position plus one)
 *              [L]      mode of each layer's FFN (MODE_NUMBER), then f32 [L] cut of its gate, of its contribution
 *              [T]      token, position, slot of each row; output (its row), wanted, topK of each output
 *              [T][4]   f32 draws of each output (step.ts)
 *              [S][P]   page tables of the slots
 *     answer   [T]      the token chosen for each output, or NOT_CHOSEN, NOT_FINITE
 *              [L][T][5]  neurons of each row, as Count numbers them
 *              [T][vocab] f32 logits of outputs that want them, [T][d] f32 hidden states likewise
 *
 * So a token that is the likeliest, or drawn from the few likeliest, crosses as one number and its counters.
 * What needs all logits on the CPU (a mask, penalties, a bias, log-probabilities, top-k 0 or above MOST_DRAWN)
 * lets them cross.
 */
import { KV_PAGE } from '../kernels/layout.js';
import type { ModelConfig } from '../model/types.js';
import { awaitUnit } from './gpu-link.js';
import type { FfnMode } from './ffn-plan.js';
import type { LaneContext } from './lane-context.js';
import { rowsOf } from './rows.js';
import { counters, Stat } from './stats.js';
import { DRAW_FLOATS, Wanted, type Step } from './step.js';

/** Of how many likeliest tokens a GPU draws: they are sorted in the memory of one work-group. */
export const MOST_DRAWN = 256;

export const RequestWord = { ROWS: 0, OUTPUTS: 1, POSITIONS: 2 } as const;
const HEADER = 8;
export const MODE_NUMBER: Record<FfnMode, number> = { dense: 0, exact: 1, predicted: 2 };
/** Counters of a row and layer in the answer: what stats.ts counts of neurons. */
export const Count = { CANDIDATES: 0, GATES: 1, SCORED: 2, PASSED: 3, ACTIVE: 4 } as const;
export const COUNTS = 5;

export interface GpuStepShape {
  /** T */
  batchTokens: number;
  /** S */
  slots: number;
  /** P: pages of one table. */
  tablePages: number;
  /** L */
  layers: number;
  vocabSize: number;
  hiddenSize: number;
}

export const tablePages = (contextLength: number): number => Math.ceil(contextLength / KV_PAGE);

/** Word offsets of the parts of a request and its answer, and their lengths. */
export function gpuStepLayout({
  batchTokens: T,
  slots,
  tablePages,
  layers,
  vocabSize,
  hiddenSize,
}: GpuStepShape) {
  const parts = (sizes: Record<string, number>): Record<string, number> => {
    let at = 0;
    const offsets = Object.entries(sizes).map(([name, size]): [string, number] => [
      name,
      (at += size) - size,
    ]);
    return { ...Object.fromEntries(offsets), words: at };
  };
  const request = parts({
    header: HEADER,
    modes: layers,
    gateCuts: layers,
    contributionCuts: layers,
    token: T,
    position: T,
    slot: T,
    output: T,
    wanted: T,
    topK: T,
    draws: T * DRAW_FLOATS,
    tables: slots * tablePages,
  });
  const answer = parts({
    chosen: T,
    counts: layers * T * COUNTS,
    logits: T * vocabSize,
    hidden: T * hiddenSize,
  });
  return { request, answer } as GpuStepLayout;
}

type Offsets<Names extends string> = Record<Names | 'words', number>;
export interface GpuStepLayout {
  request: Offsets<
    | 'header'
    | 'modes'
    | 'gateCuts'
    | 'contributionCuts'
    | 'token'
    | 'position'
    | 'slot'
    | 'output'
    | 'wanted'
    | 'topK'
    | 'draws'
    | 'tables'
  >;
  answer: Offsets<'chosen' | 'counts' | 'logits' | 'hidden'>;
}

interface ModelShape {
  header: { config: ModelConfig };
  contextLength: number;
  batchTokens: number;
  slots: number;
}

export const stepShapeOf = ({ header, contextLength, batchTokens, slots }: ModelShape): GpuStepShape => ({
  batchTokens,
  slots,
  tablePages: tablePages(contextLength),
  layers: header.config.layers,
  vocabSize: header.config.vocabSize,
  hiddenSize: header.config.hiddenSize,
});

/** In this job the GPU computes whole steps. */
export const gpuHoldsModel = ({ gpu }: LaneContext): boolean => gpu !== null && gpu.units.whole >= 0;

/** As `forward`, on the GPU. @throws RuntimeFault GPU_FAILED */
export function stepOnGpu(context: LaneContext, step: Step): void {
  if (context.lane === 0) {
    const gpu = context.gpu!;
    const { layout } = context;
    gpu.stepLayout ??= gpuStepLayout(stepShapeOf({ ...layout, header: layout }));
    writeRequest(context, step, gpu.stepLayout.request);
    gpu.request = gpu.mailbox.post(gpu.units.whole, step.rows);
    awaitUnit(context);
    readAnswer(context, step, gpu.stepLayout.answer);
  }
  context.barrier.wait();
}

function writeRequest(context: LaneContext, step: Step, at: GpuStepLayout['request']): void {
  const { layout, arenas, shared } = context;
  const { x } = context.gpu!.mailbox;
  const words = new Int32Array(x.buffer, x.byteOffset, at.words);
  const pages = tablePages(layout.contextLength);
  const { rows, outputs } = step;
  let positions = 0;
  for (let t = 0; t < rows; t++) positions = Math.max(positions, step.position[t] + 1);
  words[at.header + RequestWord.ROWS] = rows;
  words[at.header + RequestWord.OUTPUTS] = outputs;
  words[at.header + RequestWord.POSITIONS] = positions;
  layout.layers.forEach(({ mode, cut }, l) => {
    words[at.modes + l] = MODE_NUMBER[mode];
    x[at.gateCuts + l] = cut.gate;
    x[at.contributionCuts + l] = cut.contribution;
  });
  words.set(step.token.subarray(0, rows), at.token);
  words.set(step.position.subarray(0, rows), at.position);
  words.set(step.slot.subarray(0, rows), at.slot);
  words.set(step.output.subarray(0, outputs), at.output);
  words.set(step.wanted.subarray(0, outputs), at.wanted);
  words.set(step.topK.subarray(0, outputs), at.topK);
  x.set(step.draws.subarray(0, outputs * DRAW_FLOATS), at.draws);
  const used = tablePages(positions);
  for (let t = 0; t < rows; t++) {
    const slot = step.slot[t];
    if (t > 0 && step.slot[t - 1] === slot) continue;
    const table = (shared.tables + slot * shared.rowTable) >>> 2;
    words.set(arenas[0].u32.subarray(table, table + used), at.tables + slot * pages);
  }
}

function readAnswer(context: LaneContext, step: Step, at: GpuStepLayout['answer']): void {
  const { layout, arenas, shared, stats } = context;
  const { y } = context.gpu!.mailbox;
  const words = new Int32Array(y.buffer, y.byteOffset, at.words);
  const { vocabSize, hiddenSize } = layout.config;
  const { f32 } = arenas[layout.globalsArena];
  const { normed } = rowsOf(context, step.rows);
  for (let i = 0; i < step.outputs; i++) {
    step.chosen[i] = words[at.chosen + i];
    if (step.wanted[i] & Wanted.LOGITS) {
      const from = at.logits + i * vocabSize;
      f32.set(y.subarray(from, from + vocabSize), (shared.logits + i * shared.rowLogits) >>> 2);
    }
    if (step.wanted[i] & Wanted.HIDDEN) {
      const from = at.hidden + i * hiddenSize;
      f32.set(y.subarray(from, from + hiddenSize), (normed.f32 + i * normed.f32Row) >>> 2);
    }
  }
  for (let l = 0; l < layout.layers.length; l++) {
    for (let t = 0; t < step.rows; t++) {
      const from = at.counts + (l * layout.batchTokens + t) * COUNTS;
      const to = counters(context, step, t, l);
      stats[to + Stat.TOKENS] += 1;
      stats[to + Stat.CANDIDATES] += words[from + Count.CANDIDATES];
      stats[to + Stat.GATES] += words[from + Count.GATES];
      stats[to + Stat.SCORED] += words[from + Count.SCORED];
      stats[to + Stat.GATED] += words[from + Count.PASSED];
      stats[to + Stat.ACTIVE] += words[from + Count.ACTIVE];
    }
  }
}
