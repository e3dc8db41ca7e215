/**
 * The folder a long run keeps its recordings and checkpoints in, so that a killed run goes on where it
 * was. Its name follows from everything that decides the result: another model, text or option has another.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { HybridError } from '../errors.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import { acquireLock, type Lock } from '../io/lock.js';
import { cacheDir } from '../io/paths.js';

/** Change it when recordings or checkpoints change their meaning: older ones are then not found. */
const SCHEME = 3;

export class WorkFolder {
  private constructor(
    readonly path: string,
    /** ISO date of the first start: a resumed run writes the artifact that an uninterrupted one would. */
    readonly createdAt: string,
    private readonly lock: Lock,
  ) {}

  /**
   * @param identity everything the result depends on, as JSON values
   * @param kind folder under the cache that holds work of this kind
   * @throws HybridError LOCKED when another process works in it; IO_FAILED
   */
  static async open(identity: unknown, kind = 'profiling'): Promise<WorkFolder> {
    const key = createHash('sha256')
      .update(JSON.stringify([SCHEME, identity]))
      .digest('hex');
    const parent = join(cacheDir(), kind);
    const path = join(parent, key.slice(0, 32));
    try {
      mkdirSync(path, { recursive: true });
    } catch (cause) {
      throw new HybridError('IO_FAILED', `cannot create ${path}: ${(cause as Error).message}`, {
        hint: 'Set HYBRID_INFER_CACHE to a folder you may write to.',
        cause,
      });
    }
    const lock = acquireLock(`${path}.lock`);
    try {
      const folder = new WorkFolder(path, await startDate(join(path, 'started.json')), lock);
      return folder;
    } catch (error) {
      lock.release();
      throw error;
    }
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** A checkpoint, or null when there is none. What cannot be read was never finished. */
  readJson<T>(name: string): T | null {
    try {
      return JSON.parse(readFileSync(this.file(name), 'utf8')) as T;
    } catch {
      return null;
    }
  }

  writeJson(name: string, value: unknown): Promise<void> {
    return writeFileAtomic(this.file(name), JSON.stringify(value));
  }

  /** Leaves everything for the next start. */
  release(): void {
    this.lock.release();
  }

  /** The work is done: nothing of it is needed any more. */
  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
    this.lock.release();
  }
}

async function startDate(path: string): Promise<string> {
  if (existsSync(path)) {
    const { createdAt } = JSON.parse(readFileSync(path, 'utf8')) as { createdAt: string };
    return createdAt;
  }
  // SOURCE_DATE_EPOCH (seconds) makes artifacts of separate runs the same byte for byte.
  const epoch = process.env.SOURCE_DATE_EPOCH;
  const createdAt = (
    epoch && /^\d{1,11}$/.test(epoch) ? new Date(Number(epoch) * 1000) : new Date()
  ).toISOString();
  await writeFileAtomic(path, JSON.stringify({ createdAt }));
  return createdAt;
}
