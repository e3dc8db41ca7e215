/**
 * The predictor and profile of a synthetic model: the low-rank part of its gates, quantised as trained ones
 * are, or a sketch of them, and its neurons' frequencies. Densities, curve and counts are computed, not measured: `eval` and
 * `run --measure-recall` measure them.
 */
import type { Kernels } from '../kernels/kernels.js';
import { rowBytes } from '../kernels/layout.js';
import { instantiateKernels, selectKernels } from '../kernels/select.js';
import { createSlot, inputStride, SLOT_INPUT } from '../pack/quantize.js';
import { TOOL_VERSION } from '../pack/tool-version.js';
import type { PackHeader } from '../pack/types.js';
import type {
  LayerCurve,
  ModeBytes,
  PredictorArtifact,
  PredictorLayer,
  Provenance,
} from '../predictor/artifact.js';
import { predictorRowBytes } from '../predictor/rows.js';
import type { LayerPredictor, PredictorFormat, RowMatrix } from '../predictor/types.js';
import type { ProfileArtifact } from '../profiler/artifact.js';
import { layerHotness } from '../profiler/hotness.js';
import { modelOf } from '../profiler/provenance.js';
import { cutOf, pointAt, type DensityPlan } from './densities.js';
import { upperTail } from './normal.js';
import type { SyntheticModel } from './synthetic-model.js';
import { sketchedLayer } from './synthetic-sketch.js';

/** Neurons that would be candidates this often are not worth a row of fc2. */
const ALWAYS_FROM = 0.9;
/** Of the low-rank part: formats that packs and predictors share. */
export type LowRankFormat = 'q4' | 'q8';
/** Rows quantised at a time. */
const BLOCK_ROWS = 256;

/**
 * @param header of the pack made from the model
 * @param format of fc1 and fc2; one to three bits: a sketch takes their place, with the asked recall and the predicted
 *   sparsity that it then has
 */
export async function syntheticPredictor(
  model: SyntheticModel,
  header: PackHeader,
  format: PredictorFormat,
): Promise<PredictorArtifact> {
  const layers: PredictorLayer[] = [];
  for (let l = 0; l < model.config.layers; l++) layers.push(await layerOf(model, header, l, format));
  const { recall } = model.plan;
  const { predictedSparsity } = layers[0].heldOut;
  return {
    model: modelOf(header),
    provenance: provenanceOf(model, header),
    target: `synthetic: recall ${recall} at predicted sparsity ${Number(predictedSparsity.toFixed(4))}`,
    layers,
  };
}

/** Tokens that the computed frequencies are counted in: fine enough for neurons that fire once in 10^5. */
const PROFILE_TOKENS = 1_000_000;

export function syntheticProfile(model: SyntheticModel, header: PackHeader): ProfileArtifact {
  const { config } = model;
  const passesUp = config.activation.kind === 'drelu' ? 0.5 : 1;
  const none = { neurons: 0, jaccard: 0, independent: 0, strongest: [] };
  return {
    model: modelOf(header),
    sources: [provenanceOf(model, header)],
    tokens: PROFILE_TOKENS,
    layers: Array.from({ length: config.layers }, (_, l) => {
      const counts = Uint32Array.from(model.tau(l), (tau) => upperTail(tau) * passesUp * PROFILE_TOKENS);
      return { counts, coActivation: none, ...layerHotness(counts, PROFILE_TOKENS) };
    }),
  };
}

const provenanceOf = (model: SyntheticModel, header: PackHeader): Provenance => ({
  toolVersion: TOOL_VERSION,
  createdAt: new Date(0).toISOString(), // the same options give the same file
  texts: [],
  selfWritten: false,
  tokens: 0,
  samples: 0,
  heldOutSamples: 0,
  window: 1,
  seed: model.seed,
  quant: header.quant,
  kernels: 'none: synthetic',
});

async function layerOf(
  model: SyntheticModel,
  header: PackHeader,
  layer: number,
  format: PredictorFormat,
): Promise<PredictorLayer> {
  const { plan, predictor } =
    format === 'q4' || format === 'q8'
      ? { plan: model.plan, predictor: layerPredictor(model, layer, format) }
      : await sketchedLayer(model, layer, format, ALWAYS_FROM);
  const { recall, weightedRecall, predictedSparsity } = pointAt(plan, plan.q);
  return {
    mode: 'predicted',
    reason: 'synthetic: built for these densities',
    threshold: plan.q,
    heldOut: { sparsity: model.sparsity, predictedSparsity, recall, weightedRecall },
    bytes: modeBytes(model, header, layer, predictor, predictedSparsity),
    predictor,
    curve: curveOf(plan),
  };
}

