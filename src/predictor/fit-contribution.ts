/**
 * One layer's predictor of contributions, for activations without zeros. A neuron's part of the FFN's output is
 * x1 ||W_down[:, i]||, x1 = sigma(W_gate x) (W_up x): large only where both factors are, so that a sketch of the gate
 * alone says too little. Both matrices are sketched, and
 *
 *     score = |sigma(sketch of gate . x) (sketch of up . x)|       candidate where score >= (1 + threshold / 8) cut
 *
 * with cut = (what the layer leaves out) / ||W_down[:, i]||. Without a gate the score is |sigma(sketch of fc1 . x)|.
 */
import type { FittedLayer } from './fit-layer.js';
import { createMatrices, type Matrices } from './matrix.js';
import { inputMoments } from './moments.js';
import { predictorRowBytes, selectRows } from './rows.js';
import { activeCounts, type SampleParts, type Samples } from './samples.js';
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
import type { RowMatrix } from './types.js';

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
  provider: string;
  threads?: number;
  check?: () => void;
}

/** Units of a cut in which thresholds are counted: fine enough below it for the counts of scores.ts. */
const UNIT = 1 / 8;

/**
 * Formats of gate and up that are tried, from the smallest up. Rows of q3 take twice the time of q2's (256 columns, AVX-512:
 * 18 ns against 9; a q8 row takes 10): two of them cost what they save.
 */
const PAIRS: readonly (readonly [SketchFormat, SketchFormat])[] = [
  ['q1', 'q1'],
  ['q2', 'q1'],
  ['q2', 'q2'],
];
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

type Pair = readonly [SketchFormat, SketchFormat | null];

