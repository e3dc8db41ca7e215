/** Mean and covariance of a layer's inputs: what whitening and error feedback go by. */
import { GramSum, type Matrices } from './matrix.js';
import type { SampleRange, Samples } from './samples.js';

export interface Moments {
  d: number;
  mean: Float64Array; // [d]
  /** f32 [d, d], damped */
  covariance: Float32Array;
}

/** Mean and covariance of some of a layer's inputs, leaning on those of all of them where they are few. */
export async function leaningMoments(
  samples: Inputs,
  range: SampleRange,
  prior: Moments | null,
  matrices: Matrices,
): Promise<Moments> {
  const rows = range.end - range.begin;
  const own = await inputMoments(samples, range, matrices);
  if (!prior) return own;
  // As if d more inputs had come from everywhere: with d of their own, both count the same.
  const { d, covariance } = own;
  const mixed = covariance.map((v, i) => (rows * v + d * prior.covariance[i]) / (rows + d));
  return { ...own, covariance: mixed };
}

/** Rows multiplied at a time: sums of more f32 products would lose digits. */
const BLOCK_ROWS = 2048;
/** Added to the diagonal, as a share of its mean: directions that text rarely uses stay invertible. */
const DAMPING = 2e-3;

/** Where inputs are read from. */
type Inputs = Pick<Samples, 'd' | 'inputs'>;

export async function inputMoments(
  samples: Inputs,
  range: SampleRange,
  matrices: Matrices,
): Promise<Moments> {
  const { d } = samples;
  const rows = range.end - range.begin;
  const mean = new Float64Array(d);
  const sum = new GramSum(d, matrices);
  // Around a first guess of the mean, so that no digits go into it; the rest is taken off afterwards.
  const guess = new Float32Array(d);
  for (let begin = range.begin; begin < range.end; begin += BLOCK_ROWS) {
    const x = Float32Array.from(samples.inputs(begin, Math.min(range.end, begin + BLOCK_ROWS)));
    if (begin === range.begin) {
      for (let i = 0, c = 0; i < x.length; i++) {
        guess[c] += (x[i] * d) / x.length;
        if (++c === d) c = 0;
      }
    }
    for (let i = 0, c = 0; i < x.length; i++) {
      x[i] -= guess[c];
      mean[c] += x[i];
      if (++c === d) c = 0;
    }
    await sum.add(x);
  }
  const covariance = sum.square(1 / rows);
  for (let c = 0; c < d; c++) mean[c] /= rows;
  let trace = 0;
  for (let i = 0; i < d; i++) {
    for (let j = 0; j < d; j++) covariance[i * d + j] -= mean[i] * mean[j];
    trace += covariance[i * d + i];
  }
  // An input that never changes at all still needs a positive pivot.
  const damping = (DAMPING * trace) / d || 1e-12;
  for (let c = 0; c < d; c++) covariance[c * d + c] += damping;
  return { d, mean: mean.map((m, c) => m + guess[c]), covariance };
}
