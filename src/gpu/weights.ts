/**
 * Weights from the pack to the form a graph wants. Reads go through the pack's descriptor by position,
 * one unit at a time: building a plan never holds more than one unit's weights in memory.
 */
import { readSync } from 'node:fs';

import { HybridError } from '../errors.js';
import {
  bf16ToNumber,
  GROUP,
  paddedCols,
  Q4_OFFSET,
  Q8_OFFSET,
  rowBytes,
  scaleOffset,
  type WeightFormat,
} from '../kernels/layout.js';
import { float16Array } from '../onnx/float16.js';
import type { PackSection } from '../pack/types.js';
import {
  DOWN_BITS,
  DOWN_BLOCK,
  matrixForm,
  packedShape,
  ROW_MULTIPLE,
  type OnnxWeights,
} from '../profiler/gpu-bytes.js';

/** A weight matrix in the form a graph takes: y [tokens, outputs] = x [tokens, inputs] . W^T. */
export type GpuMatrix =
  | {
      kind: 'nbits';
      bits: 4 | 8;
      block: number;
      /** Padded to a multiple of 8; rows past the real ones are zero. */
      outputs: number;
      inputs: number;
      codes: Uint8Array; // [outputs][inputs * bits / 8], low nibble first; code - 2^(bits-1) is the weight
      scales: Float32Array; // [outputs][inputs / block]
    }
  | {
      kind: 'float32' | 'float16';
      outputs: number;
      inputs: number;
      /** true: data is [outputs][inputs], false: [inputs][outputs] */
      rowsAreOutputs: boolean;
      data: Float32Array | Uint16Array;
    };

/** Fills `into` from `position` of the pack file. */
export type ReadAt = (into: Uint8Array, position: number) => void;

export const packReader =
  (fd: number, path: string): ReadAt =>
  (into, position) => {
    for (let done = 0; done < into.byteLength;) {
      const n = readSync(fd, into, done, into.byteLength - done, position + done);
      if (n === 0) {
        throw new HybridError('PACK_INVALID', `${path} ends at ${position + done}: it was cut while in use`, {
          hint: 'Convert the model again.',
        });
      }
      done += n;
    }
  };

// ---- reading rows ------------------------------------------------------------------------------------

/** Stored rows, packed without the section's stride. */
export interface RawRows {
  format: WeightFormat;
  rows: number;
  cols: number;
  bytes: Uint8Array; // [rows][rowBytes(format, cols)]
}

/**
 * Rows of a section.
 * @param ids rows to take, in this order; null: all of them
 * @param at byte offset inside each record (the down column of an FFN record), default 0
 */
export function readRows(read: ReadAt, section: PackSection, ids: Uint32Array | null, at = 0): RawRows {
  const { format, cols, stride } = section;
  const size = rowBytes(format, cols);
  const rows = ids?.length ?? section.rows;
  const bytes = new Uint8Array(rows * size);
  if (ids === null && stride === size) {
    read(bytes, section.offset);
  } else {
    for (let i = 0; i < rows; i++) {
      read(bytes.subarray(i * size, (i + 1) * size), section.offset + (ids?.[i] ?? i) * stride + at);
    }
  }
  return { format, rows, cols, bytes };
}

// ---- gate, up, QKV, O, lm_head: groups along the inputs ----------------------------------------------

/** A matrix whose rows are outputs. */
export function rowMatrix(raw: RawRows, weights: OnnxWeights): GpuMatrix {
  const form = matrixForm(weights, raw.format, raw.cols);
  if (form === 'packed') return repack(raw);
  const values = toFloats(raw);
  return {
    kind: form === 'f16' ? 'float16' : 'float32',
    outputs: raw.rows,
    inputs: raw.cols,
    rowsAreOutputs: true,
    data: form === 'f16' ? float16Array(values) : values,
  };
}

/** Our codes and scales in MatMulNBits' order: the same numbers, nothing is rounded. */
function repack(raw: RawRows): GpuMatrix {
  const { format, rows, cols } = raw;
  const { bits, block } = packedShape(format, cols)!;
  const outputs = Math.ceil(rows / ROW_MULTIPLE) * ROW_MULTIPLE;
  const codeBytes = (cols * bits) / 8;
  const blocks = cols / block;
  const codes = new Uint8Array(outputs * codeBytes);
  const scales = new Float32Array(outputs * blocks);
  const size = rowBytes(format, cols);
  for (let r = 0; r < rows; r++) {
    const from = r * size;
    const to = r * codeBytes;
    if (bits === 4) repackNibbles(raw.bytes, from, codes, to, cols);
    else for (let c = 0; c < cols; c++) codes[to + c] = raw.bytes[from + c] - Q8_OFFSET + 128;
    for (let b = 0; b < blocks; b++) {
      scales[r * blocks + b] = scaleOf(raw, r, Math.floor((b * block) / GROUP));
    }
  }
  return { kind: 'nbits', bits, block, outputs, inputs: cols, codes, scales };
}

