/** Matrices on the GPU, in the pack's own row formats, cut at row borders where one binding cannot hold them. */
import { readSync } from 'node:fs';

import { HybridError } from '../../errors.js';
import { alignUp, COLUMN_MULTIPLE, type RowFormat } from '../../kernels/layout.js';
import type { PackSection } from '../../pack/types.js';
import { createStorage, destroyBuffer, upload, type ReadPiece } from './buffers.js';
import type { GpuDevice } from './device.js';

export interface RowShape {
  format: RowFormat;
  rows: number;
  cols: number;
  /** Bytes from one row (or record) to the next: a multiple of 16 for weights, of 4 for sketches. */
  stride: number;
}

/** Rows [first, first + rows) of a matrix, from the beginning of `buffer` on. */
export interface RowPart {
  buffer: GPUBuffer;
  first: number;
  rows: number;
}

/** `parts` follow each other; most matrices have one. Kernels are dispatched once a part. */
export interface GpuRows extends RowShape {
  parts: readonly RowPart[];
}

/**
 * An activation vector on the GPU is f32, its columns padded with zeros to a multiple of 32: floats from one
 * vector to the next. (Weights are padded with zeros too, but zero times what stood there before may be NaN.)
 */
export const vectorStride = (cols: number): number => alignUp(cols, COLUMN_MULTIPLE);

/** Where the rows of a shape are cut for a device: [first, rows] of each part. */
export function cutRows({ rows, stride }: RowShape, maxBytes: number): [first: number, rows: number][] {
  const most = Math.floor(maxBytes / stride);
  if (most === 0) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `a row of ${stride} bytes is above the GPU's limit of ${maxBytes}`,
    );
  }
  const parts: [number, number][] = [];
  for (let first = 0; first < rows; first += most) parts.push([first, Math.min(most, rows - first)]);
  return parts;
}

/**
 * A matrix on its way to the GPU.
 * @param read the bytes from an offset on: whole rows
 * @param maxBytes of one part
 * @throws HybridError OUT_OF_MEMORY when the device has no room; what was made is given back
 */
export async function uploadRows(
  gpu: GpuDevice,
  label: string,
  shape: RowShape,
  read: ReadPiece,
  maxBytes = Math.min(gpu.facts.maxBindingBytes, gpu.facts.maxBufferBytes),
): Promise<GpuRows> {
  const { stride } = shape;
  const parts: RowPart[] = [];
  try {
    for (const [first, rows] of cutRows(shape, maxBytes)) {
      const buffer = await createStorage(gpu, label, rows * stride);
      parts.push({ buffer, first, rows });
      await upload(gpu, buffer, rows * stride, (piece, at) => read(piece, first * stride + at), stride);
    }
  } catch (error) {
    for (const { buffer } of parts) destroyBuffer(gpu, buffer);
    throw error;
  }
  return { ...shape, parts };
}

/**
 * A section of the pack, straight from its file.
 * @param ids the rows (records) wanted, in this order; null: all
 * @param maxBytes of one part, below what the device binds
 */
export function uploadSection(
  gpu: GpuDevice,
  label: string,
  fd: number,
  section: PackSection,
  ids: Uint32Array | null = null,
  maxBytes?: number,
): Promise<GpuRows> {
  const { format, cols, stride, offset } = section;
  const shape = { format, cols, stride, rows: ids ? ids.length : section.rows };
  const read: ReadPiece = (piece, at) => {
    if (ids === null) return readFully(fd, piece, offset + at, label);
    // Runs of neighbours are read at once.
    const [first, end] = [at / stride, (at + piece.length) / stride];
    for (let i = first, next = i; i < end; i = next) {
      while (next < end && ids[next] === ids[i] + (next - i)) next++;
      const part = piece.subarray((i - first) * stride, (next - first) * stride);
      readFully(fd, part, offset + ids[i] * stride, label);
    }
  };
  return uploadRows(gpu, label, shape, read, maxBytes);
}

function readFully(fd: number, bytes: Uint8Array, position: number, label: string): void {
  for (let done = 0; done < bytes.length;) {
    const read = readSync(fd, bytes, done, bytes.length - done, position + done);
    if (read === 0)
      throw new HybridError('IO_FAILED', `the pack ends inside ${label}: it was cut while open`);
    done += read;
  }
}

export function destroyRows(gpu: GpuDevice, { parts }: GpuRows): void {
  for (const { buffer } of parts) destroyBuffer(gpu, buffer);
}
