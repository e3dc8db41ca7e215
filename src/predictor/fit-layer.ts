/**
 * One layer's predictor from its recorded samples: candidates of several kinds and sizes are screened on some
 * neurons (screen.ts), what may win is built and measured on samples that were not fitted to, and the one
 * with the cheapest FFN is kept. A pure function of its arguments: the same samples and seed give the same
 * bytes, whatever number of threads the products use.
 */
import {
  factorsOf,
  gateEnergy,
  hiddenBasis,
  leadingDirections,
  neuronImportance,
  type Directions,
  type Energy,
  type HiddenBasis,
} from './lowrank.js';
import { createMatrices, type Matrices } from './matrix.js';
import { leaningMoments, type Moments } from './moments.js';
import { predictorRowBytes, selectRows } from './rows.js';
import { activeCounts, type SampleParts, type Samples } from './samples.js';
import { Scorer, type Network } from './scorer.js';
import {
  candidateRates,
  countMargins,
  fitCuts,
  gateVariance,
  sampleGates,
  type Cuts,
  type GateSample,
} from './scores.js';
import {
  CONFIDENCE,
  costOf,
  differenceError,
  READ_COST,
  sampleNeurons,
  trialOf,
  type Attempt,
  type CostModel,
  type Trial,
} from './screen.js';
import {
  bestFactor,
  FACTORS,
  POLISHED_WIDTH,
  roundingBasis,
  sketchRows,
  type RoundingBasis,
  type SketchFormat,
} from './sketch.js';
import { quantiseNetwork, randomFactors, startFrom, train, type TrainState } from './train.js';
import type { GatePredictorKind, LayerPredictor } from './types.js';

export type { Attempt } from './screen.js';

export interface FitJob {
  layer: number;
  /** auto: sketches and low-rank starts are compared, and the best low-rank one trained if it is close. */
  kind: GatePredictorKind | 'auto';
  /** Recall to compare at. */
  recall: number;
  /** Predictor bits per gate weight, scales included: larger predictors are not tried. */
  maxBits: number;
  /** Hidden units to try. @default RANKS, as shares of d */
  ranks?: readonly number[];
  /** Sketch formats to try. @default all three */
  sketches?: readonly SketchFormat[];
  /** Hidden layer of trained predictors. @default 'relu' */
  hidden?: 'relu' | 'linear';
  /** Start of the training; `random` exists for comparison. @default 'whitened' */
  start?: 'whitened' | 'random';
  epochs: number;
  seed: number;
  /** W_gate as the engine computes with it, f32 [nFf, d]. */
  gateRows: Float32Array;
  /** ||W_down[:, i]||, [nFf] */
  downNorms: Float32Array;
  /** A neuron is active when W_gate x is above this (0 for ReLU), one or by neuron: less the gate's bias. */
  gateThreshold: Float32Array | number;
  gateRowBytes: number;
  recordBytes: number;
  /** Moments of the inputs of all experts, to lean on. @default none */
  prior?: Moments;
  /** Neurons that never fired in training are left out for good. @default true */
  dropUnseen?: boolean;
  /** onnxruntime provider of the products. */
  provider: string;
  /** Threads of the products. @default 1 */
  threads?: number;
  /** Called between products; throws to end the work. */
  check?: () => void;
}

export interface FittedLayer {
  predictor: LayerPredictor;
  attempts: Attempt[];
  /** By stage: moments, screen, round, lowrank, train, score. */
  seconds: Record<string, number>;
}

/** Hidden sizes tried, as shares of d. */
const RANK_SHARES = [1 / 8, 1 / 4, 3 / 8, 1 / 2] as const;
const RANK_MULTIPLE = 32;
const SKETCHES: readonly SketchFormat[] = ['q1', 'q2', 'q3'];
/** Epochs without a better result after which training ends. */
const PATIENCE = 2;
/** Training sharpens a predictor by a few per cent of its cost: starts this much dearer than the best are worth it. */
const TRAINABLE = 1.05;
/** Of the sample, every so many rows choose the factor of wide sketches. */
const FACTOR_STEP = 4;

/** What may be built, and how it did on the sample. */
interface Option {
  kind: 'sketch' | 'lowrank';
  format: SketchFormat | 'q4';
  rank: number;
  bytes: number;
  trial: Trial;
  /** Builds all rows. */
  build: () => Promise<{ network: Network; state: Omit<TrainState, 'cut' | 'cutScale'> | null }>;
}

