/**
 * One threshold per layer for a recall that the layers reach on average. Layers differ in what recall costs
 * them: where the curves' slopes are equal, no other choice of the same mean recall has fewer candidates.
 */
import type { LayerCurve } from '../predictor/artifact.js';

/** No layer goes below target minus this many times (1 - target): errors of one layer feed the next. */
const MAX_SPREAD = 3;
/** Bisection steps over the slope: beyond the curves' own resolution. */
const STEPS = 60;

/**
 * @returns the index into each curve's points: the mean recall is at least `target` where the curves reach it,
 *   and no layer is below its floor, unless its first point is
 */
export function equalSlopes(curves: readonly LayerCurve[], target: number): number[] {
  const floor = target - MAX_SPREAD * (1 - target);
  const hulls = curves.map((curve) => upperHull(curve, floor));
  const pick = (price: number): number[] => hulls.map((hull, l) => bestAt(curves[l], hull, price));
  const meanRecall = (chosen: number[]): number =>
    chosen.reduce((sum, at, l) => sum + curves[l].recall[at], 0) / curves.length;
  // price: predicted sparsity worth giving up for recall. Mean recall grows with it.
  let [low, high] = [0, 1e6];
  if (meanRecall(pick(high)) < target) return pick(high);
  for (let step = 0; step < STEPS; step++) {
    const middle = step < 20 ? Math.sqrt(Math.max(low, 1e-6) * high) : (low + high) / 2;
    if (meanRecall(pick(middle)) >= target) high = middle;
    else low = middle;
  }
  return lowerToTarget(curves, pick(high), target, floor);
}

/** The hull's corners are far apart: use up what is above the target, always where it saves most. */
function lowerToTarget(
  curves: readonly LayerCurve[],
  chosen: number[],
  target: number,
  floor: number,
): number[] {
  let spare = chosen.reduce((sum, at, l) => sum + curves[l].recall[at], 0) - target * curves.length;
  for (;;) {
    let best = -1;
    let bestGain = 0;
    chosen.forEach((at, l) => {
      const curve = curves[l];
      if (at + 1 >= curve.recall.length || curve.recall[at + 1] < floor) return;
      const loss = curve.recall[at] - curve.recall[at + 1];
      if (loss > spare) return;
      const gain = (curve.predictedSparsity[at + 1] - curve.predictedSparsity[at]) / Math.max(loss, 1e-9);
      if (gain > bestGain) [best, bestGain] = [l, gain];
    });
    if (best < 0) return chosen;
    spare -= curves[best].recall[chosen[best]] - curves[best].recall[chosen[best] + 1];
    chosen[best]++;
  }
}

/** Indices of the points no mixture of others beats, of those with at least `floor` recall. */
function upperHull(curve: LayerCurve, floor: number): number[] {
  const { recall, predictedSparsity: sparsity } = curve;
  const hull: number[] = [];
  for (let i = 0; i < recall.length; i++) {
    if (i > 0 && recall[i] < floor) break;
    while (hull.length >= 2) {
      const [a, b] = [hull[hull.length - 2], hull[hull.length - 1]];
      const cross =
        (sparsity[b] - sparsity[a]) * (recall[i] - recall[a]) -
        (recall[b] - recall[a]) * (sparsity[i] - sparsity[a]);
      if (cross < 0) break;
      hull.pop();
    }
    hull.push(i);
  }
  return hull;
}

function bestAt(curve: LayerCurve, hull: readonly number[], price: number): number {
  let best = hull[0];
  for (const i of hull) {
    const value = curve.predictedSparsity[i] + price * curve.recall[i];
    const bestValue = curve.predictedSparsity[best] + price * curve.recall[best];
    if (value > bestValue) best = i;
  }
  return best;
}
