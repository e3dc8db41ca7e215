/** A setting's training as a whole: its work folder, its trainer, and what comes out. */
import { WorkFolder } from '../profiler/work-folder.js';
import type { Progress } from './checkpoint.js';
import { trainingIdentity, type Prepared } from './prepare.js';
import { usesL1, type Setting } from './settings.js';
import { Trainer } from './trainer.js';
import { runTraining, type TrainingContext } from './training.js';

/**
 * @param use gets the trained model while it can still be measured
 * @returns what `use` made of it
 */
export async function trainSetting<T>(
  prepared: Prepared,
  setting: Setting,
  hooks: Pick<TrainingContext, 'signal' | 'onProgress' | 'checkpointEvery'>,
  use: (trainer: Trainer, progress: Progress, folder: WorkFolder) => Promise<T>,
): Promise<T> {
  const folder = await WorkFolder.open(trainingIdentity(prepared, setting), 'sparsify');
  let trainer: Trainer | null = null;
  try {
    trainer = startTrainer(prepared, setting);
    const { plan, texts, heldOut, parameters } = prepared;
    const progress = await runTraining(trainer, setting, plan, {
      ...{ folder, texts, heldOut, parameters },
      ...{ signal: hooks.signal, onProgress: hooks.onProgress, checkpointEvery: hooks.checkpointEvery },
    });
    return await use(trainer, progress, folder);
  } finally {
    await trainer?.end();
    folder.release();
  }
}

export function startTrainer(prepared: Prepared, setting: Setting): Trainer {
  const { source, parameters, plan, measured, distill, optimizer, lanes, threadsPerLane, start } = prepared;
  return Trainer.start(
    {
      config: source.config,
      ...{ parameters, measured, distill, optimizer, lanes, threadsPerLane },
      activation: setting.activation,
      batch: plan.batch,
      l1: usesL1(setting),
    },
    start,
    distill > 0 ? start : null,
  );
}
