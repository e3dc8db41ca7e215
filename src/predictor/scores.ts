/**
 * What follows from a predictor's scores: each neuron's cut, and what a recall costs. For choosing between
 * predictors while they are made; the profiler measures the final curve (profiler/curve.ts).
 */
import type { Matrices } from './matrix.js';
import type { Scorer } from './scorer.js';
import { eachActive, spreadInputs, type SampleRange, type Samples } from './samples.js';

/** Where a neuron's score says "as likely as not", and how sure it is: see LayerPredictor. */
export interface Cuts {
  cut: Float32Array; // one for each row of fc2
  cutScale: Float32Array;
}

// ---- cuts ---------------------------------------------------------------------------------------------

/** Exact gates of some training samples. */
export interface GateSample {
  tokens: number;
  nFf: number;
  inputs: Float32Array; // [tokens][d]
  gates: Float32Array; // [tokens][nFf]
}

/** Gates kept, neurons times samples: 16 MiB. From 1000 samples a cut errs by 3 % of its unit. */
const MAX_GATES = 1 << 22;
const LEAST_TOKENS = 1024;

/** Tokens of a gate sample. */
export const gateTokens = (nFf: number, rows: number): number =>
  Math.min(rows, Math.max(LEAST_TOKENS, Math.floor(MAX_GATES / nFf)));

/** @param gateRows W_gate, f32 [nFf, d] */
export async function sampleGates(
  samples: Samples,
  range: SampleRange,
  gateRows: Float32Array,
  matrices: Matrices,
): Promise<GateSample> {
  const { d, nFf } = samples;
  const inputs = spreadInputs(samples, range, gateTokens(nFf, range.end - range.begin));
  const gates = await matrices.timesTransposed(inputs, gateRows, d);
  return { tokens: inputs.length / d, nFf, inputs, gates };
}

/** Variance of every gate, [nFf]. */
export function gateVariance({ tokens, nFf, gates }: GateSample): Float64Array {
  const sum = new Float64Array(nFf);
  const squares = new Float64Array(nFf);
  for (let t = 0, at = 0; t < tokens; t++) {
    for (let i = 0; i < nFf; i++, at++) {
      sum[i] += gates[at];
      squares[i] += gates[at] ** 2;
    }
  }
  return squares.map((s, i) => s / tokens - (sum[i] / tokens) ** 2);
}

/** Scores that never err still need a unit. Relative to the gate's own spread. */
const LEAST_ERROR = 1e-4;

/**
 * Regression of each gate on its score: E[g | s] = slope s + offset. The cut is the score at which the gate
 * is expected at its threshold, its unit the standard error of that expectation.
 * @param gateThreshold of W_gate x, one or by neuron: a gate's bias lowers it
 * @param ids neuron of each of the scorer's rows
 */
