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
import { activeNeurons, expertShape, type ExpertShape } from '../model/block.js';
import type { FfnMode } from '../engine/ffn-plan.js';
import { artifactInvalid } from '../predictor/artifact-file.js';
import type { LayerChoice, LayerCurve, ModeBytes } from '../predictor/artifact.js';
import type { PackHeader } from '../pack/types.js';
import type { LayerPredictor } from '../predictor/types.js';

export interface FfnSizes {
  nFf: number;
  /** Neurons that one token meets. */
  met: number;
  /** Share of the tokens that meet each expert; without a mixture 1. */
  routed: readonly number[];
  gateRowBytes: number;
  recordBytes: number;
}

/**
 * @param routed tokens that met each expert, where that was counted: default, all equally many
 * @throws ArtifactError when they are of other experts than the model's
 */
export const sizesOf = (header: PackHeader, l: number, routed?: Uint32Array): FfnSizes => ({
  nFf: header.config.intermediateSize,
  met: activeNeurons(header.config),
  routed: routedShares(expertShape(header.config), routed),
  gateRowBytes: header.layers[l].gate.stride,
  recordBytes: header.layers[l].ffn.stride,
});

/**
 * `predicted` must save this share against the next best: a predictor costs two more barriers per layer, and
 * a plan that gains nothing should not cost quality.
 */
export const WORTH_IT = 0.03;

function routedShares({ count, active }: ExpertShape, routed?: Uint32Array): number[] {
  if (routed && routed.length !== count) {
    throw artifactInvalid(
      `a profile counts the tokens of ${routed.length} experts a layer, the model has ${count}`,
    );
  }
  const total = routed?.reduce((a, b) => a + b, 0) ?? 0;
  return Array.from({ length: count }, (_, e) => active * (total > 0 ? routed![e] / total : 1 / count));
}

/** @param scored neurons that are, for one token. @default all that can be */
export const predictorBytes = (p: LayerPredictor, scored = p.cut.length): number =>
  (p.fc1 ? p.fc1.data.length + 4 * p.rank : 0) + scored * (p.fc2.stride + 4);

/** Neurons whose score a token asks for: of the experts that it meets. */
export function scoredNeurons({ scoredIds }: LayerPredictor, { nFf, routed }: FfnSizes): number {
  const size = nFf / routed.length;
  return scoredIds.reduce((sum, id) => sum + routed[Math.floor(id / size)], 0);
}

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
  const cost = predictorBytes(predictor, scoredNeurons(predictor, sizes));
  return {
    dense: met * (gateRowBytes + recordBytes),
    exact: met * gateRowBytes + active * recordBytes,
    predicted: cost + (1 - predictedSparsity) * nFf * gateRowBytes + recall * active * recordBytes,
    predictor: cost,
  };
}

/** Experts that have no predictor, in words. */
function withoutScores({ always }: LayerPredictor, { nFf, routed }: FfnSizes): string {
  const experts = routed.length;
  if (experts === 1) return '';
  const size = nFf / experts;
  const known = new Uint32Array(experts);
  for (const id of always) known[Math.floor(id / size)]++;
  const whole = Array.from(known.keys()).filter((e) => known[e] === size);
  if (whole.length === 0) return '';
  if (whole.length > MOST_NAMED) return `; ${whole.length} of ${experts} experts have no predictor`;
  return `; no predictor for ${whole.length > 1 ? 'experts' : 'expert'} ${whole.join(', ')}`;
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
