/**
 * The Cholesky factor of a covariance, in blocks: what crosses blocks is a matrix product, what stays inside
 * one (n B^2 of n^3 / 6 multiplications) is done here in f64.
 *
 *     a = L L^T     panel p of L: columns pB..(p+1)B of the rows from pB on
 *
 *          ┌──┐
 *          │p0│──┐
 *          │  │p1│──┐
 *          │  │  │p2│        rows below a panel's own block are contiguous in it
 *          └──┴──┴──┘
 */
import type { Matrices } from './matrix.js';

/** Columns of a panel; also the columns that error feedback decides between two products. */
export const BLOCK = 64;

export interface Triangle {
  n: number;
  /** [ceil(n / BLOCK)]: f32 [n - p BLOCK, width of p] */
  panels: Float32Array[];
  /** Inverse of every diagonal block, f32 [width, width], lower. */
  inverses: Float32Array[];
}

/** Width of panel p. */
export const widthOf = (n: number, p: number): number => Math.min(BLOCK, n - p * BLOCK);

/** The rows below panel p's own block, f32 [n - (p + 1) BLOCK, BLOCK]. */
export const belowOf = ({ n, panels }: Triangle, p: number): Float32Array =>
  panels[p].subarray(widthOf(n, p) ** 2);

/**
 * @param a f32 [n, n], symmetric
 * @throws RangeError when `a` is not positive definite
 */
export async function cholesky(a: Float32Array, n: number, matrices: Matrices): Promise<Triangle> {
  const count = Math.ceil(n / BLOCK);
  const panels = Array.from({ length: count }, (_, p) => panelOf(a, n, p));
  const inverses: Float32Array[] = [];
  for (let p = 0; p < count; p++) {
    const width = widthOf(n, p);
    const panel = panels[p];
    factorBlock(panel.subarray(0, width * width), width, p * BLOCK);
    const inverse = invertLower(panel, width);
    inverses.push(inverse);
    if (p + 1 === count) break;
    const below = await matrices.timesTransposed(panel.subarray(width * width), inverse, width);
    panel.set(below, width * width);
    for (let q = p + 1; q < count; q++) {
      const from = (q - p - 1) * BLOCK * BLOCK;
      const own = below.subarray(from, from + widthOf(n, q) * BLOCK);
      const product = await matrices.timesTransposed(below.subarray(from), own, BLOCK);
      const into = panels[q];
      for (let i = 0; i < into.length; i++) into[i] -= product[i];
    }
  }
  return { n, panels, inverses };
}

function panelOf(a: Float32Array, n: number, p: number): Float32Array {
  const width = widthOf(n, p);
  const first = p * BLOCK;
  const panel = new Float32Array((n - first) * width);
  for (let r = first; r < n; r++) {
    panel.set(a.subarray(r * n + first, r * n + first + width), (r - first) * width);
  }
  return panel;
}

/** In place; zeros above the diagonal. */
function factorBlock(block: Float32Array, n: number, first: number): void {
  const l = Float64Array.from(block);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = l[i * n + j];
      for (let k = 0; k < j; k++) sum -= l[i * n + k] * l[j * n + k];
      if (i !== j) {
        l[i * n + j] = sum / l[j * n + j];
      } else {
        if (!(sum > 0)) throw new RangeError(`pivot ${first + i} is ${sum}: not positive definite`);
        l[i * n + i] = Math.sqrt(sum);
      }
    }
    for (let j = i + 1; j < n; j++) l[i * n + j] = 0;
  }
  block.set(l);
}

/** The inverse of the lower triangle at the start of `l`, rows of n. */
function invertLower(l: Float32Array, n: number): Float32Array {
  const x = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = i === j ? 1 : 0;
      for (let k = j; k < i; k++) sum -= l[i * n + k] * x[k * n + j];
      x[i * n + j] = sum / l[i * n + i];
    }
  }
  return Float32Array.from(x);
}

/** Columns [begin, end) of the rows from `begin` on, f32 [n - begin, end - begin]; begin: a multiple of BLOCK. */
export function widePanel({ n, panels }: Triangle, begin: number, end: number): Float32Array {
  const cols = end - begin;
  const out = new Float32Array((n - begin) * cols);
  for (let p = begin / BLOCK; p * BLOCK < end; p++) {
    const width = widthOf(n, p);
    const first = p * BLOCK;
    for (let r = first; r < n; r++) {
      const row = panels[p].subarray((r - first) * width, (r - first + 1) * width);
      out.set(row, (r - begin) * cols + first - begin);
    }
  }
  return out;
}

