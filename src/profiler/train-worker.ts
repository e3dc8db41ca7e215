/** The training pool's worker: reads one layer's recording, fits its predictor, measures its curve. */
import { join } from 'node:path';
import { HybridError, type ErrorCode } from '../errors.js';
import { openPack } from '../pack/reader.js';
import type { SampleParts } from '../predictor/samples.js';
import type { GatePredictorKind } from '../predictor/types.js';
import { fitExperts, type FittedExperts } from './fit-experts.js';
import { coActivation, type CoActivation } from './hotness.js';
import { stopped } from './record.js';
import { LayerRecording, RECORDING, type RecordingIndex } from './recording-files.js';

export interface TrainJob {
  packPath: string;
  folder: string;
  layer: number;
  index: RecordingIndex;
  parts: SampleParts;
  /** [nFf] over the training tokens */
  counts: Uint32Array;
  /** Training tokens that met each expert; one number without a mixture. */
  routed: Uint32Array;
  kind: GatePredictorKind | 'auto';
  rank: number | 'auto';
  /** Recall to compare predictors at. */
  recall: number;
  /** Of an activation without zeros: what neurons must contribute; null: the activation decides. */
  contribution: number | null;
  epochs: number;
  seed: number;
  /** onnxruntime provider. */
  provider: string;
  /** Threads of the products; the result does not depend on them. */
  threads: number;
}

export interface TrainedLayer extends FittedExperts {
  coActivation: CoActivation;
}

/** Errors cross threads as data: structured clone would lose their class and code. */
export type TrainResult =
  { ok: true; layer: TrainedLayer } | { ok: false; code: ErrorCode; message: string; hint: string };

/** `stop[0]` other than 0: end at the next chance. A worker must not be terminated inside onnxruntime. */
export interface TrainTask {
  job: TrainJob;
  stop: Int32Array;
}

export default async function train({ job, stop }: TrainTask): Promise<TrainResult> {
  const check = (): void => {
    if (Atomics.load(stop, 0) !== 0) throw stopped();
  };
  try {
    check();
    return { ok: true, layer: await trainOne(job, check) };
  } catch (error) {
    const { message } = error as Error;
    if (error instanceof HybridError) return { ok: false, code: error.code, message, hint: error.hint };
    return {
      ok: false,
      code: 'LANE_FAILED',
      message: `training layer ${job.layer}: ${(error as Error).stack}`,
      hint: '',
    };
  }
}

async function trainOne(job: TrainJob, check: () => void): Promise<TrainedLayer> {
  const { layer, counts, routed } = job;
  const pack = openPack(job.packPath);
  let recording: LayerRecording | null = null;
  try {
    recording = new LayerRecording(join(job.folder, RECORDING), layer, job.index);
    const fitted = await fitExperts(job, pack, recording, check);
    return { ...fitted, coActivation: coActivation(recording, counts, routed) };
  } finally {
    recording?.close();
    pack.close();
  }
}
