/**
 * How a layer's recall and predicted sparsity move with its threshold, from the held-out samples. Scores are
 * computed by the engine's own kernels on the quantised predictor: the curve is what a run will do.
 */
import { activationBytes, alignUp } from '../kernels/layout.js';
import type { Ptr } from '../kernels/kernels.js';
import { instantiateKernels, selectKernels } from '../kernels/select.js';
import type { LayerCurve } from '../predictor/artifact.js';
import type { LayerPredictor, RowMatrix } from '../predictor/types.js';
import { eachActive, type Samples } from '../predictor/samples.js';

/** Points of a stored curve: enough to read recall to 0.001 off it, few enough to store for every layer. */
const CURVE_POINTS = 257;
/**
 * Margins are counted by the leading bits of their f32 (sign, exponent, 9 bits of mantissa): bins as narrow
 * as 0.2 % of the margin, whatever unit a predictor's scores have.
 */
const BIN_BITS = 18;
const BINS = 1 << BIN_BITS;

/** Scores of one predictor for one input at a time. */
export interface Scorer {
  /** @returns scores in the order of scoredIds; the next call overwrites them */
  score(x: Float32Array): Float32Array;
}

/** The predictor in an arena of its own. */
export function createScorer(predictor: LayerPredictor, d: number): Scorer {
  const { fc1, b1, fc2, rank } = predictor;
  let end = 64;
  const place = (bytes: number): Ptr => {
    const at = end;
    end += alignUp(bytes, 64);
    return at;
  };
  const at = {
    x: place(alignUp(d, 32) * 4),
    xq: place(activationBytes('q8', d)),
    fc1: fc1 ? place(fc1.data.length + 64) : 0,
    b1: b1 ? place(rank * 4) : 0,
    hidden: place(alignUp(rank, 32) * 4),
    hiddenQ: place(activationBytes('q8', rank)),
    fc2: place(fc2.data.length + 64),
    scores: place(fc2.rows * 4),
  };
  const pages = Math.ceil(end / 65536);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const kernels = instantiateKernels(selectKernels('auto'), memory);
  const bytes = new Uint8Array(memory.buffer);
  if (fc1) bytes.set(fc1.data, at.fc1);
  if (b1) new Float32Array(memory.buffer, at.b1, rank).set(b1);
  bytes.set(fc2.data, at.fc2);
  const x = new Float32Array(memory.buffer, at.x, d);
  const scores = new Float32Array(memory.buffer, at.scores, fc2.rows);

  const multiply = (m: RowMatrix, weights: Ptr, input: Ptr, quantised: Ptr, out: Ptr): void => {
    kernels.quantize(input, quantised, m.cols);
    kernels.dot(m.format, weights, m.stride, m.rows, quantised, 0, 1, out, m.rows, m.cols);
  };

  return {
    score(values) {
      x.set(values);
      if (fc1) {
        multiply(fc1, at.fc1, at.x, at.xq, at.hidden);
        if (b1) kernels.biasRelu(at.hidden, at.b1, rank);
        multiply(fc2, at.fc2, at.hidden, at.hiddenQ, at.scores);
      } else {
        multiply(fc2, at.fc2, at.x, at.xq, at.scores);
      }
      return scores;
    },
  };
}

export interface MeasuredLayer {
  curve: LayerCurve;
  /** Share of inactive neurons on the held-out samples. */
  sparsity: number;
}

