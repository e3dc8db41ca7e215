/**
 * `profile`, from a model and text to a plan, in the order it happens:
 *
 *     pack -> passages -> record -> fit each layer -> choose thresholds -> plan -> evaluate -> artifacts
 *
 * Everything before the artifacts is kept in a work folder: a run that was killed goes on where it was, and
 * ends with the same bytes.
 */
import { createHash } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { totalmem } from 'node:os';
import { Engine } from '../engine/engine.js';
import { firstFew, HybridError, UsageError } from '../errors.js';
import { evaluate, type Evaluation } from '../evaluate/evaluate.js';
import { acquireLock, type Lock } from '../io/lock.js';
import { selectKernels } from '../kernels/select.js';
import type { WeightFormat } from '../kernels/layout.js';
import { openModel } from '../model/open-model.js';
import { createTokenizer } from '../model/tokenizer.js';
import { requireOnnxRuntime } from '../onnx/runtime.js';
import { cachedPack } from '../pack/cache.js';
import { looksLikePack, openPack } from '../pack/reader.js';
import { TOOL_VERSION } from '../pack/tool-version.js';
import type { Pack, PackHeader } from '../pack/types.js';
import type { Attempt } from '../predictor/fit-layer.js';
import type { SampleParts } from '../predictor/samples.js';
import {
  writePredictor,
  type ArtifactModel,
  type LayerChoice,
  type PredictorArtifact,
  type PredictorLayer,
  type Provenance,
} from '../predictor/artifact.js';
import { writeProfile, type ProfileArtifact, type ProfileLayer } from './artifact.js';
import { writeCalibrationText, writingOptions } from './calibration.js';
import { encodeExcerpts } from './excerpts.js';
import { layerPlan, predictorPath, profilePath } from './find-plan.js';
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
import {
  MIN_WINDOWS,
  planSamples,
  selfWrittenPassages,
  splitPassages,
  type Passages,
  type SamplePlan,
} from './passages.js';
import { chooseMode, densitiesAt, sizesOf } from './plan.js';
import { record, stopWhenAsked, type Recorded } from './record.js';
import { LayerRecording, RECORDING } from './recording-files.js';
import { applyThresholds, searchRecall } from './search.js';
import {
  COMPARE_AT_WEIGHTED_RECALL,
  cutsOf,
  decideSparsified,
  findCuts,
  uncutPlan,
  type Sparsified,
  type SparsifyCuts,
} from './sparsify.js';
import { equalSlopes } from './thresholds.js';
import { trainLayers } from './train-pool.js';
import type { TrainedLayer } from './train-worker.js';
import { WorkFolder } from './work-folder.js';

/** What both ways of profiling give. */
export interface RunFigures {
  memory: { limitBytes: number; plannedBytes: number; peakBytes: number; diskBytes: number };
  /** By stage: text, record, fit, thresholds. */
  seconds: Record<string, number>;
  /** Tokens recorded a second, in this run; null when an earlier one had recorded all. */
  recordTokensPerSecond: number | null;
}

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

/** Where predictors are compared when perplexity is the target: there quality stops moving. */
const COMPARE_AT_RECALL = 0.99;

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

const compareAt = ({ target, sparsify }: ResolvedOptions): number =>
  sparsify !== null ? COMPARE_AT_WEIGHTED_RECALL : 'recall' in target ? target.recall : COMPARE_AT_RECALL;

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

const describeTexts = (options: ProfileOptions): Provenance['texts'] =>
  (options.texts ?? []).map(({ name, text }) => ({
    name: basename(name), // folders of a user's machine have no place in an artifact
    sha256: createHash('sha256').update(text).digest('hex'),
    bytes: Buffer.byteLength(text),
  }));

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

const provenanceOf = (
  work: WorkFolder,
  resolved: ResolvedOptions,
  header: PackHeader,
  texts: Provenance['texts'],
  passages: Passages,
  kernels: string,
  figures: { samples: number; heldOutSamples: number },
): Provenance => ({
  toolVersion: TOOL_VERSION,
  createdAt: work.createdAt,
  texts,
  selfWritten: texts.length === 0,
  tokens: passages.windows.length * passages.window,
  ...figures,
  window: passages.window,
  seed: resolved.seed,
  quant: header.quant,
  kernels,
});

