/**
 * Rows of predictors: q4 and q8 as the pack has them, and sketches of one to three bits (kernels/layout.ts).
 * All are padded to 4 bytes, not to 16 as in the pack: with d = 256 that would cost a fifth of a sketch.
 */
import {
  alignUp,
  bf16RoundUp,
  bf16ToNumber,
  COLUMN_MULTIPLE,
  GROUP,
  groupCount,
  isSketch,
  Q4_OFFSET,
  Q8_MAX,
  Q8_OFFSET,
  sketchBits,
} from '../kernels/layout.js';
import { decodeSketchRow, encodeSketchRow } from '../kernels/reference/sketch-rows.js';
import type { PredictorFormat, RowMatrix } from './types.js';

/** Predictor rows start at multiples of this. */
export const PREDICTOR_ROW_ALIGNMENT = 4;

/** Bits of one code. */
export const CODE_BITS: Readonly<Record<PredictorFormat, number>> = { q1: 1, q2: 2, q3: 3, q4: 4, q8: 8 };

/** Byte offset of the scales in a row. */
const scalesAt = (format: PredictorFormat, cols: number): number =>
  (alignUp(cols, COLUMN_MULTIPLE) * CODE_BITS[format]) / 8;

/** Bytes from one predictor row to the next. */
export const predictorRowBytes = (format: PredictorFormat, cols: number): number =>
  alignUp(scalesAt(format, cols) + 2 * groupCount(cols), PREDICTOR_ROW_ALIGNMENT);

/** Smallest and largest level of a code; values are level * scale. Sketch levels are odd numbers. */
export function levels(format: PredictorFormat): { min: number; max: number; odd: boolean } {
  if (format === 'q8') return { min: -Q8_MAX, max: Q8_MAX, odd: false };
  if (format === 'q4') return { min: -8, max: 7, odd: false };
  const max = 2 ** CODE_BITS[format] - 1;
  return { min: -max, max, odd: true };
}

/** The bf16 nearest to a positive scale, as bits. */
export const scaleBits = (scale: number): number => {
  const up = bf16RoundUp(scale);
  return up > 0 && scale - bf16ToNumber(up - 1) < bf16ToNumber(up) - scale ? up - 1 : up;
};

/**
 * Rows from levels and scales.
 * @param code levels [rows][cols] (see `levels`)
 * @param scale bf16 bits [rows][groups]
 */
export function packRows(
  format: PredictorFormat,
  code: Int8Array,
  scale: Uint16Array,
  rows: number,
  cols: number,
): RowMatrix {
  const stride = predictorRowBytes(format, cols);
  const groups = groupCount(cols);
  const padded = alignUp(cols, COLUMN_MULTIPLE);
  const data = new Uint8Array(rows * stride);
  const view = new DataView(data.buffer);
  const { max } = levels(format);
  const offset = format === 'q8' ? Q8_OFFSET : Q4_OFFSET;
  // Padding columns meet zero activations, so their code does not matter.
  const unsigned = new Uint8Array(padded);
  for (let r = 0; r < rows; r++) {
    if (isSketch(format)) {
      for (let c = 0, at = r * cols; c < cols; c++, at++) unsigned[c] = (code[at] + max) >> 1;
    } else {
      for (let c = 0, at = r * cols; c < cols; c++, at++) unsigned[c] = code[at] + offset;
    }
    const row = data.subarray(r * stride, (r + 1) * stride);
    const scales = scale.subarray(r * groups, (r + 1) * groups);
    if (isSketch(format)) {
      encodeSketchRow(sketchBits(format), unsigned, scales, row);
      continue;
    }
    if (format === 'q8') row.set(unsigned);
    else packNibbles(unsigned, row);
    scales.forEach((bits, g) => view.setUint16(r * stride + scalesAt(format, cols) + 2 * g, bits, true));
  }
  return { format, rows, cols, stride, data };
}

/** Byte j of a group of L columns holds columns j and L/2 + j. */
function packNibbles(u: Uint8Array, row: Uint8Array): void {
  for (let begin = 0; begin < u.length; begin += GROUP) {
    const half = Math.min(GROUP, u.length - begin) / 2;
    for (let j = 0; j < half; j++) row[begin / 2 + j] = u[begin + j] | (u[begin + half + j] << 4);
  }
}

/** Values of all rows, f32 [rows][cols]. */
export function unpackRows({ format, rows, cols, stride, data }: RowMatrix): Float32Array {
  const out = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) {
    const row = data.subarray(r * stride, (r + 1) * stride);
    const values = isSketch(format)
      ? decodeSketchRow(sketchBits(format), row, cols)
      : decodeCodeRow(format, row, cols);
    out.set(values.subarray(0, cols), r * cols);
  }
  return out;
}

