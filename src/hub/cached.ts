/** What is in the cache already: finding a pulled model by its name, listing, removing. No network. */
import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { HybridError, UsageError } from '../errors.js';
import { acquireLock } from '../io/lock.js';
import { hubCache, lockPath, refPath, repositoryFolder, repositoryOf, snapshotPath } from './layout.js';
import { ggufModels } from './select-files.js';
import { COMMIT, formatHubName, parseHubName, type HubName } from './repository.js';

export interface CachedModel {
  /** As other commands take it: `hf:owner/name`, with revision or file where it needs them. */
  name: string;
  repository: string;
  commit: string;
  /** Branches and tags that stand for this commit here. */
  refs: string[];
  kind: 'safetensors' | 'gguf';
  /** What to load. */
  path: string;
  bytes: number;
  /** Last change, ISO 8601. */
  modified: string;
}

export interface CacheListing {
  cache: string;
  models: CachedModel[];
  /** Repositories with downloads that were interrupted: another `pull` goes on with them. */
  partial: { repository: string; bytes: number }[];
}

/**
 * The path of a pulled model: `hf:owner/name[@revision][:file]`.
 * @throws UsageError; HybridError FILE_NOT_FOUND when it was not pulled
 */
export function pulledPath(text: string, cache = hubCache()): string {
  const name = parseHubName(text);
  const folder = repositoryFolder(cache, name.repository);
  const commit = commitOf(folder, name.revision);
  const found = commit === null ? [] : modelsIn(folder, name.repository, commit);
  const [model, ...more] = choose(found, name.file);
  if (!model) throw notPulled(name, found);
  if (more.length > 0) {
    const names = [model, ...more].map((m) => m.name).join(', ');
    throw new UsageError(
      `${text} stands for ${more.length + 1} pulled models`,
      `Name one of them: ${names}.`,
    );
  }
  return model.path;
}

export function listCache(cache = hubCache()): CacheListing {
  const models: CachedModel[] = [];
  const partial: CacheListing['partial'] = [];
  for (const folderName of readFolder(cache)) {
    const repository = repositoryOf(folderName);
    if (repository === null) continue;
    const folder = join(cache, folderName);
    for (const commit of readFolder(join(folder, 'snapshots'))) {
      if (COMMIT.test(commit)) models.push(...modelsIn(folder, repository, commit));
    }
    const bytes = partialBytes(folder);
    if (bytes > 0) partial.push({ repository, bytes });
  }
  return { cache, models, partial };
}

/**
 * Remove a repository from the cache, or one revision of it with the contents nothing else needs.
 * @returns bytes that became free
 * @throws HybridError FILE_NOT_FOUND; LOCKED while it is being pulled
 */
export function removePulled(text: string, cache = hubCache()): { repository: string; freedBytes: number } {
  const name = parseHubName(text);
  if (name.file !== null)
    throw new UsageError(
      'rm removes a repository or a revision, not a file',
      'Leave out what follows the colon.',
    );
  const folder = repositoryFolder(cache, name.repository);
  if (!existsSync(folder)) throw notPulled(name, []);
  const lock = acquireLock(lockPath(folder));
  try {
    const before = treeBytes(folder);
    if (!text.includes('@')) {
      rmSync(folder, { recursive: true, force: true });
      return { repository: name.repository, freedBytes: before };
    }
    const commit = commitOf(folder, name.revision);
    if (commit === null || !existsSync(snapshotPath(folder, commit))) throw notPulled(name, []);
    for (const ref of refsOf(folder, commit)) rmSync(refPath(folder, ref), { force: true });
    rmSync(snapshotPath(folder, commit), { recursive: true, force: true });
    removeUnusedBlobs(folder);
    return { repository: name.repository, freedBytes: before - treeBytes(folder) };
  } finally {
    lock.release();
  }
}

function choose(found: readonly CachedModel[], file: string | null): CachedModel[] {
  if (file === null) {
    const folder = found.find((model) => model.kind === 'safetensors');
    return folder ? [folder] : [...found];
  }
  const ofFile = found.filter(
    ({ kind, path }) => kind === 'gguf' && path.toLowerCase().includes(file.toLowerCase()),
  );
  const exact = ofFile.filter(({ path }) => path.endsWith(`/${file}`));
  return exact.length === 1 ? exact : ofFile;
}

