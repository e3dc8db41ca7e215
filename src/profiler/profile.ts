/**
 * `profile`, from a model and text to a plan, in the order it happens:
 *
 *     pack -> passages -> record -> fit each layer -> choose thresholds -> plan -> evaluate -> artifacts
 *
 * Everything before the artifacts is kept in a work folder: a run that was killed goes on where it was, and
 * ends with the same bytes.
 */
import { mkdirSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { totalmem } from 'node:os';
import { firstFew, HybridError, UsageError } from '../errors.js';
import type { Evaluation } from '../evaluate/evaluate.js';
import { acquireLock, type Lock } from '../io/lock.js';
import { selectKernels } from '../kernels/select.js';
import type { WeightFormat } from '../kernels/layout.js';
import { openModel } from '../model/open-model.js';
import { requireOnnxRuntime } from '../onnx/runtime.js';
import { cachedPack } from '../pack/cache.js';
import { looksLikePack, openPack } from '../pack/reader.js';
import { TOOL_VERSION } from '../pack/tool-version.js';
import type { Pack } from '../pack/types.js';
import type { Attempt } from '../predictor/fit-layer.js';
import type { SampleParts } from '../predictor/samples.js';
import { writePredictor, type PredictorArtifact, type Provenance } from '../predictor/artifact.js';
import { writeProfile, type ProfileArtifact, type ProfileLayer } from './artifact.js';
import { compareAt, decide } from './decide.js';
import { predictorPath, profilePath } from './find-plan.js';
import { coActivation, layerHotness, PAIR_TOKENS } from './hotness.js';
import { formatBytes } from '../io/progress.js';
import {
  checkOptions,
  planMemory,
  quickNote,
  recordingMemory,
  requireMemory,
  resolveOptions,
  type ProfileOptions,
  type ResolvedOptions,
} from './options.js';
import { planSamples, type SamplePlan } from './passages.js';
import { describeTexts, modelOf, provenanceOf } from './provenance.js';
import { readText } from './read-text.js';
import { stopWhenAsked, type Recorded } from './record.js';
import { LayerRecording, RECORDING } from './recording-files.js';
import { runFigures, stopwatch, sumSeconds, type RunFigures } from './run-figures.js';
import { findCuts, type Sparsified, type SparsifyCuts } from './sparsify.js';
import { trainLayers } from './train-pool.js';
import type { TrainedLayer } from './train-worker.js';
import { WorkFolder } from './work-folder.js';

export interface ProfileResult extends RunFigures {
  artifacts: { profile: string; predictor: string };
  profile: ProfileArtifact;
  predictor: PredictorArtifact;
  /** The finished plan on windows that decided nothing. */
  evaluation: Evaluation;
  /** What was asked for, and whether it was reached. */
  target: string;
  /** With `sparsify`: dense and what was found, side by side. */
  sparsified: Sparsified | null;
  /** Per layer, every predictor that was considered, at the recall they were compared at. */
  attempts: Attempt[][];
  /** Seconds of fitting by stage, summed over layers: workers run beside one another. */
  fitSeconds: Record<string, number>;
}

/** Frequencies only. */
export interface HotResult extends RunFigures {
  artifacts: { profile: string };
  profile: ProfileArtifact;
}

/**
 * @param path model folder, GGUF file or pack
 * @param folder where `profiles/` and `predictors/` are
 * @throws HybridError LOCKED when another process writes these artifacts; UsageError, ModelError, ...
 */
export async function profile(
  path: string,
  folder: string,
  quant: WeightFormat | null,
  options: ProfileOptions,
): Promise<ProfileResult> {
  requireOnnxRuntime('profile without --hot-only');
  return withPack(path, quant, options, async (pack) => {
    const { name } = pack.header;
    const artifacts = { profile: profilePath(folder, name), predictor: predictorPath(folder, name) };
    return locked(Object.values(artifacts), () => profilePack(pack, artifacts, options));
  });
}

/** Which neurons are hot: the profile alone, as fast as the model reads. Arguments as for `profile`. */
export async function profileHot(
  path: string,
  folder: string,
  quant: WeightFormat | null,
  options: Omit<ProfileOptions, 'hotOnly'>,
): Promise<HotResult> {
  const hot = { ...options, hotOnly: true };
  return withPack(path, quant, hot, async (pack) => {
    const artifacts = { profile: profilePath(folder, pack.header.name) };
    return locked(Object.values(artifacts), () => countPack(pack, artifacts, hot));
  });
}

async function withPack<T>(
  path: string,
  quant: WeightFormat | null,
  options: ProfileOptions,
  work: (pack: Pack) => Promise<T>,
): Promise<T> {
  const pack = openPack(await sparsePack(path, quant, options));
  try {
    return await work(pack);
  } finally {
    pack.close();
  }
}

async function locked<T>(paths: readonly string[], work: () => Promise<T>): Promise<T> {
  const locks = lockArtifacts(paths);
  try {
    return await work();
  } finally {
    for (const lock of locks) lock.release();
  }
}

/** The pack of a model with zeros in its activations; others are refused before anything is converted. */
async function sparsePack(
  path: string,
  quant: WeightFormat | null,
  options: ProfileOptions,
): Promise<string> {
  if (looksLikePack(path)) {
    const pack = openPack(path);
    pack.close();
    checkOptions(pack.header.config, options);
    if (quant === null || quant === pack.header.quant) return path;
    throw new UsageError(`${path} holds ${pack.header.quant} weights, not ${quant}`, 'Leave --quant out.');
  }
  const source = await openModel(path);
  try {
    checkOptions(source.config, options);
    for (const warning of source.warnings) options.onWarning?.(warning);
    const { threads, signal, onProgress } = options;
    return await cachedPack(source, quant ?? 'q8', { threads, signal, onProgress });
  } finally {
    await source.close();
  }
}

function lockArtifacts(paths: readonly string[]): Lock[] {
  const locks: Lock[] = [];
  try {
    for (const path of paths) {
      mkdirSync(dirname(path), { recursive: true });
      locks.push(acquireLock(`${path}.lock`));
    }
    return locks;
  } catch (error) {
    for (const lock of locks) lock.release();
    if (error instanceof HybridError) throw error;
    throw new HybridError('IO_FAILED', `cannot create ${dirname(paths[0])}: ${(error as Error).message}`, {
      hint: 'Choose another folder with --out.',
      cause: error,
    });
  }
}

async function profilePack(
  pack: Pack,
  artifacts: ProfileResult['artifacts'],
  options: ProfileOptions,
): Promise<ProfileResult> {
  const { header } = pack;
  const { signal, onProgress, onNote } = options;
  const limitBytes = options.memoryBytes ?? Math.floor(totalmem() / 2);
  const asked = resolveOptions(header, options);
  const memory = planMemory(header, asked, limitBytes, options.samples !== undefined);
  const resolved = { ...asked, samples: memory.samples };
  if (options.quick) onNote?.(quickNote(resolved));
  onNote?.(
    `at most ${formatBytes(memory.bytes)} of memory and ${formatBytes(memory.diskBytes)} of disk; ` +
      `${memory.workers} layers fitted at a time`,
  );
  const clock = stopwatch();
  const texts = describeTexts(options);
  const work = await openWork(pack, resolved, texts, artifacts);
  try {
    let cuts: SparsifyCuts | null = null;
    const { passages, samples, recorded, ...read } = await readText(
      pack,
      work,
      resolved,
      options,
      clock,
      (of) => planSamples(of, resolved.samples, resolved.seed),
      async (engine, of) => {
        const { sparsify, window } = resolved;
        if (sparsify === null) return;
        cuts = await findCuts(engine, work, of, sparsify, { window, signal, onProgress });
        clock.lap('cuts');
        requireSomething(cuts);
      },
    );
    const found = cuts as SparsifyCuts | null;
    const { counts, routed, tokens, index } = recorded;
    const trained = await trainLayers(
      work,
      counts.map((layerCounts, layer) => ({
        packPath: pack.path,
        folder: work.path,
        layer,
        index,
        parts: partsOf(samples),
        counts: layerCounts,
        routed: routed[layer],
        kind: resolved.predictor,
        rank: resolved.rank,
        recall: compareAt(resolved),
        contribution: found && found.labels[layer].contribution,
        epochs: resolved.epochs,
        provider: resolved.device,
        threads: memory.threads,
        seed: resolved.seed,
      })),
      { model: modelOf(header), workers: memory.workers, signal, onProgress },
    );
    clock.lap('fit');
    const unfitted = trained.map((layer) => layer.unfitted);
    if (unfitted.some((of) => of.length > 0)) onNote?.(unfittedNote(unfitted));

    const parts = partsOf(samples);
    const provenance = provenanceOf(work, resolved, header, texts, passages, read.kernelsName, {
      samples: parts.report.end,
      heldOutSamples: parts.report.end - parts.report.begin,
    });
    const result = await decide(pack, trained, recorded, passages, resolved, options, found);
    clock.lap('thresholds');
    const model = modelOf(header);
    const profileArtifact: ProfileArtifact = {
      model,
      sources: [provenance],
      tokens,
      layers: trained.map(({ coActivation: pairs }, l) => profileLayer(recorded, l, pairs)),
    };
    const predictorArtifact: PredictorArtifact = {
      model,
      provenance,
      target: result.target,
      layers: result.layers,
    };
    stopWhenAsked(signal);
    await writeProfile(artifacts.profile, profileArtifact);
    await writePredictor(artifacts.predictor, predictorArtifact);
    work.remove();
    return {
      artifacts,
      profile: profileArtifact,
      predictor: predictorArtifact,
      evaluation: result.evaluation,
      target: result.target,
      sparsified: result.sparsified,
      attempts: trained.map((layer) => layer.attempts),
      fitSeconds: sumSeconds(trained.map((layer) => layer.seconds)),
      ...runFigures(limitBytes, memory, clock, read.recordTokensPerSecond),
    };
  } finally {
    work.release();
  }
}

/** @throws HybridError when not even the smallest cut keeps the limit */
function requireSomething({ contribution, limit }: SparsifyCuts): void {
  if (contribution.level > 0) return;
  throw new HybridError(
    'MODEL_UNSUPPORTED',
    `does not pay: leaving out anything raises perplexity by more than ${(100 * limit).toFixed(3)} %`,
    { hint: 'Allow more with --sparsify, or run the model with --ffn dense.' },
  );
}

/** Samples lie in the recording as they were planned: train, choose, report. */
function partsOf({ train, choose, report }: SamplePlan): SampleParts {
  const chooseFrom = train.length;
  const reportFrom = chooseFrom + choose.length;
  return {
    train: { begin: 0, end: chooseFrom },
    choose: { begin: chooseFrom, end: reportFrom },
    report: { begin: reportFrom, end: reportFrom + report.length },
  };
}

/** `--hot-only`: every window is counted, and a few samples say which neurons fire together. */
async function countPack(
  pack: Pack,
  artifacts: HotResult['artifacts'],
  options: ProfileOptions,
): Promise<HotResult> {
  const { header } = pack;
  const limitBytes = options.memoryBytes ?? Math.floor(totalmem() / 2);
  const resolved = resolveOptions(header, options);
  const bytes = recordingMemory(header, resolved.window, false);
  requireMemory(bytes, limitBytes, 'Allow more with --memory.');
  options.onNote?.(`at most ${formatBytes(bytes)} of memory`);
  const clock = stopwatch();
  const texts = describeTexts(options);
  const work = await openWork(pack, { ...resolved, hotOnly: true }, texts, artifacts);
  try {
    const none = new Uint32Array(0);
    const { passages, recorded, ...read } = await readText(pack, work, resolved, options, clock, (of) => ({
      ...planSamples(of, PAIR_TOKENS, resolved.seed),
      choose: none,
      report: none,
    }));
    const { counts, routed, tokens, index } = recorded;
    const rows = index.windows.reduce((sum, window) => sum + window.rows, 0);
    const figures = { samples: rows, heldOutSamples: 0 };
    const layers = counts.map((of, l) => {
      const recording = new LayerRecording(work.file(RECORDING), l, index);
      try {
        return profileLayer(recorded, l, coActivation(recording, of, routed[l]));
      } finally {
        recording.close();
      }
    });
    const profile: ProfileArtifact = {
      model: modelOf(header),
      sources: [provenanceOf(work, resolved, header, texts, passages, read.kernelsName, figures)],
      tokens,
      layers,
    };
    stopWhenAsked(options.signal);
    await writeProfile(artifacts.profile, profile);
    work.remove();
    return {
      artifacts,
      profile,
      ...runFigures(limitBytes, { bytes, diskBytes: 0 }, clock, read.recordTokensPerSecond),
    };
  } finally {
    work.release();
  }
}

// ---- what both have in common ---------------------------------------------------------------------------

/** Which experts have no predictor, and why. */
function unfittedNote(layers: readonly TrainedLayer['unfitted'][]): string {
  const named = layers.flatMap((of, l) => of.map(({ expert, tokens }) => `${l}.${expert} (${tokens})`));
  return (
    'too few tokens met some experts to fit predictors for them: all their neurons are candidates; more --tokens and ' +
    `--samples help. Layer.expert (tokens): ${firstFew(named, MOST_NAMED)}`
  );
}
const MOST_NAMED = 12;

function profileLayer(
  { counts, routed, tokens }: Recorded,
  l: number,
  pairs: ProfileLayer['coActivation'],
): ProfileLayer {
  const [own, met] = [counts[l], routed[l]];
  const experts = met.length > 1 ? { routed: met } : {};
  return { counts: own, coActivation: pairs, ...experts, ...layerHotness(own, tokens, met) };
}

/** A folder named by everything that decides the result. How many threads fit a layer does not. */
const openWork = (
  { header }: Pack,
  resolved: ResolvedOptions & { hotOnly?: boolean },
  texts: Provenance['texts'],
  artifacts: Record<string, string>,
): Promise<WorkFolder> =>
  WorkFolder.open({
    tool: TOOL_VERSION,
    fingerprint: header.fingerprint,
    quant: header.quant,
    ...resolved,
    kernels: selectKernels(resolved.kernels).name,
    texts,
    artifacts: Object.values(artifacts).map((path) => resolve(path)),
  });
