/** What the Hub says a file's content must hash to: SHA-256 for LFS files, git's blob hash for the others. */
import { createHash, type Hash } from 'node:crypto';
import { HybridError } from '../errors.js';

export interface StoredHash {
  kind: 'sha256' | 'git';
  hex: string;
}

export interface RemoteFile {
  path: string;
  /** Bytes. */
  size: number;
  hash: StoredHash;
}

/** A hash of content of `size` bytes; git puts a header before the content. */
export function startHash({ hash, size }: RemoteFile): Hash {
  return hash.kind === 'sha256' ? createHash('sha256') : createHash('sha1').update(`blob ${size}\0`);
}

const HEX = { sha256: /^[0-9a-f]{64}$/, git: /^[0-9a-f]{40}$/ };

/** @throws HybridError FILE_INVALID when a server names a hash that is none: it would become a file name */
export function checkedHash(kind: StoredHash['kind'], hex: unknown, where: string): StoredHash {
  if (typeof hex === 'string' && HEX[kind].test(hex)) return { kind, hex };
  throw new HybridError(
    'FILE_INVALID',
    `${where}: ${JSON.stringify(String(hex).slice(0, 80))} is no ${kind} hash`,
    {
      hint: 'The server does not speak the Hub’s API, or is not to be trusted.',
    },
  );
}
