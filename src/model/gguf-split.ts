/**
 * A GGUF model in one file, or in the parts `NAME-00001-of-0000N.gguf` that llama.cpp's gguf-split writes: the
 * first part has all metadata, every part says its number, how many there are, and how many tensors they hold
 * together. Nothing names the model in the later parts, so those counts are what tells a stranger.
 */
import { basename, dirname, join } from 'node:path';
import { firstFew, ModelError } from '../errors.js';
import { exists, openRegularFile, type RegularFile } from '../io/regular-file.js';
import { readGgufHeader, type GgufHeader, type GgufValue } from './gguf-file.js';
import { MAX_TENSORS } from './limits.js';
import type { StoredTensor } from './safetensors.js';

const PART = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/i;
/** As for safetensors: each part costs a descriptor. */
const MAX_PARTS = 1024;

export interface GgufFiles {
  /** Without path and ending, and without the part's number. */
  name: string;
  files: RegularFile[];
  metadata: ReadonlyMap<string, GgufValue>;
  tensors: StoredTensor[];
}

/**
 * @param path the file, or any part of a split model
 * @throws HybridError; every file is closed again then
 */
export function openGgufFiles(path: string): GgufFiles {
  const files: RegularFile[] = [];
  try {
    const paths = partsOf(path);
    const headers = paths.map((part) => {
      files.push(openRegularFile(part));
      return readGgufHeader(files[files.length - 1]);
    });
    if (paths.length > 1 || headers[0].metadata.has('split.count')) checkParts(paths, headers);
    const tensors = headers.flatMap((header) => header.tensors);
    checkTensors(tensors, paths, headers);
    const name = basename(path)
      .replace(PART, '$1')
      .replace(/\.gguf$/i, '');
    return { name, files, metadata: headers[0].metadata, tensors };
  } catch (error) {
    for (const file of files) file.close();
    throw error;
  }
}

/** Every part of the model, in order; the file itself when its name is not a part's. */
function partsOf(path: string): string[] {
  const match = PART.exec(basename(path));
  if (!match) return [path];
  const [, name, , total] = match;
  const count = Number(total);
  if (count === 0 || count > MAX_PARTS) {
    throw invalid(`${path}: ${count} parts, expected 1 to ${MAX_PARTS}`);
  }
  const paths = Array.from({ length: count }, (_, i) =>
    join(dirname(path), `${name}-${String(i + 1).padStart(5, '0')}-of-${total}.gguf`),
  );
  const missing = paths.filter((part) => !exists(part));
  if (missing.length === 0) return paths;
  throw new ModelError('FILE_NOT_FOUND', `${firstFew(missing, 1)}: missing, of a model in ${count} parts`, {
    hint: 'Put all parts into one folder.',
  });
}

function checkParts(paths: readonly string[], headers: readonly GgufHeader[]): void {
  const total = wholeNumber(headers[0], 'split.tensors.count', paths[0]);
  for (const [i, header] of headers.entries()) {
    const path = paths[i];
    const want = { 'split.no': i, 'split.count': paths.length, 'split.tensors.count': total };
    for (const [key, expected] of Object.entries(want)) {
      const found = wholeNumber(header, key, path);
      if (found === expected) continue;
      const hint =
        key === 'split.count' && paths.length === 1
          ? 'Give its parts their names back: NAME-00001-of-0000N.gguf.'
          : 'It is a part of another model, or was given another name.';
      throw new ModelError('MODEL_INVALID', `${path}: ${key} is ${found}, expected ${expected}`, { hint });
    }
    const architecture = header.metadata.get('general.architecture');
    if (architecture !== undefined && architecture !== headers[0].metadata.get('general.architecture')) {
      throw invalid(`${path}: a part of a model of architecture ${JSON.stringify(architecture)}`);
    }
  }
}

function wholeNumber({ metadata }: GgufHeader, key: string, path: string): number {
  const value = metadata.get(key);
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0) return value;
  const found = value === undefined ? 'is missing' : 'is not a whole number';
  throw new ModelError('MODEL_INVALID', `${path}: ${key} ${found}, of a model in several parts`, {
    hint: 'The file is no part of a split model, or was given another name.',
  });
}

function checkTensors(
  tensors: readonly StoredTensor[],
  paths: readonly string[],
  headers: readonly GgufHeader[],
): void {
  if (tensors.length > MAX_TENSORS) {
    throw invalid(`${paths[0]}: ${tensors.length} tensors in all parts, expected at most ${MAX_TENSORS}`);
  }
  const owner = new Map<string, string>();
  for (const { name, file } of tensors) {
    const other = owner.get(name);
    if (other !== undefined) {
      throw invalid(`${file.path}: tensor ${JSON.stringify(name)} stands in ${basename(other)} too`);
    }
    owner.set(name, file.path);
  }
  const expected = headers[0].metadata.get('split.tensors.count');
  if (expected !== undefined && expected !== tensors.length) {
    throw invalid(`${paths[0]}: the parts hold ${tensors.length} tensors, expected ${String(expected)}`);
  }
}

const invalid = (message: string): ModelError => new ModelError('MODEL_INVALID', message);