export function fitCuts(
  scorer: Scorer,
  ids: Uint32Array,
  sample: GateSample,
  gateThreshold: Float32Array | number,
): Cuts {
  const { nFf, gates, tokens: n } = sample;
  const rows = ids.length;
  const sums = Array.from({ length: 5 }, () => new Float64Array(rows));
  const [s1, g1, ss, sg, gg] = sums;
  scorer.each(sample.inputs, (scores, begin, count) => {
    for (let t = 0; t < count; t++) {
      const gateAt = (begin + t) * nFf;
      for (let i = 0, at = t * rows; i < rows; i++, at++) {
        const s = scores[at];
        const g = gates[gateAt + ids[i]];
        s1[i] += s;
        g1[i] += g;
        ss[i] += s * s;
        sg[i] += s * g;
        gg[i] += g * g;
      }
    }
  });
  const cut = new Float32Array(rows);
  const cutScale = new Float32Array(rows);
  for (let i = 0; i < rows; i++) {
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

// ---- what a recall costs -------------------------------------------------------------------------------

/** Margins, (score - cut) / cutScale, are counted in bins of 1/64 between these. */
const MARGIN_LIMIT = 32;
const BINS_PER_UNIT = 64;
const BINS = 2 * MARGIN_LIMIT * BINS_PER_UNIT;
const COARSE = BINS_PER_UNIT / 4;
/** Groups of neurons that are counted apart: how much an estimate from some neurons varies. */
export const NEURON_GROUPS = 8;

/** Margins of a predictor on some samples, counted. Row i of the scorer is in group i % NEURON_GROUPS. */
export interface Margins {
  ids: Uint32Array;
  tokens: number;
  all: Float64Array; // [group][bin]
  hits: Float64Array; // [group][bin], of active neurons
  weights: Float64Array; // [bin], |x1| ||W_down[:, i]|| of active neurons
  /** Row counts in bins of 1/4, [bin][row]. */
  perRow: Uint32Array;
}

/** Inputs read at a time. */
const BLOCK_ROWS = 1024;

/** @param norms ||W_down[:, i]|| of every neuron */
export function countMargins(
  scorer: Scorer,
  ids: Uint32Array,
  { cut, cutScale }: Cuts,
  samples: Samples,
  range: SampleRange,
  norms: Float32Array,
): Margins {
  const rows = ids.length;
  const all = new Float64Array(NEURON_GROUPS * BINS);
  const hits = new Float64Array(NEURON_GROUPS * BINS);
  const weights = new Float64Array(BINS);
  const perRow = new Uint32Array((BINS / COARSE) * rows);
  const inverse = cutScale.map((s) => BINS_PER_UNIT / s);
  const rowOf = new Int32Array(samples.nFf).fill(-1);
  ids.forEach((id, row) => (rowOf[id] = row));
  const bins = new Uint16Array(rows);
  for (let block = range.begin; block < range.end; block += BLOCK_ROWS) {
    const inputs = samples.inputs(block, Math.min(range.end, block + BLOCK_ROWS));
    scorer.each(inputs, (scores, begin, count) => {
      for (let t = 0; t < count; t++) {
        for (let i = 0, at = t * rows; i < rows; i++, at++) {
          const bin = (scores[at] - cut[i]) * inverse[i] + BINS / 2;
          const b = bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin | 0;
          bins[i] = b;
          all[(i % NEURON_GROUPS) * BINS + b]++;
          perRow[((b / COARSE) | 0) * rows + i]++;
        }
        eachActive(samples, block + begin + t, (id, magnitude) => {
          const row = rowOf[id];
          if (row < 0) return;
          hits[(row % NEURON_GROUPS) * BINS + bins[row]]++;
          weights[bins[row]] += magnitude * norms[id];
        });
      }
    });
  }
  return { ids, tokens: range.end - range.begin, all, hits, weights, perRow };
}

/** What a threshold gives. */
export interface Measured {
  threshold: number;
  recall: number;
  weightedRecall: number;
  predictedSparsity: number;
  sparsity: number;
  /** First bin of the candidates. */
  bin: number;
}

/**
 * The highest threshold that still has `recall`, and what it gives.
 * @param without a group of neurons to leave out; weighted recall is that of all
 * @param byWeight `recall` is weighted recall
 */
export function measureAtRecall(margins: Margins, recall: number, without = -1, byWeight = false): Measured {
  const { ids, tokens, weights } = margins;
  const all = sumGroups(margins.all, without);
  const hits = sumGroups(margins.hits, without);
  let rows = ids.length;
  if (without >= 0) rows -= Math.ceil((ids.length - without) / NEURON_GROUPS);
  const active = hits.reduce((a, b) => a + b, 0);
  const totalWeight = weights.reduce((a, b) => a + b, 0);
  let [bin, c, h, w] = [BINS, 0, 0, 0];
  while (bin > 0 && (byWeight ? w < recall * totalWeight : h < recall * active)) {
    bin--;
    c += all[bin];
    h += hits[bin];
    w += weights[bin];
  }
  const decisions = Math.max(1, tokens * rows);
  return {
    threshold: (bin - BINS / 2) / BINS_PER_UNIT,
    recall: active === 0 ? 1 : h / active,
    weightedRecall: totalWeight === 0 ? 1 : w / totalWeight,
    predictedSparsity: 1 - c / decisions,
    sparsity: 1 - active / decisions,
    bin,
  };
}

function sumGroups(counts: Float64Array, without: number): Float64Array {
  const sum = new Float64Array(BINS);
  for (let g = 0; g < NEURON_GROUPS; g++) {
    if (g === without) continue;
    for (let b = 0; b < BINS; b++) sum[b] += counts[g * BINS + b];
  }
  return sum;
}

/** Share of the samples in which each row is a candidate, from `bin` on; exact to a quarter of a unit. */
export function candidateRates({ ids, tokens, perRow }: Margins, bin: number): Float64Array {
  const rates = new Float64Array(ids.length);
  for (let b = Math.floor(bin / COARSE); b < BINS / COARSE; b++) {
    for (let i = 0; i < ids.length; i++) rates[i] += perRow[b * ids.length + i] / tokens;
  }
  return rates;
}
