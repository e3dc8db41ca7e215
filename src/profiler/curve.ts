/**
 * How a layer's recall and predicted sparsity move with its threshold. Scores are computed by the engine's
 * own kernels on the quantised predictor: the curve is what a run will do. Thresholds are chosen on one part
 * of the samples and what they give is measured on another.
 */
import type { LayerCurve } from '../predictor/artifact.js';
import { networkOf, Scorer, type Biases } from '../predictor/scorer.js';
import { eachActive, type SampleRange, type Samples } from '../predictor/samples.js';
import type { LayerPredictor, RowMatrix } from '../predictor/types.js';

/** Points of a stored curve: enough to read recall to 0.001 off it, few enough to store for every layer. */
const CURVE_POINTS = 257;
/**
 * Margins are counted by the leading bits of their f32 (sign, exponent, 9 bits of mantissa): bins as narrow
 * as 0.2 % of the margin, whatever unit a predictor's scores have.
 */
const BIN_BITS = 18;
const BINS = 1 << BIN_BITS;
/** Inputs read at a time. */
const BLOCK_ROWS = 512;

/** What thresholds give on samples that did not choose them. */
export interface Reported {
  /** Share of inactive neurons. */
  sparsity: number;
  /** For every point of the curve. */
  recall: Float32Array;
  weightedRecall: Float32Array;
  predictedSparsity: Float32Array;
}

export interface MeasuredLayer {
  /** On the samples to choose by. */
  curve: LayerCurve;
  /** Share of inactive neurons there. */
  sparsity: number;
  report: Reported;
}

/** The neurons of a layer, or of one of its experts, and the samples that met them. */
export interface Measurable {
  predictor: LayerPredictor;
  samples: Samples;
  parts: { choose: SampleRange; report: SampleRange };
  /** ||W_down[:, i]||: with |x1| the weight of a neuron in weighted recall */
  norms: Float32Array;
  /** Of all neurons, for predictors of contributions. @default null */
  biases?: Biases | null;
  /** Rows of the gate, for those that meet it exact. @default null */
  gates?: RowMatrix | null;
}

/**
 * The curve of a layer from all its experts; what a sample has not met counts as inactive and no candidate.
 * @param experts asked for one after the other
 * @param decisions samples times neurons of the layer
 */
export function measureCurve(
  experts: Iterable<Measurable>,
  decisions: { choose: number; report: number },
): MeasuredLayer {
  const [chosen, reported] = [noMargins(decisions.choose), noMargins(decisions.report)];
  for (const { predictor, samples, parts, norms, biases = null, gates = null } of experts) {
    const of = (values: Float32Array | null): Float32Array | null =>
      values && Float32Array.from(predictor.scoredIds, (i) => values[i]);
    const scorer = new Scorer(
      networkOf(predictor, gates),
      samples.d,
      biases && { ...biases, gate: of(biases.gate), up: of(biases.up) },
    );
    countMargins(chosen, scorer, predictor, samples, parts.choose, norms);
    countMargins(reported, scorer, predictor, samples, parts.report, norms);
  }
  const bins = pointBins(chosen);
  const { recall, weightedRecall, predictedSparsity } = pointsAt(chosen, bins);
  const threshold = Float32Array.from(bins, lowerEdge);
  return {
    curve: { threshold, recall, weightedRecall, predictedSparsity },
    sparsity: sparsityOf(chosen),
    report: { sparsity: sparsityOf(reported), ...pointsAt(reported, bins) },
  };
}

/** Margins of the scored neurons by bin, and what needs no score. */
interface Margins {
  candidates: Float64Array;
  hits: Float64Array;
  weights: Float64Array;
  /** Tokens times neurons. */
  decisions: number;
  always: number;
  active: number;
  alwaysHits: number;
  totalWeight: number;
  alwaysWeight: number;
}

