/** Reading tensors as f32 rows, by range, from the descriptors that were validated. */
import { read as readCallback } from 'node:fs';
import { promisify } from 'node:util';
import { ModelError, UsageError } from '../errors.js';
import type { BoundPiece, BoundTensor } from './bind.js';
import type { StoredTensor } from './safetensors.js';

const read = promisify(readCallback);

/** Reading piece by piece keeps memory flat and the decoder's input in the cache. */
const PIECE_BYTES = 1 << 20;
/** Staging buffers kept for the next call; concurrent callers each use their own. */
const KEPT_STAGING = 4;

export class RowReader {
  private readonly staging: Uint8Array[] = [];
  /** Column factors and scales, which every call needs again: a few KB for each layer at most. */
  private readonly factors = new WeakMap<BoundTensor, Promise<Float32Array>>();

  /**
   * Rows [begin, end) as f32. A one-dimensional tensor is one row.
   * @throws ModelError when the file is short or a value is NaN or infinite; UsageError for an impossible range
   */
  async readRows(t: BoundTensor, begin: number, end: number, into?: Float32Array): Promise<Float32Array> {
    const whole = Number.isInteger(begin) && Number.isInteger(end);
    if (!whole || begin < 0 || end < begin || end > t.rows) {
      throw new UsageError(`tensor ${t.name}: rows ${begin}..${end} of ${t.rows}`);
    }
    const values = (end - begin) * t.cols;
    const out = into ?? new Float32Array(values);
    if (out.length < values) throw new UsageError(`tensor ${t.name}: ${values} values into ${out.length}`);
    if (t.interleavedHead > 0) await this.readInterleaved(t, begin, end, out);
    else await this.readPieces(t, begin, end, out);
    if (t.plusOne || t.scale || t.columnScale) await this.adjust(t, out.subarray(0, values));
    return out;
  }

  private async readPieces(t: BoundTensor, begin: number, end: number, out: Float32Array): Promise<void> {
    if (t.pieces.length === 1) return this.readPiece(t.pieces[0], begin, end, out);
    let at = 0;
    for (const piece of t.pieces) {
      if (t.along === 'rows') {
        const from = Math.max(begin, at);
        const to = Math.min(end, at + piece.rows);
        if (from < to) await this.readPiece(piece, from - at, to - at, out.subarray((from - begin) * t.cols));
        at += piece.rows;
        continue;
      }
      const part = new Float32Array((end - begin) * piece.cols);
      await this.readPiece(piece, begin, end, part);
      for (let row = 0; row < end - begin; row++) {
        out.set(part.subarray(row * piece.cols, (row + 1) * piece.cols), row * t.cols + at);
      }
      at += piece.cols;
    }
  }

  /** Rows [begin, end) of a piece. */
  private async readPiece(p: BoundPiece, begin: number, end: number, out: Float32Array): Promise<void> {
    if (p.packed) return this.readPacked(p, p.firstRow + begin, p.firstRow + end, out);
    if (p.cols === p.storedCols) {
      const from = (p.firstRow + begin) * p.storedCols;
      return this.readRange(p, from, (end - begin) * p.cols, out);
    }
    for (let row = begin; row < end; row++) {
      const from = (p.firstRow + row) * p.storedCols + p.firstCol;
      await this.readRange(p, from, p.cols, out.subarray((row - begin) * p.cols));
    }
  }

  /** Stored values [from, from + elements): whole blocks, piece by piece. */
  private async readRange(p: BoundPiece, from: number, elements: number, out: Float32Array): Promise<void> {
    const { blockElements, blockBytes } = p.type;
    const firstBlock = from / blockElements;
    const lastBlock = (from + elements) / blockElements;
    const blocksInPiece = Math.max(1, Math.floor(PIECE_BYTES / blockBytes));
    await this.withStaging(async (staging) => {
      for (let block = firstBlock; block < lastBlock; block += blocksInPiece) {
        const blocks = Math.min(blocksInPiece, lastBlock - block);
        const bytes = staging.subarray(0, blocks * blockBytes);
        await readFully(p.stored, block * blockBytes, bytes);
        const length = blocks * blockElements;
        const at = (block - firstBlock) * blockElements;
        const bad = p.type.decode(bytes, length, out.subarray(at, at + length));
        if (bad >= 0) throw notFinite(p, block * blockElements + bad);
      }
    });
  }

