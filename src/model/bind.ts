/** Matching what a description asks for with what the files hold; the first contradictions in one error. */
import { firstFew, ModelError } from '../errors.js';
import { STORED_TYPES } from './decode.js';
import type { StoredType } from './decode-blocks.js';
import type { StoredTensor } from './safetensors.js';
import { locate, type FilePiece, type Naming } from './tensor-names.js';
import type { ModelConfig, TensorName } from './types.js';

/** Rows [firstRow, firstRow + rows) and columns of a stored tensor, whose rows have `storedCols` columns. */
export interface BoundPiece {
  stored: StoredTensor;
  type: StoredType;
  firstRow: number;
  rows: number;
  firstCol: number;
  cols: number;
  storedCols: number;
  /** Four ternary values a byte (Naming.packedTernary). */
  packed: boolean;
}

/** A tensor in the order the runtime wants its rows. */
export interface BoundTensor {
  /** As files call it, for messages. */
  name: string;
  rows: number;
  cols: number;
  along: 'rows' | 'columns';
  pieces: BoundPiece[];
  /**
   * Where a row lies in the file, for GGUF's q and k: heads of this many rows whose two halves are
   * interleaved. 0: in order.
   */
  interleavedHead: number;
  /** Stored less one. */
  plusOne: boolean;
  /** One value that all are multiplied with, or divided by. */
  scale: { by: BoundTensor; divide: boolean } | null;
  /** Values that the columns are multiplied with, one each. */
  columnScale: BoundTensor | null;
}

/** Packed bytes; the values are -1, 0 and 1. */
const PACKED: StoredType = { blockElements: 1, blockBytes: 1, decode: () => -1 };
/** The name that the tensors of a model show for packed ternary weights. */
export const TERNARY = 'ternary';

/** Told at once: a mixture that lacks a layer lacks hundreds of tensors. */
const MOST_PROBLEMS = 5;

export type Find = (name: string) => StoredTensor | undefined;

/**
 * @param expected what the config demands (expectedTensors)
 * @param where the file or folder, for messages
 * @throws ModelError MODEL_INVALID for what is missing or has another shape, MODEL_UNSUPPORTED for types
 */
export function bindTensors(
  config: ModelConfig,
  expected: readonly [TensorName, number[]][],
  naming: Naming,
  find: Find,
  where: string,
): Map<TensorName, BoundTensor> {
  const binder = new Binder(naming, find);
  const bound = new Map<TensorName, BoundTensor>();
  for (const [name, shape] of expected) {
    const { along, pieces } = locate(config, naming, name, shape);
    const [rows, cols] = shape.length === 1 ? [1, shape[0]] : shape;
    const found = pieces.map((piece) => binder.piece(piece));
    if (!found.every((piece) => piece !== null)) continue;
    const role = name.slice(name.lastIndexOf('.') + 1);
    const layer = name.split('.')[1] ?? '';
    const isNorm = /^(attnNorm|ffnNorm|outNorm)$/.test(role);
    const rotates = /^(q|k|qBias|kBias)$/.test(role);
    const downNorm = role === 'down' ? naming.downNorm?.replace('{l}', layer) : undefined;
    bound.set(name, {
      name: pieces[0].file,
      rows,
      cols,
      along,
      pieces: found,
      interleavedHead: naming.interleavedHeads && rotates ? config.headDim : 0,
      plusOne: (naming.normsLessOne ?? false) && isNorm,
      scale: shape.length === 2 ? binder.scale(pieces[0].file) : null,
      columnScale: downNorm === undefined ? null : binder.vector(downNorm, [cols]),
    });
  }
  binder.refuse(where);
  return bound;
}

class Binder {
  private readonly problems = new Set<string>();
  private readonly unsupported = new Map<string, string[]>();

  constructor(
    private readonly naming: Naming,
    private readonly find: Find,
  ) {}

