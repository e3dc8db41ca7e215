/**
 * Where everything of a loaded model stands in the arenas: computed once on the main thread from the pack
 * header and the options, sent to every lane as plain data. Whole layers stay in one arena; the scratch
 * block has the same offsets in every arena, so that a kernel finds weights and activations in one memory.
 */
import {
  activationBytes,
  alignUp,
  paddedCols,
  q8aLayout,
  rowBytes,
  type RowFormat,
  type WeightFormat,
} from '../kernels/layout.js';
import type { KvFormat, KvRows, Ptr } from '../kernels/kernels.js';
import type { ModelConfig } from '../model/types.js';
import type { PackHeader, PackSection } from '../pack/types.js';
import { ArenaPlan } from './arena.js';
import type { GpuUnits } from './gpu-mailbox.js';
import {
  dealNeurons,
  chunkCount,
  type FfnMode,
  type FfnPlan,
  type NeuronChunk,
  type LayerPlan,
  type QuantRows,
} from './ffn-plan.js';

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
  /** Dealt position -> row of the plan's scored list. */
  scoredRows: Uint32Array;
  /** Per chunk: its first fc2 row and its cuts (f32, each part aligned). */
  chunks: { firstRow: number; cut: Ptr }[];
}

export interface LayerPlacement {
  arena: number;
  attnNorm: Ptr;
  qkv: Matrix;
  qkvBias: Ptr; // 0: none
  o: Matrix;
  oBias: Ptr; // 0: none
  ffnNorm: Ptr;
  gate: Matrix; // storage order
  ffn: Matrix; // records: up row at 0, down column at downOffset
  downOffset: number;
  keys: KvRows[]; // per KV head
  values: KvRows[];
  mode: FfnMode;
  /** Storage position -> model neuron id; null: the model's own order. */
  order: Uint32Array | null;
  chunks: NeuronChunk[];
  predictor: PredictorPlacement | null;
  /** f32 [nFf] norm of each down column in storage order, for weighted recall; 0: not allocated */
  downNorms: Ptr;
}

/** Activations shared by all lanes. T: tokens of a batch. Strides in bytes unless a comment says floats. */
export interface SharedScratch {
  cos: Ptr; // [contextLength][headDim / 2] f32
  sin: Ptr;
  x: Ptr; // [T] rows of rowX bytes: the residual stream of a batch
  xn: Ptr; // [T] rows of rowX bytes: normed, f32
  xq: Ptr; // [T] rows of rowXq bytes: normed, Q8A
  qkv: Ptr; // [T] rows of rowQkv bytes
  attn: Ptr; // [T] rows of rowAttn bytes
  attnQ: Ptr; // [T] rows of rowAttnQ bytes
  proj: Ptr; // [T] rows of rowX bytes: output projection
  hidden: Ptr; // [T] rows of rowHidden bytes: predictor
  hiddenQ: Ptr; // [T] rows of rowHiddenQ bytes
  logits: Ptr; // [T] rows of rowLogits bytes
  partials: Ptr; // [chunks][T] rows of rowPartial bytes: FFN sums
  rowX: number;
  rowXq: number;
  rowQkv: number;
  rowAttn: number;
  rowAttnQ: number;
  rowHidden: number;
  rowHiddenQ: number;
  rowLogits: number;
  rowPartial: number;
}

/** Activations of one lane. nMax: the most neurons a chunk has in any layer. */
export interface LaneScratch {
  x: Ptr; // [d] f32: this lane's copy of the residual stream
  xn: Ptr; // [d] f32
  xq: Ptr; // Q8A of d
  attnQ: Ptr; // Q8A of heads * headDim
  hidden: Ptr; // [rank] f32
  hiddenQ: Ptr; // Q8A of rank
  ids: Ptr; // [nMax] u32
  ids2: Ptr; // [nMax] u32
  gate: Ptr; // [nMax] f32
  act: Ptr; // [nMax] f32
  up: Ptr; // [nMax] f32
  scores: Ptr; // [heads][alignUp(contextLength, 16)] f32
  batchGate: Ptr; // [T][nMax] f32
  batchScore: Ptr; // [T][nMax] f32
  pairRows: Ptr; // [nMax] u32
  pairOffsets: Ptr; // [nMax + 1] u32
  pairTokens: Ptr; // [T * nMax] u32
  pairAct: Ptr; // [T * nMax] f32
  pairUp: Ptr; // [T * nMax] f32
}

