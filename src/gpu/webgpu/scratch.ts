/** What a step on the GPU works in: one of each, for all layers. T: rows of a step. */
import { embeddingSize } from '../../model/block.js';
import type { ModelConfig } from '../../model/types.js';
import { createStorage, createUniform } from './buffers.js';
import type { GpuDevice } from './device.js';
import { vectorStride } from './rows.js';

export interface TokenScratch {
  step: GPUBuffer; // the request's words (engine/gpu-step.ts)
  rows: GPUBuffer; // uniform: rows of the step
  outputs: GPUBuffer; // uniform: of which outputs are wanted
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
  const widths = {
    rowX: vectorStride(d),
    rowQkv: (heads + 2 * kvHeads) * headDim,
    rowAttended: vectorStride(heads * headDim),
    rowEnds: vectorStride(embeddingSize(config)),
  };
  const floats = (name: string, width: number): Promise<GPUBuffer> =>
    createStorage(gpu, `${name} of ${T} rows`, T * width * 4);
  const normed = await floats('normed vectors', widths.rowX);
  return {
    ...widths,
    step: await createStorage(gpu, 'the step', stepWords * 4),
    rows: await createUniform(gpu, 'rows', [0]),
    outputs: await createUniform(gpu, 'outputs', [0]),
    x: await floats('residual stream', widths.rowX),
    normed,
    ffnNormed: parallel ? await floats('normed vectors', widths.rowX) : normed,
    qkv: await floats('heads', widths.rowQkv),
    attended: await floats('attention', widths.rowAttended),
    proj: await floats('attention’s projection', widths.rowX),
    ffnOut: await floats('FFN sums', widths.rowX),
    ends: config.ends.embeddingSize === null ? null : await floats('embeddings', widths.rowEnds),
    logits: await floats('logits', vocabSize),
    chosen: await createStorage(gpu, 'chosen tokens', T * 4),
  };
}