  /** null: the problem is noted. */
  piece({ file, shape, ...range }: FilePiece): BoundPiece | null {
    const stored = this.find(file);
    if (stored === undefined) {
      this.problems.add(`tensor ${file} is missing (expected [${shape.join(', ')}])`);
      return null;
    }
    const packed = (this.naming.packedTernary ?? false) && stored.dtype === 'U8' && shape.length === 2;
    const inFile = packed ? [shape[0] / 4, shape[1]] : shape;
    if (stored.shape.length !== inFile.length || stored.shape.some((n, i) => n !== inFile[i])) {
      const found = `[${stored.shape.join(', ')}]`;
      this.problems.add(
        `tensor ${stored.name}: expected [${inFile.join(', ')}], found ${found} ${stored.dtype}`,
      );
      return null;
    }
    const type = packed
      ? PACKED
      : Object.hasOwn(STORED_TYPES, stored.dtype)
        ? STORED_TYPES[stored.dtype]
        : undefined;
    // Vectors are never stored in blocks; reading a part of one value by value relies on it.
    if (type === undefined || (shape.length === 1 && type.blockElements > 1)) {
      const names = this.unsupported.get(stored.dtype) ?? [];
      if (!names.includes(stored.name)) this.unsupported.set(stored.dtype, [...names, stored.name]);
      return null;
    }
    return { stored, type, ...range, storedCols: shape[shape.length - 1], packed };
  }

  vector(file: string, shape: [number]): BoundTensor | null {
    const whole = { firstRow: 0, rows: 1, firstCol: 0, cols: shape[0] };
    const piece = this.piece({ file, shape, ...whole });
    if (piece === null) return null;
    const plain = { interleavedHead: 0, plusOne: false, scale: null, columnScale: null };
    return { name: file, rows: 1, cols: shape[0], along: 'rows', pieces: [piece], ...plain };
  }

  scale(matrix: string): BoundTensor['scale'] {
    const rule = this.naming.scaleOf;
    if (rule === undefined) return null;
    const file = rule.name(matrix);
    // The embedding and the head are not ternary.
    const isTernary = this.find(matrix)?.dtype === 'U8';
    if (this.find(file) === undefined && !(rule.required && isTernary)) return null;
    const by = this.vector(file, [1]);
    return by && { by, divide: rule.divide };
  }

  refuse(where: string): void {
    if (this.problems.size > 0) {
      throw new ModelError(
        'MODEL_INVALID',
        `${where}: weights contradict the config: ${firstFew([...this.problems], MOST_PROBLEMS, '; ')}`,
        { hint: 'Re-export the model, or fetch its missing files.' },
      );
    }
    if (this.unsupported.size === 0) return;
    const found = [...this.unsupported].map(
      ([dtype, [first, ...more]]) =>
        `${dtype} (${first}${more.length > 0 ? ` and ${more.length} more tensors` : ''})`,
    );
    throw new ModelError('MODEL_UNSUPPORTED', `${where}: weights of type ${found.join(', ')}`, {
      hint: `Supported types: ${Object.keys(STORED_TYPES).join(', ')}.`,
    });
  }
}

/** Everything of the files that a tensor is made of, each once. */
export function* storedTensorsOf(tensor: BoundTensor): Generator<StoredTensor> {
  for (const piece of tensor.pieces) yield piece.stored;
  if (tensor.scale) yield* storedTensorsOf(tensor.scale.by);
  if (tensor.columnScale) yield* storedTensorsOf(tensor.columnScale);
}

/** What a model shows of a tensor: its stored type (several: joined by +), and its share of the files' bytes. */
export function summarize({ pieces }: BoundTensor): { dtype: string; bytes: number } {
  const types = new Set(pieces.map(({ packed, stored }) => (packed ? TERNARY : stored.dtype)));
  const bytes = pieces.reduce((sum, { type, packed, ...p }) => {
    const blocks = (p.rows * p.cols) / (packed ? 4 : type.blockElements);
    return sum + blocks * type.blockBytes;
  }, 0);
  return { dtype: [...types].join('+'), bytes };
}
