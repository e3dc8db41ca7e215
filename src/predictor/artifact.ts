/**
 * predictors/<model>.predictor: every layer's predictor, its mode in the plan, and the curve from which other
 * thresholds can be chosen without profiling again. `run --ffn predicted` needs nothing else.
 */
import { z } from 'zod';
import type { FfnCuts, FfnMode } from '../engine/ffn-plan.js';
import { ArtifactError, HybridError } from '../errors.js';
import { MAX_HIDDEN, MAX_INTERMEDIATE, MAX_LAYERS } from '../model/limits.js';
import {
  artifactInvalid,
  f32Schema,
  parse,
  readArtifact,
  toBytes,
  u32Schema,
  writeArtifact,
  type ArtifactKind,
} from './artifact-file.js';
import { predictorRowBytes } from './rows.js';
import {
  FFN_MODES,
  PREDICTOR_FORMATS,
  PREDICTOR_KINDS,
  type LayerPredictor,
  type RowMatrix,
} from './types.js';

export const PREDICTOR_FILE: ArtifactKind = { magic: 'HYBPRED\0', version: 1, name: 'predictor' };

const share = z.number().min(0).max(1);
const dimension = (max: number) => z.number().int().min(1).max(max);

/** Which model an artifact belongs to. */
export const modelSchema = z.strictObject({
  name: z.string().min(1).max(1000),
  fingerprint: z.string().regex(/^[0-9a-f]{64}$/, { error: 'expected 64 hexadecimal digits' }),
  layers: dimension(MAX_LAYERS),
  hiddenSize: dimension(MAX_HIDDEN),
  intermediateSize: dimension(MAX_INTERMEDIATE),
});
export type ArtifactModel = z.infer<typeof modelSchema>;

/** Where an artifact's numbers come from. */
export const provenanceSchema = z.strictObject({
  toolVersion: z.string().max(100),
  /** ISO date of the first start. */
  createdAt: z.string().max(40),
  texts: z
    .array(z.strictObject({ name: z.string().max(4096), sha256: z.string().max(64), bytes: z.number() }))
    .max(10_000),
  /** The model wrote its own text. */
  selfWritten: z.boolean(),
  tokens: z.number().int().min(0),
  samples: z.number().int().min(0),
  heldOutSamples: z.number().int().min(0),
  window: z.number().int().min(1),
  seed: z.number().int().min(0),
  quant: z.string().max(20),
  kernels: z.string().max(200),
});
export type Provenance = z.infer<typeof provenanceSchema>;

/** Densities on held-out samples, and what one token's FFN reads in each mode. */
const heldOutSchema = z.strictObject({
  sparsity: share,
  predictedSparsity: share,
  recall: share,
  weightedRecall: share,
});
const bytesSchema = z.strictObject({
  dense: z.number().min(0),
  exact: z.number().min(0),
  predicted: z.number().min(0),
  predictor: z.number().min(0),
});
export type ModeBytes = z.infer<typeof bytesSchema>;
const cutSchema = z.strictObject({ gate: z.number().min(0), contribution: z.number().min(0) });
const cutsSchema = z.strictObject({ exact: cutSchema, predicted: cutSchema });

/** How recall and predicted sparsity of a layer move with the threshold, measured on held-out samples. */
export interface LayerCurve {
  /** Ascending thresholds, in units of cutScale: candidate where score >= cut + threshold * cutScale. */
  threshold: Float32Array;
  recall: Float32Array;
  weightedRecall: Float32Array;
  predictedSparsity: Float32Array;
}

/** What is chosen and known about a layer beside its predictor's weights. */
export interface LayerChoice {
  mode: FfnMode;
  /** Why this mode, in words. */
  reason: string;
  /** The chosen point of the curve. */
  threshold: number;
  heldOut: z.infer<typeof heldOutSchema>;
  /** By the plan's cost model, for the quantisation that was profiled. */
  bytes: ModeBytes;
  /** What is left out of an activation without zeros. @default none */
  cuts?: FfnCuts;
}

export interface PredictorLayer extends LayerChoice {
  predictor: LayerPredictor;
  curve: LayerCurve;
}

const tradeOffSchema = z.strictObject({
  /** Mean recall on the profile's held-out samples that the thresholds were chosen for. */
  target: share,
  /** The next ones were measured by running the model on a text. */
  recall: share,
  weightedRecall: share,
  predictedSparsity: share,
  perplexity: z.number().min(0),
  densePerplexity: z.number().min(0),
  klDivergence: z.number(),
  decodeTokensPerSecond: z.number().min(0),
  /** By the plan's cost model. */
  ffnBytesPerToken: z.number().min(0),
});
/** One setting of all thresholds, and what it gave. */
export type TradeOff = z.infer<typeof tradeOffSchema>;

