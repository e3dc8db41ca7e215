/** Counters the lanes keep per slot and layer while they compute, and what users see of them. */
import type { ModelLayout } from './layout.js';
import { RowFlag, type Step } from './step.js';

/** Per layer and lane, f64 each. Sums over tokens (`tokens` is counted by lane 0 only). */
export const Stat = {
  TOKENS: 0, // tokens that went through this layer's FFN
  CANDIDATES: 1, // neurons that a predictor let through; without one those whose gate was computed
  GATED: 2, // neurons that passed the gate: up rows and down columns read
  ACTIVE: 3, // neurons with x1 != 0 among the computed ones
  TRUE_ACTIVE: 4, // neurons with x1 != 0 at all (measured only when asked)
  HIT: 5, // truly active and candidate
  TRUE_WEIGHT: 6, // sum of |x1| * ||down|| over truly active
  HIT_WEIGHT: 7, // the same over hits
  GATES: 8, // neurons whose gate was computed: all candidates, and more where scores come after the gate
  SCORED: 9, // neurons scored after the gate; in a mixture also those scored before it
} as const;
export const STATS_PER_LAYER = 10;

/** Shares are fractions; null: not measured. See DESIGN vocabulary in docs/architecture.md. */
export interface LayerDensity {
  sparsity: number;
  predictedSparsity: number | null;
  recall: number | null;
  weightedRecall: number | null;
  /** Mean neurons per token: candidates; gate rows computed; scored (as Stat.SCORED); up rows and down columns read. */
  candidates: number;
  gates: number;
  scored: number;
  gated: number;
}

/** Counters of one lane: [slots][prompt, answer][layers][STATS_PER_LAYER]. */
type Shape = Pick<ModelLayout, 'slots' | 'laneCount' | 'layers'>;
const laneLength = ({ slots, layers }: Shape): number => slots * 2 * layers.length * STATS_PER_LAYER;
export const statsBytes = (shape: Shape): number => shape.laneCount * laneLength(shape) * 8;

export const laneStats = (buffer: SharedArrayBuffer, shape: Shape, lane: number): Float64Array =>
  new Float64Array(buffer, lane * laneLength(shape) * 8, laneLength(shape));

/** Where row t's counters of layer l begin. */
export function counters(context: { layout: Shape }, step: Step, t: number, l: number): number {
  const phase = step.flags[t] & RowFlag.ANSWER ? 1 : 0;
  return ((step.slot[t] * 2 + phase) * context.layout.layers.length + l) * STATS_PER_LAYER;
}

/** Sums over the lanes of one slot's counters, [layers][STATS_PER_LAYER] flat; then they are zero. */
export function takeCounters(
  buffer: SharedArrayBuffer,
  shape: Shape,
  slot: number,
  phase: 'prompt' | 'answer',
): Float64Array {
  const length = shape.layers.length * STATS_PER_LAYER;
  const sum = new Float64Array(length);
  for (let lane = 0; lane < shape.laneCount; lane++) {
    const at = (slot * 2 + (phase === 'answer' ? 1 : 0)) * length;
    const part = laneStats(buffer, shape, lane).subarray(at, at + length);
    for (let i = 0; i < length; i++) sum[i] += part[i];
    part.fill(0);
  }
  return sum;
}

/**
 * Densities of one layer from its summed counters.
 * @param sum [STATS_PER_LAYER]
 * @param nFf neurons
 * @param gpuNeurons how many of them the GPU computed: all of those count as predicted active, and nothing is
 *   known of their activity unless recall was measured
 */
export function layerDensity(
  sum: Float64Array,
  nFf: number,
  gpuNeurons: number,
  predicted: boolean,
  measured: boolean,
): LayerDensity {
  const tokens = Math.max(1, sum[Stat.TOKENS]);
  const known = predicted && measured;
  // Without the full gate a predicted layer only knows the active neurons it found.
  const sparsity = known
    ? 1 - sum[Stat.TRUE_ACTIVE] / (tokens * nFf)
    : 1 - sum[Stat.ACTIVE] / (tokens * Math.max(1, nFf - gpuNeurons));
  return {
    sparsity,
    predictedSparsity: predicted ? 1 - (sum[Stat.CANDIDATES] / tokens + gpuNeurons) / nFf : null,
    recall: known ? ratio(sum[Stat.HIT], sum[Stat.TRUE_ACTIVE]) : null,
    weightedRecall: known ? ratio(sum[Stat.HIT_WEIGHT], sum[Stat.TRUE_WEIGHT]) : null,
    candidates: sum[Stat.CANDIDATES] / tokens,
    gates: sum[Stat.GATES] / tokens,
    scored: sum[Stat.SCORED] / tokens,
    gated: sum[Stat.GATED] / tokens,
  };
}

/** Nothing to find counts as all found. */
const ratio = (part: number, whole: number): number => (whole === 0 ? 1 : part / whole);

export interface Overall {
  sparsity: number;
  predictedSparsity: number | null;
  recall: number | null;
  weightedRecall: number | null;
}

/** Means over layers; null where no layer has the figure. */
export function overall(layers: LayerDensity[]): Overall {
  const mean = (values: (number | null)[]): number | null => {
    const known = values.filter((v): v is number => v !== null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  };
  return {
    sparsity: mean(layers.map((l) => l.sparsity)) ?? 0,
    predictedSparsity: mean(layers.map((l) => l.predictedSparsity)),
    recall: mean(layers.map((l) => l.recall)),
    weightedRecall: mean(layers.map((l) => l.weightedRecall)),
  };
}
