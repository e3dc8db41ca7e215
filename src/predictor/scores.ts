/**
 * Scores of a predictor over many samples, by matrix products on its dequantised rows, and what follows from
 * them: each neuron's cut, and the threshold that reaches a recall. The profiler measures the final curve
 * with the engine's kernels; this is for choosing between predictors while they are made.
 */
import type { Matrices } from './matrix.js';
import { unpackRows } from './rows.js';
import { eachActive, inputRows, type SampleRange, type Samples } from './samples.js';
import type { RowMatrix } from './types.js';

/** The rows of a predictor before its neurons are sorted out: fc2 scores every neuron. */
export interface Network {
  fc1: RowMatrix | null;
  b1: Float32Array | null;
  fc2: RowMatrix; // [nFf, rank]
}

/** Where a neuron's score says "as likely as not", and how sure it is: see LayerPredictor. */
export interface Cuts {
  cut: Float32Array; // [nFf]
  cutScale: Float32Array; // [nFf]
}

/** Rows scored at a time: 2048 x 11008 scores are 90 MB. */
const BLOCK_ROWS = 2048;
/** Scores regressed on, neurons times samples: a cut is as exact from 16,000 samples as from more. */
const MAX_REGRESSED = 1 << 24;
/** Scores that never err still need a unit. Relative to the gate's own spread. */
const LEAST_ERROR = 1e-4;

/** Calls `visit` with blocks of scores, f32 [count, nFf], for the rows begin.. of the samples. */
export async function eachScore(
  network: Network,
  samples: Samples,
  range: SampleRange,
  matrices: Matrices,
  visit: (scores: Float32Array, begin: number, count: number) => void | Promise<void>,
): Promise<void> {
  const fc1 = network.fc1 && unpackRows(network.fc1);
  const fc2 = unpackRows(network.fc2);
  const rank = network.fc2.cols;
  for (let begin = range.begin; begin < range.end; begin += BLOCK_ROWS) {
    const end = Math.min(range.end, begin + BLOCK_ROWS);
    let hidden = inputRows(samples, { begin, end });
    if (fc1) {
      hidden = await matrices.timesTransposed(hidden, fc1, samples.d);
      if (network.b1) biasRelu(hidden, network.b1);
    }
    await visit(await matrices.timesTransposed(hidden, fc2, rank), begin, end - begin);
  }
}

function biasRelu(hidden: Float32Array, bias: Float32Array): void {
  for (let i = 0; i < hidden.length; i++) hidden[i] = Math.max(0, hidden[i] + bias[i % bias.length]);
}

/**
 * Regression of each gate on its score: E[g | s] = slope s + offset. The cut is the score at which the gate
 * is expected at its threshold, its unit the standard error of that expectation.
 * @param gateThreshold of W_gate x, one or by neuron: a gate's bias lowers it
 */
export async function fitCuts(
  network: Network,
  samples: Samples,
  range: SampleRange,
  gateRows: Float32Array,
  gateThreshold: Float32Array | number,
  matrices: Matrices,
): Promise<Cuts> {
  const { nFf, d } = samples;
  const enough = Math.max(BLOCK_ROWS, Math.floor(MAX_REGRESSED / nFf));
  const used = { begin: range.begin, end: Math.min(range.end, range.begin + enough) };
  const sums = Array.from({ length: 5 }, () => new Float64Array(nFf));
  const [s1, g1, ss, sg, gg] = sums;
  await eachScore(network, samples, used, matrices, async (scores, begin, count) => {
    const gates = await matrices.timesTransposed(
      inputRows(samples, { begin, end: begin + count }),
      gateRows,
      d,
    );
    for (let t = 0; t < count; t++) {
      for (let i = 0, at = t * nFf; i < nFf; i++, at++) {
        const s = scores[at];
        const g = gates[at];
        s1[i] += s;
        g1[i] += g;
        ss[i] += s * s;
        sg[i] += s * g;
        gg[i] += g * g;
      }
    }
  });
  const n = used.end - used.begin;
  const cut = new Float32Array(nFf);
  const cutScale = new Float32Array(nFf);
  for (let i = 0; i < nFf; i++) {
    const varS = ss[i] / n - (s1[i] / n) ** 2;
    const varG = gg[i] / n - (g1[i] / n) ** 2;
    const cov = sg[i] / n - (s1[i] / n) * (g1[i] / n);
    // A score that says nothing (a row of zeros, an input that never changes) leaves only the mean.
    const slope = varS > 0 && cov > 0 ? cov / varS : 1;
    const offset = g1[i] / n - slope * (s1[i] / n);
    const error = Math.sqrt(Math.max(varG - slope * cov, LEAST_ERROR ** 2 * varG, 1e-12));
    const threshold = typeof gateThreshold === 'number' ? gateThreshold : gateThreshold[i];
    cut[i] = (threshold - offset) / slope;
    cutScale[i] = error / slope;
  }
  return { cut, cutScale };
}

