/**
 * Choosing before building: every kind, format and rank is tried on some of the neurons, and only what may
 * still be the cheapest is built for all of them.
 *
 * The sample takes every k-th neuron by frequency, so that hot and cold ones are there in proportion. A
 * trial's cost is that of the whole layer if all neurons were like the sample. How sure a difference of two
 * costs is says the jackknife: it is computed again without each of NEURON_GROUPS groups of neurons.
 */
import type { PredictorFormat, PredictorKind } from './types.js';
import { measureAtRecall, NEURON_GROUPS, type Margins, type Measured } from './scores.js';

/** Neurons of a sample; a layer with no more is not sampled. */
export const SAMPLE_NEURONS = 512;
/** Standard errors that a difference of costs must exceed. */
export const CONFIDENCE = 2;

/**
 * A byte of a scattered row costs as much as this many of the predictor's sequential ones: at 10 % density,
 * rows of 2.3 KB come at a quarter (WASM) to half (native) of the sequential speed; shorter rows are slower.
 */
export const READ_COST = 3;

/** One predictor that was considered, and what it gave. */
export interface Attempt {
  kind: PredictorKind;
  /** Of fc2's rows. */
  format: PredictorFormat;
  rank: number;
  /** Predictor bits per gate weight. */
  bits: number;
  recall: number;
  weightedRecall: number;
  predictedSparsity: number;
  /** Cost of a token's FFN in sequential bytes (see READ_COST). */
  cost: number;
  /**
   * What the figures come from: all neurons, a sample of them, or (before any low-rank factors are made) an
   * estimate from the gates' spectrum that errs in the predictor's favour.
   */
  from: 'all' | 'sample' | 'estimate';
  /** Cost above that of the cheapest on the same sample, as a share of it. */
  over: number;
  /** CONFIDENCE standard errors of `over`; 0 where nothing was sampled. */
  overError: number;
}

/** Sizes that turn densities into bytes. */
export interface CostModel {
  nFf: number;
  gateRowBytes: number;
  recordBytes: number;
  /** Recall to compare at. */
  recall: number;
}

/** Cost of a token's FFN with a predictor of so many bytes. */
export function costOf(
  { nFf, gateRowBytes, recordBytes }: CostModel,
  bytes: number,
  measured: Pick<Measured, 'predictedSparsity' | 'recall' | 'sparsity'>,
): number {
  const { predictedSparsity, recall, sparsity } = measured;
  const scattered =
    (1 - predictedSparsity) * nFf * gateRowBytes + recall * (1 - sparsity) * nFf * recordBytes;
  return bytes + READ_COST * scattered;
}

/** Neurons of the sample, the hottest first; all of them, in order, when there are few. */
export function sampleNeurons(counts: Uint32Array): Uint32Array {
  const n = counts.length;
  const all = Uint32Array.from({ length: n }, (_, i) => i);
  if (n <= SAMPLE_NEURONS) return all;
  all.sort((a, b) => counts[b] - counts[a] || a - b);
  return Uint32Array.from(
    { length: SAMPLE_NEURONS },
    (_, i) => all[Math.floor(((i + 0.5) * n) / SAMPLE_NEURONS)],
  );
}

/** Margins of a predictor on the sample, and the cost that follows. */
export interface Trial {
  bytes: number;
  margins: Margins;
  measured: Measured;
  cost: number;
}

export function trialOf(model: CostModel, bytes: number, margins: Margins): Trial {
  const measured = measureAtRecall(margins, model.recall);
  return { bytes, margins, measured, cost: costOf(model, bytes, measured) };
}

/** Standard error of `a`'s cost less `b`'s, from the neurons that happened to be sampled. */
export function differenceError(model: CostModel, a: Trial, b: Trial): number {
  const differences = Array.from({ length: NEURON_GROUPS }, (_, group) => {
    const cost = ({ bytes, margins }: Trial): number =>
      costOf(model, bytes, measureAtRecall(margins, model.recall, group));
    return cost(a) - cost(b);
  });
  const mean = differences.reduce((x, y) => x + y, 0) / NEURON_GROUPS;
  const squares = differences.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(((NEURON_GROUPS - 1) / NEURON_GROUPS) * squares);
}
