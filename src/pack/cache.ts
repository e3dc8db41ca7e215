/** Packs of models that were given as a folder or GGUF file: converted once, kept in the user's cache. */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { HybridError } from '../errors.js';
import { waitForLock } from '../io/lock.js';
import { cacheDir } from '../io/paths.js';
import type { OnProgress } from '../io/progress.js';
import type { KernelBackend } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import { openModel } from '../model/open-model.js';
import type { WeightSource } from '../model/types.js';
import { writePack } from './convert.js';
import { PACK_VERSION } from './format.js';
import { chooseFormats, formatsKey } from './formats.js';
import { looksLikePack, openPack } from './reader.js';

export interface PackForOptions {
  threads?: number;
  kernels?: KernelBackend | 'auto';
  signal?: AbortSignal;
  onProgress?: OnProgress;
  /** Told once about each oddity of the model (extra tensors and the like). */
  onWarning?: (message: string) => void;
}

/**
 * The pack to run for what a user named: a pack stays as it is, a folder or GGUF file is converted into the
 * cache unless that was done before. Two processes that ask for the same pack convert it once.
 * @param quant null: what the model's types ask for (q8 when it is not quantised), or what a given pack holds
 * @returns path of a pack
 * @throws as openModel, openPack and convert; UsageError-like PACK_INVALID when a pack has another quant
 */
export async function packFor(
  path: string,
  quant: WeightFormat | null,
  options: PackForOptions = {},
): Promise<string> {
  if (looksLikePack(path)) {
    requireQuant(path, quant);
    return path;
  }
  const source = await openModel(path);
  try {
    for (const warning of source.warnings) options.onWarning?.(warning);
    return await cachedPack(source, quant, options);
  } finally {
    await source.close();
  }
}

/** Small models lose too much in 4 bits, and q8 of a large one still fits most machines that run it. */
const UNQUANTISED: WeightFormat = 'q8';

/** As packFor, for a model that is open already. */
export async function cachedPack(
  source: WeightSource,
  asked: WeightFormat | null,
  options: PackForOptions = {},
): Promise<string> {
  const { signal, onProgress } = options;
  const fingerprint = await source.fingerprint((done, total) => {
    if (signal?.aborted) throw new HybridError('ABORTED', 'stopped while reading the model');
    onProgress?.({ stage: 'fingerprint', done, total, unit: 'bytes' });
  });
  // Profiles go by the model a GGUF file was made from; the file's own bytes decide which pack is its.
  const name = source.claimedFingerprint ?? fingerprint;
  const folder = join(cacheDir(), 'packs');
  const { quant, formats } = chooseFormats(source, asked, UNQUANTISED);
  const kind = formatsKey(formats);
  const path = join(folder, `${fingerprint.slice(0, 32)}-${kind}-v${PACK_VERSION}.pack`);
  if (isGood(path, name, quant)) return path;

  try {
    mkdirSync(folder, { recursive: true });
  } catch (cause) {
    throw new HybridError('IO_FAILED', `cannot create the cache folder ${folder}`, {
      hint: 'Set HYBRID_INFER_CACHE to a folder you may write to, or convert the model to a pack first.',
      cause,
    });
  }
  const lock = await waitForLock(`${path}.lock`, signal);
  try {
    // The process that held the lock before may have made it.
    if (isGood(path, name, quant)) return path;
    rmSync(path, { force: true });
    await writePack(source, path, { ...options, quant: asked, unquantised: UNQUANTISED, fingerprint: name });
    return path;
  } finally {
    lock.release();
  }
}

/** Broken entries (a disk that lied, a file cut off by hand) are made again, not reported. */
function isGood(path: string, fingerprint: string, quant: WeightFormat): boolean {
  try {
    const pack = openPack(path);
    pack.close();
    return pack.header.fingerprint === fingerprint && pack.header.quant === quant;
  } catch {
    return false;
  }
}

function requireQuant(path: string, quant: WeightFormat | null): void {
  if (quant === null) return;
  const pack = openPack(path);
  pack.close();
  if (pack.header.quant === quant) return;
  throw new HybridError('USAGE', `${path} holds ${pack.header.quant} weights, not ${quant}`, {
    hint: 'Convert the original model: hybrid-infer convert <folder or .gguf> -o FILE --quant ' + quant,
  });
}
