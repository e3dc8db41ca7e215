/**
 * Where everything of a loaded model stands in the arenas: made by plan-layout.ts, sent to every lane as plain data.
 */
import type { RowFormat, WeightFormat } from '../kernels/layout.js';
import type { ActivationKind, KvFormat, Ptr } from '../kernels/kernels.js';
import type { ModelConfig } from '../model/types.js';
import type { PackSection } from '../pack/types.js';
import type { BlockShape } from './block-shape.js';
import type { GpuUnits } from './gpu-mailbox.js';
import type { ActivationCut, FfnCuts, FfnMode, NeuronChunk } from './ffn-plan.js';

/** Rows of weights in an arena. */
export interface Matrix<Format extends RowFormat = WeightFormat> {
  ptr: Ptr;
  stride: number;
  format: Format;
  rows: number;
  cols: number;
}

export interface PredictorPlacement {
  rank: number;
  fc1: Matrix<RowFormat> | null; // [rank][d]; null: a sketch, fc2 meets x itself
  b1: Ptr; // [rank] f32; 0: the hidden layer is linear
  fc2: Matrix<RowFormat>; // [scored][rank], in dealt order
  contribution: boolean; // scores are |sigma| of fc1's sketch
  /** fc2 sketches up behind the exact gate, a row a neuron in storage order; null: it is scored before the gate. */
  afterGate: AfterGate | null;
  /** Dealt position -> row of the plan's scored list. */
  scoredRows: Uint32Array;
  /** Per chunk: its first fc2 row and its cuts (f32, each part aligned). */
  chunks: { firstRow: number; cut: Ptr }[];
}

/** What the factors behind a gate must reach, f32 [nFf] each, in storage order. */
export interface AfterGate {
  /** 1 / cut: a candidate has |sigma(gate) up| times this at least 1. */
  weights: Ptr;
  /** reach / cut: where |sigma(gate)| times this is below 1, up cannot make a candidate of it and is not scored. */
  bounds: Ptr;
  reach: Float32Array;
}

/** Keys or values of one KV head, in pages: position p stands in row table[p / KV_PAGE] * KV_PAGE + p % KV_PAGE. */
export interface KvRows {
  /** f32: [row][headDim] f32; q8: [row][headDim] i8 */
  data: Ptr;
  /** q8: [row] f32; f32: 0 */
  scales: Ptr;
}

/** Neurons of a layer that the GPU computes, as the lanes leave them out. */
export interface GpuNeurons {
  /** [nFf] storage id -> 1: on the GPU */
  has: Uint8Array;
  /** Per chunk: the first scored neuron the CPU must score, a multiple of 4 counted within the scored ones. */
  chunks: { firstScored: number }[];
}

export interface NormPlacement {
  weight: Ptr;
  bias: Ptr; // 0: none
}

/** Pointers of parts that a model may not have are 0 then. Vectors of neurons are in storage order. */
export interface LayerPlacement {
  arena: number;
  attnNorm: NormPlacement;
  qkv: Matrix;
  qkvBias: Ptr;
  qNorm: Ptr;
  kNorm: Ptr;
  /** Heads turn with their position. */
  rotates: boolean;
  /** Positions that attention sees, its own included; Infinity: all. */
  window: number;
  oNorm: Ptr;
  o: Matrix;
  oBias: Ptr;
  ffnNorm: NormPlacement;
  router: Matrix | null;
  gate: Matrix; // storage order; without a gate: fc1
  gateBias: Ptr;
  ffn: Matrix; // records: up row at 0 (when gated), down column at downOffset
  downOffset: number;
  upBias: Ptr;
  downBias: Ptr;
  keys: KvRows[]; // per KV head
  values: KvRows[];
  mode: FfnMode;
  /** In force: that of the mode. */
  cut: ActivationCut;
  /** By mode, as planned; null: the activation's own alone. */
  cuts: FfnCuts | null;
  /** Storage position -> model neuron id; null: the model's own order. */
  order: Uint32Array | null;
  /** [chunkCount * experts]: chunk c's part of expert e at c * experts + e. */
  chunks: NeuronChunk[];
  predictor: PredictorPlacement | null;
  gpu: GpuNeurons | null;
  /** f32 [nFf] norm of each down column in storage order, for weighted recall; 0: not allocated */
  downNorms: Ptr;
}

