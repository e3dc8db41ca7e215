/**
 * tokenizer.json, checked before the tokenizer library sees it: what is accepted here cannot make it loop,
 * allocate without bound, or return a token id that does not exist.
 */
import { z } from 'zod';
import { HybridError } from '../errors.js';
import type { Fail } from '../io/bounded-reader.js';
import { isObject } from '../io/strict-json.js';
import { MAX_MERGES } from './bpe.js';
import { MAX_VOCAB } from './limits.js';

export const invalid: Fail = (message) => new HybridError('TOKENIZER_INVALID', message);

const id = z
  .number()
  .int()
  .min(0)
  .max(MAX_VOCAB - 1);

const addedToken = z.object({
  id,
  content: z.string().min(1).max(4096),
  special: z.boolean().default(false),
  single_word: z.boolean().default(false),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  normalized: z.boolean().default(true),
});

const step = z.looseObject({ type: z.string() });

const schema = z.object({
  added_tokens: z.array(addedToken).max(MAX_VOCAB).default([]),
  normalizer: step.nullish().transform((v) => v ?? null),
  pre_tokenizer: step.nullish().transform((v) => v ?? null),
  post_processor: step.nullish().transform((v) => v ?? null),
  decoder: step.nullish().transform((v) => v ?? null),
  model: z.looseObject({
    // Very old files leave the type out; BPE is then what they mean.
    type: z.string().default('BPE'),
    unk_token: z.string().nullish(),
    unk_id: id.nullish(),
    byte_fallback: z.boolean().nullish(),
    ignore_merges: z.boolean().nullish(),
    continuing_subword_prefix: z.string().nullish(),
    end_of_word_suffix: z.string().nullish(),
  }),
});

export interface Unigram {
  /** Text and log probability by id. */
  pieces: [string, number][];
  unknownId: number;
}

export interface CheckedTokenizer {
  /** For the library: the file's own object with merges as pairs. */
  json: Record<string, unknown>;
  vocab: Map<string, number>;
  /** Empty for unigram models. */
  merges: [string, string][];
  unigram: Unigram | null;
  added: z.infer<typeof addedToken>[];
  normalizer: z.infer<typeof step> | null;
  preTokenizer: z.infer<typeof step> | null;
  decoder: z.infer<typeof step> | null;
  hasPostProcessor: boolean;
  byteFallback: boolean;
}

/** @throws HybridError TOKENIZER_INVALID or MODEL_UNSUPPORTED */
export function checkTokenizerJson(value: unknown): CheckedTokenizer {
  const parsed = schema.safeParse(value);
  if (!parsed.success) {
    const issues = parsed.error.issues.slice(0, 5).map((i) => `${i.path.join('.')}: ${i.message}`);
    throw invalid(`tokenizer.json: ${issues.join('; ')}`);
  }
  const file = parsed.data;
  if (file.model.type !== 'BPE' && file.model.type !== 'Unigram') {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `tokenizer.json: model type ${file.model.type} is not supported`,
      { hint: 'Supported: BPE and Unigram.' },
    );
  }
  if (file.model.continuing_subword_prefix || file.model.end_of_word_suffix) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      'tokenizer.json: subword prefixes and word suffixes are not supported',
    );
  }
  const pieces = file.model.type === 'Unigram' ? readPieces(file.model['vocab'], file.model.unk_id) : null;
  const byToken = pieces?.pieces.map(([token], id) => [token, id] as const);
  const { vocab, owner } = readVocab(byToken ? Object.fromEntries(byToken) : file.model['vocab']);
  checkAdded(file.added_tokens, vocab, owner);
  const merges = pieces ? [] : readMerges(file.model['merges'], vocab);
  const unk = file.model.unk_token;
  if (typeof unk === 'string' && !vocab.has(unk) && !file.added_tokens.some((t) => t.content === unk)) {
    throw invalid(`tokenizer.json: unk_token ${JSON.stringify(unk)} is not in the vocabulary`);
  }
  checkGrowth(file.normalizer, 'normalizer');
  checkGrowth(file.pre_tokenizer, 'pre_tokenizer');
  return {
    json: { ...file, model: { ...file.model, merges, vocab: file.model['vocab'] } },
    vocab,
    merges,
    unigram: pieces,
    added: file.added_tokens,
    normalizer: file.normalizer,
    preTokenizer: file.pre_tokenizer,
    decoder: file.decoder,
    hasPostProcessor: file.post_processor !== null,
    byteFallback: file.model.byte_fallback === true,
  };
}