/** cut = base + threshold * scale is densities.ts' (tau + sqrt(1 - rho) q) / sqrt(rho), with q the threshold. */
export function layerPredictor(model: SyntheticModel, layer: number, format: LowRankFormat): LayerPredictor {
  const { plan, rank } = model;
  const { hiddenSize: d, intermediateSize: nFf } = model.config;
  const tau = model.tau(layer);
  const always: number[] = [];
  const scored: number[] = [];
  for (let i = 0; i < nFf; i++) {
    const often = upperTail(cutOf(plan, tau[i])) >= ALWAYS_FROM;
    (often ? always : scored).push(i);
  }
  const B = model.fc1(layer);
  return {
    layer,
    kind: 'lowrank',
    rank,
    fc1: quantizedRows(format, rank, d, (k, out) => out.set(B.subarray(k * d, (k + 1) * d))),
    b1: null,
    fc2: quantizedRows(format, scored.length, rank, (i, out) => model.fc2Row(layer, scored[i], out)),
    scoredIds: Uint32Array.from(scored),
    cut: Float32Array.from(scored, (i) => tau[i] / Math.sqrt(plan.rho)),
    cutScale: new Float32Array(scored.length).fill(Math.sqrt((1 - plan.rho) / plan.rho)),
    always: Uint32Array.from(always),
  };
}

/** From so cautious that nearly all neurons are candidates to so bold that few are. */
function curveOf(plan: DensityPlan): LayerCurve {
  const thresholds = Array.from({ length: 41 }, (_, i) => plan.q + (i - 20) / 8);
  const points = thresholds.map((q) => pointAt(plan, q));
  return {
    threshold: Float32Array.from(thresholds),
    recall: Float32Array.from(points, (p) => p.recall),
    weightedRecall: Float32Array.from(points, (p) => p.weightedRecall),
    predictedSparsity: Float32Array.from(points, (p) => p.predictedSparsity),
  };
}

/** What one token's FFN reads in each mode. */
function modeBytes(
  model: SyntheticModel,
  header: PackHeader,
  layer: number,
  p: LayerPredictor,
  predictedSparsity: number,
): ModeBytes {
  const { gateSparsity, recall } = model.plan;
  const { gate, ffn } = header.layers[layer];
  const nFf = model.config.intermediateSize;
  const predictor = (p.fc1?.data.length ?? 0) + p.fc2.data.length;
  const passing = nFf * (1 - gateSparsity);
  return {
    dense: nFf * (gate.stride + ffn.stride),
    exact: nFf * gate.stride + passing * ffn.stride,
    predicted: predictor + nFf * (1 - predictedSparsity) * gate.stride + recall * passing * ffn.stride,
    predictor,
  };
}

/** Quantises rows that are made one at a time. */
function quantizedRows(
  format: LowRankFormat,
  rows: number,
  cols: number,
  fill: (row: number, out: Float32Array) => void,
): RowMatrix {
  const padded = rowBytes(format, cols);
  const stride = predictorRowBytes(format, cols); // the same bytes, less padding
  const data = new Uint8Array(rows * stride);
  const { memory } = createSlot(0, BLOCK_ROWS * Math.max(padded, inputStride(cols)));
  const kernels: Kernels = instantiateKernels(selectKernels('auto'), memory);
  const output = SLOT_INPUT + BLOCK_ROWS * inputStride(cols);
  for (let begin = 0; begin < rows; begin += BLOCK_ROWS) {
    const n = Math.min(BLOCK_ROWS, rows - begin);
    for (let r = 0; r < n; r++) {
      fill(begin + r, new Float32Array(memory.buffer, SLOT_INPUT + r * inputStride(cols), cols));
    }
    kernels.quantizeRows(format, SLOT_INPUT, inputStride(cols), n, output, padded, cols);
    for (let r = 0; r < n; r++) {
      data.set(new Uint8Array(memory.buffer, output + r * padded, stride), (begin + r) * stride);
    }
  }
  return { format, rows, cols, stride, data };
}
