/** Everything a training needs, checked before its first step. */
import { createHash } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { ModelError, UsageError } from '../errors.js';
import { createTokenizer, type Tokenizer } from '../model/tokenizer.js';
import type { WeightSource } from '../model/types.js';
import type { AdamWOptions } from '../onnx/adamw.js';
import { checkLength, divisorUpTo, heldOutParts, splitHeldOut, type TrainingText } from './batches.js';
import { encodeText, patiently } from './encode-text.js';
import type { Tokens } from './lanes.js';
import type { Batch } from './model-graph.js';
import { parametersOf, type Parameter, type TrainedPart } from './parameters.js';
import { readWeights } from './read-weights.js';
import type { Setting } from './settings.js';
import type { TrainingPlan } from './training.js';

export interface TextSource {
  name: string;
  text: string;
  weight: number;
}

export interface TrainingOptions extends Partial<TrainedPart> {
  /** @default 400 */
  steps?: number;
  /** Tokens of one step. @default 4096 */
  batchTokens?: number;
  /** Tokens of a window. @default 256, or the context if shorter */
  window?: number;
  /** Windows a lane computes at once. @default about 512 tokens of them */
  microBatch?: number;
  /** Highest learning rate. @default 5e-4 for a model of a few million weights; less for larger ones */
  learningRate?: number;
  /** Steps of rising learning rate. @default an eighth of the steps */
  warmup?: number;
  /** @default 0.1 */
  weightDecay?: number;
  /** Share of the loss that is the distance from the original's logits. @default 0 */
  distill?: number;
  /** @default 1 */
  seed?: number;
  /** @default a quarter of the steps */
  evaluateEvery?: number;
  threads?: number;
}

/** One lane's work at a time: activations of so many tokens still lie in the caches. */
const MICRO_BATCH_TOKENS = 512;
const DEFAULT_WINDOW = 256;
/** More held-out text than this changes the third digit of a perplexity, and costs as much as a step. */
const HELD_OUT_TOKENS = 65_536;
const LOWEST_RATE = 0.05;
const SMALL_MODEL_RATE = 5e-4;
const SMALL_MODEL_WEIGHTS = 5e6;

export interface Prepared {
  source: WeightSource;
  fingerprint: string;
  tokenizer: Tokenizer;
  parameters: readonly Parameter[];
  start: Float32Array;
  texts: readonly TrainingText[];
  heldOut: readonly (Tokens & { scored: Float32Array })[];
  measured: Batch;
  plan: TrainingPlan;
  optimizer: AdamWOptions;
  distill: number;
  trainedPart: TrainedPart;
  lanes: number;
  threadsPerLane: number;
  /** What trained weights depend on, beside the setting. */
  identity: unknown;
}

/**
 * @param heldOutText null: the end of every text is held out
 * @throws UsageError, ModelError for what cannot be trained
 */
export async function prepare(
  source: WeightSource,
  texts: readonly TextSource[],
  heldOutText: string | null,
  options: TrainingOptions,
): Promise<Prepared> {
  const { config } = source;
  if (config.activation.kind !== 'silu') {
    throw new ModelError(
      'MODEL_UNSUPPORTED',
      `${source.path}: its activation is ${config.activation.kind}: this model is sparse already`,
      { hint: 'Raise its threshold with --shift-only, or give the SiLU model it was made from.' },
    );
  }
  return prepareText(source, texts, heldOutText, options);
}

/** For a model that is only measured: all text is held out. */
export function prepareMeasuring(
  source: WeightSource,
  texts: readonly TextSource[],
  options: TrainingOptions,
): Promise<Prepared> {
  return prepareText(source, [], texts.map(({ text }) => text).join('\n'), options);
}

