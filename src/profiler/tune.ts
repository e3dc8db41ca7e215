/**
 * `tune`: the trade-off between quality and work, by running the model at many threshold settings. A setting
 * is chosen on most of the text and measured on the rest of it, which chose nothing; it is written into the
 * predictor artifact, the table with it.
 */
import { Engine } from '../engine/engine.js';
import { GREEDY } from '../engine/sampler.js';
import { UsageError } from '../errors.js';
import { evaluate, evaluateSettings, type Evaluation } from '../evaluate/evaluate.js';
import { acquireLock } from '../io/lock.js';
import type { OnProgress } from '../io/progress.js';
import type { KernelBackend } from '../kernels/kernels.js';
import { openPack } from '../pack/reader.js';
import type { Pack, PackHeader } from '../pack/types.js';
import {
  writePredictor,
  type LayerChoice,
  type PredictorArtifact,
  type PredictorLayer,
  type TradeOff,
} from '../predictor/artifact.js';
import { findArtifacts, layerPlan, type FindPlanOptions } from './find-plan.js';
import { frequencies, type ProfileArtifact } from './artifact.js';
import { exactTokenBytes, type Target } from './options.js';
import { writeCalibrationText, writingOptions } from './calibration.js';
import { chooseMode, densitiesAt, sizesOf, type Densities } from './plan.js';
import { stopWhenAsked } from './record.js';
import { applyThresholds } from './search.js';
import { equalSlopes } from './thresholds.js';
import { WorkFolder } from './work-folder.js';