/** A predictor on the sample: what its scores leave open, and what it costs. */
interface Known {
  unexplained: number;
  trial: Trial;
}

interface Candidate {
  kind: GatePredictorKind;
  network: Network;
  cuts: Cuts;
  trial: Trial;
  attempt: Attempt;
  /** The full-precision state a training can start from. */
  state: TrainState | null;
}

export async function fitLayer(job: FitJob, samples: Samples, parts: SampleParts): Promise<FittedLayer> {
  const { provider, threads, check } = job;
  const matrices = await createMatrices({ provider, threads, check });
  try {
    return await new LayerFit(job, samples, parts, matrices).run();
  } finally {
    await matrices.release();
  }
}

class LayerFit {
  private readonly counts: Uint32Array;
  private readonly model: CostModel;
  private readonly everyNeuron: Uint32Array;
  private readonly attempts: Attempt[] = [];
  private readonly seconds: Record<string, number> = {};
  private basis!: RoundingBasis;
  private gates!: GateSample;

  constructor(
    private readonly job: FitJob,
    private readonly samples: Samples,
    private readonly parts: SampleParts,
    private readonly matrices: Matrices,
  ) {
    const { nFf } = samples;
    const { gateRowBytes, recordBytes, recall } = job;
    this.counts = activeCounts(samples, parts.train);
    this.model = { nFf, gateRowBytes, recordBytes, recall };
    this.everyNeuron = Uint32Array.from({ length: nFf }, (_, i) => i);
  }

  async run(): Promise<FittedLayer> {
    const { kind, epochs } = this.job;
    const { matrices, samples, parts } = this;
    this.basis = await this.timed('moments', async () =>
      roundingBasis(await leaningMoments(samples, parts.train, this.job.prior ?? null, matrices), matrices),
    );
    this.gates = await this.timed('score', () =>
      sampleGates(samples, parts.train, this.job.gateRows, matrices),
    );
    const options = await this.timed('screen', () => this.screen());
    const best = cheapest(options.map((option) => option.trial));
    const lowRank = options.filter((option) => option.kind === 'lowrank');
    const trainable = kind === 'mlp' || (kind === 'auto' && epochs > 0);
    // Training starts from the best low-rank predictor.
    const start =
      lowRank.length > 0 && trainable
        ? lowRank.reduce((a, b) => (b.trial.cost < a.trial.cost ? b : a))
        : null;
    const built: Candidate[] = [];
    for (const option of options) {
      const { trial } = option;
      const error = trial === best ? 0 : CONFIDENCE * differenceError(this.model, trial, best);
      const mayWin = trial.cost - best.cost <= error;
      const mayBeTrained = option === start && trial.cost <= TRAINABLE * best.cost;
      if (mayWin || mayBeTrained || (kind === 'mlp' && option === start)) {
        built.push(await this.candidate(option));
      } else {
        this.attempts.push(attemptOf(option, trial, nFfBits(option.bytes, samples), best, error, 'sample'));
      }
    }
    if (start) {
      const from = built.find((c) => c.state !== null && c.attempt.rank === start.rank)!;
      const close = from && from.attempt.cost <= TRAINABLE * cheapest(built.map((c) => c.attempt)).cost;
      if (kind === 'mlp' || close) {
        const trained = await this.timed('train', () => this.trained(from));
        if (kind === 'mlp') return this.finish(trained);
        built.push(trained);
      }
    }
    return this.finish(built.reduce((a, b) => (b.attempt.cost < a.attempt.cost ? b : a)));
  }

  // ---- screening -----------------------------------------------------------------------------------------

  private async screen(): Promise<Option[]> {
    const { kind } = this.job;
    const ids = sampleNeurons(this.counts);
    const weights = this.rowsOf(ids);
    const options: Option[] = [];
    const known: Known[] = [];
    if (kind === 'auto' || kind === 'sketch') {
      for (const format of this.affordable(this.job.sketches ?? SKETCHES, (f) => this.sketchBytes(f))) {
        const { option, loss } = await this.sketchOption(format, ids, weights);
        options.push(option);
        known.push({ unexplained: await this.unexplained(ids, weights, loss), trial: option.trial });
      }
    }
    if (kind !== 'sketch') options.push(...(await this.lowRankOptions(ids, known)));
    return options;
  }