export interface PredictorArtifact {
  model: ArtifactModel;
  provenance: Provenance;
  /** How the thresholds were chosen, such as `recall 0.99`. */
  target: string;
  /** What `tune` measured. @default none */
  tuning?: TradeOff[];
  layers: PredictorLayer[];
}

// ---- schemas of the stored form -----------------------------------------------------------------------

const rowMatrixSchema = z.strictObject({
  format: z.enum(PREDICTOR_FORMATS),
  rows: z.number().int().min(0).max(MAX_INTERMEDIATE),
  cols: dimension(MAX_HIDDEN),
  stride: z.number().int().min(1),
  data: z.instanceof(Uint8Array),
});

const metaSchema = z.strictObject({
  model: modelSchema,
  provenance: provenanceSchema,
  target: z.string().max(1000),
  tuning: z.array(tradeOffSchema).max(1000).optional(),
});

const layerSchema = z.strictObject({
  mode: z.enum(FFN_MODES),
  reason: z.string().max(1000),
  threshold: z.number(),
  heldOut: heldOutSchema,
  bytes: bytesSchema,
  cuts: cutsSchema.optional(),
  curve: z.strictObject({
    threshold: f32Schema,
    recall: f32Schema,
    weightedRecall: f32Schema,
    predictedSparsity: f32Schema,
  }),
  predictor: z.strictObject({
    layer: z.number().int().min(0),
    kind: z.enum(PREDICTOR_KINDS),
    rank: dimension(MAX_HIDDEN),
    fc1: rowMatrixSchema.nullable(),
    b1: f32Schema.nullable(),
    fc2: rowMatrixSchema,
    reach: f32Schema.nullable().optional(),
    scoredIds: u32Schema,
    cut: f32Schema,
    cutScale: f32Schema,
    always: u32Schema,
  }),
});

// ---- write and read -----------------------------------------------------------------------------------

export function writePredictor(path: string, artifact: PredictorArtifact): Promise<void> {
  const { model, provenance, target, tuning, layers } = artifact;
  return writeArtifact(path, PREDICTOR_FILE, {
    meta: { model, provenance, target, ...(tuning ? { tuning } : {}) },
    blocks: layers.map(encodeLayer),
  });
}

export function encodeLayer(layer: PredictorLayer): unknown {
  const { predictor: p, curve, mode, reason, threshold, heldOut, bytes, cuts } = layer;
  return {
    mode,
    reason,
    threshold,
    heldOut,
    bytes,
    ...(cuts ? { cuts } : {}),
    curve: {
      threshold: toBytes(curve.threshold),
      recall: toBytes(curve.recall),
      weightedRecall: toBytes(curve.weightedRecall),
      predictedSparsity: toBytes(curve.predictedSparsity),
    },
    predictor: {
      layer: p.layer,
      kind: p.kind,
      rank: p.rank,
      fc1: p.fc1 && encodeRows(p.fc1),
      b1: p.b1 && toBytes(p.b1),
      fc2: encodeRows(p.fc2),
      ...(p.reach ? { reach: toBytes(p.reach) } : {}),
      scoredIds: toBytes(p.scoredIds),
      cut: toBytes(p.cut),
      cutScale: toBytes(p.cutScale),
      always: toBytes(p.always),
    },
  };
}

/** Only the known fields: whatever else an object carries has no place in the file. */
const encodeRows = ({ format, rows, cols, stride, data }: RowMatrix): RowMatrix => ({
  format,
  rows,
  cols,
  stride,
  data,
});

/** @throws ArtifactError ARTIFACT_INVALID; HybridError when the file cannot be read */
export function readPredictor(path: string): PredictorArtifact {
  const raw = readArtifact(path, PREDICTOR_FILE);
  const meta = parse(metaSchema, raw.meta, `${path}: header`);
  if (raw.blocks.length !== meta.model.layers) {
    throw artifactInvalid(`${path}: expected ${meta.model.layers} layers, found ${raw.blocks.length}`);
  }
  const layers = raw.blocks.map((block, l) => decodeLayer(block, l, meta.model, `${path}: layer ${l}`));
  return { ...meta, layers };
}

