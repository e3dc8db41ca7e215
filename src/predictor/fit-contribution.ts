/**
 * One layer's predictor of contributions, for activations without zeros. A neuron's part of the FFN's output is
 * x1 ||W_down[:, i]||, x1 = sigma(W_gate x) (W_up x): large only where both factors are. The gate is computed for every
 * neuron, as dense rows that cost least where they lie side by side; a sketch of up then says how large the other
 * factor is, and is not asked where even a large one would not do (kind `up`):
 *
 *     score = |sigma(gate . x)| min(|sketch of up . x|, reach)     candidate where score >= (1 + threshold / 8) cut
 *
 * with cut = (what the layer leaves out) / ||W_down[:, i]||. Two sketches read a tenth less and take longer: a row of
 * few bits takes nearly as long as one of eight. Without a gate the score is |sigma(sketch of fc1 . x)| (kind
 * `contribution`).
 */
import type { FittedLayer } from './fit-layer.js';
import { createMatrices, type Matrices } from './matrix.js';
import { leaningMoments, type Moments } from './moments.js';
import { predictorRowBytes, selectRows, toQ8 } from './rows.js';
import { activeCounts, spreadInputs, type SampleParts, type Samples } from './samples.js';
import { Scorer, type Biases } from './scorer.js';
import { candidateRates, countMargins, type Cuts } from './scores.js';
import { sampleNeurons, type Attempt, type Trial } from './screen.js';
import {
  bestFactor,
  FACTORS,
  POLISHED_WIDTH,
  roundingBasis,
  sketchRows,
  type RoundingBasis,
  type SketchFormat,
} from './sketch.js';
import { measureAtRecall } from './scores.js';
import type { LayerPredictor, RowMatrix } from './types.js';

export interface ContributionJob {
  layer: number;
  /** Neurons with |x1| ||W_down[:, i]|| below this are left out; above 0. */
  least: number;
  /** Share of the contributions that are not left out, to compare formats at. */
  weightedRecall: number;
  /** W_gate and W_up as the engine computes with them, f32 [nFf, d]; up: null without a gate. */
  gateRows: Float32Array;
  upRows: Float32Array | null;
  biases: Biases;
  /** ||W_down[:, i]||, [nFf] */
  downNorms: Float32Array;
  gateRowBytes: number;
  recordBytes: number;
  /** Sketch formats to try. @default all three */
  sketches?: readonly SketchFormat[];
  /** Moments of the inputs of all experts, to lean on. @default none */
  prior?: Moments;
  /** Neurons that never counted in training are left out for good. @default true */
  dropUnseen?: boolean;
  provider: string;
  threads?: number;
  check?: () => void;
}

/** Units of a cut in which thresholds are counted: fine enough below it for the counts of scores.ts. */
const UNIT = 1 / 8;

/** What is tried, from the smallest up. */
const SKETCHES: readonly SketchFormat[] = ['q1', 'q2', 'q3'];
/**
 * Reckoned with of up, in root mean squares of its sketch. A larger reach scores more neurons that are
 * then dropped, a smaller one misses those whose gate is small and whose up is large. Of 2 and 1.5, both tried on one
 * model, the second skipped half a percent more neurons at the same limit.
 */
const REACH = 1.5;
/** Samples that the mean is taken of. */
const REACH_SAMPLES = 512;
/** Cuts, and cuts moved by a threshold, must fit f32. */
const LARGEST_CUT = 1e30;
/** Of the sample, every so many rows choose the factor of wide sketches. */
const FACTOR_STEP = 4;

export async function fitContribution(
  job: ContributionJob,
  samples: Samples,
  parts: SampleParts,
): Promise<FittedLayer> {
  const { provider, threads, check } = job;
  const matrices = await createMatrices({ provider, threads, check });
  try {
    return await new ContributionFit(job, samples, parts, matrices).run();
  } finally {
    await matrices.release();
  }
}

/** Rows that score, for the neurons asked for. */
interface Rows {
  sketch: RowMatrix;
  /** Kind `up`. */
  gate: { rows: RowMatrix; reach: Float32Array } | null;
}

