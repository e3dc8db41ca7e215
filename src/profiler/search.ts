/** Thresholds by their effect: real evaluations of the model, recall after recall, until the limit is found. */
import type { Engine } from '../engine/engine.js';
import { cutsAt } from '../predictor/artifact.js';
import type { LayerCurve } from '../predictor/artifact.js';
import type { LayerPredictor } from '../predictor/types.js';

/** Run the loaded layers with these thresholds from now on. Layers that are not predicted are left alone. */
export async function applyThresholds(
  engine: Engine,
  predictors: readonly LayerPredictor[],
  thresholds: readonly number[],
): Promise<void> {
  for (const [l, predictor] of predictors.entries()) {
    if (engine.layout.layers[l].predictor) await engine.setCuts(l, cutsAt(predictor, thresholds[l]));
  }
}

export const thresholdsAt = (curves: readonly LayerCurve[], points: readonly number[]): number[] =>
  points.map((at, l) => curves[l].threshold[at]);

/** Recall below this is never tried: quality is long gone. */
const LOWEST_RECALL = 0.8;
const HIGHEST_RECALL = 0.9999;
/** Halvings of log(1 - recall): the last interval is a tenth of the miss rate wide. */
const STEPS = 7;

/**
 * The lowest recall whose measured perplexity increase is within the limit.
 * @param increase perplexity increase at a recall, by a real evaluation
 * @param lowest recall that is tried
 */
export async function searchRecall(
  limit: number,
  increase: (recall: number) => Promise<number>,
  lowest = LOWEST_RECALL,
): Promise<{ recall: number; met: boolean }> {
  // Perplexity moves with the misses, and they over decades: bisect their logarithm.
  let [few, many] = [Math.log(1 - HIGHEST_RECALL), Math.log(1 - lowest)];
  if ((await increase(HIGHEST_RECALL)) > limit) return { recall: HIGHEST_RECALL, met: false };
  for (let step = 0; step < STEPS; step++) {
    const middle = (few + many) / 2;
    if ((await increase(1 - Math.exp(middle))) <= limit) few = middle;
    else many = middle;
  }
  return { recall: 1 - Math.exp(few), met: true };
}
