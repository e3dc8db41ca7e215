/** Opening a model: a Hugging Face folder, a .safetensors file's folder, or a GGUF file. */
import { readdirSync, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { HybridError, ModelError } from '../errors.js';
import type { Fail } from '../io/bounded-reader.js';
import { exists } from '../io/regular-file.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import { bindTensors } from './bind.js';
import { readConfig } from './config.js';
import { openGguf } from './gguf.js';
import { readJsonText, readTokenizerFiles } from './folder-tokenizer.js';
import { MAX_CONFIG_BYTES } from './limits.js';
import { openSafetensors } from './safetensors.js';
import { describeExtra, OpenModel } from './source.js';
import { expectedTensors } from './tensor-names.js';
import type { ModelConfig, TokenizerFiles, WeightSource } from './types.js';

const invalid: Fail = (message) => new ModelError('MODEL_INVALID', message);

/**
 * Open and validate a model: headers, config and tokenizer files are read, no weights yet.
 * @param path a folder, a `.safetensors` file in one, or a `.gguf` file
 * @throws HybridError (FILE_NOT_FOUND, FILE_INVALID, MODEL_INVALID, MODEL_UNSUPPORTED, ...)
 */
export async function openModel(path: string): Promise<WeightSource> {
  if (isFolder(path)) return openFolder(path);
  if (path.endsWith('.safetensors')) return openFolder(dirname(path));
  if (/\.gguf$/i.test(path)) return openGguf(path);
  throw new ModelError('FILE_INVALID', `${path}: expected a model folder, a .safetensors or a .gguf file`);
}

function isFolder(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch (cause) {
    throw new HybridError('FILE_NOT_FOUND', `${path}: no such file or folder`, { cause });
  }
}

function openFolder(folder: string): WeightSource {
  const inFolder = (name: string) => join(folder, name);
  const configPath = inFolder('config.json');
  if (!exists(configPath)) throw notAModelFolder(folder);
  const text = readJsonText(configPath, MAX_CONFIG_BYTES, folder);
  const { config, naming, warnings } = readConfig(parseStrictJson(text, configPath, invalid), configPath);
  const tokenizer = readTokenizerFiles(folder);
  addStopTokens(config, tokenizer, folder);

  const sharded = chooseWeights(folder);
  const weights = openSafetensors(folder, inFolder, sharded);
  try {
    const expected = expectedTensors(config);
    const bound = bindTensors(config, expected, naming, (name) => weights.tensors.get(name), folder);
    warnings.push(...weights.warnings, ...describeExtra([...weights.tensors.keys()], bound));
    return new OpenModel({
      name: nameOf(folder),
      path: folder,
      kind: 'safetensors',
      config,
      tokenizer,
      bound,
      shapes: new Map(expected),
      files: weights.files,
      warnings,
      claimedFingerprint: null,
    });
  } catch (error) {
    for (const file of weights.files) file.close();
    throw error;
  }
}

/** The folder's name; in the Hugging Face cache (`models--org--name/snapshots/<hash>`) the model's. */
function nameOf(folder: string): string {
  const path = resolve(folder);
  const repository = basename(dirname(dirname(path)));
  const isSnapshot = basename(dirname(path)) === 'snapshots' && repository.startsWith('models--');
  return isSnapshot ? repository.split('--').at(-1)! : basename(path);
}

/** @returns whether the weights are sharded; one file wins over an index, as elsewhere */
function chooseWeights(folder: string): boolean {
  if (exists(join(folder, 'model.safetensors'))) return false;
  if (exists(join(folder, 'model.safetensors.index.json'))) return true;
  const other = readdirSync(folder).find((name) => /\.(bin|pth|pt)$/.test(name));
  throw new ModelError(
    'FILE_NOT_FOUND',
    `${folder}: no model.safetensors and no model.safetensors.index.json`,
    {
      hint: other ? `${other} is a PyTorch checkpoint: save the model as safetensors first.` : '',
    },
  );
}

function notAModelFolder(folder: string): ModelError {
  const gguf = readdirSync(folder).find((name) => name.endsWith('.gguf'));
  const hint = gguf
    ? `The folder holds a GGUF file: pass ${join(folder, gguf)}.`
    : 'Pass the folder that holds it.';
  return new ModelError('FILE_NOT_FOUND', `${folder}: no config.json`, { hint });
}

/** generation_config.json may know more ways to stop than config.json. */
function addStopTokens(config: ModelConfig, tokenizer: TokenizerFiles, folder: string): void {
  if (tokenizer.generationConfigJson === null) return;
  const path = join(folder, 'generation_config.json');
  const value = parseStrictJson(tokenizer.generationConfigJson, path, invalid);
  const ids: unknown[] = isObject(value) ? [value['eos_token_id'] ?? []].flat() : [];
  for (const id of ids) {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= config.vocabSize) {
      throw invalid(
        `${path}: eos_token_id ${JSON.stringify(id)} is outside the vocabulary of ${config.vocabSize}`,
      );
    }
    if (!config.eosIds.includes(id as number)) config.eosIds.push(id as number);
  }
}
