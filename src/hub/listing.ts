/** What a repository holds at a commit: @huggingface/hub asks, this file distrusts the answers. */
import { HubApiError, listFiles, modelInfo } from '@huggingface/hub';
import { HybridError } from '../errors.js';
import type { HubHttp } from './http.js';
import { checkedPath } from './layout.js';
import { COMMIT, formatHubName, type HubName } from './repository.js';
import { checkedHash, type RemoteFile } from './verify.js';

export interface Listing {
  commit: string;
  files: RemoteFile[];
  /** As the model card names it; null where it does not. */
  license: string | null;
  gated: boolean;
}

/** Repositories of models have tens of files, of training runs hundreds. */
const MAX_FILES = 10_000;
/** One page of a listing is 1,000 entries of some 300 bytes. */
const MAX_ANSWER_BYTES = 8 << 20;
const MAX_LICENSE = 100;

/** @throws HybridError FILE_NOT_FOUND, FILE_INVALID or DOWNLOAD_FAILED */
export async function listRepository(http: HubHttp, name: HubName): Promise<Listing> {
  const shared = { hubUrl: http.endpoint, fetch: http.fetchWithin(MAX_ANSWER_BYTES) };
  const where = formatHubName({ ...name, file: null });
  return asHubErrors(where, async () => {
    const { repository, revision } = name;
    const info = await modelInfo({
      name: repository,
      revision,
      additionalFields: ['sha', 'cardData'],
      ...shared,
    });
    if (typeof info.sha !== 'string' || !COMMIT.test(info.sha))
      throw new HybridError('FILE_INVALID', `${where}: the server names no commit`, {});
    const files: RemoteFile[] = [];
    for await (const entry of listFiles({
      repo: repository,
      revision: info.sha,
      recursive: true,
      ...shared,
    })) {
      if (entry.type !== 'file') continue;
      if (files.length === MAX_FILES) throw tooMany(where);
      files.push(checkedEntry(entry, where));
    }
    return { commit: info.sha, files, license: licenseOf(info.cardData), gated: Boolean(info.gated) };
  });
}

function checkedEntry(
  entry: { path: string; size: number; oid?: string; lfs?: { oid: string; size: number } },
  where: string,
): RemoteFile {
  const path = checkedPath(entry.path, where);
  const size = entry.lfs?.size ?? entry.size;
  if (!Number.isSafeInteger(size) || size < 0)
    throw new HybridError('FILE_INVALID', `${where}: ${path} has a size of ${JSON.stringify(size)}`);
  const place = `${where}: ${path}`;
  const hash = entry.lfs ? checkedHash('sha256', entry.lfs.oid, place) : checkedHash('git', entry.oid, place);
  return { path, size, hash };
}

function licenseOf(card: unknown): string | null {
  const { license, license_name: own } = (card ?? {}) as { license?: unknown; license_name?: unknown };
  const name = license === 'other' && typeof own === 'string' ? own : license;
  const text = Array.isArray(name) ? name.join(', ') : name;
  // It is printed on a terminal.
  return typeof text === 'string' && text !== ''
    ? text.replace(/[^\x20-\x7e]/g, '?').slice(0, MAX_LICENSE)
    : null;
}

const tooMany = (where: string): HybridError =>
  new HybridError('FILE_INVALID', `${where} lists more than ${MAX_FILES} files`, {
    hint: 'Download the files you need by hand and name their folder.',
  });

/** The library's errors, and those of answers that are not what it expects, as this project's. */
async function asHubErrors<T>(where: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof HybridError) throw error;
    const status = error instanceof HubApiError ? error.statusCode : 0;
    if (status === 401 || status === 403) throw refused(where, error);
    if (status === 404) {
      throw new HybridError('FILE_NOT_FOUND', `${where}: the Hub has no such repository or revision`, {
        hint: 'Check the spelling; a private one needs a token in HF_TOKEN.',
        cause: error,
      });
    }
    throw new HybridError(
      'DOWNLOAD_FAILED',
      `${where}: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
}

export const refused = (where: string, cause?: unknown): HybridError =>
  new HybridError('DOWNLOAD_FAILED', `${where}: the Hub does not give it to you`, {
    hint: 'Set HF_TOKEN to a token that may read it; gated models also want their terms accepted on the model’s page.',
    cause,
  });
