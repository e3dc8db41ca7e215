/**
 * From a model, its activation frequencies and two bandwidths to a placement problem; from a placement
 * back to neuron ids and expected speed. Times are bytes read divided by bandwidth: decoding does little
 * else (docs/performance.md compares the model with measurements).
 */
import type { FfnMode, FfnPlan } from '../engine/ffn-plan.js';
import { defaultKvFormat } from '../engine/options.js';
import type { KvFormat } from '../kernels/kernels.js';
import { rowBytes } from '../kernels/layout.js';
import type { PackHeader, PackSection } from '../pack/types.js';
import { matrixBytes, NEURON_GROUP, neuronBytes, type GpuWeights } from './gpu-bytes.js';
import {
  choiceBytes,
  choiceSeconds,
  nothingPlaced,
  solvePlacement,
  type PlacementChoice,
  type PlacementProblem,
  type PlacementResult,
  type UnitCost,
} from './placement.js';

/** Measured or given speeds. */
export interface PlacementHardware {
  /** Sequential read of weights by all lanes together. */
  cpuBytesPerSecond: number;
  /** Scattered neuron records; @default 0.75 of the sequential figure, as measured for native kernels */
  cpuSparseBytesPerSecond?: number;
  /** Weight bytes a second of the device's matrix-vector product. */
  gpuBytesPerSecond: number;
  /** Posting one unit: copies, wake-ups, launch. */
  crossingSeconds: number;
  /** One dispatch more in a step on the GPU. @default 0 */
  dispatchSeconds?: number;
  /** Barriers, norms, sampling: CPU time a token that is no reading. @default 20 µs a layer */
  overheadSeconds?: number;
}

const SPARSE_SHARE = 0.75;
const OVERHEAD_SECONDS_PER_LAYER = 20e-6;

/** What one layer's neurons do, from the profile and the plan. */
export interface LayerActivity {
  mode: FfnMode;
  /** [nFf] share of tokens in which each neuron is active. */
  frequency: ArrayLike<number>;
  /**
   * [nFf] share of tokens in which each neuron is a candidate (mode `predicted`): 1 for those that always
   * are. @default frequency times the layer's candidates per active neuron
   */
  candidateRate?: ArrayLike<number>;
  /** predicted / true active neurons, at least 1. @default 1 */
  candidatesPerActive?: number;
  /** Predictor bytes read a token that stay whatever moves (fc1), and per scored neuron (fc2's row). */
  predictorBytes?: number;
  predictorBytesPerNeuron?: number;
}

export interface PlacementModel {
  header: PackHeader;
  /** One a layer; a layer without a profile counts every neuron as active in half of the tokens. */
  activity: readonly LayerActivity[];
  /** Form of the weights on the device. @default 'packed' */
  weights?: GpuWeights;
  /** Move hot neurons only, no projections and no lm_head. @default false */
  ffnOnly?: boolean;
  /** Positions in the KV cache that attention reads. @default 256 */
  contextTokens?: number;
  /** @default the engine's for such a pack */
  kvFormat?: KvFormat;
}

const DEFAULT_CONTEXT_TOKENS = 256;

export interface PlacementSetup {
  problem: PlacementProblem;
  /** Per layer: neuron ids in the order in which groups of 64 move. */
  order: Uint32Array[];
}

export function placementProblem(model: PlacementModel, hardware: PlacementHardware): PlacementSetup {
  const { header, weights = 'packed' } = model;
  const { config } = header;
  const dense = hardware.cpuBytesPerSecond;
  const sparse = hardware.cpuSparseBytesPerSecond ?? SPARSE_SHARE * dense;
  const gpu = hardware.gpuBytesPerSecond;
  const unit = (section: PackSection): UnitCost => {
    const bytes = matrixBytes(weights, section.format, section.rows, section.cols);
    const cpuSeconds = section.bytes / dense;
    return { bytes, cpuSeconds, gpuSeconds: model.ffnOnly ? Infinity : bytes / gpu };
  };
  const order: Uint32Array[] = [];
  const layers = header.layers.map((layer, l) => {
    const activity = model.activity[l] ?? halfActive(config.intermediateSize);
    const seconds = neuronSeconds(header, l, activity, dense, sparse);
    const ids = hotFirst(seconds);
    order.push(ids);
    const groups = Math.floor(ids.length / NEURON_GROUP);
    const groupBytes = neuronBytes(
      weights,
      layer.ffn.format,
      NEURON_GROUP,
      config.hiddenSize,
      config.block.ffn.gated,
    );
    const groupCpuSeconds = Array.from({ length: groups }, (_, k) =>
      sumOver(ids.subarray(k * NEURON_GROUP, (k + 1) * NEURON_GROUP), seconds),
    );
    const leftover = sumOver(ids.subarray(groups * NEURON_GROUP), seconds);
    return {
      qkv: unit(layer.qkv),
      o: unit(layer.o),
      ffn: {
        groupBytes,
        groupGpuSeconds: weights === 'rows' ? sparseGroups(header, l, activity, ids, gpu) : groupBytes / gpu,
        groupCpuSeconds,
        restSeconds: leftover + (activity.predictorBytes ?? 0) / dense,
      },
    };
  });
  const overhead = hardware.overheadSeconds ?? OVERHEAD_SECONDS_PER_LAYER * config.layers;
  const problem: PlacementProblem = {
    layers,
    lmHead: unit(header.lmHead ?? header.embed),
    crossingSeconds: hardware.crossingSeconds,
    otherSeconds: overhead + kvBytesPerToken(model) / dense,
  };
  return { problem, order };
}

