/** tokenizer.json -> the tokenizer.ggml.* metadata that llama.cpp and PowerInfer read. */
import { HybridError } from '../errors.js';
import { isObject } from '../io/strict-json.js';
import type { ModelConfig, TokenizerFiles } from '../model/types.js';
import { namePreTokenizer } from '../model/pre-tokenizers.js';
import type { GgufMeta } from './gguf-file.js';

/** tokenizer.ggml.token_type */
const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;
const BYTE = 6;

/** @throws HybridError MODEL_UNSUPPORTED for tokenizers that GGUF cannot express */
export function tokenizerMetadata(files: TokenizerFiles, config: ModelConfig): Map<string, GgufMeta> {
  const json: unknown = JSON.parse(files.tokenizerJson);
  const settings: unknown = JSON.parse(files.tokenizerConfigJson);
  const model = at(json, 'model');
  if (at(model, 'type') !== 'BPE') throw unsupported(`its model is ${String(at(model, 'type'))}, not BPE`);
  const { tokens, types } = readTokens(json, config.vocabSize);
  const merges = readMerges(at(model, 'merges'));
  const byteLevel = JSON.stringify(at(json, 'pre_tokenizer') ?? null).includes('"ByteLevel"');
  const byteFallback = at(model, 'byte_fallback') === true;
  if (!byteLevel && !byteFallback) throw unsupported('it is neither byte-level nor has it a byte fallback');

  const meta = new Map<string, GgufMeta>([
    ['tokenizer.ggml.model', { string: byteLevel ? 'gpt2' : 'llama' }],
    ['tokenizer.ggml.tokens', { strings: tokens }],
    ['tokenizer.ggml.token_type', { i32s: types }],
  ]);
  if (byteLevel) {
    meta.set('tokenizer.ggml.pre', { string: preTokenizerName(json) });
    meta.set('tokenizer.ggml.merges', { strings: merges.map(([left, right]) => `${left} ${right}`) });
  } else {
    meta.set('tokenizer.ggml.scores', { f32s: scoresOf(tokens, merges) });
    const prefix = JSON.stringify(at(json, 'normalizer') ?? null).includes('"Prepend"');
    meta.set('tokenizer.ggml.add_space_prefix', { bool: prefix });
  }
  if (config.bosId !== null) meta.set('tokenizer.ggml.bos_token_id', { u32: config.bosId });
  if (config.eosIds.length > 0) meta.set('tokenizer.ggml.eos_token_id', { u32: config.eosIds[0] });
  const unknown = tokens.indexOf(String(at(model, 'unk_token') ?? '\0'));
  if (unknown >= 0) meta.set('tokenizer.ggml.unknown_token_id', { u32: unknown });
  const addBos = at(settings, 'add_bos_token');
  meta.set('tokenizer.ggml.add_bos_token', {
    bool: typeof addBos === 'boolean' ? addBos : addsBos(json, config.bosId),
  });
  if (files.chatTemplate !== null) meta.set('tokenizer.chat_template', { string: files.chatTemplate });
  return meta;
}

function readTokens(json: unknown, vocabSize: number): { tokens: string[]; types: number[] } {
  const vocab = at(at(json, 'model'), 'vocab');
  if (!isObject(vocab)) throw unsupported('it has no vocabulary');
  const unknown = at(at(json, 'model'), 'unk_token');
  // A model may have more embedding rows than tokens.
  const tokens = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const types = new Array<number>(vocabSize).fill(UNUSED);
  const put = (content: string, id: unknown, type: number) => {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabSize) {
      throw unsupported(`token ${JSON.stringify(content)} has the id ${String(id)} of ${vocabSize}`);
    }
    tokens[id as number] = content;
    types[id as number] = type;
  };
  for (const [content, id] of Object.entries(vocab)) {
    const byte = /^<0x[0-9A-F]{2}>$/.test(content);
    put(content, id, content === unknown ? UNKNOWN : byte ? BYTE : NORMAL);
  }
  const added = at(json, 'added_tokens');
  for (const token of Array.isArray(added) ? (added as unknown[]) : []) {
    const content = String(at(token, 'content'));
    if (content === unknown) continue;
    put(content, at(token, 'id'), at(token, 'special') === true ? CONTROL : USER_DEFINED);
  }
  return { tokens, types };
}

/** Both spellings in use: "a b", and ["a", "b"]. */
function readMerges(value: unknown): [string, string][] {
  if (!Array.isArray(value)) throw unsupported('it has no merges');
  return (value as unknown[]).map((merge) => {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    if (Array.isArray(pair) && pair.length === 2) return [String(pair[0]), String(pair[1])];
    throw unsupported(`a merge is ${JSON.stringify(merge)}`);
  });
}

/** Sentencepiece joins by score: the earlier a pair is merged, the higher the score of what it gives. */
function scoresOf(tokens: string[], merges: [string, string][]): Float32Array {
  const rank = new Map<string, number>();
  for (const [i, [left, right]] of merges.entries()) if (!rank.has(left + right)) rank.set(left + right, i);
  return Float32Array.from(tokens, (token) => -(rank.get(token) ?? merges.length + 1));
}

/** GGUF knows pre-tokenizers by the name of a model that has them. */
function preTokenizerName(json: unknown): string {
  const ignoreMerges = at(at(json, 'model'), 'ignore_merges') === true;
  const name = namePreTokenizer(at(json, 'pre_tokenizer'), at(json, 'normalizer'), ignoreMerges);
  if (name !== null) return name;
  throw unsupported('GGUF has no name for the way it cuts texts');
}

function addsBos(json: unknown, bosId: number | null): boolean {
  const post = JSON.stringify(at(json, 'post_processor') ?? null);
  return bosId !== null && post.includes('"SpecialToken"');
}

const at = (value: unknown, key: string): unknown => (isObject(value) ? value[key] : undefined);

const unsupported = (why: string): HybridError =>
  new HybridError('MODEL_UNSUPPORTED', `this tokenizer cannot be written to a GGUF file: ${why}`, {
    hint: 'Exports need a BPE tokenizer, byte-level or with byte fallback.',
  });
