/** What each sparse model is worth to this runtime: predictors, tokens per second, and the two sparse steps. */
import { dirname } from 'node:path';
import { HybridModel } from '../api/hybrid-model.js';
import { benchKernels } from '../bench/kernels.js';
import { benchModel, type BenchRow } from '../bench/model.js';
import type { OnProgress } from '../io/progress.js';
import { rowBytes } from '../kernels/layout.js';
import { selectKernels } from '../kernels/select.js';
import { findPlan } from '../profiler/find-plan.js';
import { profile } from '../profiler/profile.js';
import type { SettingResult } from './sparsify.js';

/** One step of the FFN for one token and layer, in microseconds on one thread. */
export interface StepTime {
  dense: number;
  sparse: number;
  times: number;
}

export interface Comparison {
  setting: string;
  /** Null for a model without zeros: nothing is predicted there. */
  recall: number | null;
  predictedSparsity: number | null;
  /** Sparsity as the profile saw it. */
  sparsity: number | null;
  tokensPerSecond: { dense: number; exact: number | null; predicted: number | null };
  /** S2: up rows of the neurons that fire; S3: their down rows. Null without zeros. */
  s2: StepTime | null;
  s3: StepTime | null;
}

export interface CompareOptions {
  texts: readonly { name: string; text: string }[];
  /** Profiles of fewer samples. @default false */
  quick?: boolean;
  threads?: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

const QUANT = 'q8';
/** A round of a small model takes milliseconds, and a single interruption moves it: more of them. */
const ROUNDS = { small: 41, large: 5 };
const SMALL_FFN = 2 ** 22;

interface Shape {
  hiddenSize: number;
  intermediateSize: number;
  maxContext: number;
}

/** Kernels are measured once: they are the same for every setting of a model. */
export class Comparer {
  private constructor(
    private readonly config: Shape,
    private readonly speeds: KernelSpeeds,
  ) {}

  static async start(config: Shape): Promise<Comparer> {
    return new Comparer(config, await kernelSpeeds(config.hiddenSize));
  }

  compare(result: SettingResult, options: CompareOptions): Promise<Comparison> {
    options.signal?.throwIfAborted();
    return compareOne(result, this.config, this.speeds, options);
  }
}

async function compareOne(
  { setting, folder, sparsity }: SettingResult,
  config: Shape,
  speeds: KernelSpeeds,
  options: CompareOptions,
): Promise<Comparison> {
  const { signal, onProgress, threads } = options;
  const sparse = setting !== 'original';
  const profiled = sparse ? await profile(folder, dirname(folder), QUANT, options) : null;
  const modes = sparse ? (['dense', 'exact', 'predicted'] as const) : (['dense'] as const);
  const { rows } = await benchModel({
    configurations: modes.map((ffn) => ({
      load: (contextLength: number) =>
        HybridModel.load(folder, {
          ...{ ffn, quant: QUANT, threads, contextLength, signal },
          findPlan: (pack) =>
            profiled &&
            findPlan(pack, { profile: profiled.artifacts.profile, predictor: profiled.artifacts.predictor }),
        }),
    })),
    maxContext: config.maxContext,
    rounds: config.hiddenSize * config.intermediateSize < SMALL_FFN ? ROUNDS.small : ROUNDS.large,
    signal,
    onProgress: (done, total) => onProgress?.({ stage: `bench ${setting}`, done, total, unit: 'steps' }),
  });
  const speed = (mode: BenchRow['ffnMode']): number | null =>
    rows.find((row) => row.ffnMode === mode && row.test.startsWith('tg'))?.tokensPerSecond ?? null;
  return {
    setting,
    recall: profiled?.evaluation.recall ?? null,
    predictedSparsity: profiled?.evaluation.predictedSparsity ?? null,
    sparsity: profiled?.evaluation.sparsity ?? null,
    tokensPerSecond: { dense: speed('dense')!, exact: speed('exact'), predicted: speed('predicted') },
    ...stepTimes(sparse ? (1 - sparsity) * config.intermediateSize : null, config, speeds),
  };
}

// ---- the two steps ----------------------------------------------------------------------------------------

/** Bytes per microsecond of weights in this machine's best kernels, from memory, rows of this length. */
interface KernelSpeeds {
  rowBytes: number;
  dot: number;
  dotLists: number;
  sumLists: number;
  records: number;
}

async function kernelSpeeds(cols: number): Promise<KernelSpeeds> {
  const cases = ['dot', 'dotLists', 'sumLists', 'records'] as const;
  const rows = await benchKernels(selectKernels('auto'), { formats: [QUANT], cases, cols });
  const speed = (name: (typeof cases)[number]): number =>
    1000 * rows.find((row) => row.case === name)!.gbPerSecond;
  return {
    rowBytes: rowBytes(QUANT, cols),
    ...{
      dot: speed('dot'),
      dotLists: speed('dotLists'),
      sumLists: speed('sumLists'),
      records: speed('records'),
    },
  };
}

/**
 * From the kernels' speeds and the number of rows: dense reads all of them in order, sparse the active ones where
 * they lie. A record's two rows are read by both steps, so S3's own time is what S2 leaves of a record's.
 */
function stepTimes(
  active: number | null,
  { intermediateSize }: { intermediateSize: number },
  speeds: KernelSpeeds,
): Pick<Comparison, 's2' | 's3'> {
  if (active === null) return { s2: null, s3: null };
  const all = intermediateSize * speeds.rowBytes;
  const some = active * speeds.rowBytes;
  const time = (dense: number, sparse: number): StepTime => ({ dense, sparse, times: dense / sparse });
  const upList = some / speeds.dotLists;
  return {
    s2: time(all / speeds.dot, upList),
    s3: time(all / speeds.sumLists, Math.max((2 * some) / speeds.records - upList, some / speeds.sumLists)),
  };
}
