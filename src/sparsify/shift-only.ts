/** The threshold shift of a model that is ReLU already: no training, minutes. */
import { join } from 'node:path';
import { ModelError } from '../errors.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import type { WeightSource } from '../model/types.js';
import { requireOnnxRuntime } from '../onnx/runtime.js';
import { prepareMeasuring, type Prepared, type TextSource, type TrainingOptions } from './prepare.js';
import type { Setting } from './settings.js';
import { MAX_INCREASE, searchShift, THRESHOLDS, type ShiftPoint } from './shift.js';
import { openTrainable } from './sparsify.js';
import { startTrainer } from './train-setting.js';
import { fileTypes, MARK, requireFree, writeModel } from './write-model.js';

export interface ShiftOnlyOptions extends TrainingOptions {
  texts: readonly TextSource[];
  maxIncrease?: number;
  thresholds?: readonly number[];
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

export interface ShiftOnlyResult {
  model: string;
  chosen: ShiftPoint;
  /** Before: the threshold that the model had. */
  before: ShiftPoint;
  points: ShiftPoint[];
  layers: number[];
  folder: string;
}

/** @throws ModelError for models without a ReLU; UsageError when the text is too short */
export async function shiftOnly(
  path: string,
  out: string,
  options: ShiftOnlyOptions,
): Promise<ShiftOnlyResult> {
  requireFree(out);
  requireOnnxRuntime('sparsify');
  const source = await openTrainable(path);
  try {
    const from = thresholdOf(source);
    const prepared: Prepared = await prepareMeasuring(source, options.texts, options);
    const setting: Setting = {
      ...{ name: 'prosparse', activation: { kind: 'relu' }, stages: [], shift: true, targetSparsity: null },
    };
    const trainer = startTrainer(prepared, setting);
    try {
      const { chosen, measured, points } = await searchShift(trainer, prepared.heldOut, from, {
        thresholds: options.thresholds ?? THRESHOLDS,
        maxIncrease: options.maxIncrease ?? MAX_INCREASE,
        ...{ signal: options.signal, onProgress: options.onProgress },
      });
      const activation = { kind: 'fatrelu', threshold: chosen.threshold } as const;
      const { parameters, start } = prepared;
      await writeModel(out, source, parameters, start, activation, fileTypes(source, null));
      const [before] = points;
      const result = { model: source.name, chosen, before, points, layers: measured.layers, folder: out };
      await writeFileAtomic(join(out, MARK), JSON.stringify(result));
      return result;
    } finally {
      await trainer.end();
    }
  } finally {
    await source.close();
  }
}

function thresholdOf({ path, config }: WeightSource): number {
  const { kind, threshold } = config.activation;
  if (kind === 'relu') return 0;
  if (kind === 'fatrelu') return threshold;
  throw new ModelError('MODEL_UNSUPPORTED', `${path}: a threshold needs a ReLU, this model has ${kind}`, {
    hint: kind === 'silu' ? 'Train it first: hybrid-infer sparsify without --shift-only.' : '',
  });
}
