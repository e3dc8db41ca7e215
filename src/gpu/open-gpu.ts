/**
 * From `--gpu` and `--gpu-memory` to a running GPU: choose the provider by proof, place what pays under the
 * budget, start the worker. One call for the API and the CLI.
 */
import { execFileSync } from 'node:child_process';

import type { EngineGpu } from '../engine/engine.js';
import type { FfnMode, FfnPlan } from '../engine/ffn-plan.js';
import { HybridError } from '../errors.js';
import type { KvFormat } from '../kernels/kernels.js';
import type { Pack } from '../pack/types.js';
import type { GpuWeights } from '../profiler/gpu-bytes.js';
import {
  placementProblem,
  planActivity,
  toGpuPlacement,
  wholeSeconds,
  type GpuPlacement,
  type PlacementHardware,
  type PlacementModel,
} from '../profiler/placement-costs.js';
import { nothingPlaced, choiceSeconds, solvePlacement, type PlacementResult } from '../profiler/placement.js';
import { GpuHost } from './gpu-host.js';
import { planUnits, unsupportedFfn } from './hot-ffn.js';
import {
  describeSelection,
  selectProvider,
  type GpuChoice,
  type GpuProvider,
  type GpuSelection,
  type ProviderProbe,
} from './providers.js';
import { unsupportedHere, unsupportedWhole, wholeBytes, type WholeShape } from './webgpu/fits.js';

export interface OpenGpuOptions {
  pack: Pack;
  choice: GpuChoice;
  /** Device bytes for weights. @default four fifths of the free memory where it can be asked for, else 1 GiB */
  budgetBytes?: number;
  /** What the CPU side does: modes and frequencies decide which neurons are worth moving. */
  plan: FfnPlan | null;
  ffn: FfnMode | 'auto';
  /**
   * `fastest`: what the measured speeds say pays, perhaps nothing. `use`: the same, but where nothing pays (a
   * software adapter, a tiny model) hot neurons fill the budget all the same.
   * @default 'fastest' for auto, 'use' for a provider asked for by name
   */
  policy?: 'fastest' | 'use';
  /** A placement from a profile: used instead of solving, the budget is checked. */
  placement?: GpuPlacement;
  /** Move hot neurons only. @default false: QKV, O and lm_head too */
  ffnOnly?: boolean;
  /** @default WebGPU: the pack's rows; elsewhere 'packed' for a quantised pack, 'f32' for an f32 one */
  weights?: GpuWeights;
  /** Sequential read of all lanes together, bytes a second. @default 10e9 a lane up to 30e9 */
  cpuBytesPerSecond?: number;
  lanes: number;
  /** Engine's batchTokens. */
  maxTokens: number;
  contextTokens?: number;
  kvFormat?: KvFormat;
  /** How the engine will run the model, so that WebGPU may take all of it. @default null: units only */
  whole?: WholeShape | null;
  deviceId?: number;
  onUnit?: (done: number, total: number, bytes: number) => void;
  signal?: AbortSignal;
  /** Fault tests only. */
  failAfterRuns?: number;
}

export interface OpenedGpu {
  /** For Engine.open; null: nothing runs on a GPU, `note` says why. */
  gpu: EngineGpu | null;
  selection: GpuSelection;
  /** Units there; null: none, or the whole model. */
  placement: GpuPlacement | null;
  /** Model and KV cache are on the GPU: a step is one crossing. */
  whole: boolean;
  /** null when the placement was given, or the whole model is there. */
  result: PlacementResult | null;
  /** Expected seconds a token; null when the placement was given. */
  seconds: number | null;
  /** One line for the statistics: what was chosen and why nothing better. */
  note: string;
  /** After the engine was closed. */
  close: () => Promise<void>;
}

const DEFAULT_BUDGET_BYTES = 2 ** 30;
const SHARE_OF_FREE_MEMORY = 0.8;
/** One core's and a desktop's sequential read, for callers that did not measure. */
const LANE_BYTES_PER_SECOND = 10e9;
const CPU_BYTES_PER_SECOND = 30e9;
/** A device that always pays, for filling a budget. */
const ALWAYS_PAYS = { gpuBytesPerSecond: 1e15, crossingSeconds: 0 };

/** @throws HybridError GPU_UNAVAILABLE for a provider asked for by name; GPU_FAILED when loading fails then */
export async function openGpu(options: OpenGpuOptions): Promise<OpenedGpu> {
  const { choice, pack } = options;
  const automatic = choice === 'auto';
  const { config } = pack.header;
  const unsupportedBy = (provider: GpuProvider): string | null =>
    provider === 'webgpu' ? unsupportedHere(config) : unsupportedFfn(config);
  const refused = automatic || choice === 'off' ? null : unsupportedBy(choice);
  if (refused !== null) {
    throw new HybridError('MODEL_UNSUPPORTED', `${pack.path}: the GPU does not compute ${refused}`, {
      hint: 'Run this model on the CPU: leave --gpu out.',
    });
  }
  const selection = await selectProvider(choice, {
    deviceId: options.deviceId,
    measure: options.placement === undefined,
  });
  const { chosen } = selection;
  const nothing = (note: string): OpenedGpu => ({
    gpu: null,
    selection,
    placement: null,
    whole: false,
    result: null,
    seconds: null,
    note,
    close: () => Promise.resolve(),
  });
  if (chosen === null) return nothing(describeSelection(selection));
  const { provider } = chosen;
  const unsupported = unsupportedBy(provider);
  if (unsupported !== null) return nothing(`off (${provider} does not compute ${unsupported})`);

  const budget = options.budgetBytes ?? defaultBudget(provider, options.deviceId ?? 0);
  const decision = await decide(options, chosen, budget);
  if ('why' in decision) return nothing(`off (${provider}: ${decision.why})`);
  const { work, result, seconds } = decision;
  const whole = 'whole' in work;
  if (!whole) {
    const planned = planUnits(pack.header, work).reduce((sum, unit) => sum + unit.bytes, 0);
    if (planned > budget) {
      throw new HybridError('GPU_FAILED', `the placement needs ${planned} bytes, the budget is ${budget}`, {
        hint: 'Raise --gpu-memory or let the placement be computed again.',
      });
    }
  }

  // ---- put it there
  try {
    const host = await GpuHost.start({ ...options, placement: work, provider });
    return {
      gpu: {
        units: host.engine,
        provider,
        device: host.device ?? deviceName(provider, options.deviceId ?? 0),
        bytes: host.bytes,
        onFailure: automatic ? 'cpu' : 'error',
      },
      selection,
      placement: whole ? null : work,
      whole,
      result,
      seconds,
      note: `${describeSelection(selection)}${whole ? ', the whole model' : ''}`,
      close: () => host.close(),
    };
  } catch (error) {
    const fatal = !automatic || !(error instanceof HybridError) || error.code === 'ABORTED';
    if (fatal) throw error;
    return nothing(`off (${provider}: ${error.message})`);
  }
}