/** Activations shared by all lanes. T: rows of a step. Strides in bytes unless a comment says floats. */
export interface SharedScratch {
  cos: Ptr; // [contextLength][rotaryDims / 2] f32
  sin: Ptr;
  tables: Ptr; // [slots] rows of rowTable bytes: u32 page ids of each sequence
  x: Ptr; // [T] rows of rowX bytes: the residual stream
  xn: Ptr; // [T] rows of rowX bytes: normed, f32
  xq: Ptr; // [T] rows of rowXq bytes: normed, Q8A
  qkv: Ptr; // [T] rows of rowQkv bytes
  attn: Ptr; // [T] rows of rowAttn bytes
  attnQ: Ptr; // [T] rows of rowAttnQ bytes
  proj: Ptr; // [T] rows of rowX bytes: output projection; projected embeddings
  router: Ptr; // [T] rows of rowRouter bytes: logits of the experts
  hidden: Ptr; // [T] rows of rowHidden bytes: predictor
  hiddenQ: Ptr; // [T] rows of rowHiddenQ bytes
  logits: Ptr; // [T] rows of rowLogits bytes
  partials: Ptr; // [chunks][T] rows of rowPartial bytes: FFN sums
  squares: Ptr; // [chunks][T] f32: sums of x1 squared, for a norm before down
  rowTable: number;
  rowX: number;
  rowXq: number;
  rowQkv: number;
  rowAttn: number;
  rowAttnQ: number;
  rowRouter: number;
  rowHidden: number;
  rowHiddenQ: number;
  rowLogits: number;
  rowPartial: number;
}

/** Neurons by row, compressed: entry k of row t stands at offsets[t] <= k < offsets[t + 1]. */
export interface RowLists {
  offsets: Ptr; // [T + 1] u32
  ids: Ptr; // [T * nMax] u32: storage ids, ascending within a row
}

/**
 * Activations of one lane. R: rows it keeps copies of (rows.ts). nMax: the most neurons a chunk has in any layer
 * (of the experts that one row may choose).
 */
export interface LaneScratch {
  x: Ptr; // [R] rows of rowX bytes: this lane's copy of the residual stream
  xn: Ptr; // [R] rows of rowX bytes
  xq: Ptr; // [R] rows of rowXq bytes
  attn: Ptr; // [R] rows of rowAttn bytes: attention's output after its norm; 0 when it has none
  attnQ: Ptr; // [R] rows of rowAttnQ bytes
  hiddenQ: Ptr; // [R] rows of rowHiddenQ bytes
  scores: Ptr; // [heads of one KV head][alignUp(contextLength, 16)] f32: attention
  scored: Ptr; // [T][alignUp(nMax, 4)] f32: predictor scores
  gate: Ptr; // [T * nMax] f32
  candidates: RowLists;
  active: RowLists & { act: Ptr; up: Ptr }; // act, up: f32 beside the ids
  /** One row's truth, when recall is measured: [nMax] each. */
  truth: RowLists & { gates: Ptr; act: Ptr; up: Ptr };
}

export interface ModelLayout {
  config: ModelConfig;
  block: BlockShape;
  /** Of the config; layers have the cuts. */
  activation: ActivationKind;
  contextLength: number;
  batchTokens: number;
  /** Sequences that can run at once. */
  slots: number;
  /** Pages of the KV cache, KV_PAGE positions each. */
  kvPages: number;
  laneCount: number;
  /** Parts of every layer's neurons (ffn-plan.ts); lane i computes a share of them. */
  chunkCount: number;
  kvFormat: KvFormat;
  /** Some weights want f32 inputs (an f32 pack) / Q8A inputs (quantised rows, here or in the predictor). */
  needsF32: boolean;
  needsQ8a: boolean;
  arenaBytes: number[];
  /** Per arena: where its KV cache begins, behind everything else. */
  kvBegin: number[];
  layers: LayerPlacement[];
  globalsArena: number;
  embed: Matrix;
  /** Added to the embedding: row p + positionOffset for position p. */
  positions: Matrix | null;
  positionOffset: number;
  projectIn: Matrix | null;
  outNorm: NormPlacement | null;
  projectOut: Matrix | null;
  lmHead: Matrix;
  shared: SharedScratch;
  laneScratch: LaneScratch[];
  gpu: GpuUnits | null;
  /** Bytes of weights, KV cache and scratch, for reports. */
  bytes: { weights: number; kvCache: number; scratch: number; predictor: number };
}

/** One piece of the pack to copy into an arena; `order`: storage position -> row of the section. */
export interface LoadItem {
  section: PackSection;
  arena: number;
  ptr: Ptr;
  order: Uint32Array | null;
}
/** Predictor rows and cuts come from an artifact, not from the pack. */
export interface InlineItem {
  arena: number;
  ptr: Ptr;
  data: Uint8Array;
}
