/** A predictor's scores of neighbouring neurons. */
import type { RowFormat } from '../kernels/layout.js';
import type { LaneContext } from './lane-context.js';
import type { LayerPlacement, Matrix, PredictorPlacement } from './layout.js';
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
  const { fc1, fc2, up, rank, contribution } = predictor;
  const input = fc1 ? rows.hidden : rows.normed;
  const multiply = ({ ptr, stride: wide, format }: Matrix<RowFormat>, out: number): void => {
    const [x, xRow] = [operand(format, input), operandRow(format, input)];
    kernels.dot(format, ptr + row * wide, wide, count, x + t * xRow, xRow, n, out, stride, rank);
  };
  const [gates, ups] = [scratch.scored + at, scratch.scoredUp + at];
  multiply(fc2, gates);
  if (!contribution) return;
  if (up) multiply(up, ups);
  for (let r = 0; r < n; r++) {
    const [g, u] = [gates + r * stride * 4, ups + r * stride * 4];
    if (layer.gateBias) kernels.addScaled(g, layer.gateBias + first * 4, 1, count);
    if (up && layer.upBias) kernels.addScaled(u, layer.upBias + first * 4, 1, count);
    kernels.contribution(layout.activation, g, up ? u : 0, count);
  }
}