/** What lives on the device, or why nothing. */
type Decision =
  | { work: GpuPlacement | { whole: WholeShape }; result: PlacementResult | null; seconds: number | null }
  | { why: string };

/** The fastest of: the CPU alone, units on the GPU, and the whole model where it fits. */
async function decide(options: OpenGpuOptions, chosen: ProviderProbe, budget: number): Promise<Decision> {
  const { pack, placement } = options;
  if (placement !== undefined) return { work: placement, result: null, seconds: null };
  const automatic = options.choice === 'auto';
  const weights = options.weights ?? deviceWeights(pack, chosen);
  const model: PlacementModel = {
    header: pack.header,
    activity: planActivity(options.plan, pack.header, options.ffn),
    weights,
    ffnOnly: options.ffnOnly,
    contextTokens: options.contextTokens,
    kvFormat: options.kvFormat,
  };
  const speeds = hardware(options, chosen);
  let setup = placementProblem(model, speeds);
  let result = await solvePlacement(setup.problem, budget);
  const use = (options.policy ?? (automatic ? 'fastest' : 'use')) === 'use';
  const whole = wholeThatFits(options, chosen, budget);
  if (whole) {
    const seconds = wholeSeconds(model, speeds);
    if (seconds < result.seconds || (use && result.bytes === 0))
      return { work: { whole }, result: null, seconds };
  }
  if (result.bytes === 0 && use) {
    setup = placementProblem({ ...model, ffnOnly: true }, { ...speeds, ...ALWAYS_PAYS });
    result = await solvePlacement(setup.problem, budget);
  }
  if (result.bytes > 0) {
    return { work: toGpuPlacement(setup, result.choice, weights), result, seconds: result.seconds };
  }
  const milliseconds = choiceSeconds(setup.problem, nothingPlaced(setup.problem)) * 1000;
  return {
    why: automatic
      ? `nothing would be faster there than the CPU's ${milliseconds.toFixed(1)} ms a token`
      : `a budget of ${budget} bytes has no room for a group of hot neurons`,
  };
}

function wholeThatFits(
  { pack, plan, whole, ffnOnly, maxTokens }: OpenGpuOptions,
  { provider }: ProviderProbe,
  budget: number,
): WholeShape | null {
  if (provider !== 'webgpu' || !whole || ffnOnly) return null;
  if (unsupportedWhole(pack.header.config, whole) !== null) return null;
  return wholeBytes(pack.header, whole, maxTokens, plan) <= budget ? whole : null;
}

function hardware(options: OpenGpuOptions, { report }: ProviderProbe): PlacementHardware {
  const cpuBytesPerSecond =
    options.cpuBytesPerSecond ?? Math.min(CPU_BYTES_PER_SECOND, options.lanes * LANE_BYTES_PER_SECOND);
  return {
    cpuBytesPerSecond,
    // A device without packed weights reads f16: its speed is not known, so nothing is moved by guess.
    gpuBytesPerSecond: report?.bytesPerSecond ?? cpuBytesPerSecond,
    crossingSeconds: (report?.crossingUs ?? 0) * 1e-6,
    dispatchSeconds: (report?.dispatchUs ?? 0) * 1e-6,
  };
}

/** WebGPU reads the pack's rows; else packed where the device has MatMulNBits, else halves, else floats. */
function deviceWeights(pack: Pack, { provider, report }: ProviderProbe): GpuWeights {
  if (provider === 'webgpu') return 'rows';
  if (pack.header.quant === 'f32') return 'f32';
  if (report?.packed) return 'packed';
  return report?.half ? 'f16' : 'f32';
}

// ---- the device itself: only NVIDIA's tool can be asked ----------------------------------------------

function defaultBudget(provider: GpuProvider, deviceId: number): number {
  const free = provider === 'cuda' ? Number(nvidiaSmi('memory.free', deviceId)) * 2 ** 20 : 0;
  return free > 0 ? Math.floor(free * SHARE_OF_FREE_MEMORY) : DEFAULT_BUDGET_BYTES;
}

function deviceName(provider: GpuProvider, deviceId: number): string {
  return (provider === 'cuda' && nvidiaSmi('name', deviceId)) || `${provider} default device`;
}

/** One field of one GPU, empty when nvidia-smi is not there. */
function nvidiaSmi(field: string, deviceId: number): string {
  try {
    return execFileSync(
      'nvidia-smi',
      [`--query-gpu=${field}`, '--format=csv,noheader,nounits', '-i', String(deviceId)],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: 10_000 },
    ).trim();
  } catch {
    return '';
  }
}
