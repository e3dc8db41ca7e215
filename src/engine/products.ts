/** Matrix products of a step, wherever the matrix lives: the one place that knows lanes from the GPU. */
import type { Ptr } from '../kernels/kernels.js';
import type { RowFormat } from '../kernels/layout.js';
import { shareBegin } from './control.js';
import { postRows, takeRows } from './gpu-link.js';
import type { LaneContext } from './lane-context.js';
import type { Matrix } from './layout.js';
import type { Vectors } from './rows.js';

/** Where `format` rows find their input, and how far apart its rows are. */
export const operand = (format: RowFormat, v: Vectors): Ptr => (format === 'f32' ? v.f32 : v.q8a);
export const operandRow = (format: RowFormat, v: Vectors): number => (format === 'f32' ? v.f32Row : v.q8aRow);

/** Rows of a matrix are shared out in units of this many: outputs stay 64-byte aligned, no cache line has two writers. */
const UNIT_ROWS = 16;
/**
 * With more rows of activations than this, blocks have at least this share of a lane's units: kernels first put many
 * activations in an order of their own, which is not to be done again for every few rows of W.
 */
const FEW_ROWS = 2;
const LEAST_SHARE = 1 / 6;

/** Rows of W a lane did, and what is to be done with them at once. */
export interface Sharing {
  /** Rows of W that stay together. @default UNIT_ROWS */
  unitRows?: number;
  /** Called with every range of rows of W whose outputs this lane may use: all ranges of all lanes are all rows. */
  done?: (first: number, end: number) => void;
}

/**
 * out[t] = W in[t] + bias for `count` rows: the lanes share out the rows of W, or on the GPU (`unit` >= 0, its graph
 * adds the bias itself) lane 0 asks for all of them. All lanes call it alike, once between two barriers; a barrier
 * makes all of `out` readable.
 * @param bias f32 [W.rows]; 0: none
 * @param outRow bytes between rows of out
 */
export function product(
  context: LaneContext,
  arena: number,
  unit: number,
  w: Matrix<RowFormat>,
  bias: Ptr,
  input: Vectors,
  count: number,
  out: Ptr,
  outRow: number,
  { unitRows = UNIT_ROWS, done }: Sharing = {},
): void {
  const { work, lane, layout } = context;
  const units = Math.ceil(w.rows / unitRows);
  const endRow = (u: number): number => Math.min(w.rows, u * unitRows);
  if (unit >= 0) {
    if (lane === 0) {
      postRows(context, unit, arena, input.f32, input.f32Row, count, w.cols);
      takeRows(context, arena, out, outRow, count, w.rows);
    }
    context.barrier.wait();
    const [first, end] = [
      shareBegin(units, lane, layout.laneCount),
      shareBegin(units, lane + 1, layout.laneCount),
    ];
    if (end > first) done?.(endRow(first), endRow(end));
    return;
  }
  const least = count > FEW_ROWS ? Math.ceil((units / layout.laneCount) * LEAST_SHARE) : 1;
  work.begin(units, unitRows * w.stride, least);
  while (work.take()) {
    const [first, end] = [endRow(work.first), endRow(work.end)];
    productRows(context, arena, w, bias, first, end, input, count, out, outRow);
    done?.(first, end);
  }
}

/** The same for rows [first, end) of W, on this lane. */
export function productRows(
  context: LaneContext,
  arena: number,
  w: Matrix<RowFormat>,
  bias: Ptr,
  first: number,
  end: number,
  input: Vectors,
  count: number,
  out: Ptr,
  outRow: number,
): void {
  if (end <= first) return;
  const { kernels } = context.arenas[arena];
  kernels.dot(
    w.format,
    w.ptr + first * w.stride,
    w.stride,
    end - first,
    operand(w.format, input),
    operandRow(w.format, input),
    count,
    out + first * 4,
    outRow / 4,
    w.cols,
  );
  if (bias) {
    for (let t = 0; t < count; t++) {
      kernels.addScaled(out + t * outRow + first * 4, bias + first * 4, 1, end - first);
    }
  }
}