/** Ours: byte j of a group of L = w[j] | w[L/2 + j] << 4. Theirs: byte j = w[2j] | w[2j + 1] << 4. */
function repackNibbles(src: Uint8Array, from: number, dst: Uint8Array, to: number, cols: number): void {
  for (let begin = 0; begin < cols; begin += GROUP) {
    const half = Math.min(GROUP, cols - begin) / 2;
    const group = from + begin / 2;
    for (let j = 0; j < half; j += 2) {
      const [a, b] = [src[group + j], src[group + j + 1]];
      dst[to + (begin + j) / 2] = (a & 15) | ((b & 15) << 4);
      dst[to + (begin + half + j) / 2] = (a >>> 4) | (b & 0xf0);
    }
  }
}

// ---- down: groups along the outputs ------------------------------------------------------------------

/** The down projection of some neurons, from their stored columns [neurons][hidden]. */
export function downMatrix(raw: RawRows, weights: OnnxWeights): GpuMatrix {
  const form = matrixForm(weights, raw.format, raw.cols);
  const values = toFloats(raw);
  if (form === 'packed' && raw.rows % DOWN_BLOCK === 0) return quantizeDown(values, raw.rows, raw.cols);
  return {
    kind: form === 'f16' ? 'float16' : 'float32',
    outputs: raw.cols,
    inputs: raw.rows,
    rowsAreOutputs: false,
    data: form === 'f16' ? float16Array(values) : values,
  };
}

/** Columns [neurons][hidden] to 8-bit blocks along the neurons. Relative error about 0.4 % a weight. */
function quantizeDown(values: Float32Array, neurons: number, hidden: number): GpuMatrix {
  const outputs = Math.ceil(hidden / ROW_MULTIPLE) * ROW_MULTIPLE;
  const blocks = neurons / DOWN_BLOCK;
  const codes = new Uint8Array(outputs * neurons).fill(128);
  const scales = new Float32Array(outputs * blocks);
  for (let b = 0; b < blocks; b++) {
    const first = b * DOWN_BLOCK * hidden;
    for (let o = 0; o < hidden; o++) {
      let max = 0;
      for (let j = 0; j < DOWN_BLOCK; j++) {
        const magnitude = Math.abs(values[first + j * hidden + o]);
        if (magnitude > max) max = magnitude;
      }
      if (max === 0) continue;
      const scale = Math.fround(max / 127);
      scales[o * blocks + b] = scale;
      const to = o * neurons + b * DOWN_BLOCK;
      for (let j = 0; j < DOWN_BLOCK; j++) {
        codes[to + j] = 128 + Math.round(values[first + j * hidden + o] / scale);
      }
    }
  }
  return { kind: 'nbits', bits: DOWN_BITS, block: DOWN_BLOCK, outputs, inputs: neurons, codes, scales };
}

// ---- stored rows to floats ---------------------------------------------------------------------------

/** [rows][cols] f32 */
export function toFloats(raw: RawRows): Float32Array {
  const { format, rows, cols, bytes } = raw;
  const size = rowBytes(format, cols);
  const out = new Float32Array(rows * cols);
  if (format === 'f32') {
    for (let r = 0; r < rows; r++) {
      out.set(new Float32Array(bytes.buffer, bytes.byteOffset + r * size, cols), r * cols);
    }
    return out;
  }
  const padded = paddedCols(format, cols);
  for (let r = 0; r < rows; r++) {
    for (let begin = 0; begin < cols; begin += GROUP) {
      const length = Math.min(GROUP, padded - begin);
      const end = Math.min(begin + length, cols);
      const scale = scaleOf(raw, r, begin / GROUP);
      for (let c = begin; c < end; c++) {
        out[r * cols + c] = scale * codeAt(bytes, r * size, format, begin, length, c);
      }
    }
  }
  return out;
}

function codeAt(
  bytes: Uint8Array,
  row: number,
  format: 'q8' | 'q4',
  begin: number,
  length: number,
  c: number,
): number {
  if (format === 'q8') return bytes[row + c] - Q8_OFFSET;
  const j = c - begin;
  const half = length / 2;
  const group = row + begin / 2;
  return (j < half ? bytes[group + j] & 15 : bytes[group + j - half] >>> 4) - Q4_OFFSET;
}

function scaleOf(raw: RawRows, row: number, group: number): number {
  const format = raw.format as 'q8' | 'q4';
  const at = row * rowBytes(format, raw.cols) + scaleOffset(format, raw.cols) + 2 * group;
  return bf16ToNumber(raw.bytes[at] | (raw.bytes[at + 1] << 8));
}
