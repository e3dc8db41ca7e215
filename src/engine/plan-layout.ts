/**
 * Plans a ModelLayout: computed once on the main thread from the pack header and the options. Whole layers stay in one
 * arena; the scratch block has the same offsets in every arena, so that a kernel finds weights and activations in one
 * memory.
 */
import { alignUp, KV_PAGE, paddedCols, q8aLayout, rowBytes, type RowFormat } from '../kernels/layout.js';
import type { KvFormat, Ptr } from '../kernels/kernels.js';
import { embeddingSize, layerType, rotaryDims } from '../model/block.js';
import type { ModelConfig } from '../model/types.js';
import type { PackHeader, PackSection } from '../pack/types.js';
import { ArenaPlan, MAX_ARENA_BYTES } from './arena.js';
import { blockShape } from './block-shape.js';
import type { GpuUnits } from './gpu-mailbox.js';
import { REDUNDANT_ROWS } from './rows.js';
import {
  chunkSize,
  cutIn,
  dealNeurons,
  type FfnMode,
  type FfnPlan,
  type LayerPlan,
  type NeuronChunk,
  type QuantRows,
} from './ffn-plan.js';
import type {
  AfterGate,
  GpuNeurons,
  InlineItem,
  KvRows,
  LaneScratch,
  LayerPlacement,
  LoadItem,
  Matrix,
  ModelLayout,
  NormPlacement,
  PredictorPlacement,
  RowLists,
  SharedScratch,
} from './layout.js';