/** L times v, for v f32 [n, m]. */
export async function lowerTimes(
  triangle: Triangle,
  v: Float32Array,
  matrices: Matrices,
): Promise<Float32Array> {
  const { n } = triangle;
  const m = v.length / n;
  const out = new Float32Array(n * m);
  for (let begin = 0; begin < n; begin += WIDE) {
    const end = Math.min(n, begin + WIDE);
    const part = await matrices.times(
      widePanel(triangle, begin, end),
      v.subarray(begin * m, end * m),
      end - begin,
    );
    for (let i = 0, at = begin * m; i < part.length; i++, at++) out[at] += part[i];
  }
  return out;
}

/** L^T a L for a symmetric f32 [n, n], half of whose products are with zeros and left out. */
export async function congruent(
  triangle: Triangle,
  a: Float32Array,
  matrices: Matrices,
): Promise<Float32Array> {
  const { n } = triangle;
  const out = new Float32Array(n * n);
  for (let begin = 0; begin < n; begin += WIDE) {
    const end = Math.min(n, begin + WIDE);
    const panel = widePanel(triangle, begin, end);
    // a L, these columns: rows of a from `begin` on, since L is zero above.
    const right = await matrices.transposedTimes(a.subarray(begin * n), panel, n - begin);
    for (let above = 0; above <= begin; above += WIDE) {
      const upper = widePanel(triangle, above, Math.min(n, above + WIDE));
      const rows = Math.min(n, above + WIDE) - above;
      const part = await matrices.transposedTimes(upper, right.subarray(above * (end - begin)), n - above);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < end - begin; j++) {
          const value = part[i * (end - begin) + j];
          out[(above + i) * n + begin + j] = value;
          out[(begin + j) * n + above + i] = value;
        }
      }
    }
  }
  return out;
}

/** Columns that are multiplied together. */
const WIDE = 8 * BLOCK;

/** Y with L^T Y = v, for v f32 [n, m]. */
export async function solveTransposed(
  triangle: Triangle,
  v: Float32Array,
  matrices: Matrices,
): Promise<Float32Array> {
  const { n, panels, inverses } = triangle;
  const m = v.length / n;
  const y = new Float32Array(n * m);
  for (let p = panels.length - 1; p >= 0; p--) {
    const first = p * BLOCK;
    const width = widthOf(n, p);
    const right = v.slice(first * m, (first + width) * m);
    if (first + width < n) {
      const below = belowOf(triangle, p);
      const known = await matrices.transposedTimes(below, y.subarray((first + width) * m), n - first - width);
      for (let i = 0; i < right.length; i++) right[i] -= known[i];
    }
    y.set(await matrices.transposedTimes(inverses[p], right, width), first * m);
  }
  return y;
}

/**
 * Columns of q f32 [n, m] made orthonormal in order, as Gram-Schmidt would: q R^-1 with R^T R = q^T q.
 * Directions that are hardly there become small instead of failing.
 * @param passes one leaves what f32 sums lost, which is enough between products; two are exact to f32
 */
export async function orthonormalise(
  q: Float32Array,
  n: number,
  matrices: Matrices,
  passes = 2,
): Promise<Float32Array> {
  const m = q.length / n;
  const identity = new Float32Array(m * m);
  for (let i = 0; i < m; i++) identity[i * m + i] = 1;
  let columns = q;
  for (let pass = 0; pass < passes; pass++) {
    const gram = await matrices.transposedTimes(columns, columns, n);
    for (let i = 0; i < m; i++) for (let j = 0; j < i; j++) gram[j * m + i] = gram[i * m + j];
    const triangle = await damped(gram, m, LEAST_DAMPING, matrices);
    columns = await matrices.times(columns, await solveTransposed(triangle, identity, matrices), m);
  }
  return columns;
}

/** Share of the diagonal that is added: about what f32 sums are off by. */
const LEAST_DAMPING = 1e-6;

/** The factor of `gram`, its diagonal raised until there is one. */
async function damped(gram: Float32Array, m: number, share: number, matrices: Matrices): Promise<Triangle> {
  const raised = Float32Array.from(gram);
  for (let i = 0; i < m; i++) raised[i * m + i] = gram[i * m + i] * (1 + share) + 1e-30;
  try {
    return await cholesky(raised, m, matrices);
  } catch (error) {
    if (!(error instanceof RangeError) || share > 1) throw error;
    return damped(gram, m, 10 * share, matrices);
  }
}
