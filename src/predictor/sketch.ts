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
import { roundRows, type Rounded } from './rounding.js';
import { joinRows, levels, packRows, scaleBits } from './rows.js';
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
 * The one factor that serves some rows best, for rows too wide to choose each its own.
 * @param weights f32 [rows, d]
 */
export async function bestFactor(
  format: SketchFormat,
  weights: Float32Array,
  basis: RoundingBasis,
  matrices: Matrices,
): Promise<number> {
  const chunk = new Chunk(weights, basis, format);
  let [best, least] = [FACTORS[format][0], Infinity];
  for (const factor of FACTORS[format]) {
    const { loss } = await chunk.round(factor, matrices);
    const sum = loss.reduce((a, b) => a + b, 0);
    if (sum < least) [best, least] = [factor, sum];
  }
  return best;
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
  const { d, covariance } = basis.moments;
  const rows = weights.length / d;
  const groups = groupCount(d);
  const losses = new Float64Array(rows).fill(Infinity);
  const packed: RowMatrix[] = [];
  for (let begin = 0; begin < rows; begin += CHUNK_ROWS) {
    const count = Math.min(CHUNK_ROWS, rows - begin);
    const chunk = new Chunk(weights.subarray(begin * d, (begin + count) * d), basis, format);
    const code = new Int8Array(count * d);
    const scale = new Uint16Array(count * groups);
    for (const factor of factors) {
      const { levels: found, loss, bits } = await chunk.round(factor, matrices);
      const better = Array.from(loss.keys()).filter((r) => loss[r] < losses[begin + r]);
      for (const r of better) {
        losses[begin + r] = loss[r];
        scale.set(bits.subarray(r * groups, (r + 1) * groups), r * groups);
      }
      basis.order.forEach((column, j) => {
        for (const r of better) code[r * d + column] = found[j * count + r];
      });
    }
    if (d <= POLISHED_WIDTH) {
      for (let r = 0; r < count; r++) {
        const row = chunk.weights.subarray(r * d, (r + 1) * d);
        const own = (of: number): [number, number] => [r * of, (r + 1) * of];
        polishRow(row, covariance, chunk.max, code.subarray(...own(d)), scale.subarray(...own(groups)));
      }
    }
    packed.push(packRows(format, code, scale, count, d));
  }
  return { matrix: joinRows(packed), loss: losses };
}

/** Rows that are rounded together, perhaps with several factors. */
class Chunk {
  readonly max: number;
  private readonly columns: Float32Array;
  private readonly rms: Float64Array;
  private readonly groupOf: Uint16Array;

  constructor(
    readonly weights: Float32Array,
    private readonly basis: RoundingBasis,
    format: SketchFormat,
  ) {
    const { order } = basis;
    const rows = weights.length / order.length;
    this.max = levels(format).max;
    this.columns = transposedColumns(weights, order, rows);
    this.rms = groupSizes(weights, rows, groupCount(order.length));
    this.groupOf = Uint16Array.from(order, (c) => Math.floor(c / GROUP));
  }

  /** @returns also the scales' bits, [rows][groups] */
  async round(factor: number, matrices: Matrices): Promise<Rounded & { bits: Uint16Array }> {
    const { triangle } = this.basis;
    const groups = groupCount(triangle.n);
    const rows = this.rms.length / groups;
    const bits = Uint16Array.from(this.rms, (size) => scaleBits(size * factor));
    const scale = new Float32Array(groups * rows);
    for (let r = 0; r < rows; r++) {
      for (let g = 0; g < groups; g++) scale[g * rows + r] = bf16ToNumber(bits[r * groups + g]);
    }
    const rounded = await roundRows(this.columns, scale, this.groupOf, this.max, triangle, matrices);
    return { ...rounded, bits };
  }
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
