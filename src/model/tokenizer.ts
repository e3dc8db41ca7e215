/** Text <-> token ids. Encoding is @huggingface/tokenizers behind checks and a time limit; decoding is ours. */
import { Tokenizer as LibraryTokenizer } from '@huggingface/tokenizers';
import { HybridError } from '../errors.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import { createMerger, LONG_WORD } from './bpe.js';
import { runWithin, TimeLimitError } from './time-limit.js';
import { byteSpelling, stripsLeadingSpace, tokenBytes } from './token-bytes.js';
import { checkTokenizerJson, invalid } from './tokenizer-schema.js';
import type { TokenizerFiles } from './types.js';
import { createUnigram } from './unigram.js';

/** Turns ids into text piece by piece; concatenated, the pieces are the text. */
export interface StreamDecoder {
  /** @returns text that is complete so far: '' while a UTF-8 character waits for its last bytes */
  push(id: number): string;
  /** The end: bytes still waiting become U+FFFD. */
  flush(): string;
}

export interface Tokenizer {
  /** Highest id + 1. */
  readonly vocabSize: number;
  readonly bosId: number | null;
  /** eos_token of tokenizer_config.json; config.json may name more. */
  readonly eosIds: readonly number[];
  /**
   * @param options.addSpecial put the begin token (and what else the tokenizer adds) around the text; false
   *   for the output of a chat template, which writes them itself. @default true
   * @throws HybridError TOKENIZER_INVALID when the tokenizer's patterns take too long
   */
  encode(text: string, options?: { addSpecial?: boolean }): number[];
  /** @param options.skipSpecial leave special tokens out. @default true */
  decode(ids: readonly number[], options?: { skipSpecial?: boolean }): string;
  /**
   * @param options.atStart the text begins here: take away the space that sentencepiece put before it.
   *   A continuation of a prompt keeps it. @default false
   */
  streamDecoder(options?: { skipSpecial?: boolean; atStart?: boolean }): StreamDecoder;
  isSpecial(id: number): boolean;
  /** The texts of the special tokens: written by a template they are tokens, by a user characters. */
  readonly controls: readonly string[];
  /** The bytes a token stands for; of a special one its name; undefined: no such token. */
  bytesOf(id: number): Uint8Array | undefined;
}

/**
 * The longest an encode may take: patterns that backtrack are stopped here. Well-behaved tokenizers take
 * 1 to 3 microseconds a character.
 */
const ENCODE_BASE_MS = 1000;
const ENCODE_MS_PER_CHARACTER = 0.02;
/** Building runs the normalizer over added tokens; the rest of it grows with the file, 0.05 us a byte. */
const BUILD_MS_PER_CHARACTER = 0.001;

/** A vocabulary of 256k tokens with its merges as pairs has 2 million. */
const MAX_TOKENIZER_VALUES = 1 << 23;

