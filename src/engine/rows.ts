/**
 * Whose rows are whose. Norms, residuals and quantisation work on whole rows of a step. With few rows every
 * lane does all of them in memory of its own: d values are cheaper to compute again than to wait for, and
 * nothing has to be published. With many, each lane does its share in shared memory and a barrier publishes
 * it. The equations (forward.ts) are written once over `Rows` and do not know which it is.
 */
import type { Ptr } from '../kernels/kernels.js';
import { shareBegin } from './control.js';
import type { LaneContext } from './lane-context.js';

/** Up to this many rows are computed by every lane: past it a second pass over d costs more than barriers. */
export const REDUNDANT_ROWS = 2;

/** Row t of an operand in both forms: f32 at f32 + t * f32Row, Q8A (layout.ts) at q8a + t * q8aRow. */
export interface Vectors {
  f32: Ptr;
  f32Row: number;
  q8a: Ptr;
  q8aRow: number;
}

export interface Rows {
  /** Rows of this step. */
  count: number;
  /** This lane normalises, quantises and adds to rows [begin, end). */
  begin: number;
  end: number;
  /** False: a barrier must come between computing rows and reading those of other lanes. */
  own: boolean;
  /** The residual stream: [count] rows of xRow bytes, f32 [d]. */
  x: Ptr;
  xRow: number;
  /** x as an operand in f32. */
  residual: Vectors;
  /** What a sublayer reads [d]: x after a norm where the norm stands before it. */
  normed: Vectors;
  /** The embedding or the head's input, projected to d or from it. */
  projected: Vectors;
  /** Attention's output [heads * headDim]; the same after its norm; the predictor's hidden layer [rank]. */
  attended: Vectors;
  attendedNormed: Vectors;
  hidden: Vectors;
}

/** The two kinds of rows of one lane; their counts are set per step. */
export function makeRows({ shared, scratch }: Pick<LaneContext, 'shared' | 'scratch'>): {
  own: Rows;
  shared: Rows;
} {
  const { rowX, rowXq, rowAttn, rowAttnQ, rowHidden, rowHiddenQ } = shared;
  const rows = (own: boolean): Rows => {
    const from = own ? scratch : shared;
    return {
      count: 0,
      begin: 0,
      end: 0,
      own,
      x: from.x,
      xRow: rowX,
      residual: { f32: from.x, f32Row: rowX, q8a: 0, q8aRow: 0 },
      normed: { f32: from.xn, f32Row: rowX, q8a: from.xq, q8aRow: rowXq },
      // Written by heads and by rows of matrices, which are shared out: f32 always stands in shared memory.
      projected: { f32: shared.proj, f32Row: rowX, q8a: from.xq, q8aRow: rowXq },
      attended: { f32: shared.attn, f32Row: rowAttn, q8a: from.attnQ, q8aRow: rowAttnQ },
      attendedNormed: { f32: from.attn, f32Row: rowAttn, q8a: from.attnQ, q8aRow: rowAttnQ },
      hidden: { f32: shared.hidden, f32Row: rowHidden, q8a: from.hiddenQ, q8aRow: rowHiddenQ },
    };
  };
  return { own: rows(true), shared: rows(false) };
}

/** The rows of a step of `count` rows, as this lane works on them. */
export function rowsOf(context: LaneContext, count: number): Rows {
  const { lane, layout } = context;
  const few = count <= REDUNDANT_ROWS;
  const rows = few ? context.rows.own : context.rows.shared;
  rows.count = count;
  rows.begin = few ? 0 : shareBegin(count, lane, layout.laneCount);
  rows.end = few ? count : shareBegin(count, lane + 1, layout.laneCount);
  return rows;
}

/** After this every lane may read every row. */
export function publish(context: LaneContext, rows: Rows): void {
  if (!rows.own) context.barrier.wait();
}