export interface LayoutOptions {
  contextLength: number;
  batchTokens: number;
  slots: number;
  kvPages: number;
  /** @default MAX_ARENA_BYTES; tests make models in several arenas with less */
  maxArenaBytes?: number;
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
  const block = blockShape(config);
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
            block.experts,
          ),
        );
  const nMax = block.activeExperts * Math.max(...dealt.flatMap((d) => d.chunks.map(chunkSize)));
  const maxRank = Math.max(1, ...(options.plan?.layers.map((p) => p.predictor?.rank ?? 1) ?? []));

  // ---- scratch: first in every arena, at the same offsets -------------------------------------------
  let scratch!: { shared: SharedScratch; lanes: LaneScratch[] };
  const openArena = (): number => {
    const arena = new ArenaPlan(options.maxArenaBytes ?? MAX_ARENA_BYTES);
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
  const placeVector = (arena: number, section: PackSection | null): Ptr =>
    section ? place(arena, section).ptr : 0;
  /** A value for each neuron, in storage order. */
  const placeByNeuron = (arena: number, section: PackSection | null, order: Uint32Array | null): Ptr => {
    if (!section) return 0;
    const { cols: rows } = section;
    return place(arena, { ...section, rows, cols: 1, stride: 4, bytes: 4 * rows }, order).ptr;
  };
  const placeNorm = (arena: number, weight: PackSection, bias: PackSection | null): NormPlacement => ({
    weight: place(arena, weight).ptr,
    bias: placeVector(arena, bias),
  });
  const placeMatrix = (arena: number, section: PackSection | null): Matrix | null =>
    section && place(arena, section);
  const placeInline = (arena: number, data: Uint8Array): Ptr => {
    const ptr = arenas[arena].take(Math.max(data.byteLength, 4));
    inline.push({ arena, ptr, data });
    bytes.predictor += data.byteLength;
    return ptr;
  };

  // ---- layers ----------------------------------------------------------------------------------------
  const kvRow = options.kvFormat === 'f32' ? config.headDim * 4 : config.headDim;
  const kvRows = options.kvPages * KV_PAGE;
  const kvHeadBytes = alignUp(kvRows * kvRow, 64) + (options.kvFormat === 'q8' ? alignUp(kvRows * 4, 64) : 0);
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
    const { rotates, window } = layerType(config, l);
    const mode =
      options.ffn === 'predicted' ? (predictor ? 'predicted' : (layerPlan?.mode ?? 'exact')) : options.ffn;
    const cuts = layerPlan?.cuts ?? null;
    return {
      arena,
      attnNorm: placeNorm(arena, layer.attnNorm, layer.attnNormBias),
      qkv: place(arena, layer.qkv),
      qkvBias: placeVector(arena, layer.qkvBias),
      qNorm: placeVector(arena, layer.qNorm),
      kNorm: placeVector(arena, layer.kNorm),
      rotates: rotates && block.rotaryDims > 0,
      window: window ?? Infinity,
      oNorm: placeVector(arena, layer.oNorm),
      o: place(arena, layer.o),
      oBias: placeVector(arena, layer.oBias),
      ffnNorm: placeNorm(arena, layer.ffnNorm, layer.ffnNormBias),
      router: placeMatrix(arena, layer.router),
      gate: place(arena, layer.gate, order),
      gateBias: placeByNeuron(arena, layer.gateBias, order),
      ffn: place(arena, layer.ffn, order),
      downOffset: block.gated ? rowBytes(layer.ffn.format, config.hiddenSize) : 0,
      upBias: placeByNeuron(arena, layer.upBias, order),
      downBias: placeVector(arena, layer.downBias),
      keys: [],
      values: [],
      mode,
      cut: cutIn(mode, config.activation, cuts),
      cuts,
      order,
      chunks,
      predictor,
      gpu: options.gpu ? gpuNeurons(options.gpu.hotNeurons[l], order, chunks) : null,
      downNorms: arenas[arena].take(4 * config.intermediateSize),
    };
  });

  // ---- embedding, final norm, head -------------------------------------------------------------------
  const globals = [header.embed, header.positions, header.projectIn, header.outNorm, header.outNormBias];
  globals.push(header.projectOut, header.lmHead);
  makeRoom(globals.reduce((sum, section) => sum + (section?.bytes ?? 0), 4096));
  const embed = place(current, header.embed);
  const positions = placeMatrix(current, header.positions);
  const projectIn = placeMatrix(current, header.projectIn);
  const outNorm = config.ends.finalNorm ? placeNorm(current, header.outNorm, header.outNormBias) : null;
  const projectOut = placeMatrix(current, header.projectOut);
  const lmHead = header.lmHead ? place(current, header.lmHead) : embed;

  // ---- KV cache: last in every arena, because it alone is filled bit by bit -----------------------------
  const kvBegin = arenas.map((arena) => arena.bytes);
  for (const layer of layers) {
    const kv = (): KvRows[] =>
      Array.from({ length: config.kvHeads }, () => ({
        data: arenas[layer.arena].take(kvRows * kvRow),
        scales: options.kvFormat === 'q8' ? arenas[layer.arena].take(kvRows * 4) : 0,
      }));
    layer.keys = kv();
    layer.values = kv();
    bytes.kvCache += kvBytes;
  }

  const ends = [lmHead, projectIn, projectOut].flatMap((matrix) => matrix?.format ?? []);
  const formats = [...layers.flatMap((l) => [l.qkv.format, l.gate.format]), ...ends];
  const layout: ModelLayout = {
    config,
    block,
    activation: config.activation.kind,
    contextLength: options.contextLength,
    batchTokens: options.batchTokens,
    slots: options.slots,
    kvPages: options.kvPages,
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
    positions,
    positionOffset: config.ends.learnedPositions?.offset ?? 0,
    projectIn,
    outNorm,
    projectOut,
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
  const R = Math.min(T, REDUNDANT_ROWS);
  const { ffn, attention } = config.block;
  // Embeddings that are projected stand in the same rows as what they become.
  const d = Math.max(config.hiddenSize, embeddingSize(config));
  const attnDim = config.heads * config.headDim;
  const rows = {
    rowTable: alignUp(4 * Math.ceil(options.contextLength / KV_PAGE), 64),
    rowX: f32Row(d),
    rowXq: alignUp(q8aLayout(d).bytes, 64),
    rowQkv: f32Row((config.heads + 2 * config.kvHeads) * config.headDim),
    rowAttn: f32Row(attnDim),
    rowAttnQ: alignUp(q8aLayout(attnDim).bytes, 64),
    rowRouter: f32Row(ffn.experts?.count ?? 0),
    rowHidden: f32Row(maxRank),
    rowHiddenQ: alignUp(q8aLayout(maxRank).bytes, 64),
    rowLogits: f32Row(config.vocabSize),
    rowPartial: f32Row(paddedCols('q4', config.hiddenSize)),
  };
  const angles = options.contextLength * (rotaryDims(config) / 2) * 4;
  const shared: SharedScratch = {
    ...rows,
    cos: arena.take(angles),
    sin: arena.take(angles),
    tables: arena.take(options.slots * rows.rowTable),
    x: arena.take(T * rows.rowX),
    xn: arena.take(T * rows.rowX),
    xq: arena.take(T * rows.rowXq),
    qkv: arena.take(T * rows.rowQkv),
    attn: arena.take(T * rows.rowAttn),
    attnQ: arena.take(T * rows.rowAttnQ),
    proj: arena.take(T * rows.rowX),
    router: arena.take(T * rows.rowRouter),
    hidden: arena.take(T * rows.rowHidden),
    hiddenQ: arena.take(T * rows.rowHiddenQ),
    logits: arena.take(T * rows.rowLogits),
    partials: arena.take(options.chunkCount * T * rows.rowPartial),
    squares: arena.take(ffn.norm ? options.chunkCount * T * 4 : 0),
  };
  const lists = (t: number): RowLists => ({
    offsets: arena.take((t + 1) * 4),
    ids: arena.take(t * nMax * 4),
  });
  const floats = (t: number): Ptr => arena.take(t * alignUp(nMax, 4) * 4);
  const lanes = Array.from({ length: options.laneCount }, (): LaneScratch => ({
    x: arena.take(R * rows.rowX),
    xn: arena.take(R * rows.rowX),
    xq: arena.take(R * rows.rowXq),
    attn: attention.outputNorm ? arena.take(R * rows.rowAttn) : 0,
    attnQ: arena.take(R * rows.rowAttnQ),
    hiddenQ: arena.take(R * rows.rowHiddenQ),
    scores: arena.take((config.heads / config.kvHeads) * alignUp(options.contextLength, 16) * 4),
    scored: floats(T),
    gate: floats(T),
    candidates: lists(T),
    active: { ...lists(T), act: floats(T), up: floats(T) },
    truth: { ...lists(1), gates: floats(1), act: floats(1), up: floats(1) },
  }));
  return { shared, lanes };
}