/** What a threshold gives, measured on a range of samples. */
export interface Point {
  threshold: number;
  recall: number;
  weightedRecall: number;
  predictedSparsity: number;
}

export interface Measured extends Point {
  sparsity: number;
  /** [nFf] share of the samples in which each neuron is a candidate. */
  candidateRate: Float64Array;
}

/** Margins, (score - cut) / cutScale, are counted in bins of 1/64 between these. */
const MARGIN_LIMIT = 32;
const BINS_PER_UNIT = 64;
const BINS = 2 * MARGIN_LIMIT * BINS_PER_UNIT;

/** The highest threshold that still has `recall`, and what it gives. */
export async function measureAtRecall(
  network: Network,
  cuts: Cuts,
  samples: Samples,
  range: SampleRange,
  norms: Float32Array,
  recall: number,
  matrices: Matrices,
): Promise<Measured> {
  const { nFf } = samples;
  const all = new Float64Array(BINS);
  const hits = new Float64Array(BINS);
  const weights = new Float64Array(BINS);
  /** [bin of 1/4][neuron]: coarse, only for the candidate rates. */
  const perNeuron = new Uint32Array((BINS / COARSE) * nFf);
  const inverse = cuts.cutScale.map((s) => BINS_PER_UNIT / s);
  const bins = new Uint16Array(nFf);
  await eachScore(network, samples, range, matrices, (scores, begin, count) => {
    for (let t = 0; t < count; t++) {
      for (let i = 0, at = t * nFf; i < nFf; i++, at++) {
        const bin = (scores[at] - cuts.cut[i]) * inverse[i] + BINS / 2;
        const b = bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin | 0;
        bins[i] = b;
        all[b]++;
        perNeuron[((b / COARSE) | 0) * nFf + i]++;
      }
      eachActive(samples, begin + t, (i, magnitude) => {
        hits[bins[i]]++;
        weights[bins[i]] += magnitude * norms[i];
      });
    }
  });
  const rows = range.end - range.begin;
  const active = hits.reduce((a, b) => a + b, 0);
  const totalWeight = weights.reduce((a, b) => a + b, 0);
  let [bin, c, h, w] = [BINS, 0, 0, 0];
  while (bin > 0 && h < recall * active) {
    bin--;
    c += all[bin];
    h += hits[bin];
    w += weights[bin];
  }
  const candidateRate = new Float64Array(nFf);
  for (let b = Math.floor(bin / COARSE); b < BINS / COARSE; b++) {
    for (let i = 0; i < nFf; i++) candidateRate[i] += perNeuron[b * nFf + i] / rows;
  }
  return {
    threshold: (bin - BINS / 2) / BINS_PER_UNIT,
    recall: active === 0 ? 1 : h / active,
    weightedRecall: totalWeight === 0 ? 1 : w / totalWeight,
    predictedSparsity: 1 - c / (rows * nFf),
    sparsity: 1 - active / (rows * nFf),
    candidateRate,
  };
}

const COARSE = BINS_PER_UNIT / 4;
