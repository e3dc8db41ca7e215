/**
 * A model as a GGUF file of architecture `llama`: for llama.cpp as a dense peer of the same size and speed,
 * and for this program, which also reads what the file says about the activation.
 *
 * llama.cpp has no gated ReLU architecture: it computes SiLU with these weights. Its speed is the model's,
 * its text is not.
 */
import { availableParallelism } from 'node:os';
import { HybridError } from '../errors.js';
import { createAtomic, type AtomicFile } from '../io/atomic-write.js';
import { acquireLock } from '../io/lock.js';
import type { OnProgress } from '../io/progress.js';
import { expectedTensors, ggufName } from '../model/tensor-names.js';
import type { TensorName, WeightSource } from '../model/types.js';
import { ConvertPool } from '../pack/convert-pool.js';
import { ggufBlock } from '../pack/gguf-rows.js';
import { inputStride } from '../pack/quantize.js';
import { RowWriter, type ReadRows } from '../pack/row-writer.js';
import {
  planGguf,
  type GgufMeta,
  type GgufPlan,
  type GgufTensor,
  type GgufType,
  type PlacedTensor,
} from './gguf-file.js';
import { requireLlama } from './llama-block.js';
import { foldedScale, modelMetadata, ropeDivisors } from './model-metadata.js';
import { tokenizerMetadata } from './tokenizer-metadata.js';