class ContributionFit {
  private readonly counts: Uint32Array;
  private readonly seconds: Record<string, number> = {};
  private readonly factors = new Map<string, readonly number[]>();
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
    const { samples, parts, matrices } = this;
    this.basis = await this.timed('moments', async () =>
      roundingBasis(await inputMoments(samples, parts.train, matrices), matrices),
    );
    const ids = sampleNeurons(this.counts);
    const tried = await this.timed('screen', () => this.screen(ids));
    const best = tried.reduce((a, b) => (b.trial.cost < a.trial.cost ? b : a));
    const all = Uint32Array.from({ length: samples.nFf }, (_, i) => i);
    const rows = await this.timed('round', () => this.sketches(best.pair, all));
    const trial = await this.timed('score', async () => this.tried(rows, all, this.bytes(best.pair)));
    const attempts = tried.map(({ pair, trial: of }) => this.attempt(pair, of, best.trial, 'sample'));
    attempts.push(this.attempt(best.pair, trial, trial, 'all'));
    return { ...this.finish(rows, trial), attempts, seconds: this.seconds };
  }

  private async screen(ids: Uint32Array): Promise<{ pair: Pair; trial: Trial }[]> {
    const known = new Map<string, RowMatrix>();
    const made = async (which: 'gate' | 'up', format: SketchFormat): Promise<RowMatrix> => {
      const key = which + format;
      const matrix = known.get(key) ?? (await this.sketch(which, format, ids));
      known.set(key, matrix);
      return matrix;
    };
    const tried: { pair: Pair; trial: Trial }[] = [];
    for (const pair of this.pairs()) {
      const rows = { fc2: await made('gate', pair[0]), up: pair[1] && (await made('up', pair[1])) };
      tried.push({ pair, trial: this.tried(rows, ids, this.bytes(pair)) });
    }
    return tried;
  }

  private pairs(): Pair[] {
    if (this.job.upRows) return [...PAIRS];
    return (['q1', 'q2', 'q3'] as const).map((format) => [format, null]);
  }

  private async sketches(pair: Pair, ids: Uint32Array): Promise<{ fc2: RowMatrix; up: RowMatrix | null }> {
    return {
      fc2: await this.sketch('gate', pair[0], ids),
      up: pair[1] && (await this.sketch('up', pair[1], ids)),
    };
  }

  /** Rows of one matrix; wide rows share the factor that served the first sample best. */
  private async sketch(which: 'gate' | 'up', format: SketchFormat, ids: Uint32Array): Promise<RowMatrix> {
    const { basis, matrices, job, samples } = this;
    const source = which === 'gate' ? job.gateRows : job.upRows!;
    const weights = rowsOf(source, ids, samples);
    let factors = this.factors.get(which + format) ?? FACTORS[format];
    if (samples.d > POLISHED_WIDTH && factors.length > 1) {
      const few = rowsOf(source, ids.filter((_, i) => i % FACTOR_STEP === 0), samples); // prettier-ignore
      factors = [await bestFactor(format, few, basis, matrices)];
      this.factors.set(which + format, factors);
    }
    return (await sketchRows(format, weights, basis, matrices, factors)).matrix;
  }

  private cuts(ids: Uint32Array): Cuts {
    const { least, downNorms } = this.job;
    // A column of zeros contributes nothing, whatever its x1 is.
    const cut = Float32Array.from(ids, (i) => Math.min(LARGEST_CUT, least / Math.max(downNorms[i], 1e-30)));
    return { cut, cutScale: cut.map((value) => value * UNIT) };
  }

  private tried(rows: { fc2: RowMatrix; up: RowMatrix | null }, ids: Uint32Array, bytes: number): Trial {
    const { samples, parts, job } = this;
    const scorer = this.scorer(rows, ids);
    const margins = countMargins(scorer, ids, this.cuts(ids), samples, parts.choose, job.downNorms);
    const measured = measureAtRecall(margins, job.weightedRecall, -1, true);
    // Whatever is a candidate is computed: nothing is left out between the gate and the record. A third of the rows
    // comes at the speed of all of them, unlike the tenth that READ_COST is for.
    const candidates = (1 - measured.predictedSparsity) * samples.nFf;
    const cost = bytes + candidates * (job.gateRowBytes + job.recordBytes);
    return { bytes, margins, measured, cost };
  }

  private scorer({ fc2, up }: { fc2: RowMatrix; up: RowMatrix | null }, ids: Uint32Array): Scorer {
    const { biases } = this.job;
    const of = (values: Float32Array | null): Float32Array | null =>
      values && Float32Array.from(ids, (i) => values[i]);
    const own = { ...biases, gate: of(biases.gate), up: of(biases.up) };
    return new Scorer({ fc1: null, b1: null, fc2, up, kind: 'contribution' }, this.samples.d, own);
  }

  /** Neurons that never counted are left out for good, those that nearly always do need no score. */
  private finish(
    { fc2, up }: { fc2: RowMatrix; up: RowMatrix | null },
    trial: Trial,
  ): Pick<FittedLayer, 'predictor'> {
    const { job } = this;
    const rates = candidateRates(trial.margins, trial.measured.bin);
    const rowCost = (fc2.stride + (up?.stride ?? 0)) / (job.gateRowBytes + job.recordBytes);
    const seen = Array.from(this.counts.keys()).filter((i) => this.counts[i] > 0);
    const always = Uint32Array.from(seen.filter((i) => 1 - rates[i] <= rowCost));
    const ids = Uint32Array.from(seen.filter((i) => 1 - rates[i] > rowCost));
    return {
      predictor: {
        layer: job.layer,
        kind: 'contribution',
        rank: fc2.cols,
        fc1: null,
        b1: null,
        fc2: selectRows(fc2, ids),
        up: up && selectRows(up, ids),
        scoredIds: ids,
        ...this.cuts(ids),
        always,
      },
    };
  }

  /** Rows and cuts. */
  private bytes([gate, up]: Pair): number {
    const { nFf, d } = this.samples;
    return nFf * (predictorRowBytes(gate, d) + (up ? predictorRowBytes(up, d) : 0) + 4);
  }

  private attempt([format, up]: Pair, trial: Trial, best: Trial, from: Attempt['from']): Attempt {
    const { nFf, d } = this.samples;
    const { recall, weightedRecall, predictedSparsity } = trial.measured;
    return {
      kind: 'contribution',
      format,
      ...(up ? { upFormat: up } : {}),
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

/** Cuts, and cuts moved by a threshold, must fit f32. */
const LARGEST_CUT = 1e30;

/** These rows of a matrix [nFf, d]. */
function rowsOf(source: Float32Array, ids: Uint32Array, { d, nFf }: Samples): Float32Array {
  if (ids.length === nFf) return source;
  const out = new Float32Array(ids.length * d);
  ids.forEach((id, row) => out.set(source.subarray(id * d, (id + 1) * d), row * d));
  return out;
}
