/**
 * Batch invariance: the same bits whatever else a call computes (kernels.ts). Every case computes something
 * large at once and compares each part of it with the call for that part alone.
 */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Kernels, KvFormat } from '../../src/kernels/kernels.js';
import type { KernelName } from '../../src/kernels/table.js';
import { alignUp, paddedCols, ROW_FORMATS, WEIGHT_FORMATS } from '../../src/kernels/layout.js';
import { activations, listsOf, pagedKv, weights } from './fixtures.js';
import { normals, random } from './samples.js';
import { TwinArena } from './twin-arena.js';

/** Whole groups, a short last group, more than half as many groups as a vector has lanes, more than a tile has. */
const COLS = [1, 32, 96, 128, 160, 300, 416, 640, 1024, 1184, 2208];
/** Around the tiles of rows: 4, 8 (wasm), 16 and 32 (repacked), and several of them. */
const ROWS = [1, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 40, 67];
/** Around the tiles of tokens: 1, 2, 4, 6 (repacked from here on), 8, 12, 64. */
const TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 16, 25, 29, 67];

const bitsOf = (twins: TwinArena, ptr: number, n: number): number[] => [
  ...new Uint32Array(twins.bytes(0, ptr, n * 4).buffer),
];

/** What of ConformanceSubject is of use here. */
interface SameBitsOptions {
  without: (kernel: KernelName) => boolean;
  runs: (all: number) => number;
  slow: boolean;
  /** @default COLS */
  columns?: readonly number[];
}

export function sameBits(
  create: (memory: WebAssembly.Memory) => Kernels,
  { without, runs, slow, columns = COLS }: SameBitsOptions,
): void {
  const shapes = shapesOf(columns, slow);
  const property = (body: (twins: TwinArena, shape: Shape) => void, numRuns: number): void =>
    fc.assert(
      fc.property(shapes, (shape) => {
        const twins = new TwinArena(create);
        body(twins, shape);
        twins.expectGuardsIntact();
      }),
      { numRuns: runs(numRuns), endOnFailure: true },
    );

  describe('the same bits in any company', () => {
    test.each(ROW_FORMATS)('dot with %s rows: one token and one row, as in any batch', (format) => {
      property((twins, { cols, rows, tokens, seed }) => {
        const k = twins.subject;
        const w = weights(twins, format, rows, cols, seed % 1000);
        const x = activations(twins, format, tokens, cols, seed % 997);
        const outStride = rows + 1;
        const all = twins.alloc(tokens * outStride * 4, true);
        const one = twins.alloc(rows * 4, true);
        k.dot(format, w.ptr, w.stride, rows, x.ptr, x.stride, tokens, all, outStride, cols);
        for (let t = 0; t < tokens; t++) {
          const expected = bitsOf(twins, all + t * outStride * 4, rows);
          k.dot(format, w.ptr, w.stride, rows, x.ptr + t * x.stride, 0, 1, one, 0, cols);
          expect(bitsOf(twins, one, rows)).toEqual(expected);
          const r = seed % rows;
          k.dot(format, w.ptr + r * w.stride, 0, 1, x.ptr + t * x.stride, 0, 1, one, 0, cols);
          expect(bitsOf(twins, one, 1)).toEqual([expected[r]]);
        }
      }, 60);
    });

    test.each(ROW_FORMATS)('dotLists with %s rows: the products of dot', (format) => {
      property((twins, { cols, rows, tokens, lists, seed }) => {
        const k = twins.subject;
        const w = weights(twins, format, rows, cols, seed % 1000);
        const x = activations(twins, format, tokens, cols, seed % 997);
        const listed = lists(rows);
        const first = seed % 3;
        const { offsets, ids, count } = listsOf(twins, listed, first);
        const all = twins.alloc(tokens * rows * 4, true);
        const out = twins.alloc(count * 4, true);
        const one = twins.alloc(count * 4, true);
        k.dot(format, w.ptr, w.stride, rows, x.ptr, x.stride, tokens, all, rows, cols);
        k.dotLists(format, w.ptr, w.stride, offsets, ids, tokens, x.ptr, x.stride, out, cols);
        const dense = bitsOf(twins, all, tokens * rows);
        const expected = listed.flatMap((list, t) => list.map((row) => dense[t * rows + row]));
        expect(bitsOf(twins, out + first * 4, count - first)).toEqual(expected);
        for (let t = 0; t < tokens; t++) {
          k.dotLists(
            ...[format, w.ptr, w.stride, offsets + t * 4, ids, 1, x.ptr + t * x.stride, 0, one, cols],
          );
        }
        expect(bitsOf(twins, one + first * 4, count - first)).toEqual(expected);
      }, 60);
    });

    test.each(WEIGHT_FORMATS)('sumLists of %s rows: each token as alone', (format) => {
      property((twins, { cols, rows, tokens, lists, seed }) => {
        const k = twins.subject;
        const w = weights(twins, format, rows, cols, seed % 1000);
        const { offsets, ids, count } = listsOf(twins, lists(rows), seed % 3);
        const coefs = normals(count, seed);
        // Now and then a coefficient that must go through f32.
        if (seed % 5 === 0 && count > 3) coefs[count - 2] = seed % 2 ? Infinity : 3e38;
        const coef = twins.floats(coefs, true);
        const n = paddedCols(format, cols);
        const outStride = alignUp(n, 4);
        const before = normals(tokens * outStride, seed + 1);
        const [all, one] = [twins.floats(before), twins.floats(before)];
        k.sumLists(format, w.ptr, w.stride, offsets, ids, tokens, coef, all, outStride, cols);
        for (let t = 0; t < tokens; t++) {
          const to = one + t * outStride * 4;
          k.sumLists(format, w.ptr, w.stride, offsets + t * 4, ids, 1, coef, to, 0, cols);
        }
        expect(bitsOf(twins, one, tokens * outStride)).toEqual(bitsOf(twins, all, tokens * outStride));
      }, 60);
    });

    test.each(WEIGHT_FORMATS)('lists of %s rows beyond the first tile of rows and of columns', (format) => {
      const [rows, cols, tokens] = slow ? [300, 640, 4] : [700, 2208, 5];
      const next = random(3);
      const k = new TwinArena(create, 1 << 25);
      const w = weights(k, format, 40, cols, 1);
      const x = activations(k, format, tokens, cols, 2);
      const big = k.repeat(w.ptr, w.stride, 40, rows);
      const listed = Array.from({ length: tokens }, (_, t) =>
        [...Array(rows).keys()].filter(() => next() < [0.5, 0.02, 1, 0, 0.3][t]),
      );
      const { offsets, ids, count } = listsOf(k, listed);
      const [products, alone] = [0, 1].map(() => k.alloc(count * 4));
      const coef = k.floats(normals(count, 4));
      const outStride = alignUp(paddedCols(format, cols), 4);
      const [sums, sumsAlone] = [0, 1].map(() => k.alloc(tokens * outStride * 4));
      const { subject } = k;
      subject.dotLists(format, big, w.stride, offsets, ids, tokens, x.ptr, x.stride, products, cols);
      subject.sumLists(format, big, w.stride, offsets, ids, tokens, coef, sums, outStride, cols);
      for (let t = 0; t < tokens; t++) {
        const list = [offsets + t * 4, ids, 1] as const;
        subject.dotLists(format, big, w.stride, ...list, x.ptr + t * x.stride, 0, alone, cols);
        subject.sumLists(format, big, w.stride, ...list, coef, sumsAlone + t * outStride * 4, 0, cols);
      }
      expect(bitsOf(k, alone, count)).toEqual(bitsOf(k, products, count));
      expect(bitsOf(k, sumsAlone, tokens * outStride)).toEqual(bitsOf(k, sums, tokens * outStride));
      expect(k.read(0, sums, cols).some((value) => value !== 0)).toBe(true);
    });

    test.skipIf(without('attention')).each(['f32', 'q8'] as KvFormat[])(
      'attention over %s: each head as in a group of one',
      (format) => {
        property((twins, { group, headDim, window: [begin, nPos], seed }) => {
          const k = twins.subject;
          const cache = pagedKv(twins, format, nPos, headDim, seed % 1000);
          const q = twins.floats(normals(group * headDim, seed));
          const [all, one] = [0, 1].map(() => twins.alloc(group * headDim * 4));
          const scores = twins.alloc(group * alignUp(nPos, 16) * 4);
          const head = headDim * 4;
          k.attention(format, q, ...cache.pointers, all, scores, group, begin, nPos, headDim, 0.2);
          for (let h = 0; h < group; h++) {
            k.attention(
              ...[format, q + h * head, ...cache.pointers, one + h * head],
              ...[scores, 1, begin, nPos, headDim, 0.2],
            );
          }
          expect(bitsOf(twins, one, group * headDim)).toEqual(bitsOf(twins, all, group * headDim));
        }, 40);
      },
    );

    test.skipIf(without('attention'))('attention does not depend on where the pages stand', () => {
      const outputs = [1, 2, 3].map((order) => {
        const twins = new TwinArena(create);
        const { pointers } = pagedKv(twins, 'q8', 200, 64, 5, order);
        const q = twins.floats(normals(64, 1));
        const out = twins.alloc(256);
        twins.subject.attention('q8', q, ...pointers, out, twins.alloc(208 * 4), 1, 37, 200, 64, 0.2);
        return bitsOf(twins, out, 64);
      });
      expect(outputs[1]).toEqual(outputs[0]);
      expect(outputs[2]).toEqual(outputs[0]);
    });
  });
}

