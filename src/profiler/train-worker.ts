/** The training pool's worker: reads one layer's recording, trains its predictor, measures its curve. */
import { HybridError, type ErrorCode } from '../errors.js';
import { openPack } from '../pack/reader.js';
import type { LayerCurve } from '../predictor/artifact.js';
import { fitLayer, type Attempt } from '../predictor/fit-layer.js';
import type { LayerPredictor, PredictorKind } from '../predictor/types.js';
import { measureCurve } from './curve.js';
import { coActivation, type CoActivation } from './hotness.js';
import { downNorms, gateRows, gateThresholds } from './pack-rows.js';
import { readRecording } from './recording-files.js';

export interface TrainJob {
  packPath: string;
  folder: string;
  layer: number;
  samples: number;
  heldOutFrom: number;
  /** [nFf] over the training tokens */
  counts: Uint32Array;
  tokens: number;
  kind: PredictorKind | 'auto';
  rank: number | 'auto';
  /** Recall to compare predictors at. */
  recall: number;
  epochs: number;
  seed: number;
  /** onnxruntime provider. */
  provider: string;
}

export interface TrainedLayer {
  predictor: LayerPredictor;
  curve: LayerCurve;
  /** On the held-out samples. */
  sparsity: number;
  coActivation: CoActivation;
  /** What else was tried. */
  attempts: Attempt[];
}

/** Predictor bits per gate weight, scales included. Above it, reading the gate itself is hardly dearer. */
const MAX_BITS = 3.25;

/** Errors cross threads as data: structured clone would lose their class and code. */
export type TrainResult =
  { ok: true; layer: TrainedLayer } | { ok: false; code: ErrorCode; message: string; hint: string };

export default async function train(job: TrainJob): Promise<TrainResult> {
  try {
    return { ok: true, layer: await trainOne(job) };
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

async function trainOne(job: TrainJob): Promise<TrainedLayer> {
  const { layer, samples, heldOutFrom, counts, tokens } = job;
  const pack = openPack(job.packPath);
  try {
    const { hiddenSize: d, intermediateSize: nFf } = pack.header.config;
    const rec = readRecording(job.folder, layer, samples, d, nFf);
    const norms = downNorms(pack, layer);
    const { gate, ffn } = pack.header.layers[layer];
    const { predictor, attempts } = await fitLayer(
      {
        layer,
        kind: job.kind,
        recall: job.recall,
        maxBits: MAX_BITS,
        ranks: job.rank === 'auto' ? undefined : [job.rank],
        epochs: job.epochs,
        seed: job.seed,
        gateRows: gateRows(pack, layer),
        downNorms: norms,
        gateThreshold: gateThresholds(pack, layer),
        gateRowBytes: gate.stride,
        recordBytes: ffn.stride,
        provider: job.provider,
      },
      rec,
      heldOutFrom,
    );
    const { curve, sparsity } = measureCurve(predictor, rec, heldOutFrom, norms);
    return { predictor, curve, sparsity, attempts, coActivation: coActivation(rec, counts, tokens) };
  } finally {
    pack.close();
  }
}
