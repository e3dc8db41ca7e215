/**
 * A sketch: W_gate in one to three bits a weight. Rounded one by one the weights would lose too much (at two
 * bits: predicted sparsity 0.69 instead of 0.72 at recall 0.99 in the demo model's first layer). So they are
 * rounded with error feedback (rounding.ts): what a row's later columns lost by rounding is taken up by the
 * columns that the recorded inputs correlate with them, so that the error lies where the inputs hardly vary.
 */
import { bf16ToNumber, GROUP, groupCount } from '../kernels/layout.js';
import { cholesky, type Triangle } from './cholesky.js';
import type { Matrices } from './matrix.js';
import type { Moments } from './moments.js';
import { polishRow } from './polish.js';
import { roundRows } from './rounding.js';
import { levels, packRows, scaleBits } from './rows.js';
import type { RowMatrix } from './types.js';

export type SketchFormat = 'q1' | 'q2' | 'q3';

/** Scales tried: (level spacing / 2) = factor * root mean square of the group. */
export const FACTORS: Readonly<Record<SketchFormat, readonly number[]>> = {
  q1: [0.65, 0.8, 0.95],
  q2: [0.4, 0.45, 0.5, 0.55, 0.62],
  q3: [0.22, 0.25, 0.28, 0.32],
};
/**
 * Rows up to this width are polished (polish.ts), and each keeps the factor with the smallest expected error.
 * Polishing takes d^2 steps of scalar code a row and round; wider rows share the factor that serves a sample
 * best, and keep what error feedback gave.
 */
export const POLISHED_WIDTH = 512;
/** Rows that are rounded side by side: their errors stay in the cache, and products are large enough. */
const CHUNK_ROWS = 512;

/** What the rounding of a layer's rows needs of its inputs. */
export interface RoundingBasis {
  moments: Moments;
  /** Columns in processing order: the most varying input last, rounded first. */
  order: Uint32Array;
  /** Factor of the covariance in that order. */
  triangle: Triangle;
}

/** Damping is raised by this until the covariance can be factored. */
const MORE_DAMPING = 4;

export async function roundingBasis(moments: Moments, matrices: Matrices): Promise<RoundingBasis> {
  const { d, covariance } = moments;
  const order = Uint32Array.from({ length: d }, (_, c) => c).sort(
    (a, b) => covariance[a * d + a] - covariance[b * d + b] || a - b,
  );
  const permuted = new Float32Array(d * d);
  let trace = 0;
  for (let i = 0; i < d; i++) {
    const row = order[i] * d;
    for (let j = 0; j < d; j++) permuted[i * d + j] = covariance[row + order[j]];
    trace += permuted[i * d + i];
  }
  for (let extra = 0; ; extra = extra * MORE_DAMPING || (1e-3 * trace) / d) {
    const damped = extra === 0 ? permuted : permuted.map((v, i) => (i % (d + 1) === 0 ? v + extra : v));
    try {
      return { moments, order, triangle: await cholesky(damped, d, matrices) };
    } catch (error) {
      // f32 lost a direction that hardly varies.
      if (!(error instanceof RangeError) || !(extra < trace)) throw error;
    }
  }
}

export interface Sketch {
  matrix: RowMatrix;
  /** Expected squared error of each row's score, [rows]. */
  loss: Float64Array;
}

/**
 * @param weights f32 [rows, d]
 * @param factors of FACTORS to try; each row keeps the best for it
 * @returns rows whose products with an input approximate the weights'
 */
export async function sketchRows(
  format: SketchFormat,
  weights: Float32Array,
  basis: RoundingBasis,
  matrices: Matrices,
  factors = FACTORS[format],
): Promise<Sketch> {
  const { order, triangle, moments } = basis;
  const { d, covariance } = moments;
  const rows = weights.length / d;
  const groups = groupCount(d);
  const { max } = levels(format);
  const groupOf = Uint16Array.from(order, (c) => Math.floor(c / GROUP));
  const losses = new Float64Array(rows).fill(Infinity);
  const packed: RowMatrix[] = [];
  for (let begin = 0; begin < rows; begin += CHUNK_ROWS) {
    const count = Math.min(CHUNK_ROWS, rows - begin);
    const chunk = weights.subarray(begin * d, (begin + count) * d);
    const w = transposedColumns(chunk, order, count);
    const rms = groupSizes(chunk, count, groups);
    const code = new Int8Array(count * d);
    const scale = new Uint16Array(count * groups);
    for (const factor of factors) {
      const bits = Uint16Array.from(rms, (size) => scaleBits(size * factor));
      const asColumns = new Float32Array(groups * count);
      for (let r = 0; r < count; r++) {
        for (let g = 0; g < groups; g++) asColumns[g * count + r] = bf16ToNumber(bits[r * groups + g]);
      }
      const { levels: found, loss } = await roundRows(w, asColumns, groupOf, max, triangle, matrices);
      for (let r = 0; r < count; r++) {
        if (loss[r] >= losses[begin + r]) continue;
        losses[begin + r] = loss[r];
        for (let j = 0; j < d; j++) code[r * d + order[j]] = found[j * count + r];
        scale.set(bits.subarray(r * groups, (r + 1) * groups), r * groups);
      }
    }
    if (d <= POLISHED_WIDTH) {
      for (let r = 0; r < count; r++) {
        const row = chunk.subarray(r * d, (r + 1) * d);
        const own = (of: number): [number, number] => [r * of, (r + 1) * of];
        polishRow(row, covariance, max, code.subarray(...own(d)), scale.subarray(...own(groups)));
      }
    }
    packed.push(packRows(format, code, scale, count, d));
  }
  return { matrix: joinRows(packed), loss: losses };
}

/** [rows, d] -> [d in processing order][rows] */
function transposedColumns(weights: Float32Array, order: Uint32Array, rows: number): Float32Array {
  const d = order.length;
  const out = new Float32Array(d * rows);
  const into = new Uint32Array(d);
  order.forEach((column, j) => (into[column] = j * rows));
  for (let r = 0; r < rows; r++) {
    for (let c = 0, at = r * d; c < d; c++, at++) out[into[c] + r] = weights[at];
  }
  return out;
}

/** Root mean square of each group of 128 columns, [rows][groups]. */
function groupSizes(weights: Float32Array, rows: number, groups: number): Float64Array {
  const d = weights.length / rows;
  const out = new Float64Array(rows * groups);
  for (let r = 0; r < rows; r++) {
    for (let g = 0; g < groups; g++) {
      const end = Math.min(d, (g + 1) * GROUP);
      let sum = 0;
      for (let c = g * GROUP; c < end; c++) sum += weights[r * d + c] ** 2;
      out[r * groups + g] = Math.sqrt(sum / (end - g * GROUP));
    }
  }
  return out;
}

function joinRows(parts: readonly RowMatrix[]): RowMatrix {
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const data = new Uint8Array(rows * parts[0].stride);
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.data.length;
  }
  return { ...parts[0], rows, data };
}
