/** The reference itself, against formulas written out in float64 and bytes written out by hand. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { bf16RoundUp, bf16ToNumber, GROUP, rowBytes, type WeightFormat } from '../../src/kernels/layout.js';
import { createReferenceKernels } from '../../src/kernels/reference.js';
import { nearestEven } from '../../src/kernels/reference/rounding.js';
import { normals } from './samples.js';

const memory = new WebAssembly.Memory({ initial: 16, maximum: 16, shared: true });
const kernels = createReferenceKernels(memory);
const f32 = new Float32Array(memory.buffer);
const u32 = new Uint32Array(memory.buffer);
const u8 = new Uint8Array(memory.buffer);

// Fixed places in the arena.
const [X, Q8A, W, OUT] = [0x10000, 0x20000, 0x30000, 0x60000];
const [LIST, COEF, OFFSETS] = [0x70000, 0x80000, 0x90000];

/** values -> row `index` of `format` rows at W; returns what the row stores, as numbers. */
function storeRow(format: WeightFormat, values: Float32Array, index = 0): Float32Array {
  const stride = rowBytes(format, values.length);
  f32.set(values, OUT / 4);
  kernels.quantizeRows(format, OUT, 0, 1, W + index * stride, stride, values.length);
  kernels.dequantizeRow(format, W + index * stride, OUT, values.length);
  return f32.slice(OUT / 4, OUT / 4 + values.length);
}

const dotOf = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((sum, value, i) => sum + value * b[i], 0);

describe('rounding', () => {
  test('nearestEven sends ties to the even neighbour', () => {
    expect([0.5, 1.5, 2.5, -0.5, -1.5, 2.4, -2.6, 126.5].map(nearestEven)).toEqual([
      0, 2, 2, 0, -2, 2, -3, 126,
    ]);
  });

  test('bf16RoundUp never gives a smaller magnitude, and at most 1 in 128 more', () => {
    fc.assert(
      fc.property(fc.float({ min: Math.fround(1e-30), max: Math.fround(1e30), noNaN: true }), (value) => {
        for (const signed of [value, -value]) {
          const rounded = bf16ToNumber(bf16RoundUp(signed));
          expect(Math.sign(rounded)).toBe(Math.sign(signed));
          expect(Math.abs(rounded)).toBeGreaterThanOrEqual(value);
          expect(Math.abs(rounded)).toBeLessThanOrEqual(value * (1 + 1 / 128));
        }
      }),
    );
  });
});

describe('quantised rows', () => {
  test('a q4 row byte by byte', () => {
    // Scale exactly 1: -8 is the peak, and all values are integers.
    const values = Float32Array.from({ length: 32 }, (_, i) => (i % 16) - 8);
    storeRow('q4', values);
    const codes = Array.from({ length: 16 }, (_, j) => j | (j << 4)); // columns j and 16 + j
    expect([...u8.slice(W, W + 16)]).toEqual(codes);
    expect(bf16ToNumber(u8[W + 16] | (u8[W + 17] << 8))).toBe(1);
    expect([...u8.slice(W + 18, W + 32)]).toEqual(new Array(14).fill(0));
  });

  test('a q8 row byte by byte', () => {
    const values = Float32Array.from({ length: 40 }, (_, i) => (i < 39 ? i - 20 : 63));
    storeRow('q8', values);
    expect([...u8.slice(W, W + 40)]).toEqual([...values].map((v) => v + 64));
    expect([...u8.slice(W + 40, W + 64)]).toEqual(new Array(24).fill(64)); // padding columns are zero
    expect(bf16ToNumber(u8[W + 64] | (u8[W + 65] << 8))).toBe(1);
  });

  test.each([
    ['q8', 1 / 63],
    ['q4', 1 / 7],
  ] as const)('%s: no value is further from its code than the scale allows', (format, step) => {
    for (const cols of [1, 32, 100, 128, 300]) {
      const values = normals(cols, cols);
      const stored = storeRow(format, values);
      for (let begin = 0; begin < cols; begin += GROUP) {
        const group = values.subarray(begin, begin + GROUP);
        const largest = Math.max(...group.map(Math.abs));
        // q4 may clip the largest value by a quarter (divisor -10.5); q8 never clips.
        const limit = format === 'q8' ? 0.51 * largest * step : 0.28 * largest;
        group.forEach((v, j) => expect(Math.abs(v - stored[begin + j])).toBeLessThanOrEqual(limit));
      }
    }
  });

  test('q4: the searched scale beats the largest value over -8', () => {
    let searched = 0;
    let plain = 0;
    for (let seed = 0; seed < 50; seed++) {
      const values = normals(GROUP, seed);
      const stored = storeRow('q4', values);
      values.forEach((v, i) => (searched += (v - stored[i]) ** 2));
      const peak = values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
      const scale = peak / -8;
      for (const v of values) plain += (v - scale * Math.min(7, Math.max(-8, Math.round(v / scale)))) ** 2;
    }
    expect(searched).toBeLessThan(0.95 * plain);
  });
});

