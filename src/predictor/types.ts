/**
 * A trained predictor as the engine runs it and as the artifact stores it. One layer:
 *
 *     hidden[k] = relu?(fc1[k] . x + b1[k])          k < rank     (absent for a sketch: hidden = x)
 *     score[i]  = fc2[i] . hidden                    i < scored
 *                 contribution (plain FFNs without zeros): |sigma(fc2[i] . x)|
 *                 up (gated ones): |sigma(gate_i)| min(|fc2[i] . x|, reach[i]), the gate exact
 *     candidate = always  ∪  { scoredIds[i] : score[i] >= cut[i] + threshold * cutScale[i] }
 *
 * x is the FFN input after its RMSNorm, in the Q8A form the gate uses; hidden is quantised to Q8A before
 * fc2. Neuron ids are in the model's own order; an engine that stores neurons hot first maps them.
 * A neuron in neither list is never a candidate (it never fired while profiling).
 */
import type { FfnMode } from '../engine/ffn-plan.js';

export const FFN_MODES: readonly FfnMode[] = ['dense', 'exact', 'predicted'];

/** How a predictor came to be. `contribution`, `up`: of activations without zeros (fit-contribution.ts). */
export type PredictorKind = GatePredictorKind | 'contribution' | 'up';
export type GatePredictorKind = 'mlp' | 'lowrank' | 'sketch';
export const GATE_PREDICTOR_KINDS: readonly GatePredictorKind[] = ['mlp', 'lowrank', 'sketch'];
export const PREDICTOR_KINDS: readonly PredictorKind[] = [...GATE_PREDICTOR_KINDS, 'contribution', 'up'];

/** Formats of predictor rows (rows.ts): q4 and q8 as in the pack, q1 to q3 for sketches. */
export type PredictorFormat = 'q1' | 'q2' | 'q3' | 'q4' | 'q8';
export const PREDICTOR_FORMATS: readonly PredictorFormat[] = ['q1', 'q2', 'q3', 'q4', 'q8'];

/** Quantised rows, `stride` bytes apart (rows.ts). */
export interface RowMatrix {
  format: PredictorFormat;
  rows: number;
  cols: number;
  /** Bytes from one row to the next. */
  stride: number;
  /** [rows * stride] */
  data: Uint8Array;
}

/** One layer's predictor. */
export interface LayerPredictor {
  layer: number;
  kind: PredictorKind;
  /** Hidden units R; for a sketch the hidden size d. */
  rank: number;
  /** [R, d]; null: a sketch, fc2 is multiplied with x itself. */
  fc1: RowMatrix | null;
  /** f32 [R], then relu; null: the hidden layer is linear. */
  b1: Float32Array | null;
  /** [scoredIds.length, R], rows in the order of scoredIds. */
  fc2: RowMatrix;
  /** f32 [nFf], kind `up`: the largest |fc2[i] . x| that is reckoned with. All neurons are scored then. @default null */
  reach?: Float32Array | null;
  /** u32, ascending: the neurons that fc2 scores. */
  scoredIds: Uint32Array;
  /**
   * f32 [scoredIds.length]: the score at which a neuron is as likely as not to be active; fc2's bias is in it.
   */
  cut: Float32Array;
  /**
   * f32 [scoredIds.length]: the score's standard error. One threshold moves every neuron's cut by the same
   * loss of confidence: a neuron is a candidate where score >= cut + threshold * cutScale.
   */
  cutScale: Float32Array;
  /** u32, ascending: always candidates. */
  always: Uint32Array;
}