async function prepareText(
  source: WeightSource,
  texts: readonly TextSource[],
  heldOutText: string | null,
  options: TrainingOptions,
): Promise<Prepared> {
  const { config } = source;
  const window = options.window ?? Math.min(DEFAULT_WINDOW, config.maxContext);
  // Training attends to everything: a layer with a sliding window does the same within that window.
  const longest = Math.min(
    config.maxContext,
    ...(config.block.layers ?? []).map((layer) => layer.window ?? Infinity),
  );
  if (window > longest) throw new UsageError(`--window ${window}: the model's context is ${longest}`);
  if (options.batchTokens !== undefined && options.batchTokens < window) {
    throw new UsageError(
      `--batch-tokens ${options.batchTokens} is less than one window of ${window} tokens`,
      'Give more, or a smaller --window.',
    );
  }
  const tokenizer = patiently(() => createTokenizer(source.tokenizer));
  const encode = (text: string): Int32Array => encodeText(tokenizer, text);
  const given = texts.map(({ name, text, weight }) => ({ name, weight, ids: encode(text) }));
  checkLength(given, window, heldOutText === null ? window : 0);
  const split = heldOutText === null ? splitHeldOut(given, window) : null;
  const training = split?.texts ?? given;
  const heldOutIds = (split?.heldOut ?? encode(heldOutText!)).subarray(0, HELD_OUT_TOKENS);
  const heldOutWindows = Math.floor(heldOutIds.length / window);
  if (heldOutWindows === 0) {
    throw new UsageError(
      `the held-out text has ${heldOutIds.length} tokens, one window needs ${window}`,
      'Give a longer text, or a smaller --window.',
    );
  }
  const measured = { windows: divisorUpTo(heldOutWindows, microWindows(window)), tokens: window };

  const steps = options.steps ?? 400;
  const windowsPerStep = Math.max(1, Math.round((options.batchTokens ?? 4096) / window));
  const micro = divisorUpTo(windowsPerStep, options.microBatch ?? microWindows(window));
  const parts = windowsPerStep / micro;
  const threads = options.threads ?? availableParallelism();
  const lanes = Math.min(threads, parts);
  const trainedPart: TrainedPart = { part: options.part ?? 'all', adapterRank: options.adapterRank ?? 0 };
  const seed = options.seed ?? 1;
  const parameters = parametersOf(config, trainedPart);
  const start = await readWeights(source, parameters, seed);
  const plan: TrainingPlan = {
    steps,
    batch: { windows: micro, tokens: window },
    parts,
    peak: options.learningRate ?? defaultRate(start.length),
    warmup: options.warmup ?? Math.round(steps / 8),
    lowest: LOWEST_RATE,
    seed,
    evaluateEvery: options.evaluateEvery ?? Math.max(1, Math.round(steps / 4)),
  };
  const optimizer = {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weightDecay: options.weightDecay ?? 0.1,
    clip: 1,
  };
  const fingerprint = await source.fingerprint();
  const distill = options.distill ?? 0;
  const threadsPerLane = Math.max(1, Math.floor(threads / lanes));
  return {
    source,
    fingerprint,
    tokenizer,
    parameters,
    start,
    texts: training,
    heldOut: heldOutParts(heldOutIds, measured),
    measured,
    plan,
    optimizer,
    distill,
    trainedPart,
    lanes,
    threadsPerLane,
    identity: {
      fingerprint,
      texts: training.map(({ ids, weight }) => [digest(ids), weight]),
      heldOut: digest(heldOutIds),
      ...{ plan, optimizer, distill, trainedPart, lanes, threadsPerLane },
    },
  };
}

/** Names the training of a setting: what is chosen afterwards (the threshold) is no part of it. */
export const trainingIdentity = (prepared: Prepared, setting: Setting): unknown => [
  prepared.identity,
  { activation: setting.activation, stages: setting.stages, targetSparsity: setting.targetSparsity },
];

const microWindows = (window: number): number => Math.max(1, Math.floor(MICRO_BATCH_TOKENS / window));

/** Falls with the root of the size: 5e-4 at 4 million weights, 3e-5 (ProSparse's) near 7 billion. */
const defaultRate = (weights: number): number =>
  Math.max(3e-5, SMALL_MODEL_RATE * Math.min(1, (SMALL_MODEL_WEIGHTS / weights) ** 0.4));

const digest = (ids: Int32Array): string =>
  createHash('sha256')
    .update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength))
    .digest('hex');
