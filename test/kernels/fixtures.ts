/** Inputs of the kernels under test, the same in both arenas: rows, vectors, lists, caches. */
import { encodeSketchRow } from '../../src/kernels/reference/sketch-rows.js';
import type { KvFormat, Ptr } from '../../src/kernels/kernels.js';
import {
  activationBytes,
  alignUp,
  bf16RoundUp,
  bf16ToNumber,
  COLUMN_MULTIPLE,
  GROUP,
  isSketch,
  KV_PAGE,
  rowBytes,
  sketchBits,
  sketchRowBytes,
  type RowFormat,
  type SketchFormat,
} from '../../src/kernels/layout.js';
import { normals, random } from './samples.js';
import type { TwinArena } from './twin-arena.js';

export interface Vectors {
  ptr: Ptr;
  stride: number;
  /** Length of each vector, for error scales. */
  norms: number[];
  /** Largest magnitude in all of them. */
  largest: number;
}

export function weights(
  twins: TwinArena,
  format: RowFormat,
  rows: number,
  cols: number,
  seed: number,
  scale = 1,
): Vectors {
  return weightsOf(
    twins,
    format,
    Array.from({ length: rows }, (_, r) => normals(cols, seed * 1000 + r, scale)),
    cols,
  );
}

/** Rows as the reference stores them; the stride has room to spare, as a neuron's record has. */
export function weightsOf(twins: TwinArena, format: RowFormat, rows: Float32Array[], cols: number): Vectors {
  const bytes = isSketch(format) ? sketchRowBytes(sketchBits(format), cols) : rowBytes(format, cols);
  const stride = bytes + 48;
  const ptr = twins.alloc(rows.length * stride);
  for (const [r, row] of rows.entries()) {
    const to = ptr + r * stride;
    if (isSketch(format)) writeSketch(twins, format, row, to);
    else twins.reference.quantizeRows(format, twins.floats(row), 0, 1, to, stride, cols);
    twins.copyToSubject(to, bytes);
  }
  return { ptr, stride, norms: rows.map(norm), largest: largestOf(rows) };
}

/** A sketch of a row: each group's codes against its largest magnitude. */
function writeSketch(twins: TwinArena, format: SketchFormat, row: Float32Array, to: Ptr): void {
  const bits = sketchBits(format);
  const top = 2 ** bits - 1;
  const padded = new Float64Array(alignUp(row.length, COLUMN_MULTIPLE));
  padded.set(row);
  const scales: number[] = [];
  const codes = Array.from(padded, (value, c) => {
    const g = Math.floor(c / GROUP);
    scales[g] ??= bf16RoundUp(largestOf([Float32Array.from(padded.slice(g * GROUP, (g + 1) * GROUP))]) / top);
    const scale = bf16ToNumber(scales[g]);
    return scale === 0 ? 0 : Math.min(top, Math.max(0, Math.round((value / scale + top) / 2)));
  });
  encodeSketchRow(bits, codes, scales, twins.referenceBytes(to, sketchRowBytes(bits, row.length)));
}

export function activations(
  twins: TwinArena,
  format: RowFormat,
  count: number,
  cols: number,
  seed: number,
  scale = 1,
): Vectors {
  return activationsOf(
    twins,
    format,
    Array.from({ length: count }, (_, t) => normals(cols, seed * 77 + t + 500, scale)),
    cols,
  );
}

export function activationsOf(
  twins: TwinArena,
  format: RowFormat,
  vectors: Float32Array[],
  cols: number,
): Vectors {
  const stride = activationBytes(format, cols) + 16;
  const ptr = twins.alloc(vectors.length * stride);
  for (const [t, values] of vectors.entries()) {
    const x = twins.floats(values);
    const to = ptr + t * stride;
    if (format === 'f32') twins.reference.quantizeRows('f32', x, 0, 1, to, 0, cols);
    else twins.reference.quantize(x, to, cols);
    twins.copyToSubject(to, activationBytes(format, cols));
  }
  return { ptr, stride, norms: vectors.map(norm), largest: largestOf(vectors) };
}