const noMargins = (decisions: number): Margins => ({
  candidates: new Float64Array(BINS),
  hits: new Float64Array(BINS),
  weights: new Float64Array(BINS),
  decisions,
  always: 0,
  active: 0,
  alwaysHits: 0,
  totalWeight: 0,
  alwaysWeight: 0,
});

function countMargins(
  counted: Margins,
  scorer: Scorer,
  { scoredIds, cut, cutScale, always }: LayerPredictor,
  samples: Samples,
  range: SampleRange,
  norms: Float32Array,
): void {
  const { nFf } = samples;
  const { candidates, hits, weights } = counted;
  counted.always += (range.end - range.begin) * always.length;
  const weightOf = new Float64Array(nFf); // of the current sample; 0 where inactive
  for (let block = range.begin; block < range.end; block += BLOCK_ROWS) {
    const inputs = samples.inputs(block, Math.min(range.end, block + BLOCK_ROWS));
    scorer.each(inputs, (scores, begin, count) => {
      for (let t = 0; t < count; t++) {
        weightOf.fill(0);
        eachActive(samples, block + begin + t, (i, magnitude) => {
          // An active neuron counts even where its magnitude underflowed.
          weightOf[i] = Math.max(magnitude * norms[i], Number.MIN_VALUE);
          counted.active++;
          counted.totalWeight += weightOf[i];
        });
        for (const i of always) {
          if (weightOf[i] === 0) continue;
          counted.alwaysHits++;
          counted.alwaysWeight += weightOf[i];
        }
        for (let s = 0, at = t * scoredIds.length; s < scoredIds.length; s++, at++) {
          const bin = binOf((scores[at] - cut[s]) / cutScale[s]);
          candidates[bin]++;
          const w = weightOf[scoredIds[s]];
          if (w === 0) continue;
          hits[bin]++;
          weights[bin] += w;
        }
      }
    });
  }
}

const sparsityOf = ({ active, decisions }: Margins): number => 1 - active / Math.max(1, decisions);

/** Bins whose lower edges become the curve's thresholds, ascending. */
function pointBins({ candidates }: Margins): number[] {
  const scored = candidates.reduce((a, b) => a + b, 0);
  const bins: number[] = [];
  let seen = 0;
  let next = 0;
  for (let bin = BINS - 1; bin >= 0; bin--) {
    if (candidates[bin] === 0) continue;
    seen += candidates[bin];
    // Spaced evenly in the square root of the candidates' share: the interesting end has few of them.
    if (Math.sqrt(seen / scored) < next / (CURVE_POINTS - 1) && seen < scored) continue;
    next = Math.floor(Math.sqrt(seen / scored) * (CURVE_POINTS - 1)) + 1;
    bins.push(bin);
  }
  // Nothing is scored: one threshold is as good as another.
  return bins.length > 0 ? bins.reverse() : [BINS >> 1];
}

/** With the lower edge of each bin as threshold: its candidates are those of this bin and all above. */
function pointsAt(margins: Margins, bins: readonly number[]): Omit<LayerCurve, 'threshold'> {
  const { candidates, hits, weights, decisions, active, totalWeight } = margins;
  const points = bins.length;
  const recall = new Float32Array(points);
  const weightedRecall = new Float32Array(points);
  const predictedSparsity = new Float32Array(points);
  let [c, h, w] = [margins.always, margins.alwaysHits, margins.alwaysWeight];
  let bin = BINS;
  for (let point = points - 1; point >= 0; point--) {
    while (bin > bins[point]) {
      bin--;
      c += candidates[bin];
      h += hits[bin];
      w += weights[bin];
    }
    recall[point] = active === 0 ? 1 : Math.min(1, h / active);
    weightedRecall[point] = totalWeight === 0 ? 1 : Math.min(1, w / totalWeight);
    predictedSparsity[point] = 1 - c / Math.max(1, decisions);
  }
  return { recall, weightedRecall, predictedSparsity };
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
