/**
 * Where the Hugging Face libraries keep what they download, so that one copy serves them all:
 *
 *     <cache>/models--owner--name/
 *         blobs/<hash>                    contents; <hash>.part while it is being downloaded (ours)
 *         refs/<revision>                 the commit that a branch or tag stands for
 *         snapshots/<commit>/<path>       symbolic links into blobs
 *
 * A blob gets its name only after its hash was verified, links are made only when every blob of the pull is
 * there, and the ref is written last: what can be seen is whole.
 */
import { homedir } from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';
import { HybridError } from '../errors.js';
import type { StoredHash } from './verify.js';

const PREFIX = 'models--';

/** The folder of all downloads; the variables and their order are those of `huggingface_hub`. */
export function hubCache(env: NodeJS.ProcessEnv = process.env): string {
  const direct = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE;
  return direct ? resolve(direct) : join(hubHome(env), 'hub');
}

/** HF_HOME: the cache folder, and the token of `hf auth login`. */
export function hubHome(env: NodeJS.ProcessEnv = process.env): string {
  if (env.HF_HOME) return resolve(env.HF_HOME);
  const xdg = env.XDG_CACHE_HOME;
  return join(xdg && isAbsolute(xdg) ? xdg : join(homedir(), '.cache'), 'huggingface');
}

/** @param repository `owner/name`, checked by parseHubName */
export const repositoryFolder = (cache: string, repository: string): string =>
  join(cache, PREFIX + repository.replace('/', '--'));

/** @returns `owner/name`, null for other folders of the cache */
export function repositoryOf(folderName: string): string | null {
  const parts = folderName.split('--');
  return parts.length === 3 && parts[0] === 'models' ? `${parts[1]}/${parts[2]}` : null;
}

export const blobPath = (folder: string, hash: StoredHash): string => join(folder, 'blobs', hash.hex);
export const partPath = (folder: string, hash: StoredHash): string => `${blobPath(folder, hash)}.part`;
export const snapshotPath = (folder: string, commit: string): string => join(folder, 'snapshots', commit);
export const refPath = (folder: string, revision: string): string => join(folder, 'refs', revision);
export const lockPath = (folder: string): string => join(folder, '.hybrid-infer.lock');

/** Characters that are separators or reserved on some system, and names that are devices on Windows. */
// eslint-disable-next-line no-control-regex -- names with control characters are what it is for
const UNSAFE = /[\\:*?"<>|\u0000-\u001f\u007f]|(^|\/)(con|prn|aux|nul|com\d|lpt\d)(\.[^/]*)?(\/|$)/i;
const MAX_PATH = 512;

/**
 * A path that a server names: relative, inside the repository, ordinary on every system.
 * @throws HybridError FILE_INVALID
 */
export function checkedPath(path: unknown, where: string): string {
  if (typeof path === 'string' && path.length <= MAX_PATH && !UNSAFE.test(path)) {
    const parts = path.split('/');
    if (parts.every((part) => part !== '' && part !== '.' && part !== '..' && part === part.trim()))
      return path;
  }
  const shown = JSON.stringify(String(path).slice(0, 80));
  throw new HybridError(
    'FILE_INVALID',
    `${where} lists a file named ${shown}, expected a plain relative path`,
    {
      hint: 'The repository or the server is not to be trusted; nothing was downloaded.',
    },
  );
}
