/**
 * One file from the Hub into `blobs/`: resumed where an earlier try ended, hashed while it is written, and
 * given its name only when size and hash are right.
 */
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  fsync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import type { Hash } from 'node:crypto';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { HybridError } from '../errors.js';
import { writeFully, writing } from '../io/atomic-write.js';
import { describe, failed, type HubHttp, type HubResponse } from './http.js';
import { refused } from './listing.js';
import { blobPath, partPath } from './layout.js';
import { startHash, type RemoteFile } from './verify.js';

export interface TransferOptions {
  /** Bytes that are there: from an earlier try, then as they come. Falls back when a file begins again. */
  onBytes?: (done: number) => void;
  /** How bytes reach the disk; passed in so that tests can fill it. @default writeFully */
  write?: typeof writeFully;
}

/** Connections that end early one after the other, without a single byte in between. */
const MAX_IDLE_CUTS = 5;
const CUT_DELAY_MS = 500;
const READ_BYTES = 1 << 20;

const fsyncAsync = promisify(fsync);

/**
 * @param folder of the repository in the cache; the caller holds its lock
 * @returns the blob's path
 * @throws HybridError DOWNLOAD_FAILED, FILE_INVALID (content is not what the listing says), IO_FAILED, ABORTED
 */
export async function fetchBlob(
  http: HubHttp,
  url: string,
  file: RemoteFile,
  folder: string,
  options: TransferOptions = {},
): Promise<string> {
  const blob = blobPath(folder, file.hash);
  if (existsSync(blob) && statSync(blob).size === file.size) {
    options.onBytes?.(file.size);
    return blob;
  }
  mkdirSync(dirname(blob), { recursive: true });
  const part = new Part(partPath(folder, file.hash), file, options);
  try {
    const resumed = part.length > 0;
    await complete(http, url, part);
    if (!part.isRight() && resumed) {
      // What was there before may be the fault: another program, or a file system that lost writes.
      part.restart();
      await complete(http, url, part);
    }
    if (!part.isRight()) {
      part.remove();
      throw new HybridError(
        'FILE_INVALID',
        `${file.path}: the downloaded content does not have the hash ${file.hash.hex}`,
        {
          hint: 'The server or something on the way changes the file; nothing was kept.',
        },
      );
    }
    await part.finish(blob);
  } finally {
    part.close();
  }
  return blob;
}

/** Requests until all bytes are there. */
async function complete(http: HubHttp, url: string, part: Part): Promise<void> {
  let idle = 0;
  while (part.length < part.file.size || part.file.size === 0) {
    const before = part.length;
    const cut = await receive(http, url, part);
    if (cut === null) return;
    http.throwIfAborted();
    idle = part.length > before ? 0 : idle + 1;
    if (idle === MAX_IDLE_CUTS) throw failed(url, `the connection ends early again and again (${cut})`);
    await http.pause(CUT_DELAY_MS * 2 ** idle);
  }
}

/** One request from where the part ends. @returns null when the file is complete, else why it is not */
async function receive(http: HubHttp, url: string, part: Part): Promise<string | null> {
  const from = part.length;
  const response = await http.get(url, from > 0 ? { range: `bytes=${from}-` } : {});
  const { status, body } = response;
  try {
    if (status === 401 || status === 403) throw refused(part.file.path);
    if (status === 416 && from > 0) {
      part.restart();
      return 'the server has no such range';
    }
    if (status !== 200 && status !== 206) throw failed(url, `the server answers ${status}`);
    refuseOtherContent(response, part.file, url);
    if (status === 200 || !continuesAt(response, from, part.file.size)) {
      if (status === 206) throw failed(url, 'the server answers another range than was asked for');
      part.restart();
    }
    for await (const chunk of body) part.append(chunk as Buffer);
  } catch (error) {
    if (error instanceof HybridError) throw error;
    return describe(error);
  } finally {
    body.on('error', () => {}).destroy();
  }
  return part.length === part.file.size ? null : `${part.length} of ${part.file.size} bytes came`;
}

/** The Hub's first answer names the content; after a change there, old and new bytes must not be joined. */
function refuseOtherContent({ firstHeaders }: HubResponse, { path, hash }: RemoteFile, url: string): void {
  const named = firstHeaders['x-linked-etag'] ?? firstHeaders.etag;
  const hex =
    typeof named === 'string' ? /^(?:W\/)?"?([0-9a-f]{40}|[0-9a-f]{64})"?$/.exec(named)?.[1] : undefined;
  if (hex && hex.length === hash.hex.length && hex !== hash.hex)
    throw failed(url, `${path} was changed on the server since it was listed`);
}

function continuesAt({ headers }: HubResponse, from: number, size: number): boolean {
  const match = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(String(headers['content-range']));
  return match !== null && Number(match[1]) === from && (match[3] === '*' || Number(match[3]) === size);
}

/** `<hash>.part`: what has come so far, and the hash of it. */
class Part {
  length = 0;
  private readonly fd: number;
  private hash: Hash;
  private open = true;
  private readonly write: typeof writeFully;

  constructor(
    private readonly path: string,
    readonly file: RemoteFile,
    private readonly options: TransferOptions,
  ) {
    this.write = options.write ?? writeFully;
    // Never through a link: somebody else's file would be written.
    const flags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0);
    this.fd = writing(path, () => openSync(path, flags, 0o644));
    this.hash = startHash(file);
    const size = fstatSync(this.fd).size;
    if (size > file.size) this.restart();
    else this.hashWhatIsThere(size);
    this.options.onBytes?.(this.length);
  }

  append(bytes: Buffer): void {
    if (this.length + bytes.length > this.file.size) {
      this.remove();
      throw new HybridError(
        'FILE_INVALID',
        `${this.file.path}: the server sends more than the ${this.file.size} bytes it lists`,
      );
    }
    this.write(this.fd, bytes, this.length, this.path);
    this.hash.update(bytes);
    this.length += bytes.length;
    this.options.onBytes?.(this.length);
  }

  restart(): void {
    ftruncateSync(this.fd, 0);
    this.length = 0;
    this.hash = startHash(this.file);
    this.options.onBytes?.(0);
  }

  isRight(): boolean {
    return this.length === this.file.size && this.hash.copy().digest('hex') === this.file.hash.hex;
  }

  async finish(blob: string): Promise<void> {
    await fsyncAsync(this.fd);
    this.close();
    writing(blob, () => renameSync(this.path, blob));
  }

  remove(): void {
    this.close();
    rmSync(this.path, { force: true });
  }

  close(): void {
    if (this.open) closeSync(this.fd);
    this.open = false;
  }

  private hashWhatIsThere(size: number): void {
    const buffer = Buffer.alloc(Math.min(READ_BYTES, Math.max(1, size)));
    while (this.length < size) {
      const read = readSync(this.fd, buffer, 0, Math.min(buffer.length, size - this.length), this.length);
      if (read === 0) break;
      this.hash.update(buffer.subarray(0, read));
      this.length += read;
    }
  }
}
