/** Matrix products of a step, wherever the matrix lives: the one place that knows lanes from the GPU. */
import type { Ptr } from '../kernels/kernels.js';
import type { RowFormat } from '../kernels/layout.js';
import { postRows, takeRows } from './gpu-link.js';
import type { LaneContext } from './lane-context.js';
import type { Matrix } from './layout.js';
import type { Vectors } from './rows.js';

/** Where `format` rows find their input, and how far apart its rows are. */
export const operand = (format: RowFormat, v: Vectors): Ptr => (format === 'f32' ? v.f32 : v.q8a);
export const operandRow = (format: RowFormat, v: Vectors): number => (format === 'f32' ? v.f32Row : v.q8aRow);

/**
 * out[t] = W in[t] + bias for `count` rows. On the lanes this one computes rows [first, end) of W; on the GPU
 * (`unit` >= 0, its graph adds the bias itself) lane 0 asks for all of them. Afterwards this lane's part of
 * `out` can be read by this lane; a barrier makes all of it readable.
 * @param bias f32 [W.rows]; 0: none
 * @param outRow bytes between rows of out
 */
export function product(
  context: LaneContext,
  arena: number,
  unit: number,
  w: Matrix<RowFormat>,
  bias: Ptr,
  first: number,
  end: number,
  input: Vectors,
  count: number,
  out: Ptr,
  outRow: number,
): void {
  if (unit >= 0) {
    if (context.lane === 0) {
      postRows(context, unit, arena, input.f32, input.f32Row, count, w.cols);
      takeRows(context, arena, out, outRow, count, w.rows);
    }
    context.barrier.wait();
    return;
  }
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