/** Token -> id: whole numbers from 0, each used once. A table of 2^31 entries must never be asked for. */
function readVocab(value: unknown): { vocab: Map<string, number>; owner: Map<number, string> } {
  if (!isObject(value)) throw invalid('tokenizer.json: model.vocab: expected an object of token ids');
  const vocab = new Map<string, number>();
  const owner = new Map<number, string>();
  for (const [token, tokenId] of Object.entries(value)) {
    if (typeof tokenId !== 'number' || !Number.isInteger(tokenId) || tokenId < 0 || tokenId >= MAX_VOCAB) {
      throw invalid(
        `tokenizer.json: token ${JSON.stringify(token)}: id ${JSON.stringify(tokenId)}, expected 0..${MAX_VOCAB - 1}`,
      );
    }
    const other = owner.get(tokenId);
    if (other !== undefined) {
      throw invalid(
        `tokenizer.json: id ${tokenId} belongs to ${JSON.stringify(other)} and ${JSON.stringify(token)}`,
      );
    }
    owner.set(tokenId, token);
    vocab.set(token, tokenId);
  }
  if (vocab.size === 0) throw invalid('tokenizer.json: model.vocab is empty');
  return { vocab, owner };
}

/** A unigram vocabulary: pieces with finite scores, each text once, one of them the unknown piece. */
function readPieces(value: unknown, unknownId: number | null | undefined): Unigram {
  if (!Array.isArray(value) || value.length === 0 || value.length > MAX_VOCAB) {
    throw invalid('tokenizer.json: model.vocab: expected an array of pieces and scores');
  }
  if (unknownId === null || unknownId === undefined || unknownId >= value.length) {
    throw invalid(`tokenizer.json: model.unk_id is ${unknownId}, expected a piece of ${value.length}`);
  }
  const seen = new Set<string>();
  const pieces = (value as unknown[]).map((entry, i): [string, number] => {
    const [text, score] = Array.isArray(entry) && entry.length === 2 ? (entry as unknown[]) : [];
    if (typeof text !== 'string' || typeof score !== 'number' || !Number.isFinite(score) || seen.has(text)) {
      throw invalid(
        `tokenizer.json: piece ${i}: expected a text of its own and a score, found ${JSON.stringify(entry)}`,
      );
    }
    seen.add(text);
    return [text, score];
  });
  return { pieces, unknownId };
}

function checkAdded(
  added: readonly z.infer<typeof addedToken>[],
  vocab: ReadonlyMap<string, number>,
  owner: Map<number, string>,
): void {
  const contents = new Set<string>();
  for (const { id: tokenId, content } of added) {
    const known = vocab.get(content);
    if (known !== undefined && known !== tokenId) {
      throw invalid(
        `tokenizer.json: added token ${JSON.stringify(content)} has id ${tokenId} and, in the vocabulary, ${known}`,
      );
    }
    const other = owner.get(tokenId);
    if (other !== undefined && other !== content) {
      throw invalid(
        `tokenizer.json: id ${tokenId} belongs to ${JSON.stringify(other)} and ${JSON.stringify(content)}`,
      );
    }
    if (contents.has(content))
      throw invalid(`tokenizer.json: added token ${JSON.stringify(content)} appears twice`);
    contents.add(content);
    owner.set(tokenId, content);
  }
}

/** Both spellings, `"a b"` and `["a", "b"]`. Every part and every result must be a token. */
function readMerges(value: unknown, vocab: ReadonlyMap<string, number>): [string, string][] {
  if (!Array.isArray(value) || value.length > MAX_MERGES) {
    throw invalid(`tokenizer.json: model.merges: expected an array of at most ${MAX_MERGES} merges`);
  }
  return value.map((merge: unknown, i): [string, string] => {
    const pair: unknown[] = typeof merge === 'string' ? merge.split(' ') : Array.isArray(merge) ? merge : [];
    const [left, right] = pair;
    if (pair.length !== 2 || typeof left !== 'string' || typeof right !== 'string') {
      throw invalid(`tokenizer.json: merge ${i}: expected two tokens, found ${JSON.stringify(merge)}`);
    }
    for (const token of [left, right, left + right]) {
      if (!vocab.has(token)) {
        throw invalid(`tokenizer.json: merge ${i}: ${JSON.stringify(token)} is not in the vocabulary`);
      }
    }
    return [left, right];
  });
}

/** Steps that insert text: together they may lengthen it by this factor at most. Real ones do not at all. */
const MAX_GROWTH = 64;
const INSERTED_FIELDS = ['content', 'prepend', 'replacement'] as const;

/** A chain of replacements that each lengthen the text would use up memory on a short prompt. */
function checkGrowth(root: unknown, where: string): void {
  let growth = 1;
  const visit = (value: unknown): void => {
    if (Array.isArray(value)) return value.forEach(visit);
    if (!isObject(value)) return;
    for (const field of INSERTED_FIELDS) {
      const text = value[field];
      if (typeof text === 'string') growth *= Math.max(1, text.length);
    }
    Object.values(value).forEach(visit);
  };
  visit(root);
  if (growth > MAX_GROWTH)
    throw invalid(`tokenizer.json: ${where}: its replacements may lengthen a text ${growth} times`);
}
