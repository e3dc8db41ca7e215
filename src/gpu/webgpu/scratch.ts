/** What a step on the GPU works in: one of each, for all layers. T: rows of a step. */
import { embeddingSize } from '../../model/block.js';
import type { ModelConfig } from '../../model/types.js';
import { createStorage } from './buffers.js';
import type { GpuDevice } from './device.js';
import { vectorStride } from './rows.js';

export interface TokenScratch {
  step: GPUBuffer; // the request's words (engine/gpu-step.ts)
  x: GPUBuffer; // [T][rowX] the residual stream
  normed: GPUBuffer; // [T][rowX]
  ffnNormed: GPUBuffer; // [T][rowX] in parallel blocks; elsewhere `normed`
  qkv: GPUBuffer; // [T][(heads + 2 kvHeads) * headDim]
  attended: GPUBuffer; // [T][rowAttended]
  proj: GPUBuffer; // [T][rowX] what attention adds
  ffnOut: GPUBuffer; // [T][rowX] what the FFN adds
  ends: GPUBuffer | null; // [T][rowEnds] embeddings before project_in, behind project_out
  logits: GPUBuffer; // [T][vocab]
  chosen: GPUBuffer; // [T] i32
  rowX: number;
  rowQkv: number;
  rowAttended: number;
  rowEnds: number;
}

export async function createScratch(
  gpu: GpuDevice,
  config: ModelConfig,
  parallel: boolean,
  T: number,
  stepWords: number,
): Promise<TokenScratch> {
  const { hiddenSize: d, heads, kvHeads, headDim, vocabSize } = config;
  const rows = {
    rowX: vectorStride(d),
    rowQkv: (heads + 2 * kvHeads) * headDim,
    rowAttended: vectorStride(heads * headDim),
    rowEnds: vectorStride(embeddingSize(config)),
  };
  const floats = (name: string, width: number): Promise<GPUBuffer> =>
    createStorage(gpu, `${name} of ${T} rows`, T * width * 4);
  const normed = await floats('normed vectors', rows.rowX);
  return {
    ...rows,
    step: await createStorage(gpu, 'the step', stepWords * 4),
    x: await floats('residual stream', rows.rowX),
    normed,
    ffnNormed: parallel ? await floats('normed vectors', rows.rowX) : normed,
    qkv: await floats('heads', rows.rowQkv),
    attended: await floats('attention', rows.rowAttended),
    proj: await floats('attention’s projection', rows.rowX),
    ffnOut: await floats('FFN sums', rows.rowX),
    ends: config.ends.embeddingSize === null ? null : await floats('embeddings', rows.rowEnds),
    logits: await floats('logits', vocabSize),
    chosen: await createStorage(gpu, 'chosen tokens', T * 4),
  };
}