describe.each(['f32', 'q8', 'q4'] as const)('%s products', (format) => {
  const cols = 300;

  test('dot is the sum of products of what is stored', () => {
    const w = storeRow(format, normals(cols, 1));
    const x = normals(cols, 2);
    f32.set(x, X / 4);
    kernels.quantize(X, Q8A, cols);
    kernels.dot(format, W, rowBytes(format, cols), 1, format === 'f32' ? X : Q8A, 0, 1, OUT, 1, cols);
    const error = Math.abs(f32[OUT / 4] - dotOf(w, x)) / Math.sqrt(dotOf(w, w) * dotOf(x, x));
    expect(error).toBeLessThan(format === 'f32' ? 1e-7 : 2e-3); // activations are rounded to 8 bits
  });

  test('sumLists adds coefficient times row', () => {
    const rows = [0, 1, 2].map((r) => storeRow(format, normals(cols, 10 + r), r));
    u32.set([0, 2], LIST / 4);
    f32.set([0.5, -2], COEF / 4);
    f32.fill(1, OUT / 4, OUT / 4 + 320);
    u32.set([0, 2], OFFSETS / 4);
    kernels.sumLists(format, W, rowBytes(format, cols), OFFSETS, LIST, 1, COEF, OUT, cols, cols);
    for (let c = 0; c < cols; c++) {
      expect(f32[OUT / 4 + c]).toBeCloseTo(1 + 0.5 * rows[0][c] - 2 * rows[2][c], 5);
    }
  });
});

test('sigma: what passes each activation, and with which value', () => {
  const gate = [-2, -0, 0, 0.2, 0.25, 0.3, 2];
  const run = (kind: Parameters<typeof kernels.activate>[0], threshold = 0.25): [number, number][] => {
    f32.set(gate, X / 4);
    const n = kernels.activate(kind, threshold, X, gate.length, 0, 10, 0, LIST, COEF);
    return Array.from({ length: n }, (_, i) => [u32[LIST / 4 + i], f32[COEF / 4 + i]]);
  };
  const at = (id: number, value: number): [number, number] => [id, Math.fround(value)];
  expect(run('relu')).toEqual([at(13, 0.2), at(14, 0.25), at(15, 0.3), at(16, 2)]);
  expect(run('drelu')).toEqual(run('relu'));
  expect(run('fatrelu')).toEqual([at(15, 0.3), at(16, 2)]);
  expect(run('relu2').at(-1)).toEqual(at(16, 4));
  const silu = run('silu', -1);
  expect(silu.length).toBe(gate.length);
  expect(silu[6][1]).toBeCloseTo(2 / (1 + Math.exp(-2)), 6);
  // Smooth ones are cut by their size: |sigma(-2)| is 0.238, |sigma(0.3)| 0.17.
  expect(run('silu')).toEqual([silu[6]]);
});

test('attention of one position returns its value row; of equal keys, the mean of the values', () => {
  const headDim = 8;
  const [k, v] = [W, W + 0x8000];
  u32[OFFSETS / 4] = 2; // positions 0.. stand in page 2
  for (let p = 0; p < 3; p++) {
    f32.fill(1, X / 4, X / 4 + headDim);
    kernels.storeKv('f32', X, k, 0, 64 + p, headDim);
    f32.fill(p + 1, X / 4, X / 4 + headDim);
    kernels.storeKv('f32', X, v, 0, 64 + p, headDim);
  }
  f32.fill(0.3, X / 4, X / 4 + headDim);
  const attend = (begin: number, nPos: number): number => {
    kernels.attention('f32', X, k, 0, v, 0, OFFSETS, OUT, LIST, 1, begin, nPos, headDim, 0.5);
    return f32[OUT / 4 + 7];
  };
  expect(attend(0, 1)).toBe(1);
  expect(attend(0, 3)).toBeCloseTo(2, 6);
  expect(attend(1, 3)).toBeCloseTo(2.5, 6);
});

test('layerNorm takes the mean off, divides by the standard deviation, scales and shifts', () => {
  f32.set([1, 2, 3, 6], X / 4); // mean 3, variance 3.5
  f32.set([1, 2, 1, 1], W / 4);
  f32.set([0, 0, 10, 0], COEF / 4);
  expect(kernels.layerNorm(X, W, COEF, OUT, 4, 0.5)).toBe(12.5);
  expect([...f32.slice(OUT / 4, OUT / 4 + 4)]).toEqual([-1, -1, 10, 1.5]);
});

test('rope turns each pair (i, i + half) by its angle', () => {
  f32.set([1, 0, 0, 1], X / 4);
  f32.set([Math.cos(0.3), Math.cos(1)], COEF / 4);
  f32.set([Math.sin(0.3), Math.sin(1)], LIST / 4);
  kernels.rope(X, COEF, LIST, 4);
  const expected = [Math.cos(0.3), -Math.sin(1), Math.sin(0.3), Math.cos(1)];
  expected.forEach((value, i) => expect(f32[X / 4 + i]).toBeCloseTo(value, 6));
});