export interface TuneOptions extends Pick<FindPlanOptions, 'profile' | 'predictor'> {
  /** Recalls to try. @default TARGETS */
  targets?: readonly number[];
  /** What the chosen point must keep. @default perplexity increase at most 0.1 % */
  choose?: Target;
  /** @default 256, or the model's context if that is shorter */
  window?: number;
  /** Tokens the model writes when there is no text. @default `writtenTokens` */
  tokens?: number;
  /** Of the text the model writes. @default 1000: not that of a profile */
  seed?: number;
  threads?: number;
  kernels?: KernelBackend | 'auto';
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

export interface TuneResult {
  path: string;
  predictor: PredictorArtifact;
  curve: TradeOff[];
  chosen: TradeOff;
  evaluation: Evaluation;
}

const TARGETS: readonly number[] = [0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998, 0.999];
const DEFAULT_CHOICE: Target = { maxPerplexityIncrease: 0.001 };
const DEFAULT_WINDOW = 256;
/** Tokens decoded to measure speed: a second or two on large models, enough to settle on small ones. */
const SPEED_TOKENS = 96;

/** Bytes of weights read for all of a sweep, and the fewest tokens that say anything. */
const SWEEP_BYTES = 2 ** 42;
const LEAST_TOKENS = 2048;
const MOST_TOKENS = 16_384;
/** A profile's seeds are small numbers that people choose: its text should not be tuned on. */
const DEFAULT_SEED = 1000;

/** Tokens of text for a sweep: fewer for large models, so that ten points take minutes. */
export const sweepTokens = (header: PackHeader): number =>
  Math.min(MOST_TOKENS, Math.max(LEAST_TOKENS, Math.floor(SWEEP_BYTES / exactTokenBytes(header))));

/**
 * @param ids text to measure on; it should not be the text that was trained on. Null: the model writes it
 * @throws UsageError when there is no predictor, or too little text; HybridError LOCKED
 */
export async function tune(
  pack: Pack,
  ids: readonly number[] | null,
  options: TuneOptions = {},
): Promise<TuneResult> {
  const { signal, onProgress } = options;
  const { header } = pack;
  const found = findArtifacts(pack, options);
  if (!found.predictor) {
    throw new UsageError(
      `there is no predictor for the model ${header.name}`,
      'Make one: hybrid-infer profile <model>',
    );
  }
  const { path, artifact } = found.predictor;
  if (artifact.layers.some((layer) => layer.cuts)) {
    throw new UsageError(
      `${path}: its thresholds were chosen by perplexity, with --sparsify`,
      'For another limit: hybrid-infer profile <model> --sparsify LIMIT',
    );
  }
  const profile = found.profile?.artifact ?? null;
  const lock = acquireLock(`${path}.lock`);
  try {
    const window = options.window ?? Math.min(DEFAULT_WINDOW, header.config.maxContext);
    const engine = await Engine.open(openPack(pack.path), {
      contextLength: window,
      batchTokens: window,
      ...(ids ? { slots: 1 } : writingOptions(header, window)),
      threads: options.threads,
      kernels: options.kernels,
      signal,
      plan: {
        layers: artifact.layers.map((layer, l) =>
          layerPlan(
            layer,
            profile && frequencies(profile.layers[l], profile.tokens),
            layer.threshold,
            'predicted',
          ),
        ),
      },
    });
    try {
      const text = ids ?? (await ownText(engine, window, options));
      const { choose: choosing, report } = splitText(text, window);
      const sweep = new Sweep(engine, artifact, profile, window, signal);
      const targets = [...new Set([...(options.targets ?? TARGETS), ...recallOf(options.choose)])].sort();
      const curve = await sweep.measure(targets, choosing, onProgress);
      const chosen = choose(curve, options.choose ?? DEFAULT_CHOICE);
      stopWhenAsked(signal);
      const { layers, evaluation } = await sweep.finish(chosen.target, report);
      const predictor: PredictorArtifact = {
        ...artifact,
        target: `recall ${chosen.target}, chosen by tuning`,
        layers,
        tuning: curve,
      };
      await writePredictor(path, predictor);
      return { path, predictor, curve, chosen, evaluation };
    } finally {
      await engine.close();
    }
  } finally {
    lock.release();
  }
}

/** Text the model writes, in mode `exact`; what was written before an interruption is kept. */
async function ownText(engine: Engine, window: number, options: TuneOptions): Promise<number[]> {
  const { header } = engine.pack;
  const { signal, onProgress, seed = DEFAULT_SEED } = options;
  const tokens = options.tokens ?? sweepTokens(header);
  const { fingerprint, quant } = header;
  const kernels = engine.kernelsName;
  const threads = engine.threads;
  const work = await WorkFolder.open({ tune: fingerprint, quant, kernels, threads, window, tokens, seed });
  try {
    const { modes } = engine;
    await engine.setModes(modes.map(() => 'exact'));
    const count = Math.max(2, Math.floor(tokens / window));
    const written = await writeCalibrationText(engine, work, count, window, seed, { signal, onProgress });
    await engine.setModes(modes);
    work.remove();
    return written.flat();
  } finally {
    work.release();
  }
}

/** Every third window is for the figures; the others choose. */
function splitText(ids: readonly number[], window: number): { choose: number[]; report: number[] } {
  const count = Math.floor(ids.length / window);
  if (count < 2) {
    throw new UsageError(
      `the text has ${ids.length} tokens, tuning needs at least two windows of ${window}`,
      'Give a longer text, or a smaller --window.',
    );
  }
  const [choose, report]: number[][] = [[], []];
  for (let w = 0; w < count; w++) {
    const last = count < REPORT_EVERY && w === count - 1;
    (last || w % REPORT_EVERY === REPORT_EVERY - 1 ? report : choose).push(
      ...ids.slice(w * window, (w + 1) * window),
    );
  }
  return { choose, report };
}

const REPORT_EVERY = 3;

const recallOf = (target?: Target): number[] => (target && 'recall' in target ? [target.recall] : []);

/** The point that reads least among those that keep what was asked; the most careful one when none does. */
function choose(curve: readonly TradeOff[], wanted: Target): TradeOff {
  const keeps = (point: TradeOff): boolean =>
    'recall' in wanted
      ? point.target === wanted.recall
      : point.perplexity <= point.densePerplexity * (1 + wanted.maxPerplexityIncrease);
  const good = curve.filter(keeps);
  if (good.length === 0) return curve[curve.length - 1];
  return good.reduce((best, point) => (point.ffnBytesPerToken < best.ffnBytesPerToken ? point : best));
}

class Sweep {
  constructor(
    private readonly engine: Engine,
    private readonly artifact: PredictorArtifact,
    private readonly profile: ProfileArtifact | null,
    private readonly window: number,
    private readonly signal?: AbortSignal,
  ) {}