  private async sketchOption(
    format: SketchFormat,
    ids: Uint32Array,
    weights: Float32Array,
  ): Promise<{ option: Option; loss: Float64Array }> {
    const { d } = this.samples;
    const { basis, matrices, job } = this;
    let factors = FACTORS[format];
    if (d > POLISHED_WIDTH) {
      const few = this.rowsOf(ids.filter((_, i) => i % FACTOR_STEP === 0));
      factors = [await bestFactor(format, few, basis, matrices)];
    }
    const sketch = await sketchRows(format, weights, basis, matrices, factors);
    const trial = this.tried({ fc1: null, b1: null, fc2: sketch.matrix }, ids, this.sketchBytes(format));
    const build: Option['build'] = async () => {
      const whole = ids.length === this.samples.nFf;
      const fc2 = whole
        ? sketch.matrix
        : (await sketchRows(format, job.gateRows, basis, matrices, factors)).matrix;
      return { network: { fc1: null, b1: null, fc2 }, state: null };
    };
    const option: Option = { kind: 'sketch', format, rank: d, bytes: this.sketchBytes(format), trial, build };
    return { option, loss: sketch.loss };
  }

  /**
   * Low-rank predictors, from the smallest rank up. With sketches to compare with, ranks that cannot come
   * close are left out before any factors are made: directions found so far bound what larger ranks can
   * explain, and what an unexplained share costs is known from the predictors measured so far.
   */
  private async lowRankOptions(ids: Uint32Array, sketches: readonly Known[]): Promise<Option[]> {
    const { matrices, job, basis, counts, parts } = this;
    const tokens = parts.train.end - parts.train.begin;
    const frequency = Float64Array.from(counts, (count) => count / tokens);
    const importance = neuronImportance(gateVariance(this.gates), frequency);
    const energy = await gateEnergy(job.gateRows, importance, basis, matrices);
    const ranks = this.ranks();
    const options: Option[] = [];
    let known = sketches;
    let directions: Directions | undefined;
    // Training makes good a little of what the start lacks; the best start is enough.
    let worth = job.epochs > 0 ? TRAINABLE : 1;
    for (const rank of ranks) {
      if (directions === undefined || known.length === 0) {
        directions = await leadingDirections(energy, rank, matrices);
      }
      if (known.length > 0) {
        const estimate = this.estimated(rank, directions, energy, known);
        const best = cheapest([...sketches.map(({ trial }) => trial), ...options.map(({ trial }) => trial)]);
        if (estimate.cost > worth * best.cost) {
          const option = { kind: 'lowrank' as const, format: 'q4' as const, rank };
          const bits = nFfBits(this.lowRankBytes(rank), this.samples);
          this.attempts.push(attemptOf(option, estimate, bits, best, 0, 'estimate'));
          continue;
        }
      }
      if (directions.rank < rank) directions = await leadingDirections(energy, rank, matrices, directions);
      const option = await this.lowRankOption(await hiddenBasis(directions, basis, matrices), ids);
      options.push(option);
      if (sketches.length > 0) {
        // From here on low-rank predictors have measured points of their own.
        const unexplained = 1 - sumOf(directions.values) / energy.trace;
        known = [...(known === sketches ? [] : known), { unexplained, trial: option.trial }];
        worth = 1;
      }
    }
    return options;
  }

  /** Cost of a rank, in its favour: each direction not found yet has at most the energy of the last one found. */
  private estimated(
    rank: number,
    { values }: Directions,
    energy: Energy,
    known: readonly Known[],
  ): Pick<Trial, 'cost' | 'measured'> {
    const last = values.subarray(-Math.min(8, values.length)).reduce((a, b) => Math.max(a, b), 0);
    const captured = sumOf(values.subarray(0, rank)) + Math.max(0, rank - values.length) * last;
    const unexplained = Math.max(0, 1 - captured / energy.trace);
    const measured = { ...known[0].trial.measured, predictedSparsity: sparsityAt(known, unexplained) };
    return { cost: costOf(this.model, this.lowRankBytes(rank), measured), measured };
  }

  private async lowRankOption(hidden: HiddenBasis, ids: Uint32Array): Promise<Option> {
    const { samples, matrices, job, parts } = this;
    const { d } = samples;
    const { rank } = hidden;
    const bytes = this.lowRankBytes(rank);
    const relu = job.kind === 'mlp' && job.hidden !== 'linear';
    const make = async (weights: Float32Array): Promise<Awaited<ReturnType<Option['build']>>> => {
      const whitened = await factorsOf(weights, hidden, matrices);
      const factors = job.start === 'random' ? randomFactors(whitened, job.seed) : whitened;
      const state = await startFrom(factors, samples, parts.train, relu, matrices);
      return { network: quantiseNetwork(state, d), state };
    };
    const trial = this.tried((await make(this.rowsOf(ids))).network, ids, bytes);
    return { kind: 'lowrank', format: 'q4', rank, bytes, trial, build: () => make(job.gateRows) };
  }

