/** A synthetic model's files: the pack, and the profile and predictor that belong to it. */
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { OnProgress } from '../io/progress.js';
import type { WeightFormat } from '../kernels/layout.js';
import { convert } from '../pack/convert.js';
import { writePredictor } from '../predictor/artifact.js';
import type { PredictorFormat } from '../predictor/types.js';
import { writeProfile } from '../profiler/artifact.js';
import { predictorPath, profilePath } from '../profiler/find-plan.js';
import { activationShare } from './densities.js';
import { syntheticPredictor, syntheticProfile } from './synthetic-predictor.js';
import { SyntheticModel, type SyntheticOptions } from './synthetic-model.js';

export interface WriteSyntheticOptions {
  quant: WeightFormat;
  /** Of the predictor's matrices; one to three bits: a sketch of the gates. @default 'q4' */
  predictorQuant?: PredictorFormat;
  threads?: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

export interface WrittenSynthetic {
  pack: string;
  packBytes: number;
  profile: string;
  predictor: string;
  predictorBytes: number;
  asked: { sparsity: number; predictedSparsity: number; recall: number };
  /** Share of all activations that the hottest 26 % of the neurons make. */
  hotShare: number;
}

/**
 * Writes `<folder>/<shape>.<quant>.hpack`, and profiles/ and predictors/ in the folder, where `run` started in
 * it finds them.
 */
export async function writeSynthetic(
  model: SyntheticOptions,
  folder: string,
  options: WriteSyntheticOptions,
): Promise<WrittenSynthetic> {
  const synthetic = new SyntheticModel(model);
  const pack = join(folder, `${model.shape}.${options.quant}.hpack`);
  const header = await convert(synthetic, pack, options);
  const profile = profilePath(folder, header.name);
  const predictor = predictorPath(folder, header.name);
  for (const path of [profile, predictor]) mkdirSync(dirname(path), { recursive: true });
  await writeProfile(profile, syntheticProfile(synthetic, header));
  const artifact = await syntheticPredictor(synthetic, header, options.predictorQuant ?? 'q4');
  await writePredictor(predictor, artifact);
  const { predictedSparsity, recall } = artifact.layers[0].heldOut;
  return {
    pack,
    packBytes: header.fileBytes,
    profile,
    predictor,
    predictorBytes: artifact.layers.reduce((sum, layer) => sum + layer.bytes.predictor, 0),
    asked: { sparsity: synthetic.sparsity, predictedSparsity, recall: recall ?? synthetic.plan.recall },
    hotShare: activationShare(synthetic.plan, 0.26),
  };
}
