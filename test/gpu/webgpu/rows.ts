/** Rows for WebGPU tests: their bytes as the pack has them, and the values they stand for. */
import { uploadRows, type GpuRows, type RowShape } from '../../../src/gpu/webgpu/rows.js';
import type { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { arenaViews } from '../../../src/kernels/reference/views.js';
import { decodeSketchRow, encodeSketchRow } from '../../../src/kernels/reference/sketch-rows.js';
import { decodeRow, encodeRow } from '../../../src/kernels/reference/weight-rows.js';
import {
  alignUp,
  bf16RoundUp,
  groupCount,
  isSketch,
  rowBytes,
  sketchBits,
  sketchRowBytes,
  type RowFormat,
  type WeightFormat,
} from '../../../src/kernels/layout.js';
import { normals, random } from '../../kernels/samples.js';

export interface TestRows extends RowShape {
  bytes: Uint8Array;
  /** [rows] of [cols] */
  values: number[][];
}

/** @param spare bytes between the rows, as the other half of a record takes */
export function rowsOf(format: RowFormat, rows: number, cols: number, seed: number, spare = 0): TestRows {
  const size = isSketch(format) ? sketchRowBytes(sketchBits(format), cols) : rowBytes(format, cols);
  const stride = size + spare;
  const memory = new WebAssembly.Memory({
    initial: Math.ceil((rows * stride) / 65536) + 1,
    maximum: 65536,
    shared: true,
  });
  const views = arenaViews(memory);
  const next = random(seed);
  const values = Array.from({ length: rows }, (_, r) => {
    const at = r * stride;
    if (isSketch(format)) {
      const bits = sketchBits(format);
      const codes = Array.from({ length: alignUp(cols, 32) }, () => Math.floor(next() * 2 ** bits));
      const scales = Array.from({ length: groupCount(cols) }, () => bf16RoundUp(0.01 + next()));
      const row = views.u8.subarray(at, at + size);
      encodeSketchRow(bits, codes, scales, row);
      return [...decodeSketchRow(bits, row, cols).subarray(0, cols)];
    }
    encodeRow(views, format, normals(cols, seed * 1000 + r), at, cols);
    return [...decodeRow(views, format, at, cols).subarray(0, cols)];
  });
  return { format, rows, cols, stride, bytes: views.u8.slice(0, rows * stride), values };
}

export const uploadTestRows = (gpu: GpuDevice, rows: TestRows, maxBytes?: number): Promise<GpuRows> =>
  uploadRows(
    gpu,
    'rows',
    rows,
    (piece, at) => piece.set(rows.bytes.subarray(at, at + piece.length)),
    maxBytes,
  );

/** Makes rows unusable: every byte 0xff, which is NaN in an f32 and in a group's scale. */
export function poisonRows({ bytes, stride, rows }: TestRows, which: (row: number) => boolean): void {
  for (let r = 0; r < rows; r++) if (which(r)) bytes.fill(0xff, r * stride, (r + 1) * stride);
}

export interface TestRecords {
  /** The records as rows: `values` are those of the up rows. */
  rows: TestRows;
  downOffset: number;
  /** [neurons] of [cols] */
  downValues: number[][];
}

/** Records as the pack has them: an up row, then a down row. */
export function recordsOf(format: WeightFormat, neurons: number, cols: number, seed: number): TestRecords {
  const [up, down] = [rowsOf(format, neurons, cols, seed), rowsOf(format, neurons, cols, seed + 500)];
  const bytes = new Uint8Array(2 * up.bytes.length);
  for (let r = 0; r < neurons; r++) {
    bytes.set(up.bytes.subarray(r * up.stride, (r + 1) * up.stride), 2 * r * up.stride);
    bytes.set(down.bytes.subarray(r * up.stride, (r + 1) * up.stride), (2 * r + 1) * up.stride);
  }
  return {
    rows: { ...up, stride: 2 * up.stride, bytes },
    downOffset: up.stride,
    downValues: down.values,
  };
}