const runFigures = (
  limitBytes: number,
  { bytes, diskBytes }: { bytes: number; diskBytes: number },
  clock: Stopwatch,
  recordTokensPerSecond: number | null,
): RunFigures => ({
  memory: {
    limitBytes,
    plannedBytes: bytes,
    peakBytes: process.resourceUsage().maxRSS * 1024,
    diskBytes,
  },
  seconds: clock.laps,
  recordTokensPerSecond,
});

function sumSeconds(layers: readonly Record<string, number>[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const seconds of layers) {
    for (const [stage, value] of Object.entries(seconds)) sum[stage] = (sum[stage] ?? 0) + value;
  }
  return sum;
}

const modelOf = (header: PackHeader): ArtifactModel => ({
  name: header.name,
  fingerprint: header.fingerprint,
  layers: header.config.layers,
  hiddenSize: header.config.hiddenSize,
  intermediateSize: header.config.intermediateSize,
});

// ---- text and recording -------------------------------------------------------------------------------

interface ReadText {
  passages: Passages;
  samples: SamplePlan;
  recorded: Recorded;
  kernelsName: string;
  recordTokensPerSecond: number | null;
}

/** Finds or writes the text and records the model reading it. */
async function readText(
  pack: Pack,
  work: WorkFolder,
  resolved: ResolvedOptions,
  options: ProfileOptions,
  clock: Stopwatch,
  plan: (passages: Passages) => SamplePlan,
  before: (engine: Engine, passages: Passages) => Promise<void> = async () => {},
): Promise<ReadText> {
  const { window, tokens, seed, threads, kernels } = resolved;
  const { signal, onProgress } = options;
  // Before the engine is loaded: a text that is too short is refused at once.
  const given = options.texts?.length ? givenPassages(pack, options.texts, resolved) : null;
  const engine = await Engine.open(openPack(pack.path), {
    ffn: 'exact',
    plan: resolved.sparsify === null ? null : uncutPlan(pack.header.config.layers),
    contextLength: window,
    batchTokens: window,
    ...(given ? { slots: 1 } : writingOptions(pack.header, window)),
    threads,
    kernels,
    signal,
    onProgress,
  });
  try {
    let passages = given;
    if (!passages) {
      const count = Math.max(MIN_WINDOWS, Math.floor(tokens / window));
      const written = await writeCalibrationText(engine, work, count, window, seed, { signal, onProgress });
      passages = selfWrittenPassages(written, seed);
    }
    if (options.hotOnly) passages = { ...passages, chooseFrom: passages.windows.length };
    clock.lap('text');
    await before(engine, passages);
    const samples = plan(passages);
    let first = -1;
    let last = 0;
    const recorded = await record(engine, work, passages, samples, {
      inputs: !options.hotOnly,
      signal,
      onProgress: (progress) => {
        if (first < 0) first = progress.done;
        last = progress.done;
        onProgress?.(progress);
      },
    });
    clock.lap('record');
    const recordTokensPerSecond = last > first ? (last - first) / clock.laps.record : null;
    return { passages, samples, recorded, kernelsName: engine.kernelsName, recordTokensPerSecond };
  } finally {
    await engine.close();
  }
}

function givenPassages(
  pack: Pack,
  texts: readonly { name: string; text: string }[],
  { window, tokens, seed }: ResolvedOptions,
): Passages {
  const tokenizer = createTokenizer(pack.header.tokenizer);
  for (const { name, text } of texts) {
    if (text.trim() === '') throw new UsageError(`--text ${name} is empty`, 'Give a file with text in it.');
  }
  const ids = encodeExcerpts(
    tokenizer,
    texts.map(({ text }) => text),
    tokens,
    window,
  );
  return splitPassages(ids, window, tokens, seed);
}

// ---- thresholds and plan ------------------------------------------------------------------------------

interface Decision {
  layers: PredictorLayer[];
  evaluation: Evaluation;
  target: string;
  sparsified: Sparsified | null;
}