function decodeCodeRow(format: 'q4' | 'q8', row: Uint8Array, cols: number): Float64Array {
  const padded = alignUp(cols, COLUMN_MULTIPLE);
  const values = new Float64Array(padded);
  for (let c = 0; c < padded; c++) {
    const begin = c - (c % GROUP);
    const at = scalesAt(format, cols) + (2 * begin) / GROUP;
    const scale = bf16ToNumber(row[at] | (row[at + 1] << 8));
    const half = Math.min(GROUP, padded - begin) / 2;
    const nibble = (row[begin / 2 + ((c - begin) % half)] >> (c - begin < half ? 0 : 4)) & 15;
    values[c] = (format === 'q8' ? row[c] - Q8_OFFSET : nibble - Q4_OFFSET) * scale;
  }
  return values;
}

/** Scales tried for a q4 group: the value of largest magnitude, divided by these. */
const Q4_DIVISORS = [-8, -8.5, -9, -7.5, -9.5, -7, -10] as const;

/** q4 scales (bf16 bits, [rows][groups]) that leave the smallest squared error. */
export function q4Scales(values: Float32Array, rows: number, cols: number): Uint16Array {
  const groups = groupCount(cols);
  const scales = new Uint16Array(rows * groups);
  for (let r = 0; r < rows; r++) {
    for (let g = 0; g < groups; g++) {
      const group = values.subarray(r * cols + g * GROUP, r * cols + Math.min(cols, (g + 1) * GROUP));
      scales[r * groups + g] = q4Scale(group);
    }
  }
  return scales;
}

function q4Scale(group: Float32Array): number {
  let peak = 0;
  for (const value of group) if (Math.abs(value) > Math.abs(peak)) peak = value;
  if (peak === 0) return 0;
  let best = 0;
  let least = Infinity;
  for (const divisor of Q4_DIVISORS) {
    const bits = bf16RoundUp(peak / divisor);
    const scale = bf16ToNumber(bits);
    let error = 0;
    for (const value of group) {
      const level = Math.max(-8, Math.min(7, Math.round(value / scale)));
      error += (level * scale - value) ** 2;
    }
    if (error < least) [least, best] = [error, bits];
  }
  return best;
}

/** Values -> q4 rows with given scales. */
export function toQ4(values: Float32Array, scales: Uint16Array, rows: number, cols: number): RowMatrix {
  const groups = groupCount(cols);
  const code = new Int8Array(rows * cols);
  for (let r = 0; r < rows; r++) {
    for (let g = 0; g < groups; g++) {
      const scale = bf16ToNumber(scales[r * groups + g]);
      if (scale === 0) continue;
      const end = r * cols + Math.min(cols, (g + 1) * GROUP);
      for (let at = r * cols + g * GROUP; at < end; at++) {
        const level = Math.round(values[at] / scale);
        code[at] = level < -8 ? -8 : level > 7 ? 7 : level;
      }
    }
  }
  return packRows('q4', code, scales, rows, cols);
}

/** Values -> q8 rows: the codes nearest under the scale of a group's largest value. */
export function toQ8(values: Float32Array, rows: number, cols: number): RowMatrix {
  const groups = groupCount(cols);
  const code = new Int8Array(rows * cols);
  const scales = new Uint16Array(rows * groups);
  for (let r = 0; r < rows; r++) {
    for (let g = 0; g < groups; g++) {
      const [begin, end] = [r * cols + g * GROUP, r * cols + Math.min(cols, (g + 1) * GROUP)];
      let largest = 0;
      for (let at = begin; at < end; at++) largest = Math.max(largest, Math.abs(values[at]));
      if (largest === 0) continue;
      const bits = bf16RoundUp(largest / Q8_MAX);
      scales[r * groups + g] = bits;
      for (let at = begin; at < end; at++) code[at] = Math.round(values[at] / bf16ToNumber(bits));
    }
  }
  return packRows('q8', code, scales, rows, cols);
}

/** Only some rows, in the order given. */
export function selectRows(matrix: RowMatrix, rows: Uint32Array): RowMatrix {
  const { stride } = matrix;
  const data = new Uint8Array(rows.length * stride);
  rows.forEach((row, i) => data.set(matrix.data.subarray(row * stride, (row + 1) * stride), i * stride));
  return { ...matrix, rows: rows.length, data };
}

/** Matrices of one format and width, one below the other. */
export function joinRows(parts: readonly RowMatrix[]): RowMatrix {
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const data = new Uint8Array(rows * parts[0].stride);
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.data.length;
  }
  return { ...parts[0], rows, data };
}
