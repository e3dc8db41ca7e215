/** What can be asked of `profile`, with defaults, and how it fits the memory it may use. */
import { availableParallelism } from 'node:os';
import { HybridError, UsageError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import { isSmooth, type KernelBackend } from '../kernels/kernels.js';
import { activeNeurons, expertShape } from '../model/block.js';
import type { ModelConfig } from '../model/types.js';
import type { PackHeader } from '../pack/types.js';
import { gateTokens } from '../predictor/scores.js';
import type { GatePredictorKind } from '../predictor/types.js';
import { recordingBytes, rowBytes } from './recording-files.js';
import { writingOptions } from './calibration.js';
import { traceBytes } from './record.js';

/** How thresholds are chosen: a mean recall, or the largest recall loss that costs this much perplexity. */
export type Target = { recall: number } | { maxPerplexityIncrease: number };

export interface ProfileOptions {
  /** Texts to read. @default none: the model writes its own */
  texts?: readonly { name: string; text: string }[];
  /** Most tokens to record. @default 65536, quick: 16384; fewer for large models (`amounts`) */
  tokens?: number;
  /** Most tokens to train on and measure with. @default 49152, quick: 12288; fewer for large models */
  samples?: number;
  /** @default 1 */
  seed?: number;
  /** Tokens of a window. @default 256, or the model's context if that is shorter */
  window?: number;
  /** @default 'auto': several are made for every layer, the one with the cheapest FFN is kept */
  predictor?: GatePredictorKind;
  /** @default 'auto' */
  rank?: number | 'auto';
  target?: Target;
  /** Of an activation without zeros: the increase of perplexity that cuts may cost. @default none: not sparsified */
  sparsify?: number;
  /** Bytes of memory the process may use. @default half of what the machine has */
  memoryBytes?: number;
  /** Execution provider for the matrix products of fitting. @default 'cpu' */
  device?: string;
  quick?: boolean;
  /** Frequencies only: no predictor is fitted and none is written. @default false */
  hotOnly?: boolean;
  threads?: number;
  kernels?: KernelBackend | 'auto';
  signal?: AbortSignal;
  onProgress?: OnProgress;
  onWarning?: (message: string) => void;
  /** What is worth knowing before it starts: memory, disk, what `quick` gives up. */
  onNote?: (message: string) => void;
}

/** Everything that decides the result, resolved. */
export interface ResolvedOptions {
  tokens: number;
  samples: number;
  seed: number;
  window: number;
  predictor: GatePredictorKind | 'auto';
  rank: number | 'auto';
  /** Most passes over the samples while training. */
  epochs: number;
  target: Target;
  sparsify: number | null;
  device: string;
  threads: number;
  kernels: KernelBackend | 'auto';
}

const DEFAULT_WINDOW = 256;
const DEFAULT_RECALL = 0.99;
/** Fewer samples than this (a tenth of them to choose by, a tenth for the figures) say nothing about recall. */
const MIN_SAMPLES = 256;

interface Amounts {
  tokens: number;
  samples: number;
  /** Multiplications for the covariance of one layer's inputs, samples d^2: what samples cost. */
  covarianceWork: number;
  /** Fewest samples, as a multiple of d: a covariance of d inputs from fewer is mostly guessed. */
  samplesPerInput: number;
  /** Bytes of weights read while the model writes its own text, a few minutes of memory bandwidth. */
  writingBytes: number;
  leastWritten: number;
  epochs: number;
}
const FULL: Amounts = {
  tokens: 65_536,
  samples: 49_152,
  covarianceWork: 2 ** 38,
  samplesPerInput: 2,
  writingBytes: 2 ** 42,
  leastWritten: 8192,
  epochs: 4,
};
/** What `--quick` gives up is told by `quickNote`. */
const QUICK: Amounts = {
  tokens: 16_384,
  samples: 12_288,
  covarianceWork: 2 ** 36,
  samplesPerInput: 1,
  writingBytes: 2 ** 41,
  leastWritten: 2048,
  epochs: 2,
};

/** How much text and how many samples a model gets when nothing was asked for. */
function amounts(
  { hiddenSize: d }: ModelConfig,
  { quick, texts }: ProfileOptions,
  tokenBytes: number,
): { tokens: number; samples: number } {
  const of = quick ? QUICK : FULL;
  const fitting = Math.floor(of.covarianceWork / d ** 2);
  const samples = Math.min(of.samples, Math.max(of.samplesPerInput * d, fitting));
  // Tokens beyond the samples only count frequencies.
  const tokens = Math.min(of.tokens, 2 * samples);
  if (texts?.length) return { tokens, samples };
  const written = Math.max(of.leastWritten, Math.floor(of.writingBytes / tokenBytes));
  return { tokens: Math.min(tokens, written), samples };
}

/** Bytes of weights that one token in mode `exact` reads. */
export function exactTokenBytes({ fileBytes, embed, lmHead, layers, config }: PackHeader): number {
  const met = activeNeurons(config) / config.intermediateSize;
  const unread = layers.reduce(
    (sum, { gate, ffn }) => sum + (1 - met) * gate.bytes + (1 - met * ACTIVE_SHARE) * ffn.bytes,
    0,
  );
  return fileBytes - unread - (lmHead ? embed.bytes : 0);
}

/** What `--quick` does without, in words. */
export const quickNote = ({ tokens, samples, predictor }: ResolvedOptions): string =>
  `quick: ${tokens} tokens and ${samples} samples, so thresholds and frequencies are less sure` +
  (predictor === 'sketch' ? '; only sketches are tried, no low-rank or trained predictors' : '');

/** What cannot be profiled is refused before anything is converted. */
export function checkOptions(config: ModelConfig, options: ProfileOptions): void {
  const { kind } = config.activation;
  if (options.sparsify === undefined && isSmooth(kind)) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `this model has ${kind}, an activation without zeros: no neuron can be skipped as it is`,
      { hint: 'Find what can be left out: profile --sparsify 1%; or run it with --ffn dense.' },
    );
  }
  if (options.sparsify !== undefined && !isSmooth(kind)) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `this model is sparse already: its activation is ${kind}, which has zeros`,
      { hint: 'Profile it without --sparsify.' },
    );
  }
  const { predictor = 'sketch', rank = 'auto' } = options;
  if (config.block.ffn.experts && (predictor !== 'sketch' || rank !== 'auto')) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      'experts are predicted by sketches: low-rank and trained predictors share a hidden layer, experts share none',
      { hint: 'Leave out --predictor and --rank.' },
    );
  }
  const samples = Math.min(options.samples ?? MIN_SAMPLES, options.tokens ?? MIN_SAMPLES);
  if (samples < MIN_SAMPLES && !options.hotOnly) {
    throw new UsageError(
      `${samples} samples are too few to choose thresholds`,
      `Ask for at least ${MIN_SAMPLES}.`,
    );
  }
  if (options.window !== undefined && options.window > config.maxContext) {
    throw new UsageError(
      `a window of ${options.window} tokens is longer than the model's context of ${config.maxContext}`,
    );
  }
}