  /** Share of the gates' variance, weighted by importance, that rounding errors of the sample leave open. */
  private async unexplained(ids: Uint32Array, weights: Float32Array, loss: Float64Array): Promise<number> {
    const { d, covariance } = this.basis.moments;
    const spread = await this.matrices.times(weights, covariance, d);
    const tokens = this.parts.train.end - this.parts.train.begin;
    let [open, all] = [0, 0];
    ids.forEach((id, row) => {
      let variance = 0;
      for (let at = row * d; at < (row + 1) * d; at++) variance += weights[at] * spread[at];
      const f = this.counts[id] / tokens;
      const weight = Math.sqrt(Math.max(f * (1 - f), 1e-5)) / Math.max(variance, 1e-12);
      open += weight * loss[row];
      all += weight * variance;
    });
    return open / all;
  }

  private tried(network: Network, ids: Uint32Array, bytes: number): Trial {
    return this.measured(network, ids, bytes).trial;
  }

  /** @param known cuts of a trained network */
  private measured(
    network: Network,
    ids: Uint32Array,
    bytes: number,
    known?: Cuts,
  ): { cuts: Cuts; trial: Trial } {
    const { samples, parts, job } = this;
    const scorer = new Scorer(network, samples.d);
    const cuts = known ?? fitCuts(scorer, ids, this.gates, job.gateThreshold);
    const margins = countMargins(scorer, ids, cuts, samples, parts.choose, job.downNorms);
    return { cuts, trial: trialOf(this.model, bytes, margins) };
  }

  // ---- building ------------------------------------------------------------------------------------------

  private async candidate(option: Option): Promise<Candidate> {
    const { network, state } = await this.timed(option.kind === 'sketch' ? 'round' : 'lowrank', option.build);
    const { cuts, trial } = await this.timed('score', async () =>
      this.measured(network, this.everyNeuron, option.bytes),
    );
    const attempt = this.attempted(option, option.bytes, trial);
    return { kind: option.kind, network, cuts, trial, attempt, state: state && { ...state, ...cuts } };
  }

  private attempted(option: Pick<Attempt, 'kind' | 'format' | 'rank'>, bytes: number, trial: Trial): Attempt {
    const attempt = attemptOf(option, trial, nFfBits(bytes, this.samples), trial, 0, 'all');
    this.attempts.push(attempt);
    return attempt;
  }

  private async trained(start: Candidate): Promise<Candidate> {
    const { samples, job, parts, matrices } = this;
    const { epochs, seed, provider, check } = job;
    let best: Candidate = { ...start, kind: 'mlp', attempt: { ...start.attempt, kind: 'mlp' } };
    await train(
      start.state!,
      samples,
      parts.train,
      job.downNorms,
      { epochs, patience: PATIENCE, seed, provider, check },
      matrices,
      async (state) => {
        const { cut, cutScale } = state;
        const cuts = { cut, cutScale };
        const network = quantiseNetwork(state, samples.d);
        const bytes = this.lowRankBytes(start.attempt.rank) + 4 * (network.b1?.length ?? 0);
        const { trial } = this.measured(network, this.everyNeuron, bytes, cuts);
        const attempt = this.attempted({ ...start.attempt, kind: 'mlp' }, bytes, trial);
        if (attempt.cost >= best.attempt.cost) return false;
        best = { kind: 'mlp', network, cuts, trial, attempt, state: null };
        return true;
      },
    );
    return best;
  }

  /** Neurons that need no score are taken out of fc2: those that never fired, and those that nearly always do. */
  private finish({ kind, network, cuts, trial }: Candidate): FittedLayer {
    const { job } = this;
    const scored: number[] = [];
    const always: number[] = [];
    const rowCost = network.fc2.stride / (READ_COST * job.gateRowBytes);
    const rates = candidateRates(trial.margins, trial.measured.bin);
    this.counts.forEach((count, i) => {
      if (count === 0 && (job.dropUnseen ?? true)) return;
      // Leaving a gate row out must happen often enough to pay for the score.
      if (1 - rates[i] <= rowCost) always.push(i);
      else scored.push(i);
    });
    const ids = Uint32Array.from(scored);
    const predictor: LayerPredictor = {
      layer: job.layer,
      kind,
      rank: network.fc2.cols,
      fc1: network.fc1,
      b1: network.b1,
      fc2: selectRows(network.fc2, ids),
      scoredIds: ids,
      cut: Float32Array.from(ids, (i) => cuts.cut[i]),
      cutScale: Float32Array.from(ids, (i) => cuts.cutScale[i]),
      always: Uint32Array.from(always),
    };
    return { predictor, attempts: this.attempts, seconds: this.seconds };
  }

