/** The blocked factorisation against its definition, at widths around the block's. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  BLOCK,
  cholesky,
  congruent,
  lowerTimes,
  orthonormalise,
  solveTransposed,
  widePanel,
  type Triangle,
} from '../../src/predictor/cholesky.js';
import { createMatrices, GramSum, type Matrices } from '../../src/predictor/matrix.js';
import { random } from '../helpers/tiny-models.js';

let matrices: Matrices;
beforeAll(async () => (matrices = await createMatrices()));
afterAll(() => matrices.release());

const next = random(4);
const table = (length: number): Float32Array => Float32Array.from({ length }, () => next() - 0.5);
const sizes = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 9 * BLOCK];

/** x^T x of more rows than columns, and a little on the diagonal. */
async function covariance(n: number): Promise<Float32Array> {
  const sum = new GramSum(n, matrices);
  await sum.add(table(2 * n * n));
  const a = sum.square(1 / (2 * n));
  for (let i = 0; i < n; i++) a[i * n + i] += 0.01;
  return a;
}

/** L as a square, in f64. */
function square(triangle: Triangle): Float64Array {
  const { n } = triangle;
  const out = new Float64Array(n * n);
  for (let begin = 0; begin < n; begin += BLOCK) {
    const end = Math.min(n, begin + BLOCK);
    const panel = widePanel(triangle, begin, end);
    for (let i = begin; i < n; i++) {
      for (let j = begin; j < end; j++) out[i * n + j] = panel[(i - begin) * (end - begin) + j - begin];
    }
  }
  return out;
}

/** Largest difference of a few entries of two n x m matrices, the second given entry by entry. */
function difference(
  a: ArrayLike<number>,
  n: number,
  m: number,
  of: (i: number, j: number) => number,
): number {
  let most = 0;
  for (let k = 0; k < 60; k++) {
    const [i, j] = [Math.floor(next() * n), Math.floor(next() * m)];
    most = Math.max(most, Math.abs(a[i * m + j] - of(i, j)));
  }
  return most;
}

const dot = (n: number, a: (k: number) => number, b: (k: number) => number): number => {
  let sum = 0;
  for (let k = 0; k < n; k++) sum += a(k) * b(k);
  return sum;
};

describe.each(sizes)('a covariance of %i columns', (n) => {
  it('is its factor times its transpose, and L is lower', async () => {
    const a = await covariance(n);
    const l = square(await cholesky(Float32Array.from(a), n, matrices));
    const product = (i: number, j: number): number =>
      dot(
        n,
        (k) => l[i * n + k],
        (k) => l[j * n + k],
      );
    expect(difference(a, n, n, product)).toBeLessThan(2e-6);
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) expect(l[i * n + j]).toBe(0);
  });

  it('gives products and solutions with its factor', async () => {
    const a = await covariance(n);
    const triangle = await cholesky(Float32Array.from(a), n, matrices);
    const l = square(triangle);
    const v = table(n * 3);
    const lv = await lowerTimes(triangle, v, matrices);
    expect(
      difference(lv, n, 3, (i, j) =>
        dot(
          n,
          (k) => l[i * n + k],
          (k) => v[k * 3 + j],
        ),
      ),
    ).toBeLessThan(1e-5);
    const y = await solveTransposed(triangle, v, matrices);
    expect(
      difference(v, n, 3, (i, j) =>
        dot(
          n,
          (k) => l[k * n + i],
          (k) => y[k * 3 + j],
        ),
      ),
    ).toBeLessThan(1e-4);
    const lal = await congruent(triangle, a, matrices);
    const al = (k: number, j: number): number =>
      dot(
        n,
        (m) => a[k * n + m],
        (m) => l[m * n + j],
      );
    expect(
      difference(lal, n, n, (i, j) =>
        dot(
          n,
          (k) => l[k * n + i],
          (k) => al(k, j),
        ),
      ),
    ).toBeLessThan(1e-5);
  });
});

describe('factorisations', () => {
  it('refuse what is not positive definite', async () => {
    await expect(cholesky(Float32Array.of(1, 2, 2, 1), 2, matrices)).rejects.toThrow(RangeError);
  });

  it('orthonormalise: unit columns at right angles, the first in its old direction', async () => {
    const [n, m] = [300, 90];
    const q = table(n * m);
    const made = await orthonormalise(q, n, matrices);
    const column = (of: Float32Array, j: number) => (i: number) => of[i * m + j];
    const gram = (a: number, b: number): number => dot(n, column(made, a), column(made, b));
    expect(difference(new Float32Array(m * m), m, m, (i, j) => gram(i, j) - (i === j ? 1 : 0))).toBeLessThan(
      1e-5,
    );
    const size = Math.sqrt(dot(n, column(q, 0), column(q, 0)));
    expect(dot(n, column(q, 0), column(made, 0)) / size).toBeCloseTo(1, 5);
  });

  it('orthonormalise: two columns that are the same do no harm', async () => {
    const q = table(40 * 4);
    for (let i = 0; i < 40; i++) q[i * 4 + 2] = q[i * 4];
    const made = await orthonormalise(q, 40, matrices);
    expect(made.every(Number.isFinite)).toBe(true);
  });
});

describe('a sum of products', () => {
  it('over panels and blocks of rows is X^T X', async () => {
    const [n, d] = [70, 2100];
    const x = table(n * d);
    const sum = new GramSum(d, matrices);
    await sum.add(x.subarray(0, 30 * d));
    await sum.add(x.subarray(30 * d));
    const gram = sum.square(2);
    const expected = (i: number, j: number): number =>
      2 *
      dot(
        n,
        (t) => x[t * d + i],
        (t) => x[t * d + j],
      );
    expect(difference(gram, d, d, expected)).toBeLessThan(1e-4);
  });
});
