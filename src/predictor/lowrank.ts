/**
 * W_gate as a product A B of rank R that is best for the recorded inputs: what a two-layer predictor with a
 * linear hidden layer can know before any training.
 *
 * With input covariance L L^T, a gate's varying part is (W L) z for white z. Keeping the R directions V of z
 * in which the neurons' gates vary most gives A = W L V and B = V^T L^-1. V are the leading eigenvectors of
 * the energy E = L^T W^T D^2 W L, D the importance of each neuron.
 */
import { orthonormalise, solveTransposed, squareOf } from './cholesky.js';
import { GramSum, type Matrices } from './matrix.js';
import type { RoundingBasis } from './sketch.js';

export interface Factors {
  rank: number;
  a: Float32Array; // [nFf, R]
  b: Float32Array; // [R, d]
}

/** Where the gates vary, in processing order. */
export interface Energy {
  d: number;
  matrix: Float32Array; // [d, d]
  /** L as a square, [d, d] */
  lower: Float32Array;
  /** All of it. */
  trace: number;
}

/** Rows of W weighted at a time. */
const CHUNK_ROWS = 1024;

/** @param importance [nFf] how much each neuron's error counts */
export async function gateEnergy(
  weights: Float32Array,
  importance: Float64Array,
  { order, triangle }: RoundingBasis,
  matrices: Matrices,
): Promise<Energy> {
  const d = order.length;
  const sum = new GramSum(d, matrices);
  for (let begin = 0; begin < importance.length; begin += CHUNK_ROWS) {
    const chunk = weights.slice(begin * d, Math.min(importance.length, begin + CHUNK_ROWS) * d);
    for (let at = 0, i = begin; at < chunk.length; i++) {
      const weight = importance[i];
      for (let c = 0; c < d; c++) chunk[at++] *= weight;
    }
    await sum.add(chunk);
  }
  const natural = sum.square();
  const permuted = new Float32Array(d * d);
  for (let i = 0; i < d; i++) {
    for (let j = 0; j < d; j++) permuted[i * d + j] = natural[order[i] * d + order[j]];
  }
  const lower = squareOf(triangle);
  const matrix = await matrices.transposedTimes(lower, await matrices.times(permuted, lower, d), d);
  let trace = 0;
  for (let i = 0; i < d; i++) {
    trace += matrix[i * d + i];
    for (let j = 0; j < i; j++) matrix[j * d + i] = matrix[i * d + j];
  }
  return { d, matrix, lower, trace };
}

export interface Directions {
  rank: number;
  /** Orthonormal columns, [d, rank] */
  v: Float32Array;
  /** Energy in each of them, descending but for what is not settled yet: a little below the eigenvalues. */
  values: Float32Array;
}

/** The leading directions of the energy, by subspace iteration. */
export async function leadingDirections(
  { d, matrix }: Energy,
  rank: number,
  rounds: number,
  matrices: Matrices,
): Promise<Directions> {
  const start = new Float32Array(d * rank);
  // A start that is no eigenvector of anything, and the same on every run.
  for (let i = 0; i < start.length; i++) start[i] = (Math.sin(1 + i * 12.9898) * 43758.5453) % 1;
  let v = await orthonormalise(start, d, matrices);
  for (let round = 0; ; round++) {
    const next = await matrices.times(matrix, v, d);
    if (round === rounds) {
      const values = new Float64Array(rank);
      for (let i = 0; i < v.length; i++) values[i % rank] += v[i] * next[i];
      return { rank, v, values: Float32Array.from(values) };
    }
    v = await orthonormalise(next, d, matrices);
  }
}

/** Rounds of subspace iteration: the kept energy is within 0.1 % of the best from about 6 on. */
const ROUNDS = 8;

/** Factors of several ranks: each is the leading part of the largest. */
export async function whitenedFactors(
  weights: Float32Array,
  importance: Float64Array,
  basis: RoundingBasis,
  energy: Energy,
  ranks: readonly number[],
  matrices: Matrices,
): Promise<Factors[]> {
  const { order, triangle } = basis;
  const d = order.length;
  const most = Math.max(...ranks);
  const { v } = await leadingDirections(energy, most, ROUNDS, matrices);
  const directions = await matrices.times(energy.lower, v, d); // L V
  const solved = await solveTransposed(triangle, v, matrices); // B^T
  const unordered = new Float32Array(d * most);
  const b = new Float32Array(most * d);
  for (let j = 0; j < d; j++) {
    unordered.set(directions.subarray(j * most, (j + 1) * most), order[j] * most);
    for (let r = 0; r < most; r++) b[r * d + order[j]] = solved[j * most + r];
  }
  const a = await matrices.times(weights, unordered, d);
  return ranks.map((rank) => {
    const factors = { rank, a: leadingColumns(a, most, rank), b: b.slice(0, rank * d) };
    balance(factors.a, factors.b, importance, rank, d);
    return factors;
  });
}

function leadingColumns(matrix: Float32Array, from: number, to: number): Float32Array {
  const rows = matrix.length / from;
  const out = new Float32Array(rows * to);
  for (let r = 0; r < rows; r++) out.set(matrix.subarray(r * from, r * from + to), r * to);
  return out;
}

/**
 * How much a neuron's error counts: relative to its own spread, and more where it is neither rare nor
 * always on, since there a decision is made.
 * @param variance [nFf] of the neuron's gate
 * @param frequency [nFf] share of tokens it is active in
 */
export const neuronImportance = (variance: Float64Array, frequency: Float64Array): Float64Array =>
  frequency.map((f, i) => Math.max(f * (1 - f), 1e-5) ** 0.25 / Math.sqrt(Math.max(variance[i], 1e-12)));

/**
 * Shares each direction's size between A and B by its square root. In A alone, the small directions would
 * vanish in the rounding of a row's common scale; in B alone, in that of the hidden vector.
 */
function balance(a: Float32Array, b: Float32Array, importance: Float64Array, rank: number, d: number): void {
  const nFf = a.length / rank;
  const size = new Float64Array(rank);
  for (let i = 0; i < nFf; i++) {
    for (let r = 0; r < rank; r++) size[r] += (a[i * rank + r] * importance[i]) ** 2;
  }
  const largest = Math.max(...size, Number.MIN_VALUE);
  const share = size.map((s) => Math.max(s / largest, 1e-8) ** 0.25);
  for (let i = 0; i < nFf; i++) for (let r = 0; r < rank; r++) a[i * rank + r] /= share[r];
  for (let r = 0; r < rank; r++) for (let c = 0; c < d; c++) b[r * d + c] *= share[r];
}
