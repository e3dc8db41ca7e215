/** Layers trained in parallel; each result is kept as a file, so that a killed run trains only the others. */
import { existsSync } from 'node:fs';
import { Piscina } from 'piscina';
import { z } from 'zod';
import { HybridError } from '../errors.js';
import type { OnProgress } from '../io/progress.js';
import { workerUrl } from '../io/worker-path.js';
import {
  decodeLayer,
  encodeLayer,
  type ArtifactModel,
  type LayerChoice,
  type ModeBytes,
} from '../predictor/artifact.js';
import {
  f32Schema,
  parse,
  readArtifact,
  toBytes,
  writeArtifact,
  type ArtifactKind,
} from '../predictor/artifact-file.js';
import { PREDICTOR_FORMATS, PREDICTOR_KINDS } from '../predictor/types.js';
import { stopWhenAsked } from './record.js';
import type { TrainedLayer, TrainJob, TrainResult, TrainTask } from './train-worker.js';
import type { WorkFolder } from './work-folder.js';

/** A layer between training and the choice of its threshold. */
const TRAINED_FILE: ArtifactKind = { magic: 'HYBTRAI\0', version: 3, name: 'trained layer' };

const measuredSchema = z.strictObject({
  sparsity: z.number(),
  coActivation: z.object({
    neurons: z.number(),
    jaccard: z.number(),
    independent: z.number(),
    strongest: z.array(z.object({ a: z.number(), b: z.number(), jaccard: z.number() })),
  }),
  attempts: z.array(
    z.object({
      kind: z.enum(PREDICTOR_KINDS),
      format: z.enum(PREDICTOR_FORMATS),
      rank: z.number(),
      bits: z.number(),
      recall: z.number(),
      weightedRecall: z.number(),
      predictedSparsity: z.number(),
      cost: z.number(),
      from: z.enum(['all', 'sample', 'estimate']),
      over: z.number(),
      overError: z.number(),
    }),
  ),
  seconds: z.record(z.string(), z.number()),
  unfitted: z.array(z.strictObject({ expert: z.number(), tokens: z.number() })),
});

const reportSchema = z.strictObject({
  sparsity: z.number(),
  recall: f32Schema,
  weightedRecall: f32Schema,
  predictedSparsity: f32Schema,
});

export interface TrainPoolOptions {
  model: ArtifactModel;
  workers: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

/** @returns every layer, trained now or in an earlier start */
export async function trainLayers(
  folder: WorkFolder,
  jobs: readonly TrainJob[],
  options: TrainPoolOptions,
): Promise<TrainedLayer[]> {
  const { model, signal, onProgress } = options;
  const known = jobs.map((job) => readTrained(folder, job.layer, model));
  let done = known.filter((layer) => layer !== null).length;
  const workers = Math.min(options.workers, Math.max(1, jobs.length - done));
  /** What the layers of this run took: those fitted at the same time are not done after each other. */
  const took: number[] = [];
  const report = (): void => {
    const mean = took.reduce((a, b) => a + b, 0) / took.length;
    const rounds = Math.ceil((jobs.length - done) / workers);
    const remainingSeconds = took.length > 0 ? mean * rounds : undefined;
    onProgress?.({ stage: 'fit', done, total: jobs.length, unit: 'layers', remainingSeconds });
  };
  report();
  if (done === jobs.length) return known as TrainedLayer[];
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const end = (): void => {
    Atomics.store(stop, 0, 1);
  };
  signal?.addEventListener('abort', end, { once: true });
  const pool = new Piscina<TrainTask, TrainResult>({
    filename: workerUrl(import.meta.url, './train-worker.js').href,
    minThreads: 1,
    maxThreads: workers,
    // A layer takes seconds to minutes: nothing is gained by queueing two on one worker.
    concurrentTasksPerWorker: 1,
  });
  const died = poolFailed(pool);
  died.catch(() => {}); // reported by the race below
  const running = jobs.map(async (job, l) => {
    if (known[l]) return known[l];
    const result = await pool.run({ job, stop });
    if (!result.ok) throw new HybridError(result.code, result.message, { hint: result.hint });
    await writeTrained(folder, job.layer, result.layer);
    took.push(Object.values(result.layer.seconds).reduce((a, b) => a + b, 0));
    done++;
    report();
    return result.layer;
  });
  const all = Promise.all(running);
  all.catch(() => {}); // nor when it is never awaited, as the work was stopped before
  try {
    stopWhenAsked(signal);
    return await Promise.race([died, all]);
  } catch (error) {
    // The others end at their next product: a worker that is terminated inside one takes the process with it.
    end();
    await Promise.race([died.catch(() => {}), Promise.allSettled(running)]);
    stopWhenAsked(signal);
    if (error instanceof HybridError) throw error;
    throw new HybridError('LANE_FAILED', `a training worker failed: ${(error as Error).message}`, {
      hint: 'If memory ran out, lower --samples or --memory. The same command goes on where it was.',
      cause: error,
    });
  } finally {
    signal?.removeEventListener('abort', end);
    await pool.destroy();
  }
}

/** A worker that dies outside a task is reported here only. */
const poolFailed = (pool: Piscina<TrainTask, TrainResult>): Promise<never> =>
  new Promise((_, reject) => pool.on('error', reject));

const trainedPath = (folder: WorkFolder, l: number): string =>
  folder.file(`${String(l).padStart(4, '0')}.trained`);

/** The same layout as in the artifact; the choice is made later. */
const NOT_CHOSEN: LayerChoice = {
  mode: 'exact',
  reason: '',
  threshold: 0,
  heldOut: { sparsity: 0, predictedSparsity: 0, recall: 0, weightedRecall: 0 },
  bytes: { dense: 0, exact: 0, predicted: 0, predictor: 0 } satisfies ModeBytes,
};

function writeTrained(folder: WorkFolder, l: number, layer: TrainedLayer): Promise<void> {
  const { predictor, curve, sparsity, report, coActivation, attempts, seconds, unfitted } = layer;
  return writeArtifact(trainedPath(folder, l), TRAINED_FILE, {
    meta: { sparsity, coActivation, attempts, seconds, unfitted },
    blocks: [
      encodeLayer({ ...NOT_CHOSEN, predictor, curve }),
      {
        sparsity: report.sparsity,
        recall: toBytes(report.recall),
        weightedRecall: toBytes(report.weightedRecall),
        predictedSparsity: toBytes(report.predictedSparsity),
      },
    ],
  });
}

function readTrained(folder: WorkFolder, l: number, model: ArtifactModel): TrainedLayer | null {
  const path = trainedPath(folder, l);
  if (!existsSync(path)) return null;
  const raw = readArtifact(path, TRAINED_FILE);
  const meta = parse(measuredSchema, raw.meta, path);
  const { predictor, curve } = decodeLayer(raw.blocks[0], l, model, path);
  return { ...meta, predictor, curve, report: parse(reportSchema, raw.blocks[1], path) };
}