/** Seconds on the GPU of each group of 64: the gates of all, the records of those that fire. */
function sparseGroups(
  header: PackHeader,
  layer: number,
  activity: LayerActivity,
  ids: Uint32Array,
  gpu: number,
): number[] {
  const mode = activity.mode === 'dense' ? 'dense' : 'exact';
  const seconds = neuronSeconds(header, layer, { mode, frequency: activity.frequency }, gpu, gpu);
  return Array.from({ length: Math.floor(ids.length / NEURON_GROUP) }, (_, k) =>
    sumOver(ids.subarray(k * NEURON_GROUP, (k + 1) * NEURON_GROUP), seconds),
  );
}

/** Dispatches of a layer when the whole model is on a GPU: norms, heads, attention, three to seven of the FFN. */
const DISPATCHES_PER_LAYER = 14;

/** Seconds a token when everything, the KV cache too, is on the GPU and one step is one crossing. */
export function wholeSeconds(model: PlacementModel, hardware: PlacementHardware): number {
  const { header } = model;
  const { gpuBytesPerSecond: gpu, crossingSeconds, dispatchSeconds = 0 } = hardware;
  let bytes = (header.lmHead ?? header.embed).bytes + kvBytesPerToken(model);
  let seconds = crossingSeconds;
  header.layers.forEach(({ qkv, o, gate }, l) => {
    bytes += qkv.bytes + o.bytes;
    const activity = model.activity[l] ?? halfActive(gate.rows);
    for (const each of neuronSeconds(header, l, activity, gpu, gpu)) seconds += each;
    seconds += (activity.predictorBytes ?? 0) / gpu + DISPATCHES_PER_LAYER * dispatchSeconds;
  });
  return seconds + bytes / gpu;
}

/** Seconds a token that each neuron of a layer costs, by the layer's mode, where bytes are read at these speeds. */
function neuronSeconds(
  header: PackHeader,
  layer: number,
  activity: LayerActivity,
  dense: number,
  sparse: number,
): Float64Array {
  const { gate, ffn } = header.layers[layer];
  const { frequency } = activity;
  const gateRow = rowBytes(gate.format, gate.cols);
  const record = ffn.stride; // up row and down column
  return Float64Array.from({ length: gate.rows }, (_, i) => {
    const active = (frequency[i] * record) / sparse;
    switch (activity.mode) {
      case 'dense':
        return (gateRow + record) / dense;
      case 'exact':
        return gateRow / dense + active;
      case 'predicted': {
        const rate =
          activity.candidateRate?.[i] ?? Math.min(1, frequency[i] * (activity.candidatesPerActive ?? 1));
        return (rate * gateRow) / sparse + active + (activity.predictorBytesPerNeuron ?? 0) / dense;
      }
    }
  });
}

/**
 * Activity from a plan with the frequencies of a profile. Candidates of a predictor are taken as twice the
 * active neurons: at recall 0.99 it is less (docs/predictors.md), and a gate row is the cheapest part.
 * @param ffn one mode for all layers, or `auto`: each layer's own
 */
