/**
 * W_gate as a product A B of rank R that is best for the recorded inputs: what a two-layer predictor with a
 * linear hidden layer can know before any training.
 *
 * With input covariance L L^T, a gate's varying part is (W L) z for white z. Keeping the R directions V of z
 * in which the neurons' gates vary most gives A = W L V and B = V^T L^-1. V are the leading eigenvectors of
 * the energy E = L^T W^T D^2 W L, D the importance of each neuron.
 */
import { congruent, lowerTimes, orthonormalise, solveTransposed } from './cholesky.js';
import { GramSum, type Matrices } from './matrix.js';
import type { RoundingBasis } from './sketch.js';

export interface Factors {
  rank: number;
  a: Float32Array; // [rows, R]
  b: Float32Array; // [R, d]
}

/** Where the gates vary, in processing order. */
export interface Energy {
  d: number;
  matrix: Float32Array; // [d, d]
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
  const matrix = await congruent(triangle, permuted, matrices);
  let trace = 0;
  for (let i = 0; i < d; i++) trace += matrix[i * d + i];
  return { d, matrix, trace };
}

export interface Directions {
  rank: number;
  /** Orthonormal columns, [d, rank] */
  v: Float32Array;
  /** Energy in each of them, descending but for what is not settled yet: a little below the eigenvalues. */
  values: Float32Array;
}

/**
 * The leading directions of the energy, by subspace iteration.
 * @param known leading directions that were found already: fewer rounds are needed
 */
export async function leadingDirections(
  { d, matrix }: Energy,
  rank: number,
  matrices: Matrices,
  known?: Directions,
): Promise<Directions> {
  const start = new Float32Array(d * rank);
  // A start that is no eigenvector of anything, and the same on every run.
  for (let i = 0; i < start.length; i++) start[i] = (Math.sin(1 + i * 12.9898) * 43758.5453) % 1;
  if (known) {
    for (let i = 0; i < d; i++) start.set(known.v.subarray(i * known.rank, (i + 1) * known.rank), i * rank);
  }
  let v = await orthonormalise(start, d, matrices, 1);
  for (let round = known ? ROUNDS - ROUNDS_KNOWN : 0; ; round++) {
    const next = await matrices.times(matrix, v, d);
    if (round === ROUNDS) {
      const values = new Float64Array(rank);
      for (let i = 0, at = 0; i < d; i++) for (let r = 0; r < rank; r++, at++) values[r] += v[at] * next[at];
      return { rank, v, values: Float32Array.from(values) };
    }
    v = await orthonormalise(next, d, matrices, round + 1 === ROUNDS ? 2 : 1);
  }
}

/**
 * Rounds of subspace iteration. Gates' energies fall slowly, and among directions of nearly the same energy
 * it does not matter which are kept: from three rounds on, predicted sparsity moves by less than 0.001.
 */
const ROUNDS = 4;
const ROUNDS_KNOWN = 2;

/** What the hidden layer is, and how neurons see it. */
export interface HiddenBasis {
  rank: number;
  b: Float32Array; // [R, d]
  /** W times this is A, [d, R] */
  projection: Float32Array;
}

/**
 * Each direction's size is shared between A and B by its square root. In A alone, the small directions would
 * vanish in the rounding of a row's common scale; in B alone, in that of the hidden vector. The size of a
 * direction in A, weighted by importance, is its energy.
 */
export async function hiddenBasis(
  { rank, v, values }: Directions,
  { order, triangle }: RoundingBasis,
  matrices: Matrices,
): Promise<HiddenBasis> {
  const d = order.length;
  const directions = await lowerTimes(triangle, v, matrices); // L V
  const solved = await solveTransposed(triangle, v, matrices); // B^T
  const largest = values.reduce((a, b) => Math.max(a, b), Number.MIN_VALUE);
  const share = values.map((value) => Math.max(value / largest, 1e-8) ** 0.25);
  const projection = new Float32Array(d * rank);
  const b = new Float32Array(rank * d);
  for (let j = 0; j < d; j++) {
    const column = order[j];
    for (let r = 0; r < rank; r++) {
      projection[column * rank + r] = directions[j * rank + r] / share[r];
      b[r * d + column] = solved[j * rank + r] * share[r];
    }
  }
  return { rank, b, projection };
}

/** The factors of some rows of W_gate, f32 [rows, d]. */
export async function factorsOf(
  weights: Float32Array,
  { rank, b, projection }: HiddenBasis,
  matrices: Matrices,
): Promise<Factors> {
  return { rank, a: await matrices.times(weights, projection, b.length / rank), b };
}

/**
 * How much a neuron's error counts: relative to its own spread, and more where it is neither rare nor
 * always on, since there a decision is made.
 * @param variance [nFf] of the neuron's gate
 * @param frequency [nFf] share of tokens it is active in
 */
export const neuronImportance = (variance: Float64Array, frequency: Float64Array): Float64Array =>
  frequency.map((f, i) => Math.max(f * (1 - f), 1e-5) ** 0.25 / Math.sqrt(Math.max(variance[i], 1e-12)));