  // ---- sizes ---------------------------------------------------------------------------------------------

  private ranks(): number[] {
    const { d } = this.samples;
    if (this.job.ranks) return [...this.job.ranks];
    const ranks = RANK_SHARES.map((share) =>
      Math.max(RANK_MULTIPLE, Math.round((share * d) / RANK_MULTIPLE) * RANK_MULTIPLE),
    );
    const within = [...new Set(ranks)].filter((rank) => rank < d);
    return within.length > 0 ? this.affordable(within, (rank) => this.lowRankBytes(rank)) : [RANK_MULTIPLE];
  }

  /** The smallest is kept in any case, so that there is one. */
  private affordable<T>(sizes: readonly T[], bytes: (size: T) => number): T[] {
    const within = sizes.filter((size) => nFfBits(bytes(size), this.samples) <= this.job.maxBits);
    return within.length > 0 ? within : sizes.slice(0, 1);
  }

  /** Rows and cuts. */
  private sketchBytes(format: SketchFormat): number {
    return this.samples.nFf * (predictorRowBytes(format, this.samples.d) + 4);
  }

  private lowRankBytes(rank: number): number {
    const { d, nFf } = this.samples;
    return rank * predictorRowBytes('q4', d) + nFf * (predictorRowBytes('q4', rank) + 4);
  }

  /** These rows of W_gate as a matrix of their own. */
  private rowsOf(ids: Uint32Array): Float32Array {
    const { d, nFf } = this.samples;
    if (ids.length === nFf) return this.job.gateRows;
    const out = new Float32Array(ids.length * d);
    ids.forEach((id, row) => out.set(this.job.gateRows.subarray(id * d, (id + 1) * d), row * d));
    return out;
  }

  private async timed<T>(stage: string, work: () => Promise<T>): Promise<T> {
    const begin = performance.now();
    const result = await work();
    this.seconds[stage] = (this.seconds[stage] ?? 0) + (performance.now() - begin) / 1000;
    return result;
  }
}

const cheapest = <T extends { cost: number }>(made: readonly T[]): T =>
  made.reduce((best, c) => (c.cost < best.cost ? c : best));

const sumOf = (values: Float32Array): number => values.reduce((a, b) => a + b, 0);

const nFfBits = (bytes: number, { nFf, d }: Samples): number => (8 * bytes) / (nFf * d);

function attemptOf(
  { kind, format, rank }: Pick<Attempt, 'kind' | 'format' | 'rank'>,
  trial: Pick<Trial, 'cost' | 'measured'>,
  bits: number,
  best: Trial,
  error: number,
  from: Attempt['from'],
): Attempt {
  const { recall, weightedRecall, predictedSparsity } = trial.measured;
  const over = trial.cost / best.cost - 1;
  const overError = error / best.cost;
  return {
    kind,
    format,
    rank,
    bits,
    recall,
    weightedRecall,
    predictedSparsity,
    cost: trial.cost,
    from,
    over,
    overError,
  };
}

/**
 * Predicted sparsity where a share of the variance is not explained, between the sketches' measured points:
 * linear in the square root of the share, which is the score's error. Below the best known error up to the
 * sparsity there is; above the worst no less than what it gave.
 */
function sparsityAt(known: readonly Known[], unexplained: number): number {
  const points = known
    .map(({ unexplained: u, trial }) => ({ error: Math.sqrt(u), sparsity: trial.measured.predictedSparsity }))
    .sort((a, b) => a.error - b.error);
  points.unshift({ error: 0, sparsity: known[0].trial.measured.sparsity });
  const error = Math.sqrt(unexplained);
  const above = points.findIndex((point) => point.error >= error);
  if (above === 0) return points[0].sparsity;
  if (above < 0) return points[points.length - 1].sparsity;
  const [low, high] = [points[above - 1], points[above]];
  const share = (error - low.error) / Math.max(high.error - low.error, 1e-12);
  return low.sparsity + share * (high.sparsity - low.sparsity);
}
