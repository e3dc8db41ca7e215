/** From a SiLU model to sparse ones: every setting trained, measured, written, and compared. */
import { join } from 'node:path';
import { availableMemory } from '../bench/machine.js';
import { ModelError, UsageError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import { findArchitecture } from '../model/architectures.js';
import { isLlamaBlock } from '../model/block.js';
import { openModel } from '../model/open-model.js';
import type { ModelConfig, WeightSource } from '../model/types.js';
import type { WorkFolder } from '../profiler/work-folder.js';
import type { HistoryPoint, Progress } from './checkpoint.js';
import { mergeAdapters, roundWeights, type FileType } from './final-weights.js';
import { describeNeed, memoryNeed, requireMemory, type MemoryNeed } from './memory.js';
import type { Activation } from './model-graph.js';
import { requireOnnxRuntime } from '../onnx/runtime.js';
import { prepare, type Prepared, type TextSource, type TrainingOptions } from './prepare.js';
import type { Stage } from './schedule.js';
import {
  FIXED_LAMBDA,
  settingFor,
  SETTING_TITLES,
  SHIFT_BY,
  type Setting,
  type SettingName,
} from './settings.js';
import { MAX_INCREASE, searchShift, THRESHOLDS, type ShiftPoint } from './shift.js';
import { startTrainer, trainSetting } from './train-setting.js';
import type { Measurement, Trainer } from './trainer.js';
import { fileTypes, MARK, requireFree, writeModel } from './write-model.js';

export interface SparsifyOptions extends TrainingOptions {
  texts: readonly TextSource[];
  /** @default the end of every text */
  heldOut?: string | null;
  /** @default ['prosparse'] */
  settings?: readonly SettingName[];
  /** @default ProSparse's, proportional to the steps */
  stages?: readonly Stage[] | null;
  fixedLambda?: number;
  shiftBy?: number;
  /** Lambda of the progressive settings follows this sparsity. */
  targetSparsity?: number | null;
  /** Rise of perplexity that the threshold shift may cost. @default 0.0025 */
  maxIncrease?: number;
  thresholds?: readonly number[];
  /** Type of the written weights. @default that of the model */
  dtype?: FileType | null;
  /** Bytes that may be used. @default what is available */
  memoryBytes?: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
  onNote?: (line: string) => void;
  /** What else is measured on the results. The trainings are forgotten after it: until then a stop costs little. */
  whenWritten?: (result: SparsifyResult) => Promise<void>;
  /** Steps between checkpoints. @default a minute's */
  checkpointEvery?: number;
}

export interface SettingResult {
  setting: SettingName;
  title: string;
  /** On held-out text, of the weights as they were written. */
  perplexity: number;
  sparsity: number;
  layers: number[];
  steps: number;
  tokens: number;
  /** At the last step. */
  lambda: number;
  /** FATReLU's; 0 for ReLU. */
  threshold: number;
  /** What the threshold search measured; null without one. */
  shift: ShiftPoint[] | null;
  history: HistoryPoint[];
  folder: string;
}

export interface SparsifyResult {
  model: string;
  path: string;
  config: ModelConfig;
  /** The original on the same held-out text, before any training. */
  original: Measurement;
  settings: SettingResult[];
  memory: MemoryNeed;
  training: {
    steps: number;
    tokensPerStep: number;
    distill: number;
    part: 'ffn' | 'all';
    adapterRank: number;
    learningRate: number;
    seed: number;
  };
}

/**
 * @param out the folder of the model; with several settings, the folder of their folders
 * @throws HybridError: bad input before the first step; ABORTED and NUMERIC after a checkpoint
 */
export async function sparsify(path: string, out: string, options: SparsifyOptions): Promise<SparsifyResult> {
  const names = options.settings ?? ['prosparse'];
  const steps = stepsOf(options);
  const settings = names.map((name) =>
    settingFor(name, {
      steps,
      stages: options.stages ?? null,
      fixedLambda: options.fixedLambda ?? FIXED_LAMBDA,
      shiftBy: options.shiftBy ?? SHIFT_BY,
      targetSparsity: options.targetSparsity ?? null,
    }),
  );
  const folderOf = (name: SettingName): string => (settings.length === 1 ? out : join(out, name));
  for (const { name } of settings) requireFree(folderOf(name));
  requireOnnxRuntime('sparsify');
  const source = await openTrainable(path);
  try {
    const prepared = await prepare(source, options.texts, options.heldOut ?? null, { ...options, steps });
    const needs = settings.map((setting) => memoryNeed(prepared, setting));
    const memory = needs.reduce((a, b) => (b.total > a.total ? b : a));
    options.onNote?.(`training needs ${describeNeed(memory)}`);
    requireMemory(memory, options.memoryBytes ?? availableMemory());

    const original = await measureOriginal(prepared);
    const results: SettingResult[] = [];
    const work: WorkFolder[] = [];
    for (const setting of settings) {
      results.push(
        await trainSetting(prepared, setting, options, (trainer, progress, folder) => {
          work.push(folder);
          return finish(prepared, setting, trainer, progress, folderOf(setting.name), options);
        }),
      );
    }
    const { plan, distill, trainedPart } = prepared;
    const tokensPerStep = plan.parts * plan.batch.windows * plan.batch.tokens;
    const training = {
      ...{ steps, tokensPerStep, distill, ...trainedPart },
      ...{ learningRate: plan.peak, seed: plan.seed },
    };
    const { config } = source;
    const result = { model: source.name, path, config, original, settings: results, memory, training };
    for (const setting of results) {
      await writeFileAtomic(join(setting.folder, MARK), JSON.stringify({ ...result, settings: [setting] }));
    }
    await options.whenWritten?.(result);
    for (const folder of work) folder.remove();
    return result;
  } finally {
    await source.close();
  }
}

/** @throws ModelError for what has no config.json and safetensors to start from */
export async function openTrainable(path: string): Promise<WeightSource> {
  const source = await openModel(path);
  try {
    requireTrainable(source);
    return source;
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** The training graph (model-graph.ts) is Llama's block, and files are written under Llama's names. */
function requireTrainable({ kind, path, config }: WeightSource): void {
  const refuse = (message: string, hint = ''): never => {
    throw new ModelError('MODEL_UNSUPPORTED', `${path}: ${message}`, { hint });
  };
  if (kind !== 'safetensors') {
    refuse(
      'training starts from a Hugging Face folder',
      'Quantised weights are a poor start: use the model the file was made from.',
    );
  }
  // Within its window, sliding attention is full attention; layers without positions are another matter.
  const { block } = config;
  const layers = block.layers?.every(({ rotates }) => rotates) ? null : block.layers;
  const llama = isLlamaBlock({ ...config, block: { ...block, layers } });
  if (!llama || findArchitecture(config.architecture)?.names) {
    refuse(
      `training ${config.architecture} is not supported`,
      'Supported: blocks like Llama, with its tensors.',
    );
  }
}

/** Stages may say how many steps there are; both must agree. */
function stepsOf({ steps, stages }: SparsifyOptions): number {
  const end = stages?.at(-1)?.end;
  if (end === undefined) return steps ?? 400;
  if (steps !== undefined && end > steps) {
    throw new UsageError(
      `--stages end at step ${end}, --steps says ${steps}`,
      'Give one of them, or more --steps than the last stage needs.',
    );
  }
  return steps ?? end;
}

async function measureOriginal(prepared: Prepared): Promise<Measurement> {
  const silu = settingFor('original', {
    ...{ steps: 1, stages: null, fixedLambda: 0, shiftBy: 0, targetSparsity: null },
  });
  const trainer = startTrainer({ ...prepared, distill: 0 }, silu);
  try {
    return await trainer.measure(prepared.heldOut);
  } finally {
    await trainer.end();
  }
}

/** The trained model as it will be read back: rounded, its threshold chosen, written. */
async function finish(
  prepared: Prepared,
  setting: Setting,
  trainer: Trainer,
  progress: Progress,
  folder: string,
  options: SparsifyOptions,
): Promise<SettingResult> {
  const { source, parameters, plan, heldOut } = prepared;
  const typeOf = fileTypes(source, options.dtype ?? null);
  mergeAdapters(parameters, trainer.weights);
  roundWeights(parameters, trainer.weights, typeOf);
  trainer.weightsChanged();
  let activation: Activation = setting.activation;
  let measured: Measurement;
  let shift: ShiftPoint[] | null = null;
  if (setting.shift) {
    const found = await searchShift(trainer, heldOut, 0, {
      thresholds: options.thresholds ?? THRESHOLDS,
      maxIncrease: options.maxIncrease ?? MAX_INCREASE,
      signal: options.signal,
      onProgress: (done, total) => options.onProgress?.({ stage: 'shift', done, total, unit: 'steps' }),
    });
    ({ measured, points: shift } = found);
    activation = { kind: 'fatrelu', threshold: found.chosen.threshold };
  } else measured = await trainer.measure(heldOut);
  await writeModel(folder, source, parameters, trainer.weights, activation, typeOf);
  return {
    setting: setting.name,
    title: SETTING_TITLES[setting.name],
    ...{ perplexity: measured.perplexity, sparsity: measured.sparsity, layers: measured.layers },
    steps: plan.steps,
    tokens: plan.steps * plan.parts * plan.batch.windows * plan.batch.tokens,
    lambda: progress.history.at(-1)?.lambda ?? 0,
    threshold: activation.kind === 'fatrelu' ? activation.threshold : 0,
    shift,
    history: progress.history,
    folder,
  };
}