/** One stored layer, checked against the model it claims to belong to. */
export function decodeLayer(block: unknown, l: number, model: ArtifactModel, where: string): PredictorLayer {
  const layer = parse(layerSchema, block, where);
  const { predictor: p, curve } = layer;
  const { hiddenSize: d, intermediateSize: nFf } = model;
  const require = (ok: boolean, message: string): void => {
    if (!ok) throw artifactInvalid(`${where}: ${message}`);
  };
  require(p.layer === l, `holds layer ${p.layer}`);
  if (p.fc1 === null) require(p.rank === d && p.b1 === null, 'a sketch has rank d and no bias');
  else checkRows(p.fc1, p.rank, d, `${where}: fc1`);
  checkRows(p.fc2, p.scoredIds.length, p.rank, `${where}: fc2`);
  const smooth = p.kind === 'contribution' || p.kind === 'up';
  require(!smooth || p.fc1 === null, 'contributions are scored by sketches');
  require((p.kind === 'up') === Boolean(p.reach), 'sketches of up have a reach, others have none');
  if (p.reach) {
    require(p.scoredIds.length === nFf && p.always.length === 0, 'a sketch of up scores all neurons');
    require(p.reach.length === nFf && p.reach.every((r) => r >= 0 && r < Infinity), 'a reach is no size');
  }
  require(p.b1 === null || p.b1.length === p.rank, 'b1 does not have one value per hidden unit');
  require(p.cut.length === p.scoredIds.length, 'cut does not have one value per scored neuron');
  require(p.cutScale.length === p.scoredIds.length, 'cutScale does not have one value per scored neuron');
  require([p.b1 ?? p.cut, p.cut, p.cutScale].every((values) =>
    values.every(Number.isFinite),
  ), 'a bias, cut or scale is not finite');
  const seen = new Uint8Array(nFf);
  for (const ids of [p.scoredIds, p.always]) {
    ids.forEach((id, i) => {
      require(id < nFf, `neuron ${id} of ${nFf}`);
      require(i === 0 || id > ids[i - 1], 'neuron ids are not ascending');
      require(seen[id] === 0, `neuron ${id} is both scored and always a candidate`);
      seen[id] = 1;
    });
  }
  const points = curve.threshold.length;
  for (const values of Object.values(curve)) {
    require(values.length === points && values.every(Number.isFinite), 'the curve is damaged');
  }
  require(curve.threshold.every(
    (t, i) => i === 0 || t > curve.threshold[i - 1],
  ), 'the curve is not ascending');
  return layer;
}

function checkRows(matrix: RowMatrix, rows: number, cols: number, where: string): void {
  if (matrix.rows !== rows || matrix.cols !== cols) {
    throw artifactInvalid(`${where}: expected [${rows}, ${cols}], found [${matrix.rows}, ${matrix.cols}]`);
  }
  const stride = predictorRowBytes(matrix.format, cols);
  if (matrix.stride !== stride || matrix.data.length !== rows * stride) {
    throw artifactInvalid(
      `${where}: expected ${rows} rows of ${stride} bytes, found ${matrix.data.length} bytes, stride ${matrix.stride}`,
    );
  }
}

/** @throws ArtifactError ARTIFACT_MISMATCH when the artifact was made from another model */
export function requireModel(path: string, found: ArtifactModel, fingerprint: string, name: string): void {
  if (found.fingerprint === fingerprint) return;
  throw new ArtifactError(
    'ARTIFACT_MISMATCH',
    `${path}: made for the model ${found.name} (${found.fingerprint.slice(0, 12)}), ` +
      `this is ${name} (${fingerprint.slice(0, 12)})`,
    { hint: `Make artifacts for this model: hybrid-infer profile <model>` },
  );
}

/** The cuts that a layer runs with: its base cuts moved to `threshold`. */
export function cutsAt(predictor: LayerPredictor, threshold: number): Float32Array {
  return predictor.cut.map((cut, i) => cut + threshold * predictor.cutScale[i]);
}

/** Index of the curve's last point that still has this recall; 0 when none has. */
export function pointAtRecall(curve: LayerCurve, recall: number): number {
  let found = 0;
  for (let i = 0; i < curve.threshold.length; i++) if (curve.recall[i] >= recall) found = i;
  return found;
}

/** Errors that mean "this file is no use here", as opposed to programming faults. */
export const isArtifactError = (error: unknown): error is HybridError =>
  error instanceof HybridError &&
  ['ARTIFACT_INVALID', 'ARTIFACT_MISMATCH', 'FILE_NOT_FOUND', 'FILE_INVALID'].includes(error.code);
