/**
 * The plan: per layer the cheapest of `dense`, `exact` and `predicted`, by the bytes of weights that one
 * token's FFN reads. Decoding is limited by memory, so bytes are time; the densities are measured.
 *
 *     dense      met (gate row + record)                        record = up row + down column
 *     exact      met gate row + active record
 *     predicted  predictor + candidates gate row + found record
 *
 * met: neurons that a token meets, of a mixture those of its experts, whose rows of the predictor are read. Densities are
 * shares of all neurons: what a token does not meet is inactive and no candidate.
 */
import { activeNeurons, expertShape } from '../model/block.js';
import type { FfnMode } from '../engine/ffn-plan.js';
import type { LayerChoice, LayerCurve, ModeBytes } from '../predictor/artifact.js';
import type { PackHeader } from '../pack/types.js';
import type { LayerPredictor } from '../predictor/types.js';

export interface FfnSizes {
  nFf: number;
  /** Neurons that one token meets. */
  met: number;
  experts: number;
  gateRowBytes: number;
  recordBytes: number;
}

export const sizesOf = (header: PackHeader, l: number): FfnSizes => ({
  nFf: header.config.intermediateSize,
  met: activeNeurons(header.config),
  experts: expertShape(header.config).count,
  gateRowBytes: header.layers[l].gate.stride,
  recordBytes: header.layers[l].ffn.stride,
});

/**
 * `predicted` must save this share against the next best: a predictor costs two more barriers per layer, and
 * a plan that gains nothing should not cost quality.
 */
export const WORTH_IT = 0.03;

/** @param met share of the neurons that a token meets: only they are scored. @default 1 */
export const predictorBytes = (p: LayerPredictor, met = 1): number =>
  (p.fc1 ? p.fc1.data.length + 4 * p.rank : 0) + met * (p.fc2.data.length + 4 * p.cut.length);

/** What a layer does at its threshold on some samples. */
export type Densities = LayerChoice['heldOut'];

/** The point `at` of a curve. */
export const densitiesAt = (
  curve: Omit<LayerCurve, 'threshold'>,
  at: number,
  sparsity: number,
): Densities => ({
  sparsity,
  predictedSparsity: curve.predictedSparsity[at],
  recall: curve.recall[at],
  weightedRecall: curve.weightedRecall[at],
});

/**
 * @param chosenBy densities that decide the mode
 * @param figures densities, on samples that decided nothing, that are told
 */
export function chooseMode(
  predictor: LayerPredictor,
  threshold: number,
  sizes: FfnSizes,
  chosenBy: Densities,
  figures: Densities,
): LayerChoice {
  const mode = cheapest(modeBytes(predictor, sizes, chosenBy));
  const bytes = modeBytes(predictor, sizes, figures);
  const without = mode === 'predicted' ? withoutScores(predictor, sizes) : '';
  return { mode, reason: explain(mode, bytes) + without, threshold, heldOut: figures, bytes };
}

function modeBytes(predictor: LayerPredictor, sizes: FfnSizes, densities: Densities): ModeBytes {
  const { nFf, met, gateRowBytes, recordBytes } = sizes;
  const { sparsity, predictedSparsity, recall } = densities;
  const active = (1 - sparsity) * nFf;
  const cost = predictorBytes(predictor, met / nFf);
  return {
    dense: met * (gateRowBytes + recordBytes),
    exact: met * gateRowBytes + active * recordBytes,
    predicted: cost + (1 - predictedSparsity) * nFf * gateRowBytes + recall * active * recordBytes,
    predictor: cost,
  };
}

/** Experts that have no predictor, in words. */
function withoutScores({ always }: LayerPredictor, { nFf, experts }: FfnSizes): string {
  if (experts === 1) return '';
  const size = nFf / experts;
  const known = new Uint32Array(experts);
  for (const id of always) known[Math.floor(id / size)]++;
  const whole = Array.from(known.keys()).filter((e) => known[e] === size);
  if (whole.length === 0) return '';
  const named = whole.length > MOST_NAMED ? `${whole.length} of ${experts} experts` : `experts ${whole.join(', ')}`; // prettier-ignore
  return `; all neurons of ${named} are candidates`;
}
const MOST_NAMED = 8;

function cheapest(bytes: ModeBytes): FfnMode {
  const other: FfnMode = bytes.exact < bytes.dense ? 'exact' : 'dense';
  return bytes.predicted < (1 - WORTH_IT) * bytes[other] ? 'predicted' : other;
}

function explain(mode: FfnMode, bytes: ModeBytes): string {
  const share = (a: number, b: number): string => `${((100 * a) / b).toFixed(0)} %`;
  if (mode === 'predicted') return `reads ${share(bytes.predicted, bytes.exact)} of exact's bytes`;
  if (mode === 'exact') return `predicted would read ${share(bytes.predicted, bytes.exact)} of exact's bytes`;
  return `nearly every neuron fires: exact would read ${share(bytes.exact, bytes.dense)} of dense's bytes`;
}