/** @param norms ||W_down[:, i]||: with |x1| the weight of a neuron in weighted recall */
export function measureCurve(
  predictor: LayerPredictor,
  rec: Samples,
  heldOutFrom: number,
  norms: Float32Array,
): MeasuredLayer {
  const { d, nFf, samples, inputs } = rec;
  const { scoredIds, cut, cutScale, always } = predictor;
  const scorer = createScorer(predictor, d);
  const candidates = new Float64Array(BINS);
  const hits = new Float64Array(BINS);
  const weights = new Float64Array(BINS);
  const weightOf = new Float64Array(nFf); // of the current sample; 0 where inactive
  let active = 0;
  let totalWeight = 0;
  let alwaysHits = 0;
  let alwaysWeight = 0;
  for (let t = heldOutFrom; t < samples; t++) {
    weightOf.fill(0);
    eachActive(rec, t, (i, magnitude) => {
      // An active neuron counts even where its magnitude underflowed.
      weightOf[i] = Math.max(magnitude * norms[i], Number.MIN_VALUE);
      active++;
      totalWeight += weightOf[i];
    });
    for (const i of always) {
      if (weightOf[i] === 0) continue;
      alwaysHits++;
      alwaysWeight += weightOf[i];
    }
    const scores = scorer.score(inputs.subarray(t * d, (t + 1) * d));
    for (let s = 0; s < scoredIds.length; s++) {
      const bin = binOf((scores[s] - cut[s]) / cutScale[s]);
      candidates[bin]++;
      const w = weightOf[scoredIds[s]];
      if (w === 0) continue;
      hits[bin]++;
      weights[bin] += w;
    }
  }
  const rows = samples - heldOutFrom;
  const curve = cumulate(candidates, hits, weights, {
    neurons: rows * nFf,
    always: rows * always.length,
    active: Math.max(1, active),
    alwaysHits,
    totalWeight: totalWeight || 1,
    alwaysWeight,
  });
  return { curve, sparsity: 1 - active / (rows * nFf) };
}

interface Totals {
  neurons: number;
  always: number;
  active: number;
  alwaysHits: number;
  totalWeight: number;
  alwaysWeight: number;
}

/** From the highest margin down: every bin adds the candidates whose margin is at least its lower edge. */
function cumulate(
  candidates: Float64Array,
  hits: Float64Array,
  weights: Float64Array,
  totals: Totals,
): LayerCurve {
  const scored = candidates.reduce((a, b) => a + b, 0);
  const points: { threshold: number; recall: number; weighted: number; sparsity: number }[] = [];
  let [c, h, w] = [totals.always, totals.alwaysHits, totals.alwaysWeight];
  let seen = 0;
  let next = 0;
  for (let bin = BINS - 1; bin >= 0; bin--) {
    if (candidates[bin] === 0) continue;
    seen += candidates[bin];
    c += candidates[bin];
    h += hits[bin];
    w += weights[bin];
    // Spaced evenly in the square root of the candidates' share: the interesting end has few of them.
    if (Math.sqrt(seen / scored) < next / (CURVE_POINTS - 1) && seen < scored) continue;
    next = Math.floor(Math.sqrt(seen / scored) * (CURVE_POINTS - 1)) + 1;
    points.push({
      threshold: lowerEdge(bin),
      recall: Math.min(1, h / totals.active),
      weighted: Math.min(1, w / totals.totalWeight),
      sparsity: 1 - c / totals.neurons,
    });
  }
  points.reverse();
  const column = (pick: (p: (typeof points)[number]) => number): Float32Array =>
    Float32Array.from(points, pick);
  return {
    threshold: column((p) => p.threshold),
    recall: column((p) => p.recall),
    weightedRecall: column((p) => p.weighted),
    predictedSparsity: column((p) => p.sparsity),
  };
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** Bits of a float, mapped so that they ascend with its value. */
function binOf(value: number): number {
  f32[0] = value;
  const bits = u32[0];
  const ordered = bits >>> 31 ? ~bits >>> 0 : (bits | 0x80000000) >>> 0;
  return ordered >>> (32 - BIN_BITS);
}

/** The smallest value whose bin this is; never infinite, so that arithmetic with thresholds stays finite. */
function lowerEdge(bin: number): number {
  const ordered = (bin << (32 - BIN_BITS)) >>> 0;
  u32[0] = ordered >>> 31 ? ordered & 0x7fffffff : ~ordered >>> 0;
  return Math.max(-LARGEST, Math.min(LARGEST, f32[0]));
}
/** Cuts moved by this many units still fit f32. */
const LARGEST = 1e30;
