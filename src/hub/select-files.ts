/** Which files of a repository a model needs: no checkpoints of other frameworks, no images, no second copy. */
import { HybridError, UsageError } from '../errors.js';
import { formatBytes } from '../io/progress.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import type { RemoteFile } from './verify.js';

export type Selection =
  /** `small` files first; they say which weights belong to the model. */
  | { kind: 'safetensors'; small: RemoteFile[]; index: RemoteFile | null; weights: RemoteFile[] }
  /** One file, or all parts of a split one, the first of them first. */
  | { kind: 'gguf'; files: RemoteFile[] };

/** What openModel reads beside weights. */
const CONFIG = 'config.json';
const OPTIONAL = [
  'tokenizer_config.json',
  'generation_config.json',
  'chat_template.jinja',
  'added_tokens.json',
];
/** The first that is there. */
const TOKENIZERS = [/^tokenizer\.json$/, /^tokenizer\.model$/, /^[^/]*\.tiktoken$/];
const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
/** Parts of one model in several files: `name-00001-of-00003.gguf`. */
const PART = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/i;

export interface GgufModel {
  /** Of the only file, or of the first part. */
  path: string;
  parts: string[];
  complete: boolean;
}

/** GGUF files by the models they make. */
export function ggufModels(paths: readonly string[]): GgufModel[] {
  const models = new Map<string, GgufModel>();
  for (const path of [...paths].filter((p) => /\.gguf$/i.test(p)).sort()) {
    const [, name, , count] = PART.exec(path) ?? [];
    const key = name === undefined ? path : `${name}/${count}`;
    const model = models.get(key) ?? { path, parts: [], complete: false };
    model.parts.push(path);
    model.complete = name === undefined || model.parts.length === Number(count);
    models.set(key, model);
  }
  return [...models.values()];
}

/**
 * @param wanted part of a GGUF file's name; null: the safetensors files, or the only GGUF file
 * @throws UsageError when the choice is the user's; HybridError MODEL_UNSUPPORTED when nothing fits
 */
export function selectFiles(files: readonly RemoteFile[], wanted: string | null, where: string): Selection {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const weights = byPath.get(SINGLE) ?? byPath.get(INDEX);
  if (wanted === null && weights) return safetensors(byPath, where);
  return { kind: 'gguf', files: chooseGguf(files, wanted, where) };
}

function safetensors(byPath: ReadonlyMap<string, RemoteFile>, where: string): Selection {
  const paths = [...byPath.keys()];
  const config = byPath.get(CONFIG);
  const named = TOKENIZERS.map((name) => paths.find((path) => name.test(path))).find(
    (path) => path !== undefined,
  );
  if (!config || named === undefined) {
    throw new HybridError('MODEL_UNSUPPORTED', `${where} has no ${config ? 'tokenizer' : CONFIG}`, {
      hint: 'It is not a complete Hugging Face model (an adapter, perhaps): pull the model it belongs to.',
    });
  }
  const small = [CONFIG, named, ...OPTIONAL].flatMap((path) => byPath.get(path) ?? []);
  const single = byPath.get(SINGLE);
  if (single) return { kind: 'safetensors', small, index: null, weights: [single] };
  return { kind: 'safetensors', small, index: byPath.get(INDEX)!, weights: [] };
}

/** Shards that an index names. @throws HybridError FILE_INVALID when one is not in the listing */
export function shardsOf(indexText: string, files: readonly RemoteFile[], where: string): RemoteFile[] {
  const fail = (message: string) => new HybridError('FILE_INVALID', message);
  const index = parseStrictJson(indexText, `${where}: ${INDEX}`, fail);
  const map = isObject(index) ? index['weight_map'] : undefined;
  if (!isObject(map)) throw fail(`${where}: ${INDEX} has no weight_map`);
  const names = [...new Set(Object.values(map))];
  return names.map((name) => {
    const file = files.find(({ path }) => path === name && !path.includes('/'));
    if (file) return file;
    throw fail(`${where}: ${INDEX} names ${JSON.stringify(name)}, which the repository does not hold`);
  });
}

function chooseGguf(files: readonly RemoteFile[], wanted: string | null, where: string): RemoteFile[] {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const all = ggufModels([...byPath.keys()]);
  const matching = wanted === null ? all : all.filter(({ path }) => matches(path, wanted));
  const exact = matching.filter(({ path }) => path === wanted || path.split('/').at(-1) === wanted);
  const found = exact.length === 1 ? exact : matching;
  if (found.length === 1) {
    const [{ path, parts, complete }] = found;
    if (complete) return parts.map((part) => byPath.get(part)!);
    throw new HybridError('FILE_INVALID', `${where}: of ${path} only ${parts.length} parts are there`);
  }
  if (all.length === 0) {
    const other = files.find(({ path }) => /\.(bin|pth|pt|ckpt|msgpack|h5|onnx)$/.test(path));
    throw new HybridError('MODEL_UNSUPPORTED', `${where} holds neither safetensors nor GGUF files`, {
      hint: other ? `It holds ${other.path}: convert that to safetensors first.` : '',
    });
  }
  const size = (parts: readonly string[]): number =>
    parts.reduce((sum, part) => sum + byPath.get(part)!.size, 0);
  const listed = all.slice(0, 40).map(({ path, parts }) => `${path} (${formatBytes(size(parts))})`);
  const inName =
    wanted === null
      ? ''
      : ` with ${JSON.stringify(wanted)} in ${found.length === 0 ? 'its name' : 'their names'}`;
  const what =
    wanted !== null && found.length === 0 ? `no GGUF file${inName}` : `several GGUF files${inName}`;
  throw new UsageError(`${where} holds ${what}`, `Choose one with --file: ${listed.join(', ')}.`);
}

/** `Q4_K_M` is no part of `IQ4_K_M`: a match begins and ends at a border of words. */
function matches(path: string, wanted: string): boolean {
  const text = path.toLowerCase();
  const part = wanted.toLowerCase();
  for (let at = text.indexOf(part); at >= 0; at = text.indexOf(part, at + 1)) {
    const before = text[at - 1] ?? '-';
    const after = text[at + part.length] ?? '-';
    if (!/[a-z0-9]/.test(before) && !/[a-z0-9_]/.test(after)) return true;
  }
  return false;
}
