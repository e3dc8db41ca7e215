/**
 * A model seen from its headers before its weights are downloaded: a folder whose weight files have the real
 * headers, fetched by range, and the real lengths, but holes where the weights will be. `openModel` checks
 * such a folder as it checks any other, because it reads no weights.
 */
import {
  closeSync,
  copyFileSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { HybridError } from '../errors.js';
import { writing } from '../io/atomic-write.js';
import { MAX_SAFETENSORS_HEADER } from '../model/limits.js';
import { openModel } from '../model/open-model.js';
import type { WeightSource } from '../model/types.js';
import { failed, type HubHttp } from './http.js';
import type { RemoteFile } from './verify.js';

/** Where a file can be read from, and where it is already when it was downloaded. */
export interface Located {
  file: RemoteFile;
  url: string;
  /** null: only its header is wanted */
  local: string | null;
}

/** GGUF headers hold the tokenizer: 2 MB for 32,000 tokens, 12 MB for 256,000. */
const FIRST_GGUF_BYTES = 4 << 20;
const MAX_GGUF_BYTES = 64 << 20;

/**
 * @param use what is wanted of the opened model; the folder is gone afterwards
 * @throws as openModel, when the model cannot be loaded
 */
export async function withRemoteModel<T>(
  http: HubHttp,
  files: readonly Located[],
  scratch: string,
  use: (model: WeightSource) => T | Promise<T>,
): Promise<T> {
  const folder = writing(scratch, () => mkdtempSync(join(scratch, '.headers-')));
  try {
    if (/\.gguf$/i.test(files[0].file.path)) return await useGguf(http, files, folder, use);
    for (const { file, url, local } of files) {
      const path = join(folder, basename(file.path));
      if (local) writing(path, () => copyFileSync(local, path));
      else writeWithHoles(path, await safetensorsHeader(http, url, file), file.size);
    }
    return await using(folder, use);
  } catch (error) {
    throw withoutFolder(error, folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function useGguf<T>(
  http: HubHttp,
  files: readonly Located[],
  folder: string,
  use: (model: WeightSource) => T | Promise<T>,
): Promise<T> {
  const largest = Math.max(...files.map(({ file }) => file.size));
  for (let bytes = FIRST_GGUF_BYTES; ; bytes *= 4) {
    for (const { file, url } of files) {
      const header = await range(http, url, file, 0, Math.min(bytes, file.size));
      writeWithHoles(join(folder, basename(file.path)), header, file.size);
    }
    try {
      return await using(join(folder, basename(files[0].file.path)), use);
    } catch (error) {
      // The header may go on behind what was fetched: there are zeros, which are no header.
      if (bytes >= Math.min(largest, MAX_GGUF_BYTES)) throw error;
    }
  }
}

async function using<T>(path: string, use: (model: WeightSource) => T | Promise<T>): Promise<T> {
  const model = await openModel(path);
  try {
    return await use(model);
  } finally {
    await model.close();
  }
}

async function safetensorsHeader(http: HubHttp, url: string, file: RemoteFile): Promise<Buffer> {
  const start = await range(http, url, file, 0, Math.min(8, file.size));
  if (start.length < 8) return start; // openModel says what is wrong with it
  const length = start.readBigUInt64LE(0);
  if (length > BigInt(Math.min(MAX_SAFETENSORS_HEADER, file.size - 8))) return start;
  return range(http, url, file, 0, 8 + Number(length));
}

async function range(
  http: HubHttp,
  url: string,
  file: RemoteFile,
  begin: number,
  end: number,
): Promise<Buffer> {
  if (end === begin) return Buffer.alloc(0);
  const { status, bytes } = await http.bytes(url, end - begin, { range: `bytes=${begin}-${end - 1}` });
  if (status !== 206 && !(status === 200 && end - begin === file.size))
    throw failed(url, `the server answers ${status} to a range request`);
  if (bytes.length !== end - begin)
    throw failed(url, `${bytes.length} bytes came, ${end - begin} were asked for`);
  return bytes;
}

/** The rest of the length takes no room on the disk. */
function writeWithHoles(path: string, header: Buffer, size: number): void {
  mkdirSync(dirname(path), { recursive: true });
  writing(path, () => {
    const fd = openSync(path, 'w');
    try {
      writeSync(fd, header);
      ftruncateSync(fd, size);
    } finally {
      closeSync(fd);
    }
  });
}

/** The folder was ours: the user knows the repository's names. */
function withoutFolder(error: unknown, folder: string): unknown {
  if (!(error instanceof HybridError)) return error;
  const message = error.message.replaceAll(`${folder}/`, '').replaceAll(folder, basename(folder));
  return new HybridError(error.code, message, { hint: error.hint, cause: error });
}