export function resolveOptions(header: PackHeader, options: ProfileOptions): ResolvedOptions {
  const { config } = header;
  checkOptions(config, options);
  const usual = amounts(config, options, exactTokenBytes(header));
  const tokens = options.tokens ?? Math.max(usual.tokens, options.samples ?? 0);
  return {
    tokens,
    samples: Math.min(tokens, options.samples ?? usual.samples),
    window: options.window ?? Math.min(DEFAULT_WINDOW, config.maxContext),
    seed: options.seed ?? 1,
    predictor: options.predictor ?? (options.quick || config.block.ffn.experts ? 'sketch' : 'auto'),
    rank: options.rank ?? 'auto',
    epochs: options.sparsify === undefined && !config.block.ffn.experts ? epochsOf(config, options) : 0,
    target: options.target ?? { recall: DEFAULT_RECALL },
    sparsify: options.sparsify ?? null,
    device: options.device ?? 'cpu',
    threads: options.threads ?? availableParallelism(),
    kernels: options.kernels ?? 'auto',
  };
}

/**
 * Training gains a few per cent of what low-rank starts read, and for wide layers takes several times as long
 * as everything else: it is done where it is cheap, or asked for.
 */
function epochsOf(
  { hiddenSize, intermediateSize }: ModelConfig,
  { predictor, quick }: ProfileOptions,
): number {
  if (predictor === 'mlp') return (quick ? QUICK : FULL).epochs;
  return quick || hiddenSize * intermediateSize > MOST_TRAINED ? 0 : FULL.epochs;
}

/** Gate weights of a layer whose predictors are trained unasked. */
const MOST_TRAINED = 2 ** 21;

// ---- memory -------------------------------------------------------------------------------------------

/**
 * Node with this program, onnxruntime and the lanes loaded, before any model: 175 MiB measured; and what is
 * garbage but not collected yet.
 */