class ContributionFit {
  private readonly counts: Uint32Array;
  private readonly seconds: Record<string, number> = {};
  private readonly factors = new Map<SketchFormat, readonly number[]>();
  private basis!: RoundingBasis;

  constructor(
    private readonly job: ContributionJob,
    private readonly samples: Samples,
    private readonly parts: SampleParts,
    private readonly matrices: Matrices,
  ) {
    this.counts = activeCounts(samples, parts.train);
  }

  async run(): Promise<FittedLayer> {
    const { samples, parts, matrices, job } = this;
    this.basis = await this.timed('moments', async () =>
      roundingBasis(await leaningMoments(samples, parts.train, job.prior ?? null, matrices), matrices),
    );
    const ids = sampleNeurons(this.counts);
    const tried = await this.timed('screen', async () => {
      const trials: { format: SketchFormat; trial: Trial }[] = [];
      for (const format of job.sketches ?? SKETCHES) {
        trials.push({ format, trial: this.tried(format, await this.rows(format, ids), ids) });
      }
      return trials;
    });
    const best = tried.reduce((a, b) => (b.trial.cost < a.trial.cost ? b : a));
    const all = Uint32Array.from({ length: samples.nFf }, (_, i) => i);
    const rows = await this.timed('round', () => this.rows(best.format, all));
    const trial = await this.timed('score', async () => this.tried(best.format, rows, all));
    const attempts = tried.map(({ format, trial: of }) => this.attempt(format, of, best.trial, 'sample'));
    attempts.push(this.attempt(best.format, trial, trial, 'all'));
    return { predictor: this.finish(rows, trial), attempts, seconds: this.seconds };
  }

  private async rows(format: SketchFormat, ids: Uint32Array): Promise<Rows> {
    const { upRows, gateRows } = this.job;
    const sketch = await this.sketch(upRows ?? gateRows, format, ids);
    if (!upRows) return { sketch, gate: null };
    const rows = toQ8(rowsOf(gateRows, ids, this.samples), ids.length, this.samples.d);
    return { sketch, gate: { rows, reach: this.reach(sketch, ids) } };
  }

  /** Rows of one matrix; wide rows share the factor that served the first sample best. */
  private async sketch(source: Float32Array, format: SketchFormat, ids: Uint32Array): Promise<RowMatrix> {
    const { basis, matrices, samples } = this;
    const weights = rowsOf(source, ids, samples);
    let factors = this.factors.get(format) ?? FACTORS[format];
    if (samples.d > POLISHED_WIDTH && factors.length > 1) {
      const few = rowsOf(source, ids.filter((_, i) => i % FACTOR_STEP === 0), samples); // prettier-ignore
      factors = [await bestFactor(format, few, basis, matrices)];
      this.factors.set(format, factors);
    }
    return (await sketchRows(format, weights, basis, matrices, factors)).matrix;
  }

  /** REACH root mean squares of what the sketch of up says, its bias included. */
  private reach(sketch: RowMatrix, ids: Uint32Array): Float32Array {
    const { samples, parts, job } = this;
    const scorer = new Scorer({ fc1: null, b1: null, fc2: sketch }, samples.d);
    const squares = new Float64Array(ids.length);
    let tokens = 0;
    scorer.each(spreadInputs(samples, parts.train, REACH_SAMPLES), (scores, _, count) => {
      tokens += count;
      for (let at = 0; at < count * ids.length; at++) {
        const i = at % ids.length;
        squares[i] += (scores[at] + (job.biases.up?.[ids[i]] ?? 0)) ** 2;
      }
    });
    return Float32Array.from(squares, (sum) => REACH * Math.sqrt(sum / Math.max(1, tokens)));
  }

  private cuts(ids: Uint32Array): Cuts {
    const { least, downNorms } = this.job;
    // A column of zeros contributes nothing, whatever its x1 is.
    const cut = Float32Array.from(ids, (i) => Math.min(LARGEST_CUT, least / Math.max(downNorms[i], 1e-30)));
    return { cut, cutScale: cut.map((value) => value * UNIT) };
  }