export interface ModelLayout {
  config: ModelConfig;
  contextLength: number;
  batchTokens: number;
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
  outNorm: Ptr;
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

export interface LayoutOptions {
  contextLength: number;
  batchTokens: number;
  laneCount: number;
  chunkCount: number;
  kvFormat: KvFormat;
  ffn: FfnMode;
  plan: FfnPlan | null;
  gpu: GpuUnits | null;
}

const f32Row = (n: number): number => alignUp(n * 4, 64);

export function planLayout(
  header: PackHeader,
  options: LayoutOptions,
): { layout: ModelLayout; load: LoadItem[]; inline: InlineItem[] } {
  const { config } = header;
  const load: LoadItem[] = [];
  const inline: InlineItem[] = [];
  const arenas: ArenaPlan[] = [];
  const kvPlanned: number[] = []; // bytes of KV cache each arena will hold
  const bytes = { weights: 0, kvCache: 0, scratch: 0, predictor: 0 };

  const dealt =
    config.layers === 0
      ? []
      : header.layers.map((_, l) =>
          dealNeurons(
            config.intermediateSize,
            options.plan?.layers[l] ?? null,
            options.chunkCount,
            options.gpu?.hotNeurons[l],
          ),
        );
  const nMax = Math.max(...dealt.flatMap((d) => d.chunks.map(chunkCount)));
  const maxRank = Math.max(1, ...(options.plan?.layers.map((p) => p.predictor?.rank ?? 1) ?? []));

  // ---- scratch: first in every arena, at the same offsets -------------------------------------------
  let scratch!: { shared: SharedScratch; lanes: LaneScratch[] };
  const openArena = (): number => {
    const arena = new ArenaPlan();
    scratch = planScratch(arena, config, options, nMax, maxRank);
    bytes.scratch += arena.bytes;
    kvPlanned.push(0);
    return arenas.push(arena) - 1;
  };
  const makeRoom = (need: number): void => {
    if (!arenas[current].fits(need + kvPlanned[current])) current = openArena();
  };
  let current = openArena();

  const place = (arena: number, section: PackSection, order: Uint32Array | null = null): Matrix => {
    const ptr = arenas[arena].take(section.bytes);
    load.push({ section, arena, ptr, order });
    bytes.weights += section.bytes;
    return { ptr, stride: section.stride, format: section.format, rows: section.rows, cols: section.cols };
  };
  const placeInline = (arena: number, data: Uint8Array): Ptr => {
    const ptr = arenas[arena].take(Math.max(data.byteLength, 4));
    inline.push({ arena, ptr, data });
    bytes.predictor += data.byteLength;
    return ptr;
  };

  // ---- layers ----------------------------------------------------------------------------------------
  const kvRow = options.kvFormat === 'f32' ? config.headDim * 4 : config.headDim;
  const kvHeadBytes =
    alignUp(options.contextLength * kvRow, 64) +
    (options.kvFormat === 'q8' ? alignUp(options.contextLength * 4, 64) : 0);
  const kvBytes = 2 * config.kvHeads * kvHeadBytes;
  const layers = header.layers.map((layer, l): LayerPlacement => {
    const layerPlan = options.plan?.layers[l] ?? null;
    const need = layerBytes(layer) + kvBytes + predictorBytes(layerPlan) + 4 * config.intermediateSize + 4096;
    makeRoom(need);
    const arena = current;
    kvPlanned[arena] += kvBytes;
    const { order, chunks, scoredRows } = dealt[l];
    const predictor =
      layerPlan?.predictor && layerPlan.mode === 'predicted'
        ? placePredictor(layerPlan, chunks, scoredRows, (data) => placeInline(arena, data))
        : null;
    return {
      arena,
      attnNorm: place(arena, layer.attnNorm).ptr,
      qkv: place(arena, layer.qkv),
      qkvBias: layer.qkvBias ? place(arena, layer.qkvBias).ptr : 0,
      o: place(arena, layer.o),
      oBias: layer.oBias ? place(arena, layer.oBias).ptr : 0,
      ffnNorm: place(arena, layer.ffnNorm).ptr,
      gate: place(arena, layer.gate, order),
      ffn: place(arena, layer.ffn, order),
      downOffset: rowBytes(layer.ffn.format, config.hiddenSize),
      keys: [],
      values: [],
      mode:
        options.ffn === 'predicted' ? (predictor ? 'predicted' : (layerPlan?.mode ?? 'exact')) : options.ffn,
      order,
      chunks,
      predictor,
      downNorms: arenas[arena].take(4 * config.intermediateSize),
    };
  });

  // ---- embedding, final norm, head -------------------------------------------------------------------
  const globalBytes = header.embed.bytes + header.outNorm.bytes + (header.lmHead?.bytes ?? 0) + 4096;
  makeRoom(globalBytes);
  const embed = place(current, header.embed);
  const outNorm = place(current, header.outNorm).ptr;
  const lmHead = header.lmHead ? place(current, header.lmHead) : embed;

  // ---- KV cache: last in every arena, because it alone is filled bit by bit -----------------------------
  const kvBegin = arenas.map((arena) => arena.bytes);
  for (const layer of layers) {
    const kv = (): KvRows[] =>
      Array.from({ length: config.kvHeads }, () => ({
        data: arenas[layer.arena].take(options.contextLength * kvRow),
        scales: options.kvFormat === 'q8' ? arenas[layer.arena].take(options.contextLength * 4) : 0,
      }));
    layer.keys = kv();
    layer.values = kv();
    bytes.kvCache += kvBytes;
  }

  const formats = [...layers.flatMap((l) => [l.qkv.format, l.gate.format]), lmHead.format];
  const layout: ModelLayout = {
    config,
    contextLength: options.contextLength,
    batchTokens: options.batchTokens,
    laneCount: options.laneCount,
    chunkCount: options.chunkCount,
    kvFormat: options.kvFormat,
    needsF32: formats.includes('f32') || layers.some((l) => inputFormat(l.predictor) === 'f32'),
    needsQ8a:
      formats.some((f) => f !== 'f32') ||
      layers.some((l) => l.predictor && inputFormat(l.predictor) !== 'f32'),
    arenaBytes: arenas.map((a) => a.bytes),
    kvBegin,
    layers,
    globalsArena: current,
    embed,
    outNorm,
    lmHead,
    shared: scratch.shared,
    laneScratch: scratch.lanes,
    gpu: options.gpu,
    bytes,
  };
  return { layout, load, inline };
}

/** The form in which a predictor wants x. */
const inputFormat = (p: PredictorPlacement | null): RowFormat | null => (p ? (p.fc1 ?? p.fc2).format : null);

function planScratch(
  arena: ArenaPlan,
  config: ModelConfig,
  options: LayoutOptions,
  nMax: number,
  maxRank: number,
): { shared: SharedScratch; lanes: LaneScratch[] } {
  const T = options.batchTokens;
  const d = config.hiddenSize;
  const attnDim = config.heads * config.headDim;
  const rows = {
    rowX: f32Row(d),
    rowXq: alignUp(q8aLayout(d).bytes, 64),
    rowQkv: f32Row((config.heads + 2 * config.kvHeads) * config.headDim),
    rowAttn: f32Row(attnDim),
    rowAttnQ: alignUp(q8aLayout(attnDim).bytes, 64),
    rowHidden: f32Row(maxRank),
    rowHiddenQ: alignUp(q8aLayout(maxRank).bytes, 64),
    rowLogits: f32Row(config.vocabSize),
    rowPartial: f32Row(paddedCols('q4', d)),
  };
  const table = options.contextLength * (config.headDim / 2) * 4;
  const shared: SharedScratch = {
    ...rows,
    cos: arena.take(table),
    sin: arena.take(table),
    x: arena.take(T * rows.rowX),
    xn: arena.take(T * rows.rowX),
    xq: arena.take(T * rows.rowXq),
    qkv: arena.take(T * rows.rowQkv),
    attn: arena.take(T * rows.rowAttn),
    attnQ: arena.take(T * rows.rowAttnQ),
    proj: arena.take(T * rows.rowX),
    hidden: arena.take(T * rows.rowHidden),
    hiddenQ: arena.take(T * rows.rowHiddenQ),
    logits: arena.take(T * rows.rowLogits),
    partials: arena.take(options.chunkCount * T * rows.rowPartial),
  };
  const lanes = Array.from({ length: options.laneCount }, (): LaneScratch => ({
    x: arena.take(rows.rowX),
    xn: arena.take(rows.rowX),
    xq: arena.take(activationBytes('q8', d)),
    attnQ: arena.take(activationBytes('q8', attnDim)),
    hidden: arena.take(rows.rowHidden),
    hiddenQ: arena.take(activationBytes('q8', maxRank)),
    ids: arena.take(nMax * 4),
    ids2: arena.take(nMax * 4),
    gate: arena.take(nMax * 4),
    act: arena.take(nMax * 4),
    up: arena.take(nMax * 4),
    scores: arena.take(config.heads * alignUp(options.contextLength, 16) * 4),
    batchGate: arena.take(T * f32Row(nMax)),
    batchScore: arena.take(T * f32Row(nMax)),
    pairRows: arena.take(nMax * 4),
    pairOffsets: arena.take((nMax + 1) * 4),
    pairTokens: arena.take(T * nMax * 4),
    pairAct: arena.take(T * nMax * 4),
    pairUp: arena.take(T * nMax * 4),
  }));
  return { shared, lanes };
}

function layerBytes(layer: PackHeader['layers'][number]): number {
  let sum = 0;
  for (const section of Object.values(layer) as (PackSection | null)[])
    sum += section ? section.bytes + 64 : 0;
  return sum;
}

function predictorBytes(plan: LayerPlan | null): number {
  const p = plan?.predictor;
  if (!p) return 0;
  return (
    (p.fc1?.data.byteLength ?? 0) + p.fc2.data.byteLength + 4 * ((p.b1?.length ?? 0) + p.cut.length) + 4096
  );
}

function placePredictor(
  plan: LayerPlan,
  chunks: NeuronChunk[],
  scoredRows: Uint32Array,
  put: (data: Uint8Array) => Ptr,
): PredictorPlacement {
  const p = plan.predictor!;
  const asBytes = (a: Float32Array): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
  const fc2 = new Uint8Array(p.fc2.data.byteLength);
  scoredRows.forEach((row, i) => {
    fc2.set(p.fc2.data.subarray(row * p.fc2.stride, (row + 1) * p.fc2.stride), i * p.fc2.stride);
  });
  let firstRow = 0;
  const perChunk = chunks.map((chunk) => {
    const cut = Float32Array.from(
      scoredRows.subarray(firstRow, firstRow + chunk.scored),
      (row) => p.cut[row],
    );
    const part = { firstRow, cut: put(asBytes(cut)) };
    firstRow += chunk.scored;
    return part;
  });
  const matrix = (rows: QuantRows, data: Uint8Array): Matrix<RowFormat> => ({
    ptr: put(data),
    stride: rows.stride,
    format: rows.format,
    rows: rows.rows,
    cols: rows.cols,
  });
  return {
    rank: p.rank,
    fc1: p.fc1 && matrix(p.fc1, p.fc1.data),
    b1: p.b1 ? put(asBytes(p.b1)) : 0,
    fc2: matrix(p.fc2, fc2),
    scoredRows,
    chunks: perChunk,
  };
}
