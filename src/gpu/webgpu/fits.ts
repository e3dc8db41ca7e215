/** What a whole model on a WebGPU device takes, and what it must be like. Headers decide; nothing is loaded. */
import type { FfnPlan, QuantRows } from '../../engine/ffn-plan.js';
import { gpuStepLayout, stepShapeOf } from '../../engine/gpu-step.js';
import type { KvFormat } from '../../kernels/kernels.js';
import { alignUp, KV_PAGE } from '../../kernels/layout.js';
import { embeddingSize, rotaryDims } from '../../model/block.js';
import type { ModelConfig } from '../../model/types.js';
import type { PackHeader, PackLayer, PackSection } from '../../pack/types.js';
import { ffnScratchBytes, predictedLayer, predictorNeeds } from './ffn.js';
import { ATTENTION_SPAN } from './kernels/attention.js';
import { kvRowWords } from './kernels/heads.js';
import { vectorStride } from './rows.js';

/** As the engine will run it (engine/options.ts). */
export interface WholeShape {
  contextLength: number;
  slots: number;
  kvPages: number;
  kvFormat: KvFormat;
}

/** What WebGPU's kernels do not compute of a model's FFNs; null: nothing. */
export function unsupportedHere({ block }: ModelConfig): string | null {
  if (block.ffn.experts) return 'mixtures of experts';
  return block.ffn.norm ? 'a norm between x1 and the down projection' : null;
}

/** What keeps a whole model from the GPU besides; null: nothing. */
export function unsupportedWhole(config: ModelConfig, { kvFormat }: WholeShape): string | null {
  if (config.headDim > ATTENTION_SPAN) return `heads of ${config.headDim} dimensions`;
  if (kvFormat === 'q8' && config.headDim % 4 !== 0) return `an 8-bit cache of ${config.headDim} dimensions`;
  return unsupportedHere(config);
}

/** Device bytes: weights, KV cache, and what a step of `batchTokens` rows works in. */
export function wholeBytes(
  header: PackHeader,
  shape: WholeShape,
  batchTokens: number,
  plan: FfnPlan | null,
): number {
  const { config } = header;
  const { heads, kvHeads, headDim, hiddenSize, intermediateSize, vocabSize, layers } = config;
  const { request, answer } = gpuStepLayout(stepShapeOf({ ...shape, header, batchTokens }));
  const sections = [header.embed, header.positions, header.projectIn, header.outNorm, header.outNormBias];
  sections.push(header.projectOut, header.lmHead);
  const ofLayer = (layer: PackLayer): number => sum(Object.values(layer) as (PackSection | null)[]);
  const weights = sum(sections) + header.layers.reduce((total, layer) => total + ofLayer(layer), 0);
  const kv = 2 * layers * kvHeads * shape.kvPages * KV_PAGE * kvRowWords(shape.kvFormat, headDim) * 4;
  const angles = shape.contextLength * rotaryDims(config) * 4;
  const row =
    5 * vectorStride(hiddenSize) +
    (heads + 2 * kvHeads) * headDim +
    vectorStride(heads * headDim) +
    vectorStride(embeddingSize(config)) +
    vocabSize;
  const predictors = (plan?.layers ?? []).flatMap((layer) => predictedLayer(layer)?.predictor ?? []);
  const ofPredictors = predictors.reduce(
    (total, { fc1, b1, fc2, cut, reach }) =>
      total + [fc1, fc2, b1, cut, reach, reach].reduce((bytes, part) => bytes + sizeOf(part), 0),
    0,
  );
  const ffn = ffnScratchBytes(hiddenSize, intermediateSize, predictorNeeds(plan), batchTokens);
  return weights + kv + angles + ofPredictors + ffn + 4 * (batchTokens * row + request.words + answer.words);
}

/** Rows of weights lie a little wider on the device. */
const sizeOf = (part: QuantRows | Float32Array | null | undefined): number =>
  part ? ('data' in part ? part.rows * alignUp(part.stride, 16) : part.byteLength) : 0;

const sum = (sections: (PackSection | null)[]): number =>
  sections.reduce((total, section) => total + (section?.bytes ?? 0), 0);