  private tried(format: SketchFormat, rows: Rows, ids: Uint32Array): Trial {
    const { samples, parts, job } = this;
    const bytes = samples.nFf * (predictorRowBytes(format, samples.d) + 4);
    const margins = countMargins(
      this.scorer(rows, ids),
      ids,
      this.cuts(ids),
      samples,
      parts.choose,
      job.downNorms,
    );
    const measured = measureAtRecall(margins, job.weightedRecall, -1, true);
    // Whatever is a candidate is computed: nothing is left out between the gate and the record. A third of the rows
    // comes at the speed of all of them, unlike the tenth that READ_COST is for.
    const candidates = (1 - measured.predictedSparsity) * samples.nFf;
    const gates = rows.gate ? samples.nFf : candidates;
    return {
      bytes,
      margins,
      measured,
      cost: bytes + gates * job.gateRowBytes + candidates * job.recordBytes,
    };
  }

  private scorer({ sketch, gate }: Rows, ids: Uint32Array): Scorer {
    const { biases } = this.job;
    const of = (values: Float32Array | null): Float32Array | null =>
      values && Float32Array.from(ids, (i) => values[i]);
    const own = { ...biases, gate: of(biases.gate), up: of(biases.up) };
    const up = gate && { rows: sketch, reach: gate.reach };
    const network = { fc1: null, b1: null, fc2: gate?.rows ?? sketch, up };
    return new Scorer(network, this.samples.d, own);
  }

  /**
   * Neurons that never counted are left out for good where that is sure; where the gate is sketched, those that
   * nearly always do need no score.
   */
  private finish({ sketch, gate }: Rows, trial: Trial): LayerPredictor {
    const { job, counts } = this;
    const common = { layer: job.layer, rank: sketch.cols, fc1: null, b1: null };
    const all = Uint32Array.from(counts.keys());
    const unseen = (i: number): boolean => counts[i] === 0 && (job.dropUnseen ?? true);
    if (gate) {
      const { cut, cutScale } = this.cuts(all);
      for (const i of all.filter(unseen)) [cut[i], cutScale[i]] = [LARGEST_CUT, 0];
      return { ...common, kind: 'up', fc2: sketch, reach: gate.reach, scoredIds: all, cut, cutScale, always: new Uint32Array(0) }; // prettier-ignore
    }
    const rates = candidateRates(trial.margins, trial.measured.bin);
    const rowCost = sketch.stride / (job.gateRowBytes + job.recordBytes);
    const seen = all.filter((i) => !unseen(i));
    const always = seen.filter((i) => 1 - rates[i] <= rowCost);
    const ids = seen.filter((i) => 1 - rates[i] > rowCost);
    return { ...common, kind: 'contribution', fc2: selectRows(sketch, ids), scoredIds: ids, ...this.cuts(ids), always }; // prettier-ignore
  }

  private attempt(format: SketchFormat, trial: Trial, best: Trial, from: Attempt['from']): Attempt {
    const { nFf, d } = this.samples;
    const { recall, weightedRecall, predictedSparsity } = trial.measured;
    return {
      kind: this.job.upRows ? 'up' : 'contribution',
      format,
      rank: d,
      bits: (8 * trial.bytes) / (nFf * d),
      recall,
      weightedRecall,
      predictedSparsity,
      cost: trial.cost,
      from,
      over: trial.cost / best.cost - 1,
      overError: 0,
    };
  }

  private async timed<T>(stage: string, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    const result = await work();
    this.seconds[stage] = (this.seconds[stage] ?? 0) + (performance.now() - begin) / 1000;
    return result;
  }
}

/** These rows of a matrix [nFf, d]. */
function rowsOf(source: Float32Array, ids: Uint32Array, { d, nFf }: Samples): Float32Array {
  if (ids.length === nFf) return source;
  const out = new Float32Array(ids.length * d);
  ids.forEach((id, row) => out.set(source.subarray(id * d, (id + 1) * d), row * d));
  return out;
}
