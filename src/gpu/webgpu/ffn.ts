/**
 * A layer's FFN as operations (vocabulary in docs/architecture.md):
 *
 *     dense, exact   gate and up ─ down                          exact reads up and down where the gate passed
 *     predicted      scores ─ select ─ gate and up of the candidates ─ down
 *                    gate and sketches of up ─ select ─ up of the candidates ─ down     scored after the gate
 *
 * Neurons lie in the order that the predictor wants: always candidates, scored ones, the rest.
 */
import type { ActivationCut, FfnMode, FfnPlan, LayerPlan, QuantRows } from '../../engine/ffn-plan.js';
import { afterGateOf } from '../../engine/plan-layout.js';
import type { ActivationKind } from '../../kernels/kernels.js';
import { isSketch, rowBytes, type WeightFormat } from '../../kernels/layout.js';
import type { PackHeader, PackSection } from '../../pack/types.js';
import type { ReadAt } from '../weights.js';
import { createFrom, createStorage, type ReadPiece } from './buffers.js';
import type { GpuDevice } from './device.js';
import { encodePass, type BufferPart } from './kernel.js';
import { countKernel } from './kernels/count.js';
import { downSum, downSumScratch } from './kernels/down-sum.js';
import { gateUp } from './kernels/gate-up.js';
import { lengthsKernel } from './kernels/lengths.js';
import { rowDot } from './kernels/row-dot.js';
import { select } from './kernels/select.js';
import { named, type Operation } from './operation.js';
import { oneDispatch } from './piece.js';
import { uploadRows, uploadSection, vectorStride, type GpuRows } from './rows.js';
import type { Tuning } from './tuning.js';

export interface FfnParts {
  gate: GpuRows;
  /** Up row, then the down row at downOffset. */
  records: GpuRows;
  downOffset: number;
  gated: boolean;
  gateBias: GPUBuffer | null;
  upBias: GPUBuffer | null;
  /** f32 [neurons] lengths of the down rows, where a plan cuts contributions. */
  norms: GPUBuffer | null;
  predictor: FfnPredictor | null;
}

export interface FfnPredictor {
  fc1: GpuRows | null;
  b1: GPUBuffer | null;
  fc2: GpuRows;
  contribution: boolean;
  /** f32 [neurons] each, where candidates are chosen after the gate. */
  afterGate: { bounds: GPUBuffer; weights: GPUBuffer } | null;
  cut: GPUBuffer;
  always: number;
  scored: number;
}

/** T: rows of a step, n: most neurons of a layer. */
export interface FfnScratch {
  n: number;
  x1: GPUBuffer; // [T][n] f32
  partial: GPUBuffer; // down-sum.ts
  /** Null where nothing is predicted. */
  lists: {
    ids: GPUBuffer;
    counts: GPUBuffer;
    scores: GPUBuffer;
    hidden: GPUBuffer;
    /** sigma of the candidates' gates; null where no candidate is chosen after the gate. */
    kept: GPUBuffer | null;
  } | null;
}

/** What of a plan's predictors decides how much a step works in. */
export interface PredictorNeeds {
  /** Hidden units of the largest one; 0: none. */
  rank: number;
  afterGate: boolean;
}

export function predictorNeeds(plan: FfnPlan | null): PredictorNeeds {
  const layers = (plan?.layers ?? []).map(predictedLayer).filter((layer) => layer !== null);
  return {
    rank: Math.max(0, ...layers.map(({ predictor }) => predictor!.rank)),
    afterGate: layers.some(({ predictor }) => predictor!.reach),
  };
}

/** A layer that the plan predicts; null: it has no predictor here. */
export const predictedLayer = (layer: LayerPlan): LayerPlan | null =>
  layer.predictor && layer.mode === 'predicted' ? layer : null;

export const ffnScratchBytes = (
  d: number,
  n: number,
  { rank, afterGate }: PredictorNeeds,
  T: number,
): number => {
  const lists = rank > 0 ? T * ((afterGate ? 3 : 2) * n + 1 + vectorStride(rank)) : 0;
  return 4 * (T * n + downSumScratch(n, d, T) + lists);
};

export async function createFfnScratch(
  gpu: GpuDevice,
  d: number,
  n: number,
  { rank, afterGate }: PredictorNeeds,
  T: number,
): Promise<FfnScratch> {
  const words = (name: string, count: number): Promise<GPUBuffer> => createStorage(gpu, name, count * 4);
  return {
    n,
    x1: await words('x1', T * n),
    partial: await words('sums of slices', downSumScratch(n, d, T)),
    lists:
      rank > 0
        ? {
            ids: await words('candidates', T * n),
            counts: await words('numbers of candidates', T),
            scores: await words('scores', T * n),
            hidden: await words('hidden layer of predictors', T * vectorStride(rank)),
            kept: afterGate ? await words('activations of candidates', T * n) : null,
          }
        : null,
  };
}

