/** The training pool's worker: reads one layer's recording, fits its predictor, measures its curve. */
import { join } from 'node:path';
import { HybridError, type ErrorCode } from '../errors.js';
import { openPack } from '../pack/reader.js';
import type { LayerCurve } from '../predictor/artifact.js';
import { fitContribution } from '../predictor/fit-contribution.js';
import { fitLayer, type Attempt, type FittedLayer } from '../predictor/fit-layer.js';
import { toQ8 } from '../predictor/rows.js';
import type { SampleParts } from '../predictor/samples.js';
import type { LayerPredictor, GatePredictorKind } from '../predictor/types.js';
import { measureCurve, type Reported } from './curve.js';
import { coActivation, type CoActivation } from './hotness.js';
import { downNorms, gateRows, gateThresholds, neuronBias, upRows } from './pack-rows.js';
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
  tokens: number;
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

export interface TrainedLayer {
  predictor: LayerPredictor;
  /** On the samples to choose by. */
  curve: LayerCurve;
  /** On those as well. */
  sparsity: number;
  /** What the curve's thresholds give on samples that chose nothing. */
  report: Reported;
  coActivation: CoActivation;
  /** What else was considered. */
  attempts: Attempt[];
  /** What took how long. */
  seconds: Record<string, number>;
}

/** Predictor bits per gate weight, scales included. Above it, reading the gate itself is hardly dearer. */
const MAX_BITS = 3.25;

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
  const { layer, parts, counts, tokens } = job;
  const begin = performance.now();
  const pack = openPack(job.packPath);
  let recording: LayerRecording | null = null;
  try {
    recording = new LayerRecording(join(job.folder, RECORDING), layer, job.index);
    const norms = downNorms(pack, layer);
    const { gate, ffn } = pack.header.layers[layer];
    const weights = gateRows(pack, layer);
    const read = performance.now();
    const { activation } = pack.header.config;
    const biases =
      job.contribution === null
        ? null
        : {
            activation: activation.kind,
            gate: neuronBias(pack, pack.header.layers[layer].gateBias),
            up: neuronBias(pack, pack.header.layers[layer].upBias),
          };
    const common = {
      layer,
      gateRows: weights,
      downNorms: norms,
      gateRowBytes: gate.stride,
      recordBytes: ffn.stride,
      provider: job.provider,
      threads: job.threads,
      check,
    };
    const gateFit = (samples: LayerRecording): Promise<FittedLayer> =>
      fitLayer(
        {
          ...common,
          kind: job.kind,
          recall: job.recall,
          maxBits: MAX_BITS,
          ranks: job.rank === 'auto' ? undefined : [job.rank],
          epochs: job.epochs,
          seed: job.seed,
          gateThreshold: gateThresholds(pack, layer),
        },
        samples,
        parts,
      );
    const contributionFit = (samples: LayerRecording): Promise<FittedLayer> =>
      fitContribution(
        {
          ...common,
          least: job.contribution!,
          weightedRecall: job.recall,
          upRows: upRows(pack, layer),
          biases: biases!,
        },
        samples,
        parts,
      );
    const { predictor, attempts, seconds } = await (biases ? contributionFit : gateFit)(recording);
    const fitted = performance.now();
    const gates = predictor.kind === 'up' ? toQ8(weights, recording.nFf, recording.d) : null;
    const measured = measureCurve(predictor, recording, parts, norms, biases, gates);
    return {
      predictor,
      ...measured,
      attempts,
      coActivation: coActivation(recording, counts, tokens),
      seconds: {
        read: (read - begin) / 1000,
        ...seconds,
        curve: (performance.now() - fitted) / 1000,
      },
    };
  } finally {
    recording?.close();
    pack.close();
  }
}