interface Shape {
  cols: number;
  rows: number;
  tokens: number;
  seed: number;
  /** A list of rows for each token: empty, a few, or up to several blocks of sixteen. */
  lists: (rows: number) => number[][];
  group: number;
  headDim: number;
  window: [begin: number, nPos: number];
}

/** @param slow few heads, windows and tokens: each is another kernel, or another call */
const shapesOf = (columns: readonly number[], slow: boolean): fc.Arbitrary<Shape> =>
  fc
    .record({
      cols: fc.constantFrom(...columns),
      rows: fc.constantFrom(...ROWS),
      tokens: fc.constantFrom(...TOKENS.filter((tokens) => !slow || tokens <= 16)),
      seed: fc.nat(1e6),
      shares: fc.array(fc.constantFrom(0, 0.05, 0.3, 0.7, 1), { minLength: 4, maxLength: 4 }),
      group: fc.integer({ min: 1, max: slow ? 7 : 19 }),
      headDim: fc.constantFrom(...(slow ? [20, 80] : [16, 20, 32, 64, 80, 128])),
      window: slow
        ? fc.constantFrom<[number, number]>([0, 100], [37, 64])
        : fc.tuple(fc.nat(150), fc.integer({ min: 1, max: 150 })),
    })
    .map(({ shares, window: [begin, length], ...shape }) => ({
      ...shape,
      window: [begin, begin + length],
      lists: (rows) => {
        const next = random(shape.seed);
        return Array.from({ length: shape.tokens }, (_, t) =>
          [...Array(rows).keys()].filter(() => next() < shares[t % shares.length]),
        );
      },
    }));