  /** Row r of R: bits 2 (r div R/4) of the bytes of stored row r mod R/4, less one. */
  private async readPacked(p: BoundPiece, begin: number, end: number, out: Float32Array): Promise<void> {
    const storedRows = p.rows / 4;
    const cols = p.cols;
    await this.withStaging(async (staging) => {
      // A row of bytes may be longer than the staging buffer: then it is read in parts.
      const width = Math.min(cols, staging.length);
      for (let row = begin; row < end; row++) {
        const shift = 2 * Math.floor(row / storedRows);
        for (let col = 0; col < cols; col += width) {
          const bytes = staging.subarray(0, Math.min(width, cols - col));
          await readFully(p.stored, (row % storedRows) * cols + col, bytes);
          const at = (row - begin) * cols + col;
          for (let i = 0; i < bytes.length; i++) {
            const code = (bytes[i] >>> shift) & 3;
            if (code === 3) throw notTernary(p, row);
            out[at + i] = code - 1;
          }
        }
      }
    });
  }

  /** Row h*D + s*D/2 + j (s = 0, 1) lies in the file at h*D + 2j + s: read whole heads, then pick. */
  private async readInterleaved(
    t: BoundTensor,
    begin: number,
    end: number,
    out: Float32Array,
  ): Promise<void> {
    const headRows = t.interleavedHead;
    // A bias is one row of heads * headDim values: the same order, with values in the place of rows.
    const isBias = t.rows === 1;
    const cols = isBias ? 1 : t.cols;
    if (begin === end) return;
    const [from, to] = isBias ? [0, t.cols] : [begin, end];
    const half = headRows / 2;
    const all = isBias ? await this.wholeRow(t) : null;
    const head = new Float32Array(headRows * cols);
    for (let first = from - (from % headRows); first < to; first += headRows) {
      if (all) head.set(all.subarray(first, first + headRows));
      else await this.readPieces(t, first, first + headRows, head);
      for (let row = Math.max(first, from); row < Math.min(first + headRows, to); row++) {
        const inHead = row - first;
        const source = 2 * (inHead % half) + Math.floor(inHead / half);
        out.set(head.subarray(source * cols, (source + 1) * cols), (row - from) * cols);
      }
    }
  }

  private async wholeRow(t: BoundTensor): Promise<Float32Array> {
    const row = new Float32Array(t.cols);
    await this.readPieces(t, 0, 1, row);
    return row;
  }

  private async adjust(t: BoundTensor, values: Float32Array): Promise<void> {
    if (t.plusOne) for (let i = 0; i < values.length; i++) values[i] += 1;
    if (t.scale) {
      const [scale] = await this.factorsOf(t.scale.by);
      const factor = t.scale.divide ? 1 / scale : scale;
      if (!Number.isFinite(factor)) throw notFinite(t.scale.by.pieces[0], 0);
      for (let i = 0; i < values.length; i++) values[i] *= factor;
    }
    if (t.columnScale) {
      const factors = await this.factorsOf(t.columnScale);
      for (let row = 0; row < values.length; row += t.cols) {
        for (let col = 0; col < t.cols; col++) values[row + col] *= factors[col];
      }
    }
  }

  private factorsOf(t: BoundTensor): Promise<Float32Array> {
    let factors = this.factors.get(t);
    if (factors === undefined) this.factors.set(t, (factors = this.readRows(t, 0, 1)));
    return factors;
  }

  private async withStaging(use: (staging: Uint8Array) => Promise<void>): Promise<void> {
    const staging = this.staging.pop() ?? new Uint8Array(PIECE_BYTES);
    try {
      await use(staging);
    } finally {
      if (this.staging.length < KEPT_STAGING) this.staging.push(staging);
    }
  }
}

async function readFully(tensor: StoredTensor, offset: number, into: Uint8Array): Promise<void> {
  let done = 0;
  while (done < into.length) {
    const { bytesRead } = await read(
      tensor.file.fd,
      into,
      done,
      into.length - done,
      tensor.offset + offset + done,
    );
    if (bytesRead === 0) {
      const at = tensor.offset + offset + done;
      throw new ModelError(
        'MODEL_INVALID',
        `${tensor.file.path}: offset ${at}: tensor ${tensor.name}: the file ended (it changed while in use)`,
      );
    }
    done += bytesRead;
  }
}

/** @param element counted from the start of the stored tensor */
function notFinite(p: BoundPiece, element: number): ModelError {
  const row = Math.floor(element / p.storedCols);
  const what = p.type.blockElements > 1 ? 'a scale' : 'a value';
  return new ModelError(
    'MODEL_INVALID',
    `${p.stored.file.path}: tensor ${p.stored.name}, row ${row}: ${what} is NaN or infinite`,
    { hint: 'The weights are damaged, or overflowed when they were exported as F16.' },
  );
}

const notTernary = (p: BoundPiece, row: number): ModelError =>
  new ModelError(
    'MODEL_INVALID',
    `${p.stored.file.path}: tensor ${p.stored.name}, row ${row}: a packed code of 3, expected 0, 1 or 2`,
    { hint: 'The weights are damaged; fetch the file again.' },
  );
