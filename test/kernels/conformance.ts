/**
 * The conformance suite: what every Kernels implementation must do, compared with the reference. Codes,
 * scales, ids and counts are compared bit for bit; floating-point results with the tolerances below,
 * relative to what their rounding errors grow with.
 */
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import type { KernelName } from '../../src/kernels/table.js';
import { ACTIVATION_KINDS, isSmooth, type Kernels, type KvFormat } from '../../src/kernels/kernels.js';
import {
  alignUp,
  paddedCols,
  q8aLayout,
  ROW_FORMATS,
  rowBytes,
  WEIGHT_FORMATS,
} from '../../src/kernels/layout.js';
import {
  activations,
  activationsOf,
  kvRows,
  largestProduct,
  listsOf,
  pagedKv,
  products,
  randomLists,
  results,
  weights,
  weightsOf,
} from './fixtures.js';
import { sameBits } from './same-bits.js';
import { COLUMNS, EXTREMES, normals, random } from './samples.js';
import { Differences, SMALLEST_OF_FLUSHED, TwinArena } from './twin-arena.js';

export const TOLERANCE = {
  /** Group sums are exact integers; what differs is the order of f32 additions. Relative to |w| |x|. */
  dot: 2e-6,
  /** f32 coefficients, or 16-bit ones per block of rows. Relative to the sum of |coef| max |w|. */
  sumLists: 1e-4,
  /** Relative to the largest element (rmsNorm, rope, silu, softmax), and for attention to max |v|. */
  elementwise: 2e-6,
  softmax: 4e-6,
  attention: 1e-5,
  /** Query and probabilities may be 16-bit numbers per block of positions; storing in q8 itself loses 4e-3. */
  attentionQ8: 3e-4,
} as const;

export interface ConformanceSubject {
  name: string;
  create: (memory: WebAssembly.Memory) => Kernels;
  /** Kernels it has not, and why: their cases are skipped. @default none */
  lacks?: Partial<Record<KernelName, string>>;
  /**
   * A GPU: a call takes it milliseconds and a new shape a second, so there are fewer of both. Numbers below the
   * smallest normal f32 may be zero to it, and a quotient may be off by a bit (codes of the cache by one). Its norms
   * return nothing (what is not finite shows in the result), its activate takes no weights, and heads in an 8-bit
   * cache are multiples of four. @default false
   */
  gpu?: boolean;
}

/** Around the multiple of 32 and the group of 128; wider rows only do more of the same. All cases share them. */
const FEW_COLUMNS = [1, 33, 160, 256, 300];

/** Pointers above 2^31 are negative where a backend forgets that they are unsigned. */
const FAR_BASE = 2 ** 31 + 2 ** 20;

