/**
 * How large a weight matrix is on the GPU, and in which form it is kept there. Placement plans with these
 * numbers, and the graphs are built from them, so that a plan never needs more memory than it said.
 */
import { GROUP, rowBytes, type WeightFormat } from '../kernels/layout.js';

/** Form of the weights in onnxruntime's graphs. `packed`: MatMulNBits from a q4 or q8 pack. */
export type OnnxWeights = 'packed' | 'f16' | 'f32';
/** Form of the weights on the device. `rows`: the pack's own rows and records, as WebGPU's kernels read them. */
export type GpuWeights = OnnxWeights | 'rows';

/** MatMulNBits' blocks along the input dimension: our groups of 128 where the width allows, else shorter. */
export const BLOCK_SIZES = [128, 64, 32] as const;
/**
 * A down projection sums over neurons, but the pack's groups run along the hidden dimension, so its codes
 * cannot be used as they are: the hot columns are quantised again, in 8 bits, over blocks of 32 neurons.
 */
export const DOWN_BITS = 8;
export const DOWN_BLOCK = 32;
/** MatMulNBits' fast CUDA kernels take output rows in eights; missing rows are added as zeros. */
export const ROW_MULTIPLE = 8;
/** Hot neurons are chosen in groups of this many: a whole number of down blocks. */
export const NEURON_GROUP = 64;

export interface NBitsShape {
  bits: 4 | 8;
  block: number;
}

/** Bits and block of a pack's rows on the GPU; null when their width does not allow MatMulNBits. */
export function packedShape(format: WeightFormat, cols: number): NBitsShape | null {
  if (format === 'f32') return null;
  const block = BLOCK_SIZES.find((b) => b <= GROUP && cols % b === 0);
  return block === undefined ? null : { bits: format === 'q4' ? 4 : 8, block };
}

const padRows = (rows: number): number => Math.ceil(rows / ROW_MULTIPLE) * ROW_MULTIPLE;

/** Codes, and one f32 scale a block. */
export const nBitsBytes = (rows: number, cols: number, { bits, block }: NBitsShape): number =>
  (padRows(rows) * cols * bits) / 8 + padRows(rows) * (cols / block) * 4;

/** What is really used for `rows` x `cols` of a pack: `packed` becomes f32 where MatMulNBits cannot. */
export function matrixForm(weights: OnnxWeights, format: WeightFormat, cols: number): OnnxWeights {
  return weights === 'packed' && packedShape(format, cols) === null ? 'f32' : weights;
}

/** Device bytes of a matrix [rows][cols] whose groups run along cols: gate, up, QKV, O, lm_head. */
export function matrixBytes(weights: GpuWeights, format: WeightFormat, rows: number, cols: number): number {
  if (weights === 'rows') return rows * rowBytes(format, cols);
  const form = matrixForm(weights, format, cols);
  if (form === 'packed') return nBitsBytes(rows, cols, packedShape(format, cols)!);
  return rows * cols * (form === 'f16' ? 2 : 4);
}

/** Device bytes of `neurons` hot neurons: gate row, up row (when gated), down column. */
export function neuronBytes(
  weights: GpuWeights,
  format: WeightFormat,
  neurons: number,
  hidden: number,
  gated = true,
): number {
  const rows = (gated ? 2 : 1) * matrixBytes(weights, format, neurons, hidden);
  if (weights === 'rows') return rows + neurons * rowBytes(format, hidden);
  const down =
    matrixForm(weights, format, hidden) === 'packed' && neurons % DOWN_BLOCK === 0
      ? nBitsBytes(hidden, neurons, { bits: DOWN_BITS, block: DOWN_BLOCK })
      : neurons * hidden * (weights === 'f16' ? 2 : 4);
  return rows + down;
}
