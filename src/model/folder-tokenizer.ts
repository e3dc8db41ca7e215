/** The tokenizer of a Hugging Face folder: tokenizer.json, or what is made of older files when it is missing. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ModelError } from '../errors.js';
import { BoundedReader, type Fail } from '../io/bounded-reader.js';
import { exists, openRegularFile, readSmallText } from '../io/regular-file.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import { refuseForeignText } from './foreign.js';
import { MAX_CONFIG_BYTES, MAX_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES, MAX_VOCAB } from './limits.js';
import { readSentencePiece } from './sentencepiece-file.js';
import { readTiktoken } from './tiktoken-file.js';
import type { TokenizerFiles } from './types.js';

const invalid: Fail = (message) => new ModelError('MODEL_INVALID', message);

/** @throws HybridError FILE_NOT_FOUND, MODEL_INVALID, TOKENIZER_INVALID, MODEL_UNSUPPORTED */
export function readTokenizerFiles(folder: string): TokenizerFiles {
  const optional = (name: string, maxBytes: number): string | null =>
    exists(join(folder, name)) ? readJsonText(join(folder, name), maxBytes, folder) : null;
  const configText = optional('tokenizer_config.json', MAX_CONFIG_BYTES) ?? '{}';
  const config = parseStrictJson(configText, join(folder, 'tokenizer_config.json'), invalid);
  const tokenizerJson = optional('tokenizer.json', MAX_TOKENIZER_BYTES);
  const texts =
    tokenizerJson === null
      ? olderTokenizer(folder, isObject(config) ? config : {})
      : { tokenizerJson, tokenizerConfigJson: configText };
  return {
    ...texts,
    chatTemplate: readTemplate(folder) ?? templateOf(config),
    generationConfigJson: optional('generation_config.json', MAX_CONFIG_BYTES),
  };
}

/** SentencePiece's `tokenizer.model`, or a tiktoken file under that or any name. */
function olderTokenizer(
  folder: string,
  config: Record<string, unknown>,
): Pick<TokenizerFiles, 'tokenizerJson' | 'tokenizerConfigJson'> {
  const name = exists(join(folder, 'tokenizer.model'))
    ? 'tokenizer.model'
    : readdirSync(folder).find((file) => file.endsWith('.tiktoken'));
  if (name === undefined) {
    throw new ModelError(
      'FILE_NOT_FOUND',
      `${folder}: no tokenizer.json, tokenizer.model or .tiktoken file`,
      {
        hint: 'Save the tokenizer in its fast form (tokenizer.json) into the folder.',
      },
    );
  }
  const path = join(folder, name);
  const bytes = readSmallBytes(path, folder);
  // The first field of SentencePiece's protocol buffer has the tag 0x0a; tiktoken's lines begin with base64.
  const isTiktoken = bytes.length > 0 && bytes[0] !== 0x0a;
  const { json, ...special } = isTiktoken ? tiktoken(bytes, path) : sentencePiece(bytes, path);
  addTokens(json, config, folder);
  const defaults = { bos_token: special.bos, eos_token: special.eos, add_bos_token: special.bos !== null };
  return {
    tokenizerJson: JSON.stringify(json),
    tokenizerConfigJson: JSON.stringify({ ...defaults, ...withoutNulls(config) }),
  };
}

interface OlderTokenizer {
  json: Record<string, unknown>;
  bos: string | null;
  eos: string | null;
}

function tiktoken(bytes: Uint8Array, path: string): OlderTokenizer {
  const text = new TextDecoder('utf-8', { fatal: false }).decode(bytes);
  refuseForeignText(path, text);
  return readTiktoken(text, path);
}

function sentencePiece(bytes: Uint8Array, path: string): OlderTokenizer {
  const { json, special } = readSentencePiece(bytes, path);
  return { json, bos: special.bos ?? null, eos: special.eos ?? null };
}

/** Tokens that were added behind the file's own: `added_tokens_decoder`, or the older added_tokens.json. */
function addTokens(json: Record<string, unknown>, config: Record<string, unknown>, folder: string): void {
  const list = json['added_tokens'] as { id: number; content: string }[];
  const known = new Map(list.map((token) => [token.id, token]));
  const add = (id: unknown, content: unknown, more: object, where: string) => {
    const number = Number(id);
    if (!Number.isInteger(number) || number < 0 || number >= MAX_VOCAB || typeof content !== 'string') {
      throw invalid(`${where}: token ${JSON.stringify(content)} has the id ${JSON.stringify(id)}`);
    }
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
    known.set(number, { ...flags, ...more, id: number, content } as { id: number; content: string });
  };
  const decoder = config['added_tokens_decoder'];
  if (isObject(decoder)) {
    for (const [id, token] of Object.entries(decoder)) {
      if (isObject(token)) add(id, token['content'], token, `${folder}: tokenizer_config.json`);
    }
  } else if (exists(join(folder, 'added_tokens.json'))) {
    const path = join(folder, 'added_tokens.json');
    const tokens = parseStrictJson(readJsonText(path, MAX_CONFIG_BYTES, folder), path, invalid);
    if (!isObject(tokens)) throw invalid(`${path}: expected an object of token ids`);
    for (const [content, id] of Object.entries(tokens)) add(id, content, {}, path);
  }
  json['added_tokens'] = [...known.values()].sort((a, b) => a.id - b.id);
}

/** What a config leaves open (null) does not take away what the file says. */
const withoutNulls = (config: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(config).filter(([, value]) => value !== null));

function readSmallBytes(path: string, root: string): Uint8Array {
  const file = openRegularFile(path, root);
  try {
    if (file.size > MAX_TOKENIZER_BYTES) {
      throw invalid(`${path}: ${file.size} bytes, expected at most ${MAX_TOKENIZER_BYTES}`);
    }
    if (file.size === 0) throw invalid(`${path}: the file is empty, expected a tokenizer`);
    return BoundedReader.ofFile(file.fd, file.size, path, invalid).bytes(file.size, 'the tokenizer');
  } finally {
    file.close();
  }
}

export function readJsonText(path: string, maxBytes: number, folder: string): string {
  const text = readSmallText(path, maxBytes, invalid, folder);
  refuseForeignText(path, text);
  return text;
}

function readTemplate(folder: string): string | null {
  const path = join(folder, 'chat_template.jinja');
  return exists(path) ? readSmallText(path, MAX_TEMPLATE_BYTES, invalid, folder) : null;
}

/** `chat_template` of tokenizer_config.json: a text, or a list of named ones of which `default` is meant. */
function templateOf(tokenizerConfig: unknown): string | null {
  const value = isObject(tokenizerConfig) ? tokenizerConfig['chat_template'] : undefined;
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return null;
  const named: unknown = value.find((item) => isObject(item) && item['name'] === 'default');
  return isObject(named) && typeof named['template'] === 'string' ? named['template'] : null;
}
