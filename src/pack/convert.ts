/**
 * Model -> pack, streaming. The main thread reads rows (one range at a time), workers quantise them and
 * write each block to its place; the header goes in last, so that an unfinished file is never a pack.
 */
import { availableParallelism } from 'node:os';
import { HybridError, PackError } from '../errors.js';
import { createAtomic, type AtomicFile } from '../io/atomic-write.js';
import { acquireLock } from '../io/lock.js';
import type { OnProgress } from '../io/progress.js';
import type { KernelBackend } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import { embeddingSize } from '../model/block.js';
import { createTokenizer } from '../model/tokenizer.js';
import type { Role, TensorName, WeightSource } from '../model/types.js';
import { ConvertPool } from './convert-pool.js';
import { planPack } from './format.js';
import { chooseFormats, describeConversion } from './formats.js';
import { GLOBAL_SECTIONS, LAYER_SECTIONS, type SectionContent } from './layout.js';
import { inputStride } from './quantize.js';
import { RowWriter, type ReadRows } from './row-writer.js';
import { TOOL_VERSION } from './tool-version.js';
import type { PackHeader, PackSection } from './types.js';

export interface ConvertOptions {
  /** null: what the types of a quantised file ask for (formats.ts), `unquantised` for other models. */
  quant: WeightFormat | null;
  /** @default 'q4' */
  unquantised?: WeightFormat;
  /** Workers. @default one per core, at most 8 */
  threads?: number;
  /** All backends write the same bytes; they differ in speed. @default 'auto' */
  kernels?: KernelBackend | 'auto';
  signal?: AbortSignal;
  onProgress?: OnProgress;
  /** When the caller has it already: WeightSource.fingerprint reads every byte. */
  fingerprint?: string;
  /** Memory for columns of the down projection. @default 256 MiB */
  columnBytes?: number;
}

/**
 * Converts a model into a pack at `outPath`. The file appears when it is complete; on an error or abort
 * nothing is left and an old pack stays as it was. The bytes do not depend on `threads`.
 * @throws ModelError (broken model, NaN or infinite weights), HybridError LOCKED, IO_FAILED, ABORTED
 */
export async function convert(
  source: WeightSource,
  outPath: string,
  options: ConvertOptions,
): Promise<PackHeader> {
  // A pack carries the tokenizer with it: a broken one is refused before minutes of work.
  try {
    createTokenizer(source.tokenizer);
  } catch (cause) {
    if (!(cause instanceof HybridError)) throw cause;
    throw new HybridError(cause.code, `${source.path}: ${cause.message}`, { hint: cause.hint, cause });
  }
  const lock = acquireLock(`${outPath}.lock`);
  try {
    return await writePack(source, outPath, options);
  } finally {
    lock.release();
  }
}

/** `convert` for callers that hold the lock already. */
export async function writePack(
  source: WeightSource,
  outPath: string,
  options: ConvertOptions,
): Promise<PackHeader> {
  const { signal, onProgress } = options;
  const file = createAtomic(outPath);
  try {
    const fingerprint =
      options.fingerprint ??
      source.claimedFingerprint ??
      (await source.fingerprint((done, total) => {
        signal?.throwIfAborted();
        onProgress?.({ stage: 'fingerprint', done, total, unit: 'bytes' });
      }));
    const { header, prefix } = planPackOf(source, fingerprint, options.quant, options.unquantised);
    file.truncate(header.fileBytes);
    await writeSections(source, header, file, prefix.length, options);
    file.write(prefix, 0);
    await file.commit();
    return header;
  } catch (error) {
    if (signal?.aborted) throw new PackError('ABORTED', 'conversion stopped', { cause: error });
    throw error;
  } finally {
    file.discard();
  }
}

/** The header that a model's pack has. @param unquantised see ConvertOptions. @default 'q4' */
export function planPackOf(
  source: WeightSource,
  fingerprint: string,
  asked: WeightFormat | null,
  unquantised: WeightFormat = 'q4',
): { header: PackHeader; prefix: Uint8Array } {
  const { name, config, tokenizer } = source;
  const { quant, formats } = chooseFormats(source, asked, unquantised);
  const converted = describeConversion(source, formats);
  return planPack(
    { toolVersion: TOOL_VERSION, name, config, quant, converted, fingerprint, tokenizer },
    formats,
  );
}

async function writeSections(
  source: WeightSource,
  header: PackHeader,
  file: AtomicFile,
  dataStart: number,
  options: ConvertOptions,
): Promise<void> {
  const { config } = header;
  const widest = Math.max(config.hiddenSize, config.heads * config.headDim, embeddingSize(config));
  // A record needs an up row and a down column; f32 output is as large as its input.
  const pool = new ConvertPool(
    options.threads ?? availableParallelism(),
    options.kernels ?? 'auto',
    2 * inputStride(widest),
    options.signal,
  );
  let done = 0;
  const total = header.fileBytes - dataStart;
  const count = (bytes: number) => {
    done += bytes;
    options.onProgress?.({ stage: 'quantise', done, total, unit: 'bytes' });
  };
  const writer = new RowWriter(file, pool, count, options.columnBytes);
  const read =
    (name: TensorName): ReadRows =>
    (begin, end, into) =>
      source.readRows(name, begin, end, into);
  const write = async (
    content: SectionContent<string, Role>,
    section: PackSection | null,
    prefix: string,
  ) => {
    if (section === null) return;
    const names = content.roles
      .map((role) => (prefix + role) as TensorName)
      .filter((name) => source.tensors.has(name));
    if (content.kind === 'vector') return writeVectors(source, file, names, section, count);
    if (content.kind === 'rows') {
      let first = 0;
      for (const name of names) {
        const [rows] = source.tensors.get(name)!.shape;
        await writer.rows(read(name), section, first, rows);
        first += rows;
      }
      return;
    }
    const [up, down] = names.length === 2 ? names : [null, names[0]];
    if (up) await writer.records(read(up), read(down), section.rows, section);
    else await writer.columnsAsRows(read(down), section.rows, section);
  };
  try {
    for (const content of GLOBAL_SECTIONS) await write(content, header[content.section], '');
    for (const [l, layer] of header.layers.entries()) {
      for (const content of LAYER_SECTIONS) await write(content, layer[content.section], `layers.${l}.`);
    }
    await pool.drain();
  } finally {
    await pool.close();
  }
}

/** Norms and biases: a few KB, written from here; several tensors one after the other form one row. */
async function writeVectors(
  source: WeightSource,
  file: AtomicFile,
  names: TensorName[],
  section: PackSection,
  count: (bytes: number) => void,
): Promise<void> {
  // An empty section is that of a model without a final norm.
  if (section.rows === 0) return;
  const row = new Float32Array(section.stride / 4);
  let at = 0;
  for (const name of names) {
    const values = await source.readRows(name, 0, 1);
    row.set(values, at);
    at += values.length;
  }
  file.write(new Uint8Array(row.buffer), section.offset);
  count(section.bytes);
}
