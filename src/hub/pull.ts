/** `pull`: everything a model needs, from the Hub into the cache, in steps that may be interrupted anywhere. */
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  statfsSync,
  symlinkSync,
} from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { HybridError } from '../errors.js';
import { writeFileAtomic, writing } from '../io/atomic-write.js';
import { waitForLock } from '../io/lock.js';
import { formatBytes, type OnProgress } from '../io/progress.js';
import type { WeightSource } from '../model/types.js';
import { HubHttp, type HubHttpOptions } from './http.js';
import { blobPath, hubCache, lockPath, partPath, refPath, repositoryFolder, snapshotPath } from './layout.js';
import { listRepository } from './listing.js';
import { withRemoteModel, type Located } from './remote-model.js';
import { COMMIT, formatHubName, type HubName } from './repository.js';
import { selectFiles, shardsOf, type Selection } from './select-files.js';
import { fetchBlob, type TransferOptions } from './transfer.js';
import type { RemoteFile } from './verify.js';

export interface PullOptions extends HubHttpOptions, Pick<TransferOptions, 'write'> {
  /** @default the Hugging Face cache, layout.ts */
  cache?: string;
  onProgress?: OnProgress;
  onNote?: (line: string) => void;
  /**
   * Looks at the model's headers before its weights are downloaded. Not called when everything is there.
   * @returns false: do not download
   */
  onModel?: (model: WeightSource) => Promise<boolean | void>;
  /** Download also what this program cannot load. @default false */
  force?: boolean;
}

export interface Pulled {
  /** What to load: a snapshot folder or a GGUF file. */
  path: string;
  repository: string;
  commit: string;
  license: string | null;
  files: { path: string; bytes: number }[];
  bytes: number;
  /** Bytes that came over the network. */
  downloadedBytes: number;
  /** False: onModel said no. */
  complete: boolean;
}

/** Files at once. More connections do not make one disk or one line faster. */
const PARALLEL_FILES = 4;
/** Kept free beyond the download. */
const SPARE_BYTES = 64 << 20;

/** @throws HybridError; whatever it is, nothing that looks whole is left behind half done */
export async function pull(name: HubName, options: PullOptions = {}): Promise<Pulled> {
  const http = new HubHttp(options);
  try {
    const where = formatHubName({ ...name, file: null });
    const listing = await listRepository(http, name);
    const selection = selectFiles(listing.files, name.file, where);
    options.onNote?.(
      `${where} at ${listing.commit.slice(0, 8)}, license: ${listing.license ?? 'not stated'}`,
    );
    const folder = repositoryFolder(options.cache ?? hubCache(), name.repository);
    writing(folder, () => mkdirSync(folder, { recursive: true }));
    const lock = await waitForLock(lockPath(folder), options.signal);
    try {
      const job = new Job(http, name, listing.commit, folder, options);
      const done = await job.run(selection, listing.files);
      return { ...done, repository: name.repository, commit: listing.commit, license: listing.license };
    } finally {
      lock.release();
    }
  } finally {
    await http.close();
  }
}

class Job {
  /** Bytes per file that are on the disk, and those that came now. */
  private readonly have = new Map<RemoteFile, number>();
  private downloaded = 0;
  private total = 0;

  constructor(
    private readonly http: HubHttp,
    private readonly name: HubName,
    private readonly commit: string,
    private readonly folder: string,
    private readonly options: PullOptions,
  ) {}

  async run(
    selection: Selection,
    listed: readonly RemoteFile[],
  ): Promise<Omit<Pulled, 'repository' | 'commit' | 'license'>> {
    const small =
      selection.kind === 'gguf' ? [] : [...selection.small, ...(selection.index ? [selection.index] : [])];
    this.total = small.reduce((sum, file) => sum + file.size, 0);
    await this.fetchAll(small);
    const weights = this.weightsOf(selection, listed);
    const files = [...small, ...weights];
    const describe = (complete: boolean) => ({
      path: this.modelPath(selection),
      files: files.map(({ path, size }) => ({ path, bytes: size })),
      bytes: files.reduce((sum, file) => sum + file.size, 0),
      downloadedBytes: this.downloaded,
      complete,
    });
    if (weights.some((file) => !this.isHere(file)) && !(await this.look(files))) return describe(false);
    this.needRoom(weights);
    this.total = files.reduce((sum, file) => sum + file.size, 0);
    await this.fetchAll(weights);
    await this.publish(files);
    return describe(true);
  }

  private weightsOf(selection: Selection, listed: readonly RemoteFile[]): RemoteFile[] {
    if (selection.kind === 'gguf') return selection.files;
    if (!selection.index) return selection.weights;
    return shardsOf(
      readFileSync(blobPath(this.folder, selection.index.hash), 'utf8'),
      listed,
      formatHubName(this.name),
    );
  }

