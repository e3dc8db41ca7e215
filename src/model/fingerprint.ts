/**
 * The model's name in caches and artifacts: SHA-256 over what it computes with. Hashing reads every byte
 * once; the result is kept in the user's cache folder, keyed by what changes when a file changes.
 */
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, read as readCallback, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ModelError } from '../errors.js';
import { cacheDir } from '../io/paths.js';
import type { RegularFile } from '../io/regular-file.js';
import type { ModelConfig, TokenizerFiles } from './types.js';
import { storedTensorsOf, type BoundTensor } from './bind.js';
import { isLlamaBlock } from './block.js';
import type { StoredTensor } from './safetensors.js';

const read = promisify(readCallback);
/** Large enough for the disk, small enough to report progress. */
const PIECE_BYTES = 4 << 20;
/** Part of the hash: change it when the meaning of the bytes below changes. */
const SCHEME = 'hybrid-infer model 1';

export interface FingerprintInput {
  config: ModelConfig;
  tokenizer: TokenizerFiles;
  files: readonly RegularFile[];
  tensors: ReadonlyMap<string, BoundTensor>;
}

/** @returns 64 hexadecimal digits */
export async function fingerprint(
  input: FingerprintInput,
  onBytes?: (done: number, total: number) => void,
): Promise<string> {
  const small = createHash('sha256');
  small.update(JSON.stringify([SCHEME, hashedConfig(input.config), input.tokenizer]));
  const tensors = [...input.tensors].sort(([a], [b]) => (a < b ? -1 : 1));
  // Experts and fused tensors: several tensors may be parts of one, which is hashed once.
  const stored = new Set<StoredTensor>();
  for (const [name, t] of tensors) {
    const parts = [...storedTensorsOf(t)];
    for (const part of parts) stored.add(part);
    small.update(JSON.stringify([name, ...new Set(parts.map(({ dtype }) => dtype)), t.rows, t.cols]));
  }
  const smallHash = small.digest('hex');
  const total = [...stored].reduce((sum, { bytes }) => sum + bytes, 0);

  const key = createHash('sha256')
    .update(JSON.stringify([smallHash, input.files.map((f) => f.identity)]))
    .digest('hex');
  const cached = readCached(key);
  if (cached !== null) {
    onBytes?.(total, total);
    return cached;
  }
  const value = await hashTensors(smallHash, stored, total, onBytes);
  writeCached(key, value);
  return value;
}

/**
 * A Llama block adds nothing: such models keep the fingerprints they had before blocks were described, and with
 * them their profiles and predictors.
 */
function hashedConfig(config: ModelConfig): Partial<ModelConfig> {
  if (!isLlamaBlock(config)) return config;
  const { block: _block, ends: _ends, ...rest } = config;
  return rest;
}

async function hashTensors(
  start: string,
  tensors: Iterable<StoredTensor>,
  total: number,
  onBytes?: (done: number, total: number) => void,
): Promise<string> {
  const hash = createHash('sha256').update(start);
  const buffer = new Uint8Array(PIECE_BYTES);
  let done = 0;
  for (const stored of tensors) {
    for (let at = 0; at < stored.bytes;) {
      const length = Math.min(PIECE_BYTES, stored.bytes - at);
      const { bytesRead } = await read(stored.file.fd, buffer, 0, length, stored.offset + at);
      if (bytesRead === 0) {
        throw new ModelError(
          'MODEL_INVALID',
          `${stored.file.path}: tensor ${stored.name}: the file ended (it changed while in use)`,
        );
      }
      hash.update(buffer.subarray(0, bytesRead));
      at += bytesRead;
      done += bytesRead;
      onBytes?.(done, total);
    }
  }
  return hash.digest('hex');
}

// ---- the cache: one small file per model; a missing, broken or unwritable cache only costs time --------

const cachePath = (key: string): string => join(cacheDir(), 'fingerprints', key);

function readCached(key: string): string | null {
  try {
    const text = readFileSync(cachePath(key), 'utf8').trim();
    return /^[0-9a-f]{64}$/.test(text) ? text : null;
  } catch {
    return null;
  }
}

function writeCached(key: string, value: string): void {
  const path = cachePath(key);
  const temporary = `${path}.${randomBytes(6).toString('hex')}`;
  try {
    mkdirSync(join(cacheDir(), 'fingerprints'), { recursive: true });
    writeFileSync(temporary, `${value}\n`);
    renameSync(temporary, path);
  } catch {
    try {
      rmSync(temporary, { force: true });
    } catch {
      // The cache folder is no folder, so there is no temporary file either.
    }
  }
}