export function planActivity(
  plan: FfnPlan | null,
  header: PackHeader,
  ffn: FfnMode | 'auto',
): LayerActivity[] {
  const nFf = header.config.intermediateSize;
  const activity: LayerActivity[] = [];
  for (const layer of plan?.layers ?? []) {
    const frequency = layer.frequency ?? halfActive(nFf).frequency;
    const mode = ffn === 'auto' || (ffn === 'predicted' && !layer.predictor) ? layer.mode : ffn;
    if (mode !== 'predicted' || !layer.predictor) {
      activity.push({ mode: mode === 'predicted' ? 'exact' : mode, frequency });
      continue;
    }
    const { fc1, fc2 } = layer.predictor;
    const candidateRate = new Float32Array(nFf);
    for (const id of layer.scored) candidateRate[id] = Math.min(1, CANDIDATES_PER_ACTIVE * frequency[id]);
    for (const id of layer.always) candidateRate[id] = 1;
    activity.push({
      mode,
      frequency,
      candidateRate,
      predictorBytes: fc1 ? fc1.rows * fc1.stride : 0,
      predictorBytesPerNeuron: fc2.stride,
    });
  }
  if (activity.length === 0 && ffn === 'dense') {
    const frequency = halfActive(nFf).frequency;
    return header.layers.map(() => ({ mode: 'dense', frequency }));
  }
  return activity;
}

const CANDIDATES_PER_ACTIVE = 2;

const halfActive = (nFf: number): LayerActivity => ({
  mode: 'exact',
  frequency: new Float32Array(nFf).fill(0.5),
});

/** Ids by descending cost; equal ones by id, so that the same profile gives the same plan. */
function hotFirst(seconds: Float64Array): Uint32Array {
  return Uint32Array.from(seconds.keys()).sort((a, b) => seconds[b] - seconds[a] || a - b);
}

function sumOver(ids: Uint32Array, seconds: Float64Array): number {
  let sum = 0;
  for (const id of ids) sum += seconds[id];
  return sum;
}

function kvBytesPerToken({
  header,
  contextTokens = DEFAULT_CONTEXT_TOKENS,
  kvFormat = defaultKvFormat(header.quant),
}: PlacementModel): number {
  const { layers, kvHeads, headDim } = header.config;
  const row = kvFormat === 'f32' ? 4 * headDim : headDim + 4;
  return 2 * layers * kvHeads * contextTokens * row;
}

// ---- results ------------------------------------------------------------------------------------------

/** What lives on the GPU, by model neuron ids. */
export interface GpuPlacement {
  weights: GpuWeights;
  lmHead: boolean;
  layers: {
    qkv: boolean;
    o: boolean;
    /** Model neuron ids, ascending; a multiple of 64 of them. */
    hotNeurons: Uint32Array;
  }[];
}

export function toGpuPlacement(
  setup: PlacementSetup,
  choice: PlacementChoice,
  weights: GpuWeights = 'packed',
): GpuPlacement {
  return {
    weights,
    lmHead: choice.lmHead,
    layers: choice.layers.map(({ qkv, o, groups }, l) => ({
      qkv,
      o,
      hotNeurons: setup.order[l].slice(0, groups * NEURON_GROUP).sort(),
    })),
  };
}

export interface Estimate {
  cpuOnly: { tokensPerSecond: number; cpuBytes: number };
  hybrid: { tokensPerSecond: number; cpuBytes: number; gpuBytes: number };
  placed: {
    lmHead: boolean;
    qkvLayers: number;
    oLayers: number;
    hotNeurons: number;
    /** Share of all FFN neurons. */
    hotShare: number;
  };
  result: PlacementResult;
}

/**
 * Expected decode speed with and without `budgetBytes` on the GPU, and the memory on both sides, from
 * headers alone. `cpuBytes` is the pack's weights: the CPU keeps all of them, so that a lost device costs
 * speed and not the run.
 */
export async function estimatePlacement(
  model: PlacementModel,
  hardware: PlacementHardware,
  budgetBytes: number,
): Promise<Estimate> {
  const setup = placementProblem(model, hardware);
  const result = await solvePlacement(setup.problem, budgetBytes);
  const { choice } = result;
  const groups = choice.layers.reduce((sum, layer) => sum + layer.groups, 0);
  const neurons = model.header.config.layers * model.header.config.intermediateSize;
  const cpuBytes = model.header.fileBytes + kvBytesPerToken(model);
  return {
    cpuOnly: { tokensPerSecond: 1 / choiceSeconds(setup.problem, nothingPlaced(setup.problem)), cpuBytes },
    hybrid: { tokensPerSecond: 1 / result.seconds, cpuBytes, gpuBytes: choiceBytes(setup.problem, choice) },
    placed: {
      lmHead: choice.lmHead,
      qkvLayers: choice.layers.filter((layer) => layer.qkv).length,
      oLayers: choice.layers.filter((layer) => layer.o).length,
      hotNeurons: groups * NEURON_GROUP,
      hotShare: (groups * NEURON_GROUP) / neurons,
    },
    result,
  };
}
