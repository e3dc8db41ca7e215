/** Reading tensors as f32 rows, by range, from the descriptors that were validated. */
import { read as readCallback } from 'node:fs';
import { promisify } from 'node:util';
import { ModelError, UsageError } from '../errors.js';
import { STORED_TYPES } from './decode.js';
import type { StoredType } from './decode-blocks.js';
import type { StoredTensor } from './safetensors.js';
import type { ModelConfig, TensorName } from './types.js';

const read = promisify(readCallback);

/** Reading piece by piece keeps memory flat and the decoder's input in the cache. */
const PIECE_BYTES = 1 << 20;
/** Staging buffers kept for the next call; concurrent callers each use their own. */
const KEPT_STAGING = 4;

/** A tensor in the order the runtime wants its rows. */
export interface BoundTensor {
  stored: StoredTensor;
  type: StoredType;
  rows: number;
  cols: number;
  /**
   * Where a row lies in the file, for GGUF's q and k: heads of this many rows whose two halves are
   * interleaved. 0: in order.
   */
  interleavedHead: number;
}

/** Match what the files hold with what the config demands; all contradictions in one error. */
export function bindTensors(
  expected: readonly [TensorName, number[]][],
  find: (name: TensorName) => StoredTensor | undefined,
  nameInFile: (name: TensorName) => string,
  where: string,
): Map<TensorName, BoundTensor> {
  const bound = new Map<TensorName, BoundTensor>();
  const problems: string[] = [];
  const unsupported = new Map<string, string[]>();
  for (const [name, shape] of expected) {
    const stored = find(name);
    if (stored === undefined) {
      problems.push(`tensor ${nameInFile(name)} is missing (expected [${shape.join(', ')}])`);
      continue;
    }
    if (stored.shape.length !== shape.length || stored.shape.some((n, i) => n !== shape[i])) {
      const found = `[${stored.shape.join(', ')}]`;
      problems.push(`tensor ${stored.name}: expected [${shape.join(', ')}], found ${found} ${stored.dtype}`);
      continue;
    }
    const type = Object.hasOwn(STORED_TYPES, stored.dtype) ? STORED_TYPES[stored.dtype] : undefined;
    // Vectors are never stored in blocks; reading an interleaved one value by value relies on it.
    if (type === undefined || (shape.length === 1 && type.blockElements > 1)) {
      unsupported.set(stored.dtype, [...(unsupported.get(stored.dtype) ?? []), stored.name]);
      continue;
    }
    const [rows, cols] = shape.length === 1 ? [1, shape[0]] : shape;
    bound.set(name, { stored, type, rows, cols, interleavedHead: 0 });
  }
  if (problems.length > 0) {
    throw new ModelError('MODEL_INVALID', `${where}: weights contradict the config: ${problems.join('; ')}`, {
      hint: 'Re-export the model, or fetch its missing files.',
    });
  }
  if (unsupported.size > 0) {
    const found = [...unsupported].map(
      ([dtype, [first, ...more]]) =>
        `${dtype} (${first}${more.length > 0 ? ` and ${more.length} more tensors` : ''})`,
    );
    throw new ModelError('MODEL_UNSUPPORTED', `${where}: weights of type ${found.join(', ')}`, {
      hint: `Supported types: ${Object.keys(STORED_TYPES).join(', ')}.`,
    });
  }
  return bound;
}

/** q and k of GGUF files come with the two halves of each head's rows interleaved: undone when reading. */
export function markInterleaved(bound: Map<TensorName, BoundTensor>, config: ModelConfig): void {
  for (let layer = 0; layer < config.layers; layer++) {
    for (const role of ['q', 'k', 'qBias', 'kBias'] as const) {
      const tensor = bound.get(`layers.${layer}.${role}`);
      if (tensor) tensor.interleavedHead = config.headDim;
    }
  }
}

export class RowReader {
  private readonly staging: Uint8Array[] = [];

  /**
   * Rows [begin, end) as f32. A one-dimensional tensor is one row.
   * @throws ModelError when the file is short or a value is NaN or infinite; UsageError for an impossible range
   */
  async readRows(t: BoundTensor, begin: number, end: number, into?: Float32Array): Promise<Float32Array> {
    const whole = Number.isInteger(begin) && Number.isInteger(end);
    if (!whole || begin < 0 || end < begin || end > t.rows) {
      throw new UsageError(`tensor ${t.stored.name}: rows ${begin}..${end} of ${t.rows}`);
    }
    const values = (end - begin) * t.cols;
    const out = into ?? new Float32Array(values);
    if (out.length < values)
      throw new UsageError(`tensor ${t.stored.name}: ${values} values into ${out.length}`);
    if (t.interleavedHead > 0) await this.readInterleaved(t, begin, end, out);
    else await this.readRange(t, begin, end, out);
    return out;
  }

  /** Stored rows, piece by piece. */
  private async readRange(t: BoundTensor, begin: number, end: number, out: Float32Array): Promise<void> {
    const { blockElements, blockBytes } = t.type;
    const blocksInRow = t.cols / blockElements;
    // Pieces are whole blocks, not whole rows: a one-row tensor may be long.
    const firstBlock = begin * blocksInRow;
    const lastBlock = end * blocksInRow;
    const blocksInPiece = Math.max(1, Math.floor(PIECE_BYTES / blockBytes));
    const staging = this.staging.pop() ?? new Uint8Array(PIECE_BYTES);
    try {
      for (let block = firstBlock; block < lastBlock; block += blocksInPiece) {
        const blocks = Math.min(blocksInPiece, lastBlock - block);
        const bytes = staging.subarray(0, blocks * blockBytes);
        await readFully(t.stored, block * blockBytes, bytes);
        const elements = blocks * blockElements;
        const at = (block - firstBlock) * blockElements;
        const bad = t.type.decode(bytes, elements, out.subarray(at, at + elements));
        if (bad >= 0) throw notFinite(t, block * blockElements + bad);
      }
    } finally {
      if (this.staging.length < KEPT_STAGING) this.staging.push(staging);
    }
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
    const [from, to] = isBias ? [0, t.cols] : [begin, end];
    if (from === to || begin === end) return;
    const half = headRows / 2;
    const stored: BoundTensor = isBias ? { ...t, rows: t.cols, cols: 1 } : t;
    const head = new Float32Array(headRows * cols);
    for (let first = from - (from % headRows); first < to; first += headRows) {
      await this.readRange(stored, first, first + headRows, head);
      for (let row = Math.max(first, from); row < Math.min(first + headRows, to); row++) {
        const inHead = row - first;
        const source = 2 * (inHead % half) + Math.floor(inHead / half);
        out.set(head.subarray(source * cols, (source + 1) * cols), (row - from) * cols);
      }
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

function notFinite(t: BoundTensor, element: number): ModelError {
  const row = Math.floor(element / t.cols);
  const what = t.type.blockElements > 1 ? 'a scale' : 'a value';
  return new ModelError(
    'MODEL_INVALID',
    `${t.stored.file.path}: tensor ${t.stored.name}, row ${row}: ${what} is NaN or infinite`,
    { hint: 'The weights are damaged, or overflowed when they were exported as F16.' },
  );
}
