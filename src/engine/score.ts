/** A predictor's scores of neighbouring neurons. */
import type { LaneContext } from './lane-context.js';
import type { LayerPlacement, PredictorPlacement } from './layout.js';
import { operand, operandRow } from './products.js';
import type { Rows } from './rows.js';

/**
 * Scores of `count` neurons for `n` rows from row t on, into scratch.scored + at, `stride` floats a row.
 * @param row of the predictor's matrices
 * @param first storage id of its neuron
 */
export function score(
  context: LaneContext,
  layer: LayerPlacement,
  predictor: PredictorPlacement,
  rows: Rows,
  t: number,
  n: number,
  row: number,
  first: number,
  count: number,
  at: number,
  stride: number,
): void {
  const { scratch, layout } = context;
  const { kernels } = context.arenas[layer.arena];
  const { fc1, fc2, rank, contribution } = predictor;
  const { format, stride: wide } = fc2;
  const input = fc1 ? rows.hidden : rows.normed;
  const [x, xRow] = [operand(format, input), operandRow(format, input)];
  const scores = scratch.scored + at;
  kernels.dot(format, fc2.ptr + row * wide, wide, count, x + t * xRow, xRow, n, scores, stride, rank);
  if (!contribution) return;
  for (let r = 0; r < n; r++) {
    const of = scores + r * stride * 4;
    if (layer.gateBias) kernels.addScaled(of, layer.gateBias + first * 4, 1, count);
    kernels.contribution(layout.activation, of, 0, count);
  }
}