const BASE_BYTES = 512 << 20;
/** A training worker: its heap, onnxruntime, kernels, and arrays that are garbage already. */
const WORKER_BYTES = 256 << 20;
/** Neurons that fire for one token, for the estimate; sparse models have far fewer. */
const ACTIVE_SHARE = 0.2;
/** The same where contributions are cut. */
const LARGE_SHARE = 0.55;
/** Bytes of a predictor, its curve and its copies per gate weight, while all layers are evaluated. */
const PREDICTOR_BYTES = 1.8;

export interface MemoryPlan {
  samples: number;
  workers: number;
  /** Threads of each worker's products. */
  threads: number;
  /** The most that the process will use, by this estimate. */
  bytes: number;
  /** Recordings and checkpoints on disk. */
  diskBytes: number;
}

/**
 * How many samples and training workers fit.
 * @param asked the user named a number of samples: do not take fewer
 * @throws UsageError when not even the smallest setting fits
 */
export function planMemory(
  header: PackHeader,
  resolved: ResolvedOptions,
  memoryBytes: number,
  asked: boolean,
): MemoryPlan {
  const { hiddenSize: d, intermediateSize: nFf, layers, vocabSize } = header.config;
  const { window, threads } = resolved;
  const shape = expertShape(header.config);
  const recording = recordingMemory(header, window, true);
  const evaluating =
    BASE_BYTES + header.fileBytes + 8 * window * vocabSize + PREDICTOR_BYTES * layers * nFf * d;
  const sparsify = resolved.sparsify !== null;
  const active = (sparsify ? LARGE_SHARE : ACTIVE_SHARE) * activeNeurons(header.config);
  const perSample = recordingBytes(shape, active) + (resolved.epochs > 0 ? 4 * d : 0);
  // Experts are fitted one after the other. Contributions need up beside the gate.
  const perLayer =
    layerBytes(d, shape.size, resolved.epochs > 0) +
    (sparsify ? 4 * shape.size * d : 0) +
    (shape.count > 1 ? PREDICTOR_BYTES * nFf * d + 4 * d * d : 0);
  const trainingOne = (samples: number): number => perLayer + perSample * samples;
  const least = Math.max(
    recording,
    evaluating,
    BASE_BYTES + trainingOne(asked ? resolved.samples : MIN_SAMPLES),
  );
  const hint = asked ? 'Allow more, or ask for fewer --samples.' : 'Allow more with --memory.';
  requireMemory(least, memoryBytes, hint);
  const room = memoryBytes - BASE_BYTES;
  const fitting = Math.floor((room - perLayer) / perSample);
  const samples = Math.min(resolved.samples, fitting);
  const workers = Math.max(1, Math.min(threads, layers, Math.floor(room / trainingOne(samples))));
  return {
    samples,
    workers,
    threads: Math.max(1, Math.floor(threads / workers)),
    bytes: Math.max(recording, evaluating, BASE_BYTES + workers * trainingOne(samples)),
    diskBytes: samples * layers * (rowBytes(d, shape) + 2 * active) + layers * nFf * d * 0.5,
  };
}

/** What writing and recording text holds. @param inputs FFN inputs are recorded too */
export function recordingMemory(header: PackHeader, window: number, inputs: boolean): number {
  const { hiddenSize, layers } = header.config;
  const cache = writingOptions(header, window).kvMemory ?? 0;
  const traces = traceBytes(layers, inputs ? hiddenSize : 0, activeNeurons(header.config), window);
  return BASE_BYTES + header.fileBytes + cache + traces;
}

/** @throws UsageError when `needed` bytes are more than allowed */
export function requireMemory(needed: number, allowed: number, hint: string): void {
  if (needed <= allowed) return;
  const mebibytes = (bytes: number): number => bytes / 2 ** 20;
  throw new UsageError(
    `profiling this model needs ${Math.ceil(mebibytes(needed))} MiB, --memory allows ${Math.floor(mebibytes(allowed))} MiB`,
    hint,
  );
}

/** What fitting one layer holds, apart from what grows with the samples. */
function layerBytes(d: number, nFf: number, training: boolean): number {
  const gate = 4 * nFf * d;
  // The covariance and its factor; the gates' energy, its factors and the products on the way.
  const squares = 9 * 4 * d * d;
  const rank = d / 2;
  const factors = 3 * 4 * rank * (d + nFf);
  const gates = 4 * gateTokens(nFf, Infinity) * (nFf + d);
  // Weights and Adam's moments, in and out of the graph, and what it holds on the way.
  const trained = training ? 10 * 4 * rank * (d + nFf) : 0;
  return WORKER_BYTES + gate + squares + gates + Math.max(factors, trained);
}