export function conformance({ name, create, lacks = {}, gpu = false }: ConformanceSubject): void {
  const without = (kernel: KernelName): boolean => kernel in lacks;
  /** A case's or suite's name, with the reason if it is skipped. */
  const called = (title: string, kernel: KernelName): string =>
    without(kernel) ? `${title} (skipped: ${lacks[kernel]})` : title;
  const columns = gpu ? FEW_COLUMNS : COLUMNS;
  const runs = (all: number): number => (gpu ? 3 : all);
  sameBits(create, { without, runs, slow: gpu, columns: gpu ? FEW_COLUMNS : undefined });
  const differences = new Differences(gpu ? SMALLEST_OF_FLUSHED : undefined);
  afterAll(() => console.log(differences.report(name)));

  /** A fresh pair of arenas; guards are checked when the body is done. */
  const inTwins = (body: (twins: TwinArena) => void, bytes?: number, base?: number): void => {
    const twins = new TwinArena(create, bytes, base);
    body(twins);
    twins.expectGuardsIntact();
  };

  // ---- activations -----------------------------------------------------------------------------------

  describe.skipIf(without('quantize'))(called('quantize', 'quantize'), () => {
    const checkQuantize = (values: Float32Array): void =>
      inTwins((twins) => {
        const x = twins.floats(values);
        const dst = twins.alloc(q8aLayout(values.length).bytes);
        twins.both((k) => k.quantize(x, dst, values.length));
        twins.expectSameBytes(dst, q8aLayout(values.length).bytes, `Q8A of ${values.length}`);
      });

    test.each(COLUMNS)('writes the same codes, scales and sums: %d columns', (cols) => {
      checkQuantize(normals(cols, cols));
    });
    test.each(EXTREMES)('extreme values: $name', ({ values }) => {
      for (const cols of [32, 100, 300]) checkQuantize(values(cols));
    });
    test('random cases', () => {
      const cases = fc.array(fc.float({ noNaN: true, noDefaultInfinity: true }), {
        minLength: 1,
        maxLength: 300,
      });
      fc.assert(
        fc.property(cases, (values) => checkQuantize(Float32Array.from(values))),
        { numRuns: 60 },
      );
    });
    test.each([NaN, Infinity])('%d in a vector reaches every product with it', (bad) =>
      inTwins((twins) => {
        const cols = 300;
        const w = weights(twins, 'q8', 2, cols, 1);
        const values = normals(cols, 2);
        values[200] = bad;
        const x = twins.floats(values);
        const q8a = twins.alloc(q8aLayout(cols).bytes);
        const out = twins.alloc(8);
        twins.both((k) => {
          k.quantize(x, q8a, cols);
          k.dot('q8', w.ptr, w.stride, 2, q8a, 0, 1, out, 2, cols);
        });
        expect([...twins.read(0, out, 2)].some(Number.isFinite)).toBe(false);
      }),
    );
  });

  // ---- dot products ----------------------------------------------------------------------------------

  describe.each(ROW_FORMATS)('dot products with %s rows', (format) => {
    const checkDot = (cols: number, rows: number, seed: number, scale = 1, base?: number): void =>
      inTwins(
        (twins) => {
          const w = weights(twins, format, rows, cols, seed, scale);
          const x = activations(twins, format, 1, cols, seed + 1);
          const out = twins.alloc(rows * 4, true);
          twins.both((k) => k.dot(format, w.ptr, w.stride, rows, x.ptr, x.stride, 1, out, rows, cols));
          const [a, b] = results(twins, out, rows);
          differences.check(`dot ${format}`, a, b, products(w, x, rows), TOLERANCE.dot);
        },
        1 << 22,
        base,
      );

    test.each(columns)('dot, %d columns', (cols) => checkDot(cols, 7, cols));
    test('dot, 1 to 17 rows', () => {
      for (let rows = 1; rows <= 17; rows++) checkDot(160, rows, rows);
    });
    test('dot, no rows', () => checkDot(128, 0, 1));
    test('dot, pointers above 2 GiB', () => checkDot(300, 5, 3, 1, FAR_BASE));
    test('dot, random cases', () => {
      fc.assert(
        fc.property(
          gpu ? fc.constantFrom(...FEW_COLUMNS) : fc.integer({ min: 1, max: 700 }),
          fc.integer({ min: 1, max: 9 }),
          fc.integer(),
          fc.constantFrom(1, 1e-6, 1e6),
          (cols, rows, seed, scale) => checkDot(cols, rows, seed, scale),
        ),
        { numRuns: runs(60) },
      );
    });

    test.each(EXTREMES)('dot, extreme weights: $name', ({ values }) =>
      inTwins((twins) => {
        const cols = 300;
        const w = weightsOf(twins, format, [values(cols), values(cols).reverse()], cols);
        const x = activations(twins, format, 1, cols, 4, 1e-3);
        const out = twins.alloc(8);
        twins.both((k) => k.dot(format, w.ptr, w.stride, 2, x.ptr, x.stride, 1, out, 2, cols));
        differences.check(`dot ${format}`, ...results(twins, out, 2), products(w, x, 2), TOLERANCE.dot);
      }),
    );

    test('largest codes everywhere do not overflow', () =>
      inTwins((twins) => {
        const cols = 256;
        const row = new Float32Array(cols).fill(1);
        const mixed = row.map((_, i) => (i % 2 ? -1 : 1));
        const w = weightsOf(twins, format, [row, row.map((v) => -v), mixed], cols);
        for (const values of [row, row.map((v) => -v), mixed]) {
          const x = activationsOf(twins, format, [values], cols);
          const out = twins.alloc(12);
          twins.both((k) => k.dot(format, w.ptr, w.stride, 3, x.ptr, x.stride, 1, out, 3, cols));
          differences.check(`dot ${format}`, ...results(twins, out, 3), products(w, x, 3), TOLERANCE.dot);
        }
      }));

    test.each(gpu ? [300] : [32, 100, 128, 300, 1184, 4096])(
      'dot of 1 to 9, 12, 13 and 29 tokens, %d columns',
      (cols) => {
        for (const nTokens of [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 29]) {
          inTwins((twins) => {
            const rows = nTokens === 12 ? 67 : 11;
            const w = weights(twins, format, rows, cols, 1);
            const x = activations(twins, format, nTokens, cols, nTokens);
            const outStride = rows + 3;
            const out = twins.alloc(nTokens * outStride * 4, true);
            twins.both((k) =>
              k.dot(format, w.ptr, w.stride, rows, x.ptr, x.stride, nTokens, out, outStride, cols),
            );
            const [a, b] = results(twins, out, nTokens * outStride);
            differences.check(`dot ${format}, many`, a, b, largestProduct(w, x), TOLERANCE.dot);
          });
        }
      },
    );

    test('dotLists of one token, 0 to 17 rows', () =>
      inTwins((twins) => {
        const cols = 160;
        const w = weights(twins, format, 40, cols, 1);
        const x = activations(twins, format, 1, cols, 2);
        for (let count = 0; count <= 17; count++) {
          const lists = listsOf(twins, [Array.from({ length: count }, (_, i) => 2 * i + (i % 2))]);
          const out = twins.alloc(count * 4, true);
          twins.both((k) =>
            k.dotLists(format, w.ptr, w.stride, lists.offsets, lists.ids, 1, x.ptr, 0, out, cols),
          );
          const [a, b] = results(twins, out, count);
          differences.check(`dotLists ${format}`, a, b, largestProduct(w, x), TOLERANCE.dot);
        }
      }));

    test.each(gpu ? [300] : [64, 300, 1184])('dotLists of 12 tokens, %d columns', (cols) =>
      inTwins((twins) => {
        const [rows, nTokens] = [30, 12];
        const w = weights(twins, format, rows, cols, 1);
        const x = activations(twins, format, nTokens, cols, 2);
        const lists = randomLists(twins, rows, nTokens, 3);
        const out = twins.alloc(lists.count * 4, true);
        twins.both((k) =>
          k.dotLists(
            ...[format, w.ptr, w.stride, lists.offsets, lists.ids, nTokens, x.ptr, x.stride, out, cols],
          ),
        );
        differences.check(
          `dotLists ${format}, many`,
          ...results(twins, out, lists.count),
          largestProduct(w, x),
          TOLERANCE.dot,
        );
      }),
    );
  });

  // ---- sums of rows ----------------------------------------------------------------------------------

  describe.each(WEIGHT_FORMATS)('sums of %s rows', (format) => {
    const checkSum = (cols: number, count: number, coefs: Float32Array, seed: number, base?: number): void =>
      inTwins(
        (twins) => {
          const w = weights(twins, format, Math.max(1, 2 * count), cols, seed);
          const lists = listsOf(twins, [Array.from({ length: count }, (_, i) => 2 * i + (i % 2))]);
          const coef = twins.floats(coefs, true);
          const n = paddedCols(format, cols);
          const before = new Float32Array(n).map((_, c) => (c < cols ? Math.sin(c) : 0));
          const out = twins.floats(before);
          twins.both((k) =>
            k.sumLists(format, w.ptr, w.stride, lists.offsets, lists.ids, 1, coef, out, n, cols),
          );
          const scale = 1 + coefs.reduce((sum, value) => sum + Math.abs(value), 0) * w.largest;
          differences.check(`sumLists ${format}`, ...results(twins, out, n), scale, TOLERANCE.sumLists);
        },
        1 << 22,
        base,
      );

    test.each(columns)('sumLists, %d columns', (cols) => checkSum(cols, 9, normals(9, cols), cols));
    test('sumLists, 0 to 17 rows, 33 rows and 100 rows', () => {
      for (const count of [...Array(18).keys(), 33, 100]) checkSum(160, count, normals(count, count), count);
    });
    test('sumLists, pointers above 2 GiB', () => checkSum(300, 21, normals(21, 1), 1, FAR_BASE));
    test('sumLists, coefficients of zero, tiny, huge and mixed', () => {
      checkSum(160, 20, new Float32Array(20), 1);
      checkSum(160, 20, normals(20, 2, 1e-40), 2);
      checkSum(160, 20, normals(20, 3, 1e20), 3);
      checkSum(
        160,
        20,
        normals(20, 4).map((v, i) => v * 10 ** ((i % 9) - 4)),
        4,
      );
    });
    test('sumLists, random cases', () => {
      fc.assert(
        fc.property(
          gpu ? fc.constantFrom(...FEW_COLUMNS) : fc.integer({ min: 1, max: 500 }),
          fc.integer({ min: 0, max: 40 }),
          fc.integer(),
          (cols, count, seed) => checkSum(cols, count, normals(count, seed), seed),
        ),
        { numRuns: runs(40) },
      );
    });
    test('sumLists passes NaN on', () =>
      inTwins((twins) => {
        const cols = 160;
        const w = weights(twins, format, 4, cols, 1);
        const lists = listsOf(twins, [[0, 1, 3]]);
        const coef = twins.floats([1, NaN, 1]);
        const out = twins.alloc(cols * 4);
        twins.both((k) =>
          k.sumLists(format, w.ptr, w.stride, lists.offsets, lists.ids, 1, coef, out, cols, cols),
        );
        expect(twins.read(0, out, cols).every(Number.isNaN)).toBe(true);
      }));

    test.each(gpu ? [300] : [33, 64, 300, 2300])('sumLists of 12 tokens, %d columns', (cols) =>
      inTwins((twins) => {
        const [rows, nTokens] = [60, 12];
        const w = weights(twins, format, rows, cols, 1);
        const lists = randomLists(twins, rows, nTokens, 3);
        const coef = twins.floats(normals(lists.count, 4));
        const n = paddedCols(format, cols);
        const outStride = alignUp(n, 4) + 4;
        const out = twins.floats(
          new Float32Array(nTokens * outStride).map((_, i) => (i % outStride < n ? 1 : 7)),
        );
        twins.both((k) =>
          k.sumLists(
            ...[format, w.ptr, w.stride, lists.offsets, lists.ids, nTokens, coef, out, outStride, cols],
          ),
        );
        differences.check(
          `sumLists ${format}, many`,
          ...results(twins, out, nTokens * outStride),
          1 + rows * w.largest,
          TOLERANCE.sumLists,
        );
      }),
    );
  });

  // ---- choosing neurons ------------------------------------------------------------------------------

  describe('choosing neurons', () => {
    const gates = (n: number, seed: number): Float32Array => {
      const values = normals(n, seed);
      values.forEach((_, i) => {
        if (i % 7 === 0) values[i] = 0;
        if (i % 11 === 0) values[i] = -0;
        if (i % 13 === 0) values[i] = 0.25; // exactly the threshold below
        if (i % 29 === 0) values[i] = 1e-25; // its square is 0 in f32
      });
      return values;
    };

    test.each(ACTIVATION_KINDS)('activate %s: ids, values and count', (kind) => {
      for (const n of [0, 1, 2, 3, 4, 5, 16, 31, 100, 1000]) {
        for (const inPlace of [false, true]) {
          inTwins((twins) => {
            const gate = twins.floats(gates(n, n));
            const ids = inPlace ? twins.ints(Array.from({ length: n }, (_, i) => 3 * i + 5)) : 0;
            const outIds = inPlace ? ids : twins.alloc(n * 4, true);
            const outAct = inPlace ? gate : twins.alloc(n * 4);
            const weight =
              n % 2 === 0 && !gpu
                ? twins.floats(normals(n, n + 3).map((v, i) => (i % 5 === 0 ? 1 : Math.abs(v))))
                : 0;
            const [a, b] = twins.both((k) =>
              k.activate(kind, 0.25, gate, n, ids, 1000, weight, outIds, outAct),
            );
            expect(a).toBe(b);
            twins.expectSameBytes(outIds, a * 4, 'ids');
            differences.check(
              `activate ${kind}`,
              ...results(twins, outAct, a),
              isSmooth(kind) ? 1 : 0,
              TOLERANCE.elementwise,
            );
          });
        }
      }
    });

    test.each(ACTIVATION_KINDS)('activate %s keeps NaN', (kind) =>
      inTwins((twins) => {
        const gate = twins.floats([-1, NaN, -1, -1, -1]);
        const outIds = twins.alloc(20);
        const outAct = twins.alloc(20);
        const [count] = twins.both((k) => k.activate(kind, 0.25, gate, 5, 0, 0, 0, outIds, outAct));
        expect(twins.read(0, outAct, count).some(Number.isNaN)).toBe(true);
      }),
    );

    test('the threshold of fatrelu is an f32: a gate that equals it when rounded does not pass', () =>
      inTwins((twins) => {
        const gate = twins.floats([0.1, 0.11]);
        const outIds = twins.alloc(8);
        const counts = twins.both((k) => k.activate('fatrelu', 0.1, gate, 2, 0, 0, 0, outIds, gate));
        expect(counts).toEqual([1, 1]);
      }));

    test.each(ACTIVATION_KINDS.filter(isSmooth))('%s far from zero: a cut below 0 keeps all', (kind) =>
      inTwins((twins) => {
        const values = [-1000, -100, -88, -20, -5, -1, 0, 1, 5, 20, 88, 100, 1000];
        const gate = twins.floats(values);
        const outIds = twins.alloc(values.length * 4);
        const outAct = twins.alloc(values.length * 4);
        const [count] = twins.both((k) => k.activate(kind, -1, gate, values.length, 0, 0, 0, outIds, outAct));
        expect(count).toBe(values.length);
        differences.check(
          `activate ${kind}`,
          ...results(twins, outAct, count),
          values.map((v) => 1 + Math.abs(v)),
          TOLERANCE.elementwise,
        );
      }),
    );

    test('a smooth activation passes where its size is above the cut, on both sides of zero', () =>
      inTwins((twins) => {
        // silu: -0.278 at its lowest, -0.269 at -1, -0.018 at -6.
        const gate = twins.floats([-6, -1, -0.1, 0, 0.1, 1, NaN]);
        const [outIds, outAct] = [twins.alloc(28, true), twins.alloc(28)];
        const counts = twins.both((k) => k.activate('silu', 0.1, gate, 7, 0, 0, 0, outIds, outAct));
        expect(counts).toEqual([3, 3]);
        expect([...new Uint32Array(twins.bytes(0, outIds, 12).slice().buffer)]).toEqual([1, 5, 6]);
        twins.expectSameBytes(outIds, 12, 'ids');
      }));

    test.skipIf(without('contribution')).each(ACTIVATION_KINDS)(
      called('contribution %s: the size of sigma times up', 'contribution'),
      (kind) => {
        for (const n of [0, 1, 3, 4, 5, 16, 33, 100]) {
          for (const gated of [true, false]) {
            inTwins((twins) => {
              const gate = twins.floats(gates(n, n));
              const up = gated ? twins.floats(gates(n, n + 1)) : 0;
              twins.both((k) => (k.contribution(kind, gate, up, n), 0));
              differences.check(
                `contribution ${kind}`,
                ...results(twins, gate, n),
                isSmooth(kind) ? 1 : 0,
                TOLERANCE.elementwise,
              );
            });
          }
        }
      },
    );

    test.skipIf(without('keepLarge'))(
      called('keepLarge: what weighs enough stays, in place or not; NaN stays', 'keepLarge'),
      () => {
        for (const n of [0, 1, 3, 4, 5, 31, 100]) {
          for (const [inPlace, timed] of [
            [true, false],
            [false, false],
            [true, true],
          ]) {
            inTwins((twins) => {
              const act = twins.floats(normals(n, n).map((v, i) => (i % 17 === 3 ? NaN : v)));
              const ids = twins.ints(Array.from({ length: n }, (_, i) => 2 * i + 1));
              const times = timed ? twins.floats(normals(n, n + 2)) : 0;
              const weight = twins.floats(normals(2 * n + 2, n + 1).map(Math.abs));
              const outIds = inPlace ? ids : twins.alloc(n * 4, true);
              const outAct = inPlace ? act : twins.alloc(n * 4);
              const [a, b] = twins.both((k) => k.keepLarge(act, times, ids, n, weight, 0.4, outIds, outAct));
              expect(a).toBe(b);
              expect(a < n || n < 4).toBe(true);
              twins.expectSameBytes(outIds, a * 4, 'ids');
              twins.read(0, outAct, a).forEach((value, i) => expect(twins.read(1, outAct, a)[i]).toBe(value));
            });
          }
        }
      },
    );

    test.each(ACTIVATION_KINDS)('gateUp %s: products and how many are not zero', (kind) => {
      for (const n of [0, 1, 3, 4, 7, 33, 100]) {
        inTwins((twins) => {
          const act = twins.floats(gates(n, n));
          const up = twins.floats(gates(n, n + 1));
          const [a, b] = twins.both((k) => k.gateUp(kind, act, up, n));
          expect(a).toBe(b);
          twins.read(0, act, n).forEach((value, i) => expect(value === twins.read(1, act, n)[i]).toBe(true));
        });
      }
    });

    test('selectAbove: at least the cut, in order', () => {
      for (const n of [0, 1, 3, 4, 7, 33, 1000]) {
        inTwins((twins) => {
          const score = twins.floats(gates(n, n).map((v, i) => (i % 17 === 3 ? NaN : v)));
          const cut = twins.floats(
            normals(n, n + 1).map((v, i) => (i % 5 === 0 ? 0 : i % 19 === 0 ? -Infinity : v)),
          );
          const outIds = twins.alloc(n * 4, true);
          const [a, b] = twins.both((k) => k.selectAbove(score, cut, n, 77, outIds));
          expect(a).toBe(b);
          twins.expectSameBytes(outIds, a * 4, 'ids');
        });
      }
    });

    test.skipIf(without('biasRelu'))(called('biasRelu with and without bias', 'biasRelu'), () => {
      for (const n of [1, 3, 4, 7, 100]) {
        inTwins((twins) => {
          const bias = twins.floats(normals(n, 1));
          for (const pointer of [bias, 0]) {
            const x = twins.floats(normals(n, 2));
            twins.both((k) => k.biasRelu(x, pointer, n));
            differences.check('biasRelu', ...results(twins, x, n), 1, 1e-7);
          }
        });
      }
    });
  });

  test.skipIf(without('addListed'))(called('addListed adds the listed biases', 'addListed'), () => {
    for (const n of [0, 1, 3, 7, 100]) {
      inTwins((twins) => {
        const x = twins.floats(normals(n, 1), true);
        const bias = twins.floats(normals(2 * n + 1, 2));
        const ids = twins.ints(Array.from({ length: n }, (_, i) => 2 * i + (i % 2)));
        twins.both((k) => k.addListed(x, bias, ids, n));
        twins.expectSameBytes(x, n * 4, 'sums');
      });
    }
  });

  // ---- the rest of the layer -------------------------------------------------------------------------

  describe('the rest of the layer', () => {
    const SIZES = gpu ? [1, 7, 100, 257, 4096] : [1, 3, 4, 7, 32, 100, 257, 4096];
    /** Of a norm's results on both sides. */
    const expectNear = (a: number, b: number): void => {
      if (!gpu) expect(Math.abs(a - b)).toBeLessThanOrEqual(1e-5 * b);
    };
    const expectNoNumber = (twins: TwinArena, mean: number, out: number, n: number): void => {
      if (!gpu) expect(mean).toBeNaN();
      expect(twins.read(0, out, n).some(Number.isFinite)).toBe(false);
    };

    test.skipIf(without('rmsNorm')).each(SIZES)('rmsNorm of %d, apart and in place', (n) => {
      for (const scale of [1, 1e-4, 1e4, 0]) {
        for (const inPlace of [false, true]) {
          inTwins((twins) => {
            const x = twins.floats(normals(n, n, scale));
            const weight = twins.floats(normals(n, n + 1));
            const out = inPlace ? x : twins.alloc(n * 4);
            expectNear(...twins.both((k) => k.rmsNorm(x, weight, out, n, 1e-6)));
            const scaleOf = Math.max(...twins.read(1, out, n).map(Math.abs));
            differences.check('rmsNorm', ...results(twins, out, n), scaleOf, TOLERANCE.elementwise);
          });
        }
      }
    });

    test.skipIf(without('rmsNorm'))('rmsNorm tells of a NaN', () =>
      inTwins((twins) => {
        const x = twins.floats([1, 2, NaN, 4, 5]);
        const weight = twins.floats([1, 1, 1, 1, 1]);
        const [mean] = twins.both((k) => k.rmsNorm(x, weight, x, 5, 1e-6));
        expectNoNumber(twins, mean, x, 5);
      }),
    );

    test.skipIf(without('layerNorm')).each(SIZES)(
      'layerNorm of %d, with and without bias, apart and in place',
      (n) => {
        for (const [scale, shift] of [
          [1, 0],
          [1e-3, 100],
          [1e4, -1e4],
          [0, 3],
        ]) {
          for (const inPlace of [false, true]) {
            inTwins((twins) => {
              const x = twins.floats(normals(n, n, scale).map((v) => v + shift));
              const weight = twins.floats(normals(n, n + 1));
              const bias = inPlace ? 0 : twins.floats(normals(n, n + 2));
              const out = inPlace ? x : twins.alloc(n * 4);
              expectNear(...twins.both((k) => k.layerNorm(x, weight, bias, out, n, 1e-5)));
              const scaleOf = 1 + Math.max(...twins.read(1, out, n).map(Math.abs));
              differences.check('layerNorm', ...results(twins, out, n), scaleOf, TOLERANCE.elementwise);
            });
          }
        }
      },
    );

    test.skipIf(without('layerNorm'))('layerNorm tells of a NaN', () =>
      inTwins((twins) => {
        const x = twins.floats([1, 2, NaN, 4, 5]);
        const weight = twins.floats([1, 1, 1, 1, 1]);
        const [mean] = twins.both((k) => k.layerNorm(x, weight, 0, x, 5, 1e-6));
        expectNoNumber(twins, mean, x, 5);
      }),
    );

    test.skipIf(without('rope')).each([2, 6, 32, 64, 80, 128])('rope, head dimension %d', (headDim) =>
      inTwins((twins) => {
        const half = headDim / 2;
        const x = twins.floats(normals(headDim, 1));
        const angles = normals(half, 2, 3);
        const cos = twins.floats(angles.map(Math.cos));
        const sin = twins.floats(angles.map(Math.sin));
        twins.both((k) => k.rope(x, cos, sin, headDim));
        differences.check('rope', ...results(twins, x, headDim), 10, TOLERANCE.elementwise);
      }),
    );

    test.skipIf(without('addScaled')).each(SIZES)('addScaled of %d', (n) =>
      inTwins((twins) => {
        const x = twins.floats(normals(n, 1));
        const y = twins.floats(normals(n, 2));
        twins.both((k) => k.addScaled(x, y, 0.31, n));
        differences.check('addScaled', ...results(twins, x, n), 10, TOLERANCE.elementwise);
      }),
    );

    test.skipIf(without('softmax')).each(SIZES)(called('softmax of %d', 'softmax'), (n) => {
      for (const scale of [0, 1, 30, 1e4]) {
        inTwins((twins) => {
          const x = twins.floats(normals(n, n, scale));
          twins.both((k) => k.softmax(x, n));
          differences.check('softmax', ...results(twins, x, n), 1, TOLERANCE.softmax);
        });
      }
    });

    test.skipIf(without('storeKv')).each(['f32', 'q8'] as KvFormat[])('storeKv %s', (format) => {
      for (const headDim of gpu && format === 'q8' ? [20, 64, 80, 128] : [1, 20, 64, 80, 128]) {
        inTwins((twins) => {
          const rows = kvRows(twins, format, 5, headDim);
          for (const row of [0, 3, 4]) {
            const x = twins.floats(row === 4 ? new Float32Array(headDim) : normals(headDim, row));
            twins.both((k) => k.storeKv(format, x, rows.data, rows.scales, row, headDim));
          }
          const bytes = 5 * headDim * (format === 'f32' ? 4 : 1);
          if (format === 'f32' || !gpu) twins.expectSameBytes(rows.data, bytes, 'KV rows');
          else {
            const [a, b] = [0, 1].map((which) => new Int8Array(twins.bytes(which as 0 | 1, rows.data, bytes).buffer)); // prettier-ignore
            a.forEach((code, i) => expect(Math.abs(code - b[i])).toBeLessThanOrEqual(1));
          }
          if (format === 'q8') differences.check('storeKv scales', ...results(twins, rows.scales, 5), 1, gpu ? 1e-7 : 0); // prettier-ignore
        });
      }
    });

    const heads = [
      { group: 7, headDim: 80 },
      { group: 3, headDim: 20 },
      { group: 1, headDim: 128 },
      { group: 2, headDim: 32 },
      { group: 4, headDim: 64 },
      { group: 12, headDim: 32 }, // more than native kernels take together
    ].slice(0, gpu ? 2 : undefined);
    // A window is part of a GPU's kernel.
    const windows = [
      [37, 64],
      [100, 257],
      [5, 6],
      [15, 33],
      [16, 48],
      [63, 130],
    ].slice(0, gpu ? 2 : undefined);
    describe.skipIf(without('attention')).each(['f32', 'q8'] as KvFormat[])('attention over %s', (format) => {
      test.each(heads)('$group query heads of $headDim', ({ group, headDim }) => {
        for (const [begin, nPos] of [
          ...[1, 2, 3, 4, 5, 15, 16, 17, 33, 100, 257].map((n) => [0, n]),
          ...windows,
        ]) {
          inTwins((twins) => {
            const cache = pagedKv(twins, format, nPos, headDim, nPos);
            const q = twins.floats(normals(group * headDim, 3));
            const out = twins.floats(new Float32Array(group * headDim).fill(9)); // old values must go
            const scores = twins.alloc(group * alignUp(nPos, 16) * 4);
            const scale = 1 / Math.sqrt(headDim);
            twins.both((kernels) =>
              kernels.attention(
                ...[format, q, ...cache.pointers, out, scores, group, begin, nPos, headDim, scale],
              ),
            );
            differences.check(
              `attention ${format}`,
              ...results(twins, out, group * headDim),
              cache.largest,
              format === 'q8' ? TOLERANCE.attentionQ8 : TOLERANCE.attention,
            );
          });
        }
      });
    });
  });

  // ---- making rows -----------------------------------------------------------------------------------

  describe.skipIf(without('dequantizeRow')).each(WEIGHT_FORMATS)(
    without('quantizeRows') ? `reading %s rows (making skipped: ${lacks.quantizeRows})` : 'making %s rows',
    (format) => {
      const checkRows = (rows: Float32Array[], cols: number): void =>
        inTwins((twins) => {
          const xStride = alignUp(cols * 4, 16) + 16;
          const values = new Float32Array((rows.length * xStride) / 4);
          rows.forEach((row, r) => values.set(row, (r * xStride) / 4));
          const x = twins.floats(values);
          const stride = rowBytes(format, cols) + 32;
          const dst = twins.alloc(rows.length * stride);
          twins.both((k) => k.quantizeRows(format, x, xStride, rows.length, dst, stride, cols));
          if (!without('quantizeRows'))
            twins.expectSameBytes(dst, rows.length * stride, `${format} rows of ${cols}`);
          const out = twins.alloc(cols * 4);
          twins.both((k) => k.dequantizeRow(format, dst, out, cols));
          differences.check('dequantizeRow', ...results(twins, out, cols), 0, gpu ? 1 : 0);
        });

      test.each(columns)('the same bytes as the reference: %d columns', (cols) => {
        checkRows([normals(cols, cols), normals(cols, cols + 1, 0.02), new Float32Array(cols)], cols);
      });
      test.each(EXTREMES)('extreme values: $name', ({ values }) => {
        for (const cols of [1, 32, 100, 128, 300])
          checkRows([values(cols), values(cols).map((v) => -v)], cols);
      });
      test('random cases', () => {
        const values = fc.oneof(
          fc.float({ noNaN: true, noDefaultInfinity: true }),
          fc.float({ min: -1, max: 1, noNaN: true }),
          fc.constantFrom(0, -0, 0.5, -0.5, 7, -8),
        );
        fc.assert(
          fc.property(fc.array(values, { minLength: 1, maxLength: 300 }), (row) =>
            checkRows([Float32Array.from(row)], row.length),
          ),
          { numRuns: runs(60) },
        );
      });
    },
  );

  test.skipIf(without('readProbe'))(called('readProbe sums the words of a block', 'readProbe'), () =>
    inTwins((twins) => {
      const next = random(1);
      const block = twins.ints(Array.from({ length: 1000 }, () => next() * 2 ** 32));
      const begin = alignUp(block, 16);
      const [a, b] = twins.both((k) => k.readProbe(begin, 3840));
      expect(a).toBe(b);
    }),
  );
}
