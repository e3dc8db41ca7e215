/**
 * Exclusive lock files. The holder's identity is inside, so that a lock of a killed process is recognised
 * and taken over instead of blocking for ever.
 */
import { randomBytes } from 'node:crypto';
import { linkSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HybridError } from '../errors.js';
import { processState, thisProcess, type ProcessIdentity } from './process-identity.js';

export interface Lock {
  readonly path: string;
  release(): void;
}

/** The holder touches its lock this often; on another host that is the only sign of life. */
const HEARTBEAT_MS = 15_000;
/** A lock of another host without a sign of life for so long counts as abandoned. */
const ABANDONED_MS = 10 * 60_000;
/** Taking a stale lock over lasts microseconds: a guard this old was left by a killed process. */
const GUARD_ABANDONED_MS = 10_000;
const POLL_MS = 200;

/**
 * Takes the lock at `path` at once.
 * @throws HybridError LOCKED when a running process holds it
 */
export function acquireLock(path: string): Lock {
  for (let attempt = 0; attempt < 3; attempt++) {
    if (tryCreate(path)) return held(path);
    removeIfStale(path);
  }
  const holder = read(path);
  throw new HybridError(
    'LOCKED',
    `${path} is held by ${holder ? `process ${holder.pid}` : 'another process'}`,
    { hint: 'Wait until the other command has finished, or write somewhere else.' },
  );
}

/** Waits for the lock. @throws HybridError ABORTED when the signal fires first */
export async function waitForLock(path: string, signal?: AbortSignal): Promise<Lock> {
  while (true) {
    if (signal?.aborted) throw new HybridError('ABORTED', `stopped while waiting for ${path}`);
    try {
      return acquireLock(path);
    } catch (error) {
      if (!(error instanceof HybridError) || error.code !== 'LOCKED') throw error;
    }
    await sleep(POLL_MS);
  }
}

/** `link` creates the lock with its content in one step: nobody can read a half-written one. */
function tryCreate(path: string): boolean {
  const unique = `${path}.${process.pid}-${randomBytes(6).toString('hex')}`;
  try {
    writeFileSync(unique, JSON.stringify(thisProcess()), { flag: 'wx' });
    linkSync(unique, path);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return false;
    if (code === 'ENOENT') {
      throw new HybridError('FILE_NOT_FOUND', `${dirname(path)}: no such folder`, {
        hint: 'Make it first, or name another place.',
        cause: error,
      });
    }
    throw new HybridError('IO_FAILED', `cannot create the lock ${path}: ${(error as Error).message}`, {
      hint: 'The folder must exist and be writable.',
      cause: error,
    });
  } finally {
    rmSync(unique, { force: true });
  }
}

function held(path: string): Lock {
  const beat = setInterval(() => {
    try {
      utimesSync(path, new Date(), new Date());
    } catch {
      // Someone deleted the lock by hand. The work goes on: its result is put in place atomically anyway.
    }
  }, HEARTBEAT_MS);
  beat.unref();
  let open = true;
  return {
    path,
    release() {
      if (!open) return;
      open = false;
      clearInterval(beat);
      rmSync(path, { force: true });
    },
  };
}

/**
 * Two processes may find the same lock stale. Only the holder of the guard may remove it, and looks again
 * first: without the guard the slower one would remove the faster one's new lock.
 */
function removeIfStale(path: string): void {
  if (!isStale(path)) return;
  const guard = `${path}.takeover`;
  try {
    writeFileSync(guard, '', { flag: 'wx' });
  } catch {
    if (ageOf(guard) > GUARD_ABANDONED_MS) rmSync(guard, { force: true });
    return;
  }
  try {
    if (isStale(path)) rmSync(path, { force: true });
  } finally {
    rmSync(guard, { force: true });
  }
}

function isStale(path: string): boolean {
  const age = ageOf(path);
  if (age < 0) return false; // released meanwhile
  const holder = read(path);
  // Not written by this program, or cut off by a full disk: nobody who runs can hold it for long.
  const state = holder ? processState(holder) : 'unknown';
  return state === 'dead' || (state === 'unknown' && age > ABANDONED_MS);
}

/** Milliseconds since the last sign of life, -1 when the file is gone. */
function ageOf(path: string): number {
  const stat = statSync(path, { throwIfNoEntry: false });
  return stat === undefined ? -1 : Math.max(0, Date.now() - stat.mtimeMs);
}

function read(path: string): ProcessIdentity | null {
  try {
    const value = JSON.parse(readFileSync(path, 'utf8')) as Partial<ProcessIdentity>;
    if (typeof value.pid !== 'number' || !Number.isSafeInteger(value.pid) || value.pid <= 0) return null;
    return { pid: value.pid, start: String(value.start ?? ''), host: String(value.host ?? '') };
  } catch {
    return null;
  }
}