/** The order in which a layer's neurons lie on the device; null: the model's. */
export function neuronOrder(plan: LayerPlan | null, neurons: number): Uint32Array | null {
  if (!plan?.predictor || plan.predictor.reach) return null;
  const listed = new Set([...plan.always, ...plan.scored]);
  const rest = Array.from({ length: neurons }, (_, id) => id).filter((id) => !listed.has(id));
  return Uint32Array.from([...plan.always, ...plan.scored, ...rest]);
}

/** @param gate the layer's, for sketches that are read beside it: both are cut at the same rows */
export async function uploadPredictor(
  gpu: GpuDevice,
  plan: LayerPlan,
  gate: GpuRows,
  name: string,
): Promise<FfnPredictor> {
  const { fc1, b1, fc2, cut, contribution = false, reach } = plan.predictor!;
  const factors = (values: Float32Array): Promise<GPUBuffer> =>
    createFrom(gpu, name, values.map((value) => Math.min(value, LARGEST_FACTOR))); // prettier-ignore
  const after = reach && afterGateOf(reach, cut);
  return {
    fc1: fc1 && (await uploadArtifactRows(gpu, name, fc1)),
    b1: b1 && (await createFrom(gpu, name, b1)),
    fc2: await uploadArtifactRows(gpu, name, fc2, reach ? gate.parts[0].rows : undefined),
    contribution,
    afterGate: after ? { bounds: await factors(after.bounds), weights: await factors(after.weights) } : null,
    cut: await createFrom(gpu, name, cut),
    always: plan.always.length,
    scored: plan.scored.length,
  };
}

/** WGSL knows no infinity, which a factor is where everything is a candidate. */
const LARGEST_FACTOR = 3e38;

/**
 * Rows as an artifact has them lie closer than kernels read them, where they are weights.
 * @param most rows of a part
 */
function uploadArtifactRows(
  gpu: GpuDevice,
  name: string,
  matrix: QuantRows,
  most?: number,
): Promise<GpuRows> {
  const { format, rows, cols, data } = matrix;
  const stride = isSketch(format) ? matrix.stride : rowBytes(format, cols);
  const read: ReadPiece = (piece, at) => {
    piece.fill(0);
    for (let to = 0; to < piece.length; to += stride) {
      const from = ((at + to) / stride) * matrix.stride;
      piece.set(data.subarray(from, from + matrix.stride), to);
    }
  };
  return uploadRows(gpu, name, { format, rows, cols, stride }, read, most && most * stride);
}

/** What of a layer's FFN is in the pack: all neurons in this order, or those of the list. */
export async function uploadFfn(
  gpu: GpuDevice,
  { fd, read, header }: FfnSource,
  l: number,
  ids: Uint32Array | null,
  name: string,
): Promise<Omit<FfnParts, 'predictor' | 'norms'>> {
  const layer = header.layers[l];
  const { gated } = header.config.block.ffn;
  const { maxBindingBytes, maxBufferBytes } = gpu.facts;
  const widest = Math.max(layer.ffn.stride, layer.gate.stride);
  const rowsBound = Math.floor(Math.min(maxBindingBytes, maxBufferBytes) / widest);
  const vector = async (section: PackSection | null): Promise<GPUBuffer | null> => {
    if (!section) return null;
    const all = new Float32Array(section.cols);
    read(new Uint8Array(all.buffer), section.offset);
    return createFrom(gpu, name, ids ? Float32Array.from(ids, (id) => all[id]) : all);
  };
  return {
    // S2 wants both cut at the same rows: records are the larger ones.
    gate: await uploadSection(gpu, `gates, ${name}`, fd, layer.gate, ids, rowsBound * layer.gate.stride),
    records: await uploadSection(gpu, `records, ${name}`, fd, layer.ffn, ids, rowsBound * layer.ffn.stride),
    downOffset: gated ? rowBytes(layer.ffn.format, header.config.hiddenSize) : 0,
    gated,
    gateBias: await vector(layer.gateBias),
    upBias: await vector(layer.upBias),
  };
}

export interface FfnSource {
  fd: number;
  read: ReadAt;
  header: PackHeader;
}

/** Lengths of the down rows. */
export async function downLengths(
  gpu: GpuDevice,
  { records, downOffset: offset }: Pick<FfnParts, 'records' | 'downOffset'>,
): Promise<GPUBuffer> {
  const out = await createStorage(gpu, 'lengths of down rows', records.rows * 4);
  const { cols, stride } = records;
  const format = records.format as WeightFormat;
  for (const { buffer, first, rows } of records.parts) {
    const text = lengthsKernel({ format, cols, stride, offset, firstRow: first, rows });
    const operation = await oneDispatch(gpu, text, [buffer, out], () => [Math.ceil(rows / 64)]);
    gpu.submit((encoder) => encodePass(encoder, operation.dispatches(1)));
  }
  await gpu.finished();
  return out;
}