export interface ExportOptions {
  /** @default 'q4_0' */
  type?: GgufType;
  threads?: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

/** A tensor of the file and where its rows come from. */
export interface ExportTensor extends GgufTensor {
  read: ReadRows;
  /** The rows are the columns of a matrix of this width, which `read` reads by its rows. */
  columnsOf?: number;
}

/**
 * @param source an opened model, or `packSource(pack)`
 * @throws HybridError MODEL_UNSUPPORTED (layers that are not Llama's, tokenizer), LOCKED, IO_FAILED, ABORTED
 */
export async function exportGguf(
  source: WeightSource,
  outPath: string,
  options: ExportOptions = {},
): Promise<{ bytes: number }> {
  const type = options.type ?? 'q4_0';
  requireLlama(source.config);
  const metadata = new Map([
    ...(await modelMetadata(source, 'llama', type)),
    ...tokenizerMetadata(source.tokenizer, source.config),
  ]);
  const tensors = expectedTensors(source.config).map(([name, shape]) =>
    exportTensor(source, name, shape, type),
  );
  const divisors = ropeDivisors(source.config);
  if (divisors) tensors.push(vectorTensor('rope_freqs.weight', divisors));
  return writeGguf('GGUF', outPath, metadata, tensors, options);
}

/** One of the model's tensors, in the order and scale that architecture `llama` wants. */
export function exportTensor(
  source: WeightSource,
  name: TensorName,
  shape: readonly number[],
  type: GgufType,
): ExportTensor {
  const { config } = source;
  const vector = shape.length === 1;
  const [rows, cols] = vector ? [1, shape[0]] : shape;
  let read: ReadRows = (begin, end, into) => source.readRows(name, begin, end, into);
  if (/\.(q|k)$/.test(name)) read = interleaveHeads(read, cols, config.headDim);
  if (/\.(qBias|kBias)$/.test(name)) read = interleaveVector(read, config.headDim);
  read = scaled(read, cols, foldedScale(name, config));
  return {
    name: ggufName(name),
    rows,
    cols,
    vector,
    format: vector ? 'f32' : formatFor(name, cols, type),
    read,
  };
}

/** Rows that blocks do not divide stay halves; the head decides between near-equal tokens and stays q8_0. */
function formatFor(name: TensorName, cols: number, type: GgufType): ExportTensor['format'] {
  const wanted = type === 'q4_0' && name === 'lmHead' ? 'q8_0' : type;
  return cols % ggufBlock(wanted) === 0 ? wanted : 'f16';
}

export const vectorTensor = (name: string, values: Float32Array): ExportTensor => ({
  name,
  rows: 1,
  cols: values.length,
  vector: true,
  format: 'f32',
  read: async (_begin, _end, into) => {
    into.set(values);
    return into;
  },
});

/** llama.cpp rotates neighbours, this program (as Hugging Face) halves: row 2j + s is row s * D/2 + j here. */
function interleaveHeads(read: ReadRows, cols: number, headDim: number): ReadRows {
  return async (begin, end, into) => {
    const first = begin - (begin % headDim);
    const last = end + ((headDim - (end % headDim)) % headDim);
    const heads = await read(first, last, new Float32Array((last - first) * cols));
    for (let row = begin; row < end; row++) {
      const from = sourceRow(row, headDim) - first;
      into.set(heads.subarray(from * cols, (from + 1) * cols), (row - begin) * cols);
    }
    return into;
  };
}

function interleaveVector(read: ReadRows, headDim: number): ReadRows {
  return async (begin, end, into) => {
    const values = (await read(begin, end, into)).slice();
    for (let i = 0; i < values.length; i++) into[i] = values[sourceRow(i, headDim)];
    return into;
  };
}

function sourceRow(row: number, headDim: number): number {
  const inHead = row % headDim;
  return row - inHead + (inHead % 2) * (headDim / 2) + (inHead >> 1);
}

function scaled(read: ReadRows, cols: number, scale: number): ReadRows {
  if (scale === 1) return read;
  return async (begin, end, into) => {
    await read(begin, end, into);
    for (let i = 0; i < (end - begin) * cols; i++) into[i] *= scale;
    return into;
  };
}

// ---- writing ------------------------------------------------------------------------------------------

/** Quantises and writes all tensors; the file appears when it is complete. */
export async function writeGguf(
  magic: string,
  outPath: string,
  metadata: ReadonlyMap<string, GgufMeta>,
  tensors: ExportTensor[],
  options: ExportOptions,
): Promise<{ bytes: number }> {
  const plan = planGguf(magic, metadata, tensors);
  const lock = acquireLock(`${outPath}.lock`);
  try {
    const file = createAtomic(outPath);
    try {
      file.truncate(plan.fileBytes);
      await writeTensors(file, plan, tensors, options);
      file.write(plan.prefix, 0);
      await file.commit();
      return { bytes: plan.fileBytes };
    } catch (error) {
      if (options.signal?.aborted) throw new HybridError('ABORTED', 'export stopped', { cause: error });
      throw error;
    } finally {
      file.discard();
    }
  } finally {
    lock.release();
  }
}

async function writeTensors(
  file: AtomicFile,
  plan: GgufPlan,
  tensors: ExportTensor[],
  options: ExportOptions,
): Promise<void> {
  const widest = Math.max(...tensors.map((t) => t.cols));
  const pool = new ConvertPool(
    options.threads ?? availableParallelism(),
    'auto',
    inputStride(widest),
    options.signal,
  );
  let done = 0;
  const total = plan.fileBytes - plan.prefix.length;
  const count = (bytes: number) => {
    done += bytes;
    options.onProgress?.({ stage: 'export', done, total, unit: 'bytes' });
  };
  const writer = new RowWriter(file, pool, count);
  try {
    for (const [i, tensor] of tensors.entries()) await writeTensor(writer, file, plan.tensors[i], tensor);
    await pool.drain();
  } finally {
    await pool.close();
  }
}

async function writeTensor(
  writer: RowWriter,
  file: AtomicFile,
  placed: PlacedTensor,
  tensor: ExportTensor,
): Promise<void> {
  if (tensor.vector) {
    const values = await tensor.read(0, 1, new Float32Array(tensor.cols));
    file.write(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), placed.offset);
  } else if (tensor.columnsOf !== undefined) {
    await writer.columnsAsRows(tensor.read, tensor.columnsOf, placed);
  } else {
    await writer.rows(tensor.read, placed);
  }
}
