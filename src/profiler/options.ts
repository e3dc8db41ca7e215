/** What can be asked of `profile`, with defaults, and how it fits the memory it may use. */
import { availableParallelism } from 'node:os';
import { HybridError, UsageError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import type { KernelBackend } from '../kernels/kernels.js';
import type { ModelConfig } from '../model/types.js';
import type { PackHeader } from '../pack/types.js';
import type { PredictorKind } from '../predictor/types.js';
import { recordingBytes } from './recording-files.js';
import { traceBytes } from './record.js';

/** How thresholds are chosen: a mean recall, or the largest recall loss that costs this much perplexity. */
export type Target = { recall: number } | { maxPerplexityIncrease: number };

export interface ProfileOptions {
  /** Texts to read. @default none: the model writes its own */
  texts?: readonly { name: string; text: string }[];
  /** Most tokens to record. @default 65536, quick: 16384 */
  tokens?: number;
  /** Most tokens to train on and measure with. @default 49152, quick: 12288 */
  samples?: number;
  /** @default 1 */
  seed?: number;
  /** Tokens of a window. @default 256, or the model's context if that is shorter */
  window?: number;
  /** @default 'auto': several are made for every layer, the one with the cheapest FFN is kept */
  predictor?: PredictorKind;
  /** @default 'auto' */
  rank?: number | 'auto';
  target?: Target;
  /** Bytes of memory the process may use. @default half of what the machine has */
  memoryBytes?: number;
  /** Execution provider for training. @default 'cpu' */
  device?: string;
  quick?: boolean;
  threads?: number;
  kernels?: KernelBackend | 'auto';
  signal?: AbortSignal;
  onProgress?: OnProgress;
  onWarning?: (message: string) => void;
}

/** Everything that decides the result, resolved. */
export interface ResolvedOptions {
  tokens: number;
  samples: number;
  seed: number;
  window: number;
  predictor: PredictorKind | 'auto';
  rank: number | 'auto';
  /** Most passes over the samples while training. */
  epochs: number;
  target: Target;
  device: string;
  threads: number;
  kernels: KernelBackend | 'auto';
}

const DEFAULT_WINDOW = 256;
const FULL = { tokens: 65_536, samples: 49_152, epochs: 4 };
const QUICK = { tokens: 16_384, samples: 12_288, epochs: 2 };
const DEFAULT_RECALL = 0.99;
/** Fewer held-out samples than this (a tenth of all) say nothing about recall. */
const MIN_SAMPLES = 256;

export function resolveOptions(config: ModelConfig, options: ProfileOptions): ResolvedOptions {
  if (config.activation.kind === 'silu') {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      'this model has SiLU, an activation without zeros: no neuron can be skipped',
      {
        hint: 'Profile a ReLU-sparse model such as ProSparse; run this one with --ffn dense.',
      },
    );
  }
  if (config.block.ffn.experts) {
    throw new HybridError('MODEL_UNSUPPORTED', 'profiling a mixture of experts is not supported', {
      hint: 'Run it with --ffn exact: only the neurons of the chosen experts are read.',
    });
  }
  const defaults = options.quick ? QUICK : FULL;
  const tokens = options.tokens ?? Math.max(defaults.tokens, options.samples ?? 0);
  const samples = Math.min(tokens, options.samples ?? defaults.samples);
  if (samples < MIN_SAMPLES) {
    throw new UsageError(
      `${samples} samples are too few to choose thresholds`,
      `Ask for at least ${MIN_SAMPLES}.`,
    );
  }
  const window = options.window ?? Math.min(DEFAULT_WINDOW, config.maxContext);
  if (window > config.maxContext) {
    throw new UsageError(
      `a window of ${window} tokens is longer than the model's context of ${config.maxContext}`,
    );
  }
  return {
    tokens,
    samples,
    window,
    seed: options.seed ?? 1,
    predictor: options.predictor ?? 'auto',
    rank: options.rank ?? 'auto',
    epochs: defaults.epochs,
    target: options.target ?? { recall: DEFAULT_RECALL },
    device: options.device ?? 'cpu',
    threads: options.threads ?? availableParallelism(),
    kernels: options.kernels ?? 'auto',
  };
}

// ---- memory -------------------------------------------------------------------------------------------

/** Node with this program, onnxruntime and the lanes loaded, before any model: 175 MiB measured, and some air. */
const BASE_BYTES = 208 << 20;
/** A training worker: its heap, and the layer's weights in several forms. */
const WORKER_BYTES = 96 << 20;
/** Neurons that fire for one token, for the estimate; sparse models have far fewer. */
const ACTIVE_SHARE = 0.2;

export interface MemoryPlan {
  samples: number;
  workers: number;
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
  const recording = BASE_BYTES + header.fileBytes + traceBytes(layers, d, nFf, resolved.window);
  const evaluating = BASE_BYTES + header.fileBytes + 8 * resolved.window * vocabSize;
  const perSample = recordingBytes(d, nFf, ACTIVE_SHARE * nFf) + 4 * nFf;
  const perLayer = WORKER_BYTES + 16 * d * d + 12 * nFf * d;
  const trainingOne = (samples: number): number => perLayer + perSample * samples;
  const least = Math.max(
    recording,
    evaluating,
    BASE_BYTES + trainingOne(asked ? resolved.samples : MIN_SAMPLES),
  );
  if (memoryBytes < least) {
    throw new UsageError(
      `profiling this model needs ${Math.ceil(least / 2 ** 20)} MiB, --memory allows ${Math.floor(memoryBytes / 2 ** 20)} MiB`,
      asked ? 'Allow more, or ask for fewer --samples.' : 'Allow more with --memory.',
    );
  }
  const room = memoryBytes - BASE_BYTES;
  const fitting = Math.floor((room - perLayer) / perSample);
  const samples = Math.min(resolved.samples, fitting);
  const workers = Math.max(1, Math.min(resolved.threads, layers, Math.floor(room / trainingOne(samples))));
  return { samples, workers };
}
