/** How a model on the Hub is named: `hf:owner/name`, with `@revision` and `:file` behind it where wanted. */
import { UsageError } from '../errors.js';

export interface HubName {
  /** `owner/name` */
  repository: string;
  /** Branch, tag or commit. */
  revision: string;
  /** Part of a GGUF file's name, such as `Q4_K_M`; null: not given. */
  file: string | null;
}

export const HUB_PREFIX = 'hf:';
export const DEFAULT_REVISION = 'main';

/** The Hub's own rule for both halves of a name: letters, digits, `-`, `_`, `.`, beginning with neither dot nor dash. */
const PART = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$/;
/** Branches may hold slashes; what a path or URL would read as something else is refused. */
const REVISION = /^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$/;
const FILE = /^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$/;
export const COMMIT = /^[0-9a-f]{40}$/;

/** A prompt that begins with `hf:` has spaces. */
export const isHubName = (text: string): boolean => /^hf:\S+$/.test(text);

/** @throws UsageError saying which part is wrong */
export function parseHubName(text: string): HubName {
  const body = text.startsWith(HUB_PREFIX) ? text.slice(HUB_PREFIX.length) : text;
  const match = /^([^@:]*)(?:@([^:]*))?(?::(.*))?$/.exec(body);
  const [repository, revision, file] = [match?.[1] ?? '', match?.[2], match?.[3]];
  const parts = repository.split('/');
  const fine = parts.length === 2 && parts.every((part) => PART.test(part) && !/\.\.|--/.test(part));
  if (!fine) throw refuse(text, 'a repository such as owner/name');
  if (revision !== undefined && !(REVISION.test(revision) && isPlain(revision)))
    throw refuse(text, 'a branch, tag or commit after @');
  if (file !== undefined && !(FILE.test(file) && isPlain(file)))
    throw refuse(text, 'part of a file name after the colon, such as Q4_K_M');
  return { repository, revision: revision ?? DEFAULT_REVISION, file: file ?? null };
}

export const formatHubName = ({ repository, revision, file }: HubName): string =>
  HUB_PREFIX +
  repository +
  (revision === DEFAULT_REVISION ? '' : `@${revision}`) +
  (file === null ? '' : `:${file}`);

const isPlain = (path: string): boolean =>
  path.split('/').every((part) => part !== '' && !/^\.+$/.test(part));

const refuse = (text: string, expected: string): UsageError =>
  new UsageError(`${JSON.stringify(text)} is no name of a model on the Hub, expected ${expected}`);
