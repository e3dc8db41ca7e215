/**
 * One layer's predictor from its recorded samples: candidates of several kinds and sizes are made, each is
 * measured on the held-out samples at the wanted recall, and the one with the cheapest FFN is kept. A pure
 * function of its arguments: the same samples and seed give the same bytes.
 */
import { neuronImportance, whitenedFactors } from './lowrank.js';
import { createMatrices, type Matrices } from './matrix.js';
import { inputMoments, type Moments } from './moments.js';
import { predictorRowBytes, selectRows } from './rows.js';
import { activeCounts, type SampleRange, type Samples } from './samples.js';
import { fitCuts, measureAtRecall, type Cuts, type Measured, type Network } from './scores.js';
import { sketchRows, type SketchFormat } from './sketch.js';
import { quantiseState, randomFactors, startFrom, train, type TrainState } from './train.js';
import type { LayerPredictor, PredictorKind } from './types.js';

export interface FitJob {
  layer: number;
  /** auto: sketches and low-rank starts are compared, and the best low-rank one trained if it leads. */
  kind: PredictorKind | 'auto';
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
  /** onnxruntime provider. */
  provider: string;
}

/** One predictor that was made, and what it gave. */
export interface Attempt {
  kind: PredictorKind;
  rank: number;
  /** Predictor bits per gate weight. */
  bits: number;
  recall: number;
  weightedRecall: number;
  predictedSparsity: number;
  /** Cost of a token's FFN in sequential bytes (see READ_COST). */
  cost: number;
}

export interface FittedLayer {
  predictor: LayerPredictor;
  attempts: Attempt[];
}

/**
 * A byte of a scattered row costs as much as this many of the predictor's sequential ones: at 10 % density,
 * rows of 2.3 KB come at a quarter (WASM) to half (native) of the sequential speed; shorter rows are slower.
 */
const READ_COST = 3;
/** Hidden sizes tried, as shares of d. */
const RANK_SHARES = [1 / 8, 1 / 4, 3 / 8, 1 / 2] as const;
const RANK_MULTIPLE = 32;
const SKETCHES: readonly SketchFormat[] = ['q1', 'q2', 'q3'];
/** Epochs without a better result after which training ends. */
const PATIENCE = 2;

interface Candidate {
  kind: PredictorKind;
  network: Network;
  cuts: Cuts;
  measured: Measured;
  attempt: Attempt;
  /** The full-precision state a training can start from. */
  state: TrainState | null;
}

/** @param trainSamples rows before this are trained on, the others are held out */
export async function fitLayer(
  job: FitJob,
  samples: Samples,
  trainSamples: number,
  signal?: AbortSignal,
): Promise<FittedLayer> {
  const matrices = await createMatrices();
  try {
    return await new LayerFit(job, samples, trainSamples, matrices, signal).run();
  } finally {
    await matrices.release();
  }
}

class LayerFit {
  private readonly training: SampleRange;
  private readonly heldOut: SampleRange;
  private readonly counts: Uint32Array;
  private readonly attempts: Attempt[] = [];

  constructor(
    private readonly job: FitJob,
    private readonly samples: Samples,
    trainSamples: number,
    private readonly matrices: Matrices,
    private readonly signal?: AbortSignal,
  ) {
    this.training = { begin: 0, end: trainSamples };
    this.heldOut = { begin: trainSamples, end: samples.samples };
    this.counts = activeCounts(samples, this.training);
  }

  async run(): Promise<FittedLayer> {
    const { kind } = this.job;
    const moments = await inputMoments(this.samples, this.training, this.matrices);
    const made: Candidate[] = [];
    if (kind === 'auto' || kind === 'sketch') made.push(...(await this.sketches(moments)));
    if (kind !== 'sketch') {
      const factored = await this.factored(moments);
      made.push(...factored);
      const start = cheapest(factored);
      // Training sharpens a predictor by a few per cent of its cost: it cannot turn a clear order around.
      const close = start.attempt.cost <= TRAINABLE * cheapest(made).attempt.cost;
      if (kind === 'mlp' || (kind === 'auto' && close && this.job.epochs > 0)) {
        const trained = await this.trained(start);
        if (kind === 'mlp') return this.finish(trained);
        made.push(trained);
      }
    }
    return this.finish(cheapest(made));
  }

  private async sketches(moments: Moments): Promise<Candidate[]> {
    const { nFf } = this.samples;
    const made: Candidate[] = [];
    for (const format of this.job.sketches ?? SKETCHES) {
      this.signal?.throwIfAborted();
      const fc2 = sketchRows(format, this.job.gateRows, nFf, moments);
      made.push(await this.measured('sketch', { fc1: null, b1: null, fc2 }));
    }
    return this.affordable(made);
  }