/** @throws HybridError TOKENIZER_INVALID or MODEL_UNSUPPORTED */
export function createTokenizer(files: TokenizerFiles): Tokenizer {
  const checked = checkTokenizerJson(
    parseStrictJson(files.tokenizerJson, 'tokenizer.json', invalid, MAX_TOKENIZER_VALUES),
  );
  const config = readTokenizerConfig(files.tokenizerConfigJson);
  const spelling = byteSpelling(checked);
  const bytes = tokenBytes(checked, spelling);
  const strips = stripsLeadingSpace(checked);
  const controls = checked.added.filter((t) => t.special);
  const special = new Set(controls.map((t) => t.id));

  const idOf = (token: string | null): number | null =>
    token === null
      ? null
      : (checked.added.find((t) => t.content === token)?.id ?? checked.vocab.get(token) ?? null);
  const bosId = idOf(config.bosToken);
  const eosId = idOf(config.eosToken);

  const library = guarded(
    'building it',
    ENCODE_BASE_MS + files.tokenizerJson.length * BUILD_MS_PER_CHARACTER,
    () => {
      // The library reads tokenizer_config.json too; only what was checked is passed on.
      const built = new LibraryTokenizer(checked.json, { clean_up_tokenization_spaces: false });
      const model = built.model as unknown as {
        bpe(word: string): string[];
        encode(words: string[]): string[];
      };
      if (checked.unigram) {
        const { pieces, unknownId } = checked.unigram;
        const segment = createUnigram(pieces, unknownId, checked.byteFallback);
        model.encode = (words) => words.flatMap(segment);
        return built;
      }
      const bpe = model.bpe.bind(model);
      const mergeLong = createMerger(checked.vocab, checked.merges);
      model.bpe = (word) => (word.length > LONG_WORD ? mergeLong(word) : bpe(word));
      return built;
    },
  );

  function encode(text: string, options: { addSpecial?: boolean } = {}): number[] {
    const addSpecial = options.addSpecial ?? true;
    const byTemplate = addSpecial && config.addBos === null && checked.hasPostProcessor;
    const limit = ENCODE_BASE_MS + text.length * ENCODE_MS_PER_CHARACTER;
    const found = guarded('encoding a text', limit, () =>
      text === '' && !byTemplate ? [] : library.encode(text, { add_special_tokens: byTemplate }).ids,
    );
    if (!found.every((id: unknown) => Number.isInteger(id)))
      throw invalid('tokenizer.json: a part of the text has no token');
    if (!addSpecial || byTemplate) return found;
    if (config.addBos === true && bosId !== null) found.unshift(bosId);
    if (config.addEos && eosId !== null) found.push(eosId);
    return found;
  }

  function streamDecoder(options: { skipSpecial?: boolean; atStart?: boolean } = {}): StreamDecoder {
    const skipSpecial = options.skipSpecial ?? true;
    let stripNext = strips && (options.atStart ?? false);
    const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
    return {
      push(id) {
        if (skipSpecial && special.has(id)) return '';
        let part = bytes[id];
        if (part === undefined) return '';
        if (stripNext && part.length > 0) {
          if (part[0] === 0x20) part = part.subarray(1);
          stripNext = false;
        }
        return utf8.decode(part, { stream: true });
      },
      flush: () => utf8.decode(),
    };
  }

  function decode(tokens: readonly number[], options: { skipSpecial?: boolean } = {}): string {
    const stream = streamDecoder({ ...options, atStart: true });
    let text = '';
    for (const id of tokens) text += stream.push(id);
    return text + stream.flush();
  }

  return {
    vocabSize: bytes.length,
    bosId,
    eosIds: eosId === null ? [] : [eosId],
    encode,
    decode,
    streamDecoder,
    isSpecial: (id) => special.has(id),
    controls: controls.map((t) => t.content),
    bytesOf: (id) => bytes[id],
  };
}

/** Whatever the library throws, or does not finish, becomes one typed error. */
function guarded<T>(what: string, milliseconds: number, task: () => T): T {
  try {
    return runWithin(milliseconds, task);
  } catch (cause) {
    if (cause instanceof HybridError) throw cause;
    const reason =
      cause instanceof TimeLimitError ? `its patterns take too long (${cause.message})` : String(cause);
    throw new HybridError('TOKENIZER_INVALID', `tokenizer.json: ${what}: ${reason}`, { cause });
  }
}

interface TokenizerConfig {
  bosToken: string | null;
  eosToken: string | null;
  /** null: the post-processor of tokenizer.json decides */
  addBos: boolean | null;
  addEos: boolean;
}

function readTokenizerConfig(text: string): TokenizerConfig {
  const value = parseStrictJson(text, 'tokenizer_config.json', invalid);
  if (!isObject(value)) throw invalid('tokenizer_config.json: expected an object');
  const flag = (name: string): boolean | null => (typeof value[name] === 'boolean' ? value[name] : null);
  return {
    bosToken: tokenText(value['bos_token']),
    eosToken: tokenText(value['eos_token']),
    addBos: flag('add_bos_token'),
    addEos: flag('add_eos_token') ?? false,
  };
}

/** Special tokens are written as a text or as `{content}`. */
export function tokenText(value: unknown): string | null {
  if (typeof value === 'string') return value;
  return isObject(value) && typeof value['content'] === 'string' ? value['content'] : null;
}