/** @param hot model ids of the neurons the GPU computes */
function gpuNeurons(hot: Uint32Array, order: Uint32Array | null, chunks: NeuronChunk[]): GpuNeurons | null {
  if (hot.length === 0) return null;
  const onGpu = new Set(hot);
  const size = chunks.reduce((sum, chunk) => sum + chunkSize(chunk), 0);
  const has = Uint8Array.from({ length: size }, (_, at) => (onGpu.has(order ? order[at] : at) ? 1 : 0));
  return {
    has,
    chunks: chunks.map(({ begin, always, scored }) => {
      let first = 0;
      while (first < scored && has[begin + always + first]) first++;
      return { firstScored: first - (first % 4) };
    }),
  };
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
    [p.fc1, p.fc2].reduce((sum, rows) => sum + (rows?.data.byteLength ?? 0), 0) +
    4 * ((p.b1?.length ?? 0) + p.cut.length + 2 * (p.reach?.length ?? 0)) +
    4096
  );
}

/** @param cuts in storage order, as reach */
export function afterGateOf(
  reach: Float32Array,
  cuts: Float32Array,
): { weights: Float32Array; bounds: Float32Array } {
  const weights = cuts.map((cut) => 1 / Math.max(0, cut)); // 0: everything is a candidate
  return { weights, bounds: weights.map((weight, i) => weight * reach[i]) };
}

function placePredictor(
  plan: LayerPlan,
  chunks: NeuronChunk[],
  scoredRows: Uint32Array,
  put: (data: Uint8Array) => Ptr,
): PredictorPlacement {
  const p = plan.predictor!;
  const asBytes = (a: Float32Array): Uint8Array => new Uint8Array(a.buffer, a.byteOffset, a.byteLength);
  const dealt = ({ data, stride }: QuantRows): Uint8Array => {
    const out = new Uint8Array(data.byteLength);
    scoredRows.forEach((row, i) => out.set(data.subarray(row * stride, (row + 1) * stride), i * stride));
    return out;
  };
  const placeAfterGate = (reaches: Float32Array, cuts: Float32Array): AfterGate => {
    const reach = Float32Array.from(scoredRows, (row) => reaches[row]);
    const { weights, bounds } = afterGateOf(
      reach,
      Float32Array.from(scoredRows, (row) => cuts[row]),
    );
    return { weights: put(asBytes(weights)), bounds: put(asBytes(bounds)), reach };
  };
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
    fc2: matrix(p.fc2, dealt(p.fc2)),
    contribution: p.contribution ?? false,
    afterGate: p.reach ? placeAfterGate(p.reach, p.cut) : null,
    scoredRows,
    chunks: perChunk,
  };
}