  /** Low-rank predictors without any training. */
  private async factored(moments: Moments): Promise<Candidate[]> {
    const { samples, matrices, job } = this;
    const { d, nFf } = samples;
    const tokens = this.training.end;
    const frequency = Float64Array.from(this.counts, (count) => count / tokens);
    const importance = await neuronImportance(job.gateRows, moments, frequency, matrices);
    const made: Candidate[] = [];
    const ranks = this.ranks();
    for (const whitened of await whitenedFactors(job.gateRows, importance, moments, ranks, matrices)) {
      this.signal?.throwIfAborted();
      const factors = job.start === 'random' ? randomFactors(whitened, job.seed) : whitened;
      const relu = job.kind === 'mlp' && job.hidden !== 'linear';
      const start = startFrom(factors, samples, this.training, relu);
      const unset = { cut: new Float32Array(nFf), cutScale: new Float32Array(nFf).fill(1) };
      const { network } = quantiseState({ ...start, ...unset }, nFf, d);
      const candidate = await this.measured('lowrank', network);
      made.push({ ...candidate, state: { ...start, ...candidate.cuts } });
    }
    return this.affordable(made);
  }

  private ranks(): number[] {
    const { d, nFf } = this.samples;
    if (this.job.ranks) return [...this.job.ranks];
    const ranks = RANK_SHARES.map((share) =>
      Math.max(RANK_MULTIPLE, Math.round((share * d) / RANK_MULTIPLE) * RANK_MULTIPLE),
    );
    const bits = (rank: number): number =>
      (8 * (rank * predictorRowBytes('q4', d) + nFf * (predictorRowBytes('q4', rank) + 4))) / (nFf * d);
    const within = [...new Set(ranks)].filter((rank) => rank < d && bits(rank) <= this.job.maxBits);
    return within.length > 0 ? within : [RANK_MULTIPLE];
  }

  /** The smallest is kept in any case, so that there is one. */
  private affordable(made: Candidate[]): Candidate[] {
    const within = made.filter((c) => c.attempt.bits <= this.job.maxBits);
    return within.length > 0 ? within : made.slice(0, 1);
  }

  private async trained(start: Candidate): Promise<Candidate> {
    const { samples, job } = this;
    let best: Candidate = { ...start, kind: 'mlp', attempt: { ...start.attempt, kind: 'mlp' } };
    await train(
      start.state!,
      samples,
      this.training,
      job.downNorms,
      { epochs: job.epochs, patience: PATIENCE, seed: job.seed, provider: job.provider, signal: this.signal },
      async (state) => {
        const { network, cuts } = quantiseState(state, samples.nFf, samples.d);
        const candidate = await this.measured('mlp', network, cuts);
        if (candidate.attempt.cost >= best.attempt.cost) return false;
        best = candidate;
        return true;
      },
    );
    return best;
  }

  private async measured(kind: PredictorKind, network: Network, known?: Cuts): Promise<Candidate> {
    const { job, samples, matrices } = this;
    const { nFf, d } = samples;
    const cuts =
      known ?? (await fitCuts(network, samples, this.training, job.gateRows, job.gateThreshold, matrices));
    const measured = await measureAtRecall(
      network,
      cuts,
      samples,
      this.heldOut,
      job.downNorms,
      job.recall,
      matrices,
    );
    const bytes = networkBytes(network);
    const { recall, weightedRecall, predictedSparsity, sparsity } = measured;
    const scattered =
      (1 - predictedSparsity) * nFf * job.gateRowBytes + recall * (1 - sparsity) * nFf * job.recordBytes;
    const attempt: Attempt = {
      kind,
      rank: network.fc2.cols,
      bits: (8 * bytes) / (nFf * d),
      recall,
      weightedRecall,
      predictedSparsity,
      cost: bytes + READ_COST * scattered,
    };
    this.attempts.push(attempt);
    return { kind, network, cuts, measured, attempt, state: null };
  }

  /** Neurons that need no score are taken out of fc2: those that never fired, and those that nearly always do. */
  private finish({ kind, network, cuts, measured }: Candidate): FittedLayer {
    const { job } = this;
    const scored: number[] = [];
    const always: number[] = [];
    const rowCost = network.fc2.stride / (READ_COST * job.gateRowBytes);
    this.counts.forEach((count, i) => {
      if (count === 0) return;
      // Leaving a gate row out must happen often enough to pay for the score.
      if (1 - measured.candidateRate[i] <= rowCost) always.push(i);
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
    return { predictor, attempts: this.attempts };
  }
}

/** Low-rank starts this much dearer than the best predictor are still worth training. */
const TRAINABLE = 1.15;

const cheapest = (made: readonly Candidate[]): Candidate =>
  made.reduce((best, c) => (c.attempt.cost < best.attempt.cost ? c : best));

const networkBytes = ({ fc1, b1, fc2 }: Network): number =>
  (fc1?.data.length ?? 0) + 4 * (b1?.length ?? 0) + fc2.data.length + 4 * fc2.rows;