const norm = (v: Float32Array): number => Math.hypot(...v);
const largestOf = (vectors: Float32Array[]): number =>
  vectors.reduce((top, v) => v.reduce((max, value) => Math.max(max, Math.abs(value)), top), 0);

/** |w_r| |x| for each row: what a dot product's rounding error is relative to. */
export const products = (w: Vectors, x: Vectors, rows: number): number[] =>
  w.norms.slice(0, rows).map((value) => value * x.norms[0]);
export const largestProduct = (w: Vectors, x: Vectors): number => Math.max(...w.norms) * Math.max(...x.norms);

export const results = (twins: TwinArena, ptr: Ptr, n: number): [Float32Array, Float32Array] => [
  twins.read(0, ptr, n),
  twins.read(1, ptr, n),
];

/** Tokens' lists of rows as the kernels take them. */
export interface TokenLists {
  offsets: Ptr;
  ids: Ptr;
  /** Entries of all lists. */
  count: number;
}

/** `first`: where the lists begin in `ids`; an engine's lane has the middle of longer ones. */
export function listsOf(twins: TwinArena, lists: readonly (readonly number[])[], first = 0): TokenLists {
  const offsets = [first];
  for (const list of lists) offsets.push(offsets[offsets.length - 1] + list.length);
  const padding: number[] = new Array(first).fill(0xffff_ffff);
  const ids = twins.ints([...padding, ...lists.flat()]);
  return { offsets: twins.ints(offsets), ids, count: offsets[offsets.length - 1] };
}

/** Each token lists a share of the rows: none, few, most, all, in turn. */
export function randomLists(twins: TwinArena, rows: number, nTokens: number, seed: number): TokenLists {
  const next = random(seed);
  const share = [0.5, 0, 0.1, 1, 0.9];
  return listsOf(
    twins,
    Array.from({ length: nTokens }, (_, t) => [...Array(rows).keys()].filter(() => next() < share[t % 5])),
  );
}

interface KvRows {
  data: Ptr;
  scales: Ptr;
}

export function kvRows(twins: TwinArena, format: KvFormat, positions: number, headDim: number): KvRows {
  const data = twins.alloc(positions * headDim * (format === 'f32' ? 4 : 1));
  return { data, scales: format === 'f32' ? 0 : twins.alloc(positions * 4) };
}

/** Keys and values of nPos positions in pages that stand in any order (the seed `order`), with others between them. */
export function pagedKv(
  twins: TwinArena,
  format: KvFormat,
  nPos: number,
  headDim: number,
  seed: number,
  order = seed,
): { pointers: [kData: Ptr, kScales: Ptr, vData: Ptr, vScales: Ptr, table: Ptr]; largest: number } {
  const next = random(order);
  const pages = Math.ceil(nPos / KV_PAGE);
  const table = [...Array(pages + 2).keys()].sort(() => next() - 0.5).slice(0, pages);
  let largest = 0;
  const fill = (which: number): KvRows => {
    const rows = kvRows(twins, format, (pages + 2) * KV_PAGE, headDim);
    for (let p = 0; p < nPos; p++) {
      const values = normals(headDim, seed * 991 + 2 * p + which);
      largest = Math.max(largest, largestOf([values]));
      const row = table[Math.floor(p / KV_PAGE)] * KV_PAGE + (p % KV_PAGE);
      twins.reference.storeKv(format, twins.floats(values), rows.data, rows.scales, row, headDim);
    }
    // Both get the reference's bytes: storeKv has its own test.
    twins.copyToSubject(rows.data, (pages + 2) * KV_PAGE * headDim * (format === 'f32' ? 4 : 1));
    if (format === 'q8') twins.copyToSubject(rows.scales, (pages + 2) * KV_PAGE * 4);
    return rows;
  };
  const [k, v] = [fill(0), fill(1)];
  return { pointers: [k.data, k.scales, v.data, v.scales, twins.ints(table)], largest };
}
