/** A lane's share of loading: pieces of the pack read straight into the arenas. */
import { readSync } from 'node:fs';
import { HybridError, PackError } from '../errors.js';
import { ropeTable } from '../model/rope.js';
import { LaneInterrupted, shareBegin, Word } from './control.js';
import type { LaneContext } from './lane-context.js';
import type { LoadItem } from './layout.js';

/** Read size: big enough to stream at disk speed, small enough that lanes share one tensor evenly. */
const CHUNK_BYTES = 8 * 2 ** 20;

/**
 * Read every lanes-th chunk of all items. Rows of reordered sections go through one buffer of CHUNK_BYTES.
 * @throws PackError when the file ends early; HybridError IO_FAILED when it cannot be read
 */
export function loadShare(
  context: LaneContext,
  fd: number,
  path: string,
  items: LoadItem[],
  onBytes: (bytes: number) => void,
): void {
  const { lane, layout } = context;
  const buffer = items.some((i) => i.order) ? Buffer.allocUnsafe(CHUNK_BYTES) : null;
  let chunk = 0;
  for (const item of items) {
    const { section, ptr } = item;
    const target = context.arenas[item.arena].u8;
    const rowsPerChunk = Math.max(1, Math.floor(CHUNK_BYTES / section.stride));
    let inverse: Uint32Array | null = null;
    for (let row = 0; row < section.rows; row += rowsPerChunk) {
      if (chunk++ % layout.laneCount !== lane) continue;
      if (Atomics.load(context.control, Word.FAULT) !== 0) throw new LaneInterrupted();
      const rows = Math.min(rowsPerChunk, section.rows - row);
      const bytes = rows * section.stride;
      const from = section.offset + row * section.stride;
      if (item.order === null) {
        readFully(fd, path, target, ptr + row * section.stride, bytes, from);
      } else {
        inverse ??= invert(item.order);
        const piece = buffer!.length >= bytes ? buffer! : Buffer.allocUnsafe(bytes);
        readFully(fd, path, piece, 0, bytes, from);
        for (let r = 0; r < rows; r++) {
          target.set(
            piece.subarray(r * section.stride, (r + 1) * section.stride),
            ptr + inverse[row + r] * section.stride,
          );
        }
      }
      onBytes(bytes);
    }
  }
}

function readFully(
  fd: number,
  path: string,
  into: Uint8Array,
  at: number,
  bytes: number,
  from: number,
): void {
  let done = 0;
  while (done < bytes) {
    let got: number;
    try {
      got = readSync(fd, into, at + done, bytes - done, from + done);
    } catch (cause) {
      throw new HybridError(
        'IO_FAILED',
        `${path}: reading ${bytes} bytes at ${from} failed: ${(cause as Error).message}`,
        {
          cause,
        },
      );
    }
    if (got === 0) {
      throw new PackError(
        'PACK_INVALID',
        `${path} ended at byte ${from + done}, expected data up to ${from + bytes}`,
        {
          hint: 'The file was changed while it was read. Convert the model again.',
        },
      );
    }
    done += got;
  }
}

function invert(order: Uint32Array): Uint32Array {
  const inverse = new Uint32Array(order.length);
  order.forEach((id, at) => (inverse[id] = at));
  return inverse;
}

/** cos and sin of every position, into the scratch of every arena. */
export function fillRopeTables(context: LaneContext): void {
  const { layout, shared, arenas } = context;
  const { frequencies, magnitude } = ropeTable(layout.config, layout.contextLength);
  const half = frequencies.length;
  const [cos, sin] = [shared.cos >>> 2, shared.sin >>> 2];
  const first = arenas[0].f32;
  for (let p = 0; p < layout.contextLength; p++) {
    for (let i = 0; i < half; i++) {
      first[cos + p * half + i] = magnitude * Math.cos(p * frequencies[i]);
      first[sin + p * half + i] = magnitude * Math.sin(p * frequencies[i]);
    }
  }
  const size = layout.contextLength * half;
  for (const arena of arenas.slice(1)) {
    arena.f32.set(first.subarray(cos, cos + size), cos);
    arena.f32.set(first.subarray(sin, sin + size), sin);
  }
}

/** Euclidean norm of this lane's share of the down columns, for weighted recall. */
export function fillDownNorms(context: LaneContext): void {
  const { lane, layout } = context;
  const row = layout.laneScratch[lane].xn;
  const d = layout.config.hiddenSize;
  for (const layer of layout.layers) {
    const { kernels, f32 } = context.arenas[layer.arena];
    const end = shareBegin(layer.ffn.rows, lane + 1, layout.laneCount);
    for (let n = shareBegin(layer.ffn.rows, lane, layout.laneCount); n < end; n++) {
      kernels.dequantizeRow(
        layer.ffn.format,
        layer.ffn.ptr + n * layer.ffn.stride + layer.downOffset,
        row,
        d,
      );
      let sum = 0;
      for (let i = row >>> 2; i < (row >>> 2) + d; i++) sum += f32[i] * f32[i];
      f32[(layer.downNorms >>> 2) + n] = Math.sqrt(sum);
    }
  }
}