  /** All targets, window by window: the dense reference of a window serves every one of them. */
  async measure(
    targets: readonly number[],
    ids: readonly number[],
    onProgress?: OnProgress,
  ): Promise<TradeOff[]> {
    const { engine, window, signal } = this;
    const settings = targets.map((target) => this.layersAt(target));
    const evaluations = await evaluateSettings(
      engine,
      ids,
      settings.map((layers) => () => this.bringInto(layers)),
      {
        window,
        signal,
        onProgress: (done, total) => onProgress?.({ stage: 'tune', done, total, unit: 'tokens' }),
      },
    );
    const curve: TradeOff[] = [];
    for (const [t, evaluation] of evaluations.entries()) {
      const layers = settings[t];
      await this.bringInto(layers);
      curve.push({
        target: targets[t],
        recall: evaluation.recall ?? 1,
        weightedRecall: evaluation.weightedRecall ?? 1,
        predictedSparsity: evaluation.predictedSparsity ?? 0,
        perplexity: evaluation.perplexity,
        densePerplexity: evaluation.densePerplexity!,
        klDivergence: evaluation.klDivergence!,
        ffnBytesPerToken: layers.reduce((sum, { bytes, mode }) => sum + bytes[mode], 0),
        decodeTokensPerSecond: await this.speed(ids),
      });
    }
    return curve;
  }

  /** The chosen setting on text that did not choose it: the figures that are told. */
  async finish(
    target: number,
    ids: readonly number[],
  ): Promise<{ layers: PredictorLayer[]; evaluation: Evaluation }> {
    const layers = this.layersAt(target);
    await this.bringInto(layers);
    const { window, signal } = this;
    const evaluation = await evaluate(this.engine, ids, { window, signal });
    return { layers: this.layersAt(target, evaluation), evaluation };
  }

  private async bringInto(layers: readonly PredictorLayer[]): Promise<void> {
    await this.engine.setModes(layers.map((layer) => layer.mode));
    await applyThresholds(
      this.engine,
      layers.map((layer) => layer.predictor),
      layers.map((layer) => layer.threshold),
    );
  }

  /**
   * Thresholds and modes for a mean recall, from the stored curves.
   * @param measured densities to tell instead of the curves', for the layers that were predicted
   */
  private layersAt(target: number, measured?: Evaluation): PredictorLayer[] {
    const { layers } = this.artifact;
    const { header } = this.engine.pack;
    const points = equalSlopes(
      layers.map((layer) => layer.curve),
      target,
    );
    return layers.map((layer, l) => {
      const { predictor, curve } = layer;
      const at = points[l];
      const chosenBy = densitiesAt(curve, at, layer.heldOut.sparsity);
      const figures = (measured && measuredDensities(measured.layers[l])) ?? chosenBy;
      const threshold = curve.threshold[at];
      const choice: LayerChoice = chooseMode(
        predictor,
        threshold,
        sizesOf(header, l, this.profile?.layers[l].routed),
        chosenBy,
        figures,
      );
      return { ...choice, predictor, curve };
    });
  }

  private async speed(ids: readonly number[]): Promise<number> {
    const prompt = ids.slice(0, Math.max(1, Math.min(8, this.window >> 1)));
    const { stats } = await this.engine.generate({
      prompt,
      maxTokens: Math.min(SPEED_TOKENS, this.window - prompt.length),
      sampling: GREEDY,
      signal: this.signal,
    });
    return stats.decodeTokensPerSecond;
  }
}

/** Null for a layer that ran without its predictor. */
function measuredDensities({
  sparsity,
  predictedSparsity,
  recall,
  weightedRecall,
}: Evaluation['layers'][number]): Densities | null {
  if (predictedSparsity === null || recall === null || weightedRecall === null) return null;
  return { sparsity, predictedSparsity, recall, weightedRecall };
}
