/** What a training will take, said before it starts. */
import { HybridError } from '../errors.js';
import { formatBytes } from '../io/progress.js';
import { trainingGraph } from './graphs.js';
import { elementsOf } from './parameters.js';
import type { Prepared } from './prepare.js';
import { usesL1, type Setting } from './settings.js';

export interface MemoryNeed {
  weights: number;
  gradients: number;
  moments: number;
  activations: number;
  total: number;
}

/** Node with this program, onnxruntime and the text, and what one more lane of them takes before any model. */
const BASE_BYTES = 200 << 20;
const LANE_BYTES = 60 << 20;
/** Node looks for results that nobody needs any more after so many new bytes of them, in every thread. */
const UNCOLLECTED_BYTES = 64 << 20;
/**
 * Of the values that the forward pass computes: many are freed before the backward pass needs room, and its own
 * take their place. Measured with 2 and 4 windows of the demo model.
 */
const KEPT_SHARE = 1.1;

/** Bytes at the highest point of a training of this setting. */
export function memoryNeed(prepared: Prepared, setting: Setting): MemoryNeed {
  const { parameters, plan, source, distill, lanes } = prepared;
  const all = 4 * elementsOf(parameters);
  const trained = 4 * elementsOf(parameters.filter((p) => p.trained));
  const { activationBytes } = trainingGraph({
    config: source.config,
    ...{ parameters, distill, activation: setting.activation, batch: plan.batch, l1: usesL1(setting) },
  });
  // The file's weights, the shared copy, and one in every lane; the original beside them where it teaches.
  const weights = all * (2 + lanes) * (distill > 0 ? 2 : 1);
  // In a lane: the sum so far, the next one, one batch's gradients; the shared sums; their copies for the update.
  const gradients = trained * (3 * lanes + 2 * lanes);
  // Kept, copied into the update, and coming out of it with the weights.
  const moments = trained * (2 + 3 + 3);
  const activations = Math.round(KEPT_SHARE * activationBytes) * lanes;
  const base = BASE_BYTES + LANE_BYTES * lanes + UNCOLLECTED_BYTES * (lanes + 1);
  const total = base + weights + gradients + moments + activations;
  return { weights, gradients, moments, activations, total };
}

export const describeNeed = (need: MemoryNeed): string =>
  `${formatBytes(need.total)} of memory: weights ${formatBytes(need.weights)}, gradients ` +
  `${formatBytes(need.gradients)}, moments ${formatBytes(need.moments)}, activations ${formatBytes(need.activations)}`;

/** @throws HybridError OUT_OF_MEMORY when it does not fit */
export function requireMemory(need: MemoryNeed, availableBytes: number): void {
  if (need.total <= availableBytes) return;
  throw new HybridError(
    'OUT_OF_MEMORY',
    `training needs ${describeNeed(need)}; ${formatBytes(availableBytes)} are available`,
    {
      hint: 'Try --threads 1, --micro-batch 1, --train ffn, or --adapters 16.',
    },
  );
}