/** Chooses thresholds and modes, and evaluates the finished plan on windows that chose nothing. */
async function decide(
  pack: Pack,
  trained: readonly TrainedLayer[],
  { counts, routed, tokens }: Recorded,
  passages: Passages,
  resolved: ResolvedOptions,
  options: ProfileOptions,
  found: SparsifyCuts | null,
): Promise<Decision> {
  const { window, threads, kernels, target } = resolved;
  const { signal, onProgress } = options;
  const choose = passages.windows.slice(passages.chooseFrom, passages.reportFrom).flat();
  const report = passages.windows.slice(passages.reportFrom).flat();
  const curves = trained.map((layer) => layer.curve);
  const choices = (recall: number): LayerChoice[] => {
    const points = equalSlopes(curves, recall);
    return trained.map((layer, l) => {
      const at = points[l];
      const chosenBy = densitiesAt(layer.curve, at, layer.sparsity);
      const figures = densitiesAt(layer.report, at, layer.report.sparsity);
      const threshold = layer.curve.threshold[at];
      return chooseMode(layer.predictor, threshold, sizesOf(pack.header, l, routed[l]), chosenBy, figures);
    });
  };
  const together = (chosen: readonly LayerChoice[]): PredictorLayer[] =>
    chosen.map((choice, l) => ({ ...choice, predictor: trained[l].predictor, curve: trained[l].curve }));

  const start = together(choices(compareAt(resolved)));
  const engine = await Engine.open(openPack(pack.path), {
    contextLength: window,
    batchTokens: window,
    threads,
    kernels,
    signal,
    plan: {
      layers: start.map((layer, l) =>
        layerPlan(
          found ? { ...layer, cuts: cutsOf(found, l) } : layer,
          Float32Array.from(counts[l], (n) => n / tokens),
          layer.threshold,
          'predicted',
        ),
      ),
    },
  });
  const run = async (
    layers: readonly PredictorLayer[],
    text: readonly number[],
    compare: boolean,
  ): Promise<Evaluation> => {
    await engine.setModes(layers.map((layer) => layer.mode));
    await applyThresholds(
      engine,
      trained.map((layer) => layer.predictor),
      layers.map((layer) => layer.threshold),
    );
    return evaluate(engine, text, {
      window,
      compare,
      signal,
      onProgress: (done, total) => onProgress?.({ stage: 'evaluate', done, total, unit: 'tokens' }),
    });
  };
  try {
    if (found)
      return await decideSparsified(engine, found, trained, passages, { window, signal, onProgress });
    if ('recall' in target) {
      const points = equalSlopes(curves, target.recall);
      const mean = curves.reduce((sum, { recall }, l) => sum + recall[points[l]], 0) / curves.length;
      const missed = mean < target.recall ? ` (reached ${mean.toFixed(4)})` : '';
      return {
        layers: start,
        evaluation: await run(start, report, true),
        target: `recall ${target.recall}${missed}`,
        sparsified: null,
      };
    }
    const limit = target.maxPerplexityIncrease;
    await engine.setModes(start.map(() => 'dense'));
    const dense = (await evaluate(engine, choose, { window, compare: false, signal })).perplexity;
    const { recall, met } = await searchRecall(limit, async (r) => {
      const { perplexity } = await run(together(choices(r)), choose, false);
      return perplexity / dense - 1;
    });
    const layers = together(choices(recall));
    const words = `perplexity increase at most ${(100 * limit).toFixed(3)} %`;
    return {
      layers,
      evaluation: await run(layers, report, true),
      target: `${words}: recall ${recall.toFixed(4)}${met ? '' : ' (not reached)'}`,
      sparsified: null,
    };
  } finally {
    await engine.close();
  }
}

// ---- time ---------------------------------------------------------------------------------------------

interface Stopwatch {
  laps: Record<string, number>;
  lap(name: string): void;
}

function stopwatch(): Stopwatch {
  let last = performance.now();
  const laps: Record<string, number> = {};
  return {
    laps,
    lap(name) {
      const now = performance.now();
      laps[name] = (now - last) / 1000;
      last = now;
    },
  };
}