/** The models of one snapshot whose files are all there. */
function modelsIn(folder: string, repository: string, commit: string): CachedModel[] {
  const snapshot = snapshotPath(folder, commit);
  const files = filesUnder(snapshot).filter((path) => existsSync(join(snapshot, path)));
  const refs = refsOf(folder, commit);
  const revision = refs.includes('main') ? 'main' : (refs[0] ?? commit);
  const describe = (
    kind: CachedModel['kind'],
    path: string,
    own: string[],
    file: string | null,
  ): CachedModel => {
    const stats = own.map((name) => statSync(join(snapshot, name)));
    return {
      name: formatHubName({ repository, revision, file }),
      repository,
      commit,
      refs,
      kind,
      path,
      bytes: stats.reduce((sum, stat) => sum + stat.size, 0),
      modified: new Date(Math.max(...stats.map((stat) => stat.mtimeMs))).toISOString(),
    };
  };
  const gguf = ggufModels(files).filter((model) => model.complete);
  const models = gguf.map(({ path, parts }) => describe('gguf', join(snapshot, path), parts, path));
  const rest = files.filter((path) => !/\.gguf$/i.test(path));
  if (rest.includes('config.json') && shardsAreHere(snapshot, rest)) {
    models.unshift(describe('safetensors', snapshot, rest, null));
  }
  return models;
}

/** Other programs link file by file: a folder may hold an index without all of its shards. */
function shardsAreHere(snapshot: string, files: readonly string[]): boolean {
  if (files.includes('model.safetensors')) return true;
  if (!files.includes('model.safetensors.index.json')) return false;
  try {
    const index = JSON.parse(readFileSync(join(snapshot, 'model.safetensors.index.json'), 'utf8')) as {
      weight_map?: Record<string, string>;
    };
    return Object.values(index.weight_map ?? {}).every((name) => files.includes(name));
  } catch {
    return false;
  }
}

function commitOf(folder: string, revision: string): string | null {
  if (COMMIT.test(revision)) return revision;
  try {
    const commit = readFileSync(refPath(folder, revision), 'utf8').trim();
    return COMMIT.test(commit) ? commit : null;
  } catch {
    return null;
  }
}

const refsOf = (folder: string, commit: string): string[] =>
  filesUnder(join(folder, 'refs')).filter((ref) => commitOf(folder, ref) === commit);

function removeUnusedBlobs(folder: string): void {
  const used = new Set<string>();
  for (const commit of readFolder(join(folder, 'snapshots'))) {
    const snapshot = snapshotPath(folder, commit);
    for (const path of filesUnder(snapshot)) {
      const stat = statSync(join(snapshot, path), { throwIfNoEntry: false });
      if (stat) used.add(`${stat.dev}:${stat.ino}`);
    }
  }
  for (const name of readFolder(join(folder, 'blobs'))) {
    const path = join(folder, 'blobs', name);
    const { dev, ino } = statSync(path);
    if (!used.has(`${dev}:${ino}`)) rmSync(path, { force: true });
  }
}

function partialBytes(folder: string): number {
  const parts = readFolder(join(folder, 'blobs')).filter((name) => /\.(part|incomplete)$/.test(name));
  return parts.reduce((sum, name) => sum + statSync(join(folder, 'blobs', name)).size, 0);
}

/** Relative paths of files and links, folders walked. */
function filesUnder(folder: string, prefix = ''): string[] {
  return readFolder(folder).flatMap((name) => {
    const path = join(folder, name);
    return lstatSync(path).isDirectory() ? filesUnder(path, `${prefix}${name}/`) : [prefix + name];
  });
}

const treeBytes = (folder: string): number =>
  filesUnder(folder).reduce((sum, path) => sum + lstatSync(join(folder, path)).size, 0);

function readFolder(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}

function notPulled(name: HubName, others: readonly CachedModel[]): HybridError {
  const what = formatHubName(name);
  const have = others.length > 0 ? `Here are ${others.map((model) => model.name).join(', ')}; ` : '';
  const file = name.file === null ? '' : ` --file ${name.file}`;
  const from = name.repository + (name.revision === 'main' ? '' : `@${name.revision}`);
  return new HybridError('FILE_NOT_FOUND', `${what} was not pulled, or not completely`, {
    hint: `${have}get it with: hybrid-infer pull ${from}${file}`,
  });
}