export interface FfnBuffers {
  /** [T][vectorStride(d)] */
  x: GPUBuffer;
  /** Uniform: rows of the step. */
  step: GPUBuffer;
  /** [T][outStride] */
  out: GPUBuffer;
  outStride: number;
  /** u32 [T][COUNTS] of this layer; null: nobody counts. */
  counts: BufferPart | null;
}

export interface LayerFfn {
  operations: Operation[];
  /** For the steps that follow. */
  setCut(cut: ActivationCut): void;
}

/** out = FFN(x) without the bias of down. */
export async function layerFfn(
  gpu: GpuDevice,
  tuning: Tuning,
  parts: FfnParts,
  kind: ActivationKind,
  mode: FfnMode,
  scratch: FfnScratch,
  { x, step, out, outStride, counts }: FfnBuffers,
): Promise<LayerFfn> {
  const { gate, records, gated, downOffset, norms } = parts;
  const { x1, partial } = scratch;
  const n = gate.rows;
  const predictor = mode === 'predicted' ? parts.predictor : null;
  const lists = predictor && scratch.lists!;
  const listed = lists ? { ids: lists.ids, counts: lists.counts } : {};
  const dense = mode === 'dense';
  const known = predictor?.afterGate ? ({ given: 'act' } as const) : {};
  const candidates = predictor ? await choose(gpu, tuning, parts, predictor, kind, scratch, x, step) : [];
  const s2 = await gateUp(
    gpu,
    tuning,
    predictor?.afterGate ? null : gate,
    gated ? records : null,
    { kind, outStride: n, dense, ...known, ...(predictor ? { listStride: n } : {}) },
    {
      ...{ x, x1, step, ...listed },
      ...(predictor?.afterGate ? { given: lists!.kept! } : gateBiasOf(parts)),
      ...upBiasOf(parts),
      ...(norms && !dense ? { norms } : {}),
    },
  );
  const shape = { offset: downOffset, entryStride: n, outStride, listed: predictor !== null };
  const s3 = await downSum(gpu, tuning, records, shape, { coef: x1, ...listed, partial, out });
  const operations = [...candidates, named('gate and up', s2), named('down', s3)];
  if (counts) {
    const scored = predictor?.afterGate ? [lists!.scores] : [];
    const how = predictor ? (predictor.afterGate ? 'scored' : 'candidates') : 'no';
    const text = countKernel({ stride: n, neurons: n, listed: how, dense });
    const buffers = [x1, ...(lists ? [lists.counts] : []), ...scored, counts];
    operations.push(await oneDispatch(gpu, text, buffers, (rows) => [rows]));
  }
  return { operations, setCut: (cut) => s2.setCut(cut.gate, cut.contribution) };
}

const gateBiasOf = ({ gateBias }: FfnParts) => (gateBias ? { gateBias } : {});
const upBiasOf = ({ upBias }: FfnParts) => (upBias ? { upBias } : {});

/** The candidates of every row: scratch.lists. */
async function choose(
  gpu: GpuDevice,
  tuning: Tuning,
  parts: FfnParts,
  predictor: FfnPredictor,
  kind: ActivationKind,
  scratch: FfnScratch,
  x: GPUBuffer,
  step: GPUBuffer,
): Promise<Operation[]> {
  const { ids, counts, scores, hidden, kept } = scratch.lists!;
  const { fc1, b1, fc2, contribution, afterGate, cut, always, scored } = predictor;
  const n = parts.gate.rows;
  if (afterGate) {
    const shape = { kind, outStride: n, score: true };
    const buffers = { x, x1: scores, step, ...gateBiasOf(parts), ...upBiasOf(parts), ...afterGate };
    return [
      named('gates and sketches of up', await gateUp(gpu, tuning, parts.gate, fc2, shape, buffers)),
      await select(
        gpu,
        { test: 'nonzero', valueStride: n, listStride: n },
        { entries: n },
        { values: scores, ids, counts, kept: kept! },
      ),
    ];
  }
  const operations: Operation[] = [];
  if (fc1) {
    const bias = b1 ? { bias: b1 } : {};
    const shape = { outStride: vectorStride(fc1.rows), relu: b1 !== null };
    const layer = await rowDot(gpu, tuning, fc1, shape, { x, step, out: hidden, ...bias });
    operations.push(named('predictor', layer));
  }
  const input = fc1 ? hidden : x;
  const bias = contribution && parts.gateBias ? { bias: parts.gateBias } : {};
  operations.push(
    named('predictor', await rowDot(gpu, tuning, fc2, { outStride: n }, { x: input, step, out: scores })),
    await select(
      gpu,
      { test: 'above', valueStride: n, listStride: n, ...(contribution ? { kind } : {}) },
      { entries: scored, first: always },
      { values: scores, cuts: cut, ids, counts, ...bias },
    ),
  );
  return operations;
}