  private modelPath(selection: Selection): string {
    const snapshot = snapshotPath(this.folder, this.commit);
    return selection.kind === 'gguf' ? join(snapshot, selection.files[0].path) : snapshot;
  }

  /** The headers, before gigabytes follow. @returns whether to go on */
  private async look(files: readonly RemoteFile[]): Promise<boolean> {
    const { force, onModel, onNote } = this.options;
    const located = files.map((file): Located => {
      const local = this.isHere(file) ? blobPath(this.folder, file.hash) : null;
      return { file, url: this.urlOf(file), local };
    });
    try {
      return (await withRemoteModel(this.http, located, this.folder, (model) => onModel?.(model))) !== false;
    } catch (error) {
      if (!(error instanceof HybridError) || error.exitCode !== 2) throw error;
      if (force) {
        onNote?.(`this program cannot load it: ${error.message}`);
        return true;
      }
      throw new HybridError(error.code, error.message, {
        hint: `${error.hint} Its weights were not downloaded; --force does it all the same.`.trim(),
        cause: error,
      });
    }
  }

  private needRoom(files: readonly RemoteFile[]): void {
    const missing = files.reduce((sum, file) => sum + file.size - this.bytesHere(file), 0);
    const { bavail, bsize } = statfsSync(this.folder);
    if (missing === 0 || bavail * bsize >= missing + SPARE_BYTES) return;
    throw new HybridError(
      'IO_FAILED',
      `${formatBytes(missing)} are to be downloaded, ${this.folder} has room for ${formatBytes(bavail * bsize)}`,
      { hint: 'Free some space, or set HF_HOME to a folder on another disk.' },
    );
  }

  private async fetchAll(files: readonly RemoteFile[]): Promise<void> {
    const queue = [...new Map(files.map((file) => [file.hash.hex, file])).values()];
    let failure: unknown = null;
    const worker = async () => {
      for (let file = queue.shift(); file && failure === null; file = queue.shift()) {
        try {
          await this.fetch(file);
        } catch (error) {
          failure ??= error;
        }
      }
    };
    await Promise.all(Array.from({ length: PARALLEL_FILES }, worker));
    if (failure !== null) throw failure;
  }

  private async fetch(file: RemoteFile): Promise<void> {
    await fetchBlob(this.http, this.urlOf(file), file, this.folder, {
      write: this.options.write,
      onBytes: (done) => {
        const before = this.have.get(file);
        if (before !== undefined && done > before) this.downloaded += done - before;
        this.have.set(file, done);
        const sum = [...this.have.values()].reduce((a, b) => a + b, 0);
        this.options.onProgress?.({ stage: 'download', done: sum, total: this.total, unit: 'bytes' });
      },
    });
  }

  /** Every blob is there and verified: now the names appear, config.json last, and the ref after it. */
  private async publish(files: readonly RemoteFile[]): Promise<void> {
    const snapshot = snapshotPath(this.folder, this.commit);
    const lastly = (file: RemoteFile): number => (file.path === 'config.json' ? 1 : 0);
    for (const file of [...files].sort((a, b) => lastly(a) - lastly(b))) {
      const path = join(snapshot, file.path);
      writing(path, () => link(blobPath(this.folder, file.hash), path));
    }
    if (COMMIT.test(this.name.revision)) return;
    const ref = refPath(this.folder, this.name.revision);
    mkdirSync(dirname(ref), { recursive: true });
    await writeFileAtomic(ref, this.commit);
  }

  private urlOf(file: RemoteFile): string {
    const path = file.path.split('/').map(encodeURIComponent).join('/');
    return `${this.http.endpoint}/${this.name.repository}/resolve/${this.commit}/${path}`;
  }

  private isHere(file: RemoteFile): boolean {
    return this.bytesHere(file) === file.size && existsSync(blobPath(this.folder, file.hash));
  }

  private bytesHere(file: RemoteFile): number {
    const [blob, part] = [blobPath(this.folder, file.hash), partPath(this.folder, file.hash)];
    const found = statSync(blob, { throwIfNoEntry: false }) ?? statSync(part, { throwIfNoEntry: false });
    return Math.min(found?.size ?? 0, file.size);
  }
}

/** A relative link, as the Hugging Face libraries make them, put in place in one step. */
function link(blob: string, path: string): void {
  mkdirSync(dirname(path), { recursive: true });
  const target = relative(dirname(path), blob);
  const temporary = `${path}.${process.pid}.tmp`;
  rmSync(temporary, { force: true });
  symlinkSync(target, temporary);
  if (lstatSync(path, { throwIfNoEntry: false })?.isDirectory()) rmSync(path, { recursive: true });
  renameSync(temporary, path);
}
