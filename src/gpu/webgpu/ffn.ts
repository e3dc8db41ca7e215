/**
 * A layer's FFN as operations (vocabulary in docs/architecture.md):
 *
 *     dense, exact   gate and up ─ down                          exact reads up and down where the gate passed
 *     predicted      scores ─ select ─ gate and up of the candidates ─ down
 *
 * Neurons lie in the order that the predictor wants: always candidates, scored ones, the rest.
 */
import type { ActivationCut, FfnMode, LayerPlan, QuantRows } from '../../engine/ffn-plan.js';
import type { ActivationKind } from '../../kernels/kernels.js';
import { isSketch, rowBytes, type WeightFormat } from '../../kernels/layout.js';
import type { PackHeader, PackSection } from '../../pack/types.js';
import type { ReadAt } from '../weights.js';
import { createFrom, createStorage } from './buffers.js';
import type { GpuDevice } from './device.js';
import { encodePass, type BufferPart } from './kernel.js';
import { contributionKernel } from './kernels/contribution.js';
import { countKernel } from './kernels/count.js';
import { downSum, downSumScratch } from './kernels/down-sum.js';
import { gateUp } from './kernels/gate-up.js';
import { lengthsKernel } from './kernels/lengths.js';
import { rowDot } from './kernels/row-dot.js';
import { select } from './kernels/select.js';
import type { Operation } from './operation.js';
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
  lists: { ids: GPUBuffer; counts: GPUBuffer; scores: GPUBuffer; hidden: GPUBuffer } | null;
}

export const ffnScratchBytes = (d: number, n: number, rank: number, T: number): number =>
  4 * (T * n + downSumScratch(n, d, T) + (rank > 0 ? T * (2 * n + 1 + vectorStride(rank)) : 0));

/** @param rank of the largest predictor; 0: none */
export async function createFfnScratch(
  gpu: GpuDevice,
  d: number,
  n: number,
  rank: number,
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
          }
        : null,
  };
}

/** The order in which a layer's neurons lie on the device; null: the model's. */
export function neuronOrder(plan: LayerPlan | null, neurons: number): Uint32Array | null {
  if (!plan?.predictor) return null;
  const listed = new Set([...plan.always, ...plan.scored]);
  const rest = Array.from({ length: neurons }, (_, id) => id).filter((id) => !listed.has(id));
  return Uint32Array.from([...plan.always, ...plan.scored, ...rest]);
}

export async function uploadPredictor(gpu: GpuDevice, plan: LayerPlan, name: string): Promise<FfnPredictor> {
  const { fc1, b1, fc2, cut, contribution = false } = plan.predictor!;
  const rows = (matrix: QuantRows): Promise<GpuRows> => uploadArtifactRows(gpu, name, matrix);
  return {
    fc1: fc1 && (await rows(fc1)),
    b1: b1 && (await createFrom(gpu, name, b1)),
    fc2: await rows(fc2),
    contribution,
    cut: await createFrom(gpu, name, cut),
    always: plan.always.length,
    scored: plan.scored.length,
  };
}

/** Rows as an artifact has them lie closer than kernels read them, where they are weights. */
function uploadArtifactRows(gpu: GpuDevice, name: string, matrix: QuantRows): Promise<GpuRows> {
  const { format, rows, cols, data } = matrix;
  const stride = isSketch(format) ? matrix.stride : rowBytes(format, cols);
  return uploadRows(gpu, name, { format, rows, cols, stride }, (piece, at) => {
    piece.fill(0);
    for (let to = 0; to < piece.length; to += stride) {
      const from = ((at + to) / stride) * matrix.stride;
      piece.set(data.subarray(from, from + matrix.stride), to);
    }
  });
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

/** out = FFN(x) without the bias of down. */
export async function layerFfn(
  gpu: GpuDevice,
  tuning: Tuning,
  parts: FfnParts,
  kind: ActivationKind,
  mode: FfnMode,
  cut: ActivationCut,
  scratch: FfnScratch,
  { x, step, out, outStride, counts }: FfnBuffers,
): Promise<Operation[]> {
  const { gate, records, gated, downOffset } = parts;
  const { x1, partial } = scratch;
  const n = gate.rows;
  const predictor = mode === 'predicted' ? parts.predictor : null;
  const lists = predictor && scratch.lists!;
  const operations = predictor ? await choose(gpu, tuning, parts, predictor, kind, scratch, x, step) : [];
  const listed = lists ? { ids: lists.ids, counts: lists.counts } : {};
  const dense = mode === 'dense';
  operations.push(
    await gateUp(
      gpu,
      tuning,
      gate,
      gated ? records : null,
      { kind, outStride: n, dense, ...(predictor ? { listStride: n } : {}) },
      {
        x,
        x1,
        ...listed,
        ...(parts.gateBias ? { gateBias: parts.gateBias } : {}),
        ...(parts.upBias ? { upBias: parts.upBias } : {}),
        ...(cut.contribution > 0 ? { norms: parts.norms! } : {}),
      },
      { threshold: cut.gate, least: cut.contribution },
    ),
    await downSum(
      gpu,
      tuning,
      records,
      { offset: downOffset, entryStride: n, outStride, listed: predictor !== null },
      { coef: x1, ...listed, partial, out },
    ),
  );
  if (counts) {
    const text = countKernel({ stride: n, neurons: n, listed: predictor !== null, dense });
    const buffers = lists ? [x1, lists.counts, counts] : [x1, counts];
    operations.push(await oneDispatch(gpu, text, buffers, (rows) => [rows]));
  }
  return operations;
}

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
  const { ids, counts, scores, hidden } = scratch.lists!;
  const { fc1, b1, fc2, contribution, cut, always, scored } = predictor;
  const n = parts.gate.rows;
  const operations: Operation[] = [];
  if (fc1) {
    const bias = b1 ? { bias: b1 } : {};
    const shape = { outStride: vectorStride(fc1.rows), relu: b1 !== null };
    operations.push(await rowDot(gpu, tuning, fc1, shape, { x, step, out: hidden, ...bias }));
  }
  const input = fc1 ? hidden : x;
  operations.push(await rowDot(gpu, tuning, fc2, { outStride: n }, { x: input, step, out: scores }));
  if (contribution) {
    const { gateBias } = parts;
    const text = contributionKernel({ kind, stride: n, scored, first: always, gateBias: gateBias !== null });
    const buffers = gateBias ? [scores, gateBias] : [scores];
    operations.push(await oneDispatch(gpu, text, buffers, (rows) => [Math.ceil(scored / 64), rows]));
  }
  operations.push(
    await select(
      gpu,
      { test: 'above', valueStride: n, listStride: n },
      { entries: scored, first: always },
      { values: scores, cuts: cut, ids, counts },
    ),
  );
  return operations;
}
