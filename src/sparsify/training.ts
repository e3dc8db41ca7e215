/** One setting's training from its first step, or its last checkpoint, to the end. */
import { HybridError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import type { WorkFolder } from '../profiler/work-folder.js';
import { batchAt, type TrainingText } from './batches.js';
import { readCheckpoint, writeCheckpoint, type HistoryPoint, type Progress } from './checkpoint.js';
import type { Tokens } from './lanes.js';
import type { Batch } from './model-graph.js';
import type { Parameter } from './parameters.js';
import { controlLambda, lambdaAt, learningRateAt, startControl } from './schedule.js';
import type { Setting } from './settings.js';
import type { Trainer } from './trainer.js';

export interface TrainingPlan {
  steps: number;
  batch: Batch;
  /** Parts of a step, each one batch. */
  parts: number;
  peak: number;
  warmup: number;
  /** Learning rate at the end, as a share of the peak. */
  lowest: number;
  seed: number;
  /** Held-out text is measured every so many steps. */
  evaluateEvery: number;
}

export interface TrainingContext {
  folder: WorkFolder;
  texts: readonly TrainingText[];
  heldOut: readonly (Tokens & { scored: Float32Array })[];
  parameters: readonly Parameter[];
  signal?: AbortSignal;
  onProgress?: OnProgress;
  /** Steps between checkpoints. @default as many as a minute has */
  checkpointEvery?: number;
}

const CHECKPOINT = 'checkpoint';
const CHECKPOINT_MS = 60_000;
/** Lines of history between measurements: a chart has no more pixels. */
const HISTORY_POINTS = 400;

/**
 * Trains `trainer` to the end of the plan, unless a checkpoint says it is there already.
 * @throws HybridError ABORTED after writing a checkpoint; NUMERIC naming setting and step
 */
export async function runTraining(
  trainer: Trainer,
  setting: Setting,
  plan: TrainingPlan,
  context: TrainingContext,
): Promise<Progress> {
  const { folder, signal, onProgress } = context;
  const trained = context.parameters.filter((p) => p.trained);
  const path = folder.file(CHECKPOINT);
  const progress: Progress = readCheckpoint(path, trainer, trained) ?? {
    step: 0,
    control: startControl(),
    history: [],
    before: null,
    after: null,
  };
  const save = (): Promise<void> => writeCheckpoint(path, progress, trainer, trained);
  const report = (): void =>
    onProgress?.({ stage: setting.name, done: progress.step, total: plan.steps, unit: 'steps' });
  report();
  if (progress.before === null) {
    progress.before = await trainer.measure(context.heldOut);
    progress.history.push(measuredPoint(0, 0, progress.before));
  }
  const thin = Math.max(1, Math.floor(plan.steps / HISTORY_POINTS));
  let saved = Date.now();
  while (progress.step < plan.steps) {
    if (signal?.aborted) {
      await save();
      throw new HybridError('ABORTED', 'the training was stopped', {
        hint: 'The same command goes on where it was.',
      });
    }
    const { step } = progress;
    const lambda = setting.targetSparsity === null ? lambdaAt(setting.stages, step) : progress.control.lambda;
    const rate = learningRateAt(plan, step, plan.steps);
    const parts = batchAt(context.texts, plan.batch, plan.parts, plan.seed, step);
    const point = await trainStep(trainer, parts, rate, lambda, async (error) => {
      await save(); // a step that failed changed nothing
      throw new HybridError('NUMERIC', `setting ${setting.name}, ${error.message}`, {
        hint: `Lower --lr or the lambdas. The last good checkpoint is kept in ${folder.path}.`,
        cause: error,
      });
    });
    if (setting.targetSparsity !== null) {
      const { targetSparsity } = setting;
      progress.control = controlLambda(
        progress.control,
        point.batchSparsity!,
        targetSparsity,
        step,
        plan.steps,
      );
    }
    progress.step = step + 1;
    const last = progress.step === plan.steps;
    if (last || progress.step % plan.evaluateEvery === 0) {
      const measured = await trainer.measure(context.heldOut);
      Object.assign(point, { perplexity: measured.perplexity, sparsity: measured.sparsity });
      if (last) progress.after = measured;
    }
    if (point.perplexity !== null || progress.step % thin === 0) progress.history.push(point);
    report();
    const every = context.checkpointEvery;
    const due = every ? progress.step % every === 0 : Date.now() - saved >= CHECKPOINT_MS;
    if (last || due) {
      await save();
      saved = Date.now();
    }
  }
  return progress;
}

async function trainStep(
  trainer: Trainer,
  parts: Tokens[],
  rate: number,
  lambda: number,
  failed: (error: HybridError) => Promise<never>,
): Promise<HistoryPoint> {
  try {
    const result = await trainer.train(parts, rate, lambda);
    return {
      step: trainer.step,
      loss: result.loss,
      ce: result.ce,
      l1: result.l1,
      kl: result.kl,
      lambda,
      batchSparsity: 1 - result.active,
      perplexity: null,
      sparsity: null,
    };
  } catch (error) {
    if (error instanceof HybridError && error.code === 'NUMERIC') return failed(error);
    throw error;
  }
}

const measuredPoint = (
  step: number,
  lambda: number,
  { perplexity, sparsity }: { perplexity: number; sparsity: number },
): HistoryPoint => ({
  step,
  loss: null,
  ce: null,
  l1: null,
  kl: null,
  lambda,
  batchSparsity: null,
  perplexity,
  sparsity,
});
