/**
 * Files that appear whole or not at all: a temporary file in the same folder, a complete write loop, fsync,
 * rename, fsync of the folder. Whatever goes wrong before the rename, the old file stays as it was.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, fsync, ftruncateSync, lstatSync, openSync, readdirSync } from 'node:fs';
import { renameSync, rmSync, writeSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { HybridError } from '../errors.js';
import { processState, thisProcess } from './process-identity.js';

const fsyncAsync = promisify(fsync);

/** A file being written. Exactly one of `commit` and `discard` ends it; both may be called again. */
export interface AtomicFile {
  /** Where the file will be after `commit`. */
  readonly path: string;
  /** Descriptor of the temporary file; any thread of this process may write through it with `writeFully`. */
  readonly fd: number;
  /** Writes all bytes at `position`, or throws IO_FAILED. */
  write(bytes: Uint8Array, position: number): void;
  /** Sets the length: sections that nobody wrote read as zeros. */
  truncate(bytes: number): void;
  /** Makes the content durable, then puts it in place of `path`. On failure nothing is left behind. */
  commit(): Promise<void>;
  /** Removes the temporary file. */
  discard(): void;
}

/** Starts writing `path`. Temporaries of killed processes for the same path are removed. */
export function createAtomic(path: string): AtomicFile {
  refuseSpecialTarget(path);
  removeStaleTemporaries(path);
  const who = thisProcess();
  const unique = randomBytes(6).toString('hex');
  const temporary = join(
    dirname(path),
    `.${basename(path)}.${who.host}-${who.pid}-${who.start || 0}-${unique}.tmp`,
  );
  const fd = writing(path, () => openSync(temporary, 'wx+'));
  let open = true;

  const discard = () => {
    if (!open) return;
    open = false;
    closeSync(fd);
    rmSync(temporary, { force: true });
  };

  return {
    path,
    fd,
    write: (bytes, position) => writeFully(fd, bytes, position, path),
    truncate: (bytes) => writing(path, () => ftruncateSync(fd, bytes)),
    discard,
    async commit() {
      try {
        await fsyncAsync(fd);
        closeSync(fd);
        open = false;
        renameSync(temporary, path);
      } catch (error) {
        discard();
        rmSync(temporary, { force: true });
        throw ioFailed(path, error);
      }
      await syncFolder(dirname(path));
    },
  };
}

/** Replaces `path` with `content` in one step. */
export async function writeFileAtomic(path: string, content: Uint8Array | string): Promise<void> {
  const file = createAtomic(path);
  try {
    file.write(typeof content === 'string' ? Buffer.from(content) : content, 0);
    await file.commit();
  } finally {
    file.discard();
  }
}

/** One `write` may write less than asked (signals, nearly full disks): go on until all is written. */
export function writeFully(fd: number, bytes: Uint8Array, position: number, path: string): void {
  let done = 0;
  while (done < bytes.byteLength) {
    const written = writing(path, () =>
      // Linux writes at most 2 GiB - 4 KiB a call, and Node refuses lengths above 2^31 - 1.
      writeSync(fd, bytes, done, Math.min(bytes.byteLength - done, MAX_WRITE), position + done),
    );
    if (written === 0) throw ioFailed(path, new Error('the system wrote 0 bytes'));
    done += written;
  }
}

const MAX_WRITE = 1 << 30;

/** Renaming over /dev/null or a folder would destroy it: only regular files and links are replaced. */
function refuseSpecialTarget(path: string): void {
  const stat = writing(path, () => lstatSync(path, { throwIfNoEntry: false }));
  if (stat === undefined || stat.isFile() || stat.isSymbolicLink()) return;
  const kind = stat.isDirectory() ? 'a folder' : 'a device, pipe or socket';
  throw new HybridError('FILE_INVALID', `cannot write ${path}: expected a regular file, found ${kind}`, {
    hint: 'Give the name of a file that may be created or replaced.',
  });
}

function removeStaleTemporaries(path: string): void {
  const folder = dirname(path);
  const prefix = `.${basename(path)}.`;
  const names = writing(path, () => readdirSync(folder));
  for (const name of names) {
    if (!name.startsWith(prefix)) continue;
    const match = /^([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{12}\.tmp$/.exec(name.slice(prefix.length));
    if (!match) continue;
    const who = { host: match[1], pid: Number(match[2]), start: match[3] === '0' ? '' : match[3] };
    if (processState(who) === 'dead') rmSync(join(folder, name), { force: true });
  }
}

/** Without this, a power cut may undo the rename. Some file systems refuse it: then there is no more to do. */
async function syncFolder(folder: string): Promise<void> {
  let fd = -1;
  try {
    fd = openSync(folder, 'r');
    await fsyncAsync(fd);
  } catch {
    // The content is complete and in place; only its durability is left to the file system.
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}

/** Work on the file or folder at `path`. @throws HybridError IO_FAILED with what to do about it */
export function writing<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw ioFailed(path, error);
  }
}

const HINTS: Record<string, string> = {
  ENOSPC: 'Free some space, or write to another disk.',
  EDQUOT: 'The disk quota is used up: free some space, or write to another disk.',
  EFBIG: 'The file system or a limit of the shell (ulimit -f) allows no file this large.',
  ENOENT: 'Create the folder first.',
  EACCES: 'Write to a folder where you have permission.',
  EROFS: 'Write to another folder: this one is read-only.',
};

function ioFailed(path: string, error: unknown): HybridError {
  if (error instanceof HybridError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  return new HybridError('IO_FAILED', `writing ${path} failed: ${message}`, {
    hint: (code && HINTS[code]) ?? 'The old file, if there was one, is unchanged.',
    cause: error,
  });
}
