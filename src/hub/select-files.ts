/** Which files of a repository a model needs: no checkpoints of other frameworks, no images, no second copy. */
import { HybridError, UsageError } from '../errors.js';
import { formatBytes } from '../io/progress.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import type { RemoteFile } from './verify.js';

export type Selection =
  /** `small` files first; they say which weights belong to the model. */
  | { kind: 'safetensors'; small: RemoteFile[]; index: RemoteFile | null; weights: RemoteFile[] }
  | { kind: 'gguf'; file: RemoteFile };

/** What openModel reads beside weights. */
const REQUIRED = ['config.json', 'tokenizer.json'];
const OPTIONAL = ['tokenizer_config.json', 'generation_config.json', 'chat_template.jinja'];
const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
/** Parts of one model in several files: `name-00001-of-00003.gguf`. */
const SPLIT = /-\d{5}-of-\d{5}\.gguf$/i;

/**
 * @param wanted part of a GGUF file's name; null: the safetensors files, or the only GGUF file
 * @throws UsageError when the choice is the user's; HybridError MODEL_UNSUPPORTED when nothing fits
 */
export function selectFiles(files: readonly RemoteFile[], wanted: string | null, where: string): Selection {
  const byPath = new Map(files.map((file) => [file.path, file]));
  const weights = byPath.get(SINGLE) ?? byPath.get(INDEX);
  if (wanted === null && weights) return safetensors(byPath, where);
  return { kind: 'gguf', file: chooseGguf(files, wanted, where) };
}

function safetensors(byPath: ReadonlyMap<string, RemoteFile>, where: string): Selection {
  const missing = REQUIRED.filter((path) => !byPath.has(path));
  if (missing.length > 0) {
    throw new HybridError('MODEL_UNSUPPORTED', `${where} has no ${missing.join(' and no ')}`, {
      hint: 'It is not a complete Hugging Face model (an adapter, perhaps): pull the model it belongs to.',
    });
  }
  const small = [...REQUIRED, ...OPTIONAL].flatMap((path) => byPath.get(path) ?? []);
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

function chooseGguf(files: readonly RemoteFile[], wanted: string | null, where: string): RemoteFile {
  const all = files.filter(({ path }) => /\.gguf$/i.test(path));
  const matching = wanted === null ? all : all.filter(({ path }) => matches(path, wanted));
  const exact = matching.filter(({ path }) => path === wanted || path.split('/').at(-1) === wanted);
  const found = exact.length === 1 ? exact : matching;
  if (found.length === 1) {
    if (!SPLIT.test(found[0].path)) return found[0];
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `${where}: ${found[0].path} is one part of a split GGUF file`,
      {
        hint: 'Join the parts with llama.cpp’s llama-gguf-split --merge and name the result.',
      },
    );
  }
  if (all.length === 0) {
    const other = files.find(({ path }) => /\.(bin|pth|pt|ckpt|msgpack|h5|onnx)$/.test(path));
    throw new HybridError('MODEL_UNSUPPORTED', `${where} holds neither safetensors nor GGUF files`, {
      hint: other ? `It holds ${other.path}: convert that to safetensors first.` : '',
    });
  }
  const listed = all
    .slice(0, 40)
    .map(({ path, size }) => `${path} (${formatBytes(size)})`)
    .join(', ');
  const what =
    wanted === null
      ? 'several GGUF files'
      : found.length === 0
        ? `no GGUF file with ${JSON.stringify(wanted)} in its name`
        : `several GGUF files with ${JSON.stringify(wanted)} in their names`;
  throw new UsageError(`${where} holds ${what}`, `Choose one with --file: ${listed}.`);
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
