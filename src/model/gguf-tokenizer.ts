/** tokenizer.ggml.* metadata -> the files of a Hugging Face tokenizer, which the tokenizer library reads. */
import { HybridError } from '../errors.js';
import type { GgufMetadata } from './gguf-metadata.js';
import type { TokenizerFiles } from './types.js';
import { byteLevel, PRE_TOKENIZERS, preTokenizerJson } from './pre-tokenizers.js';
import { bpe, PieceType, sentencepieceJson } from './sentencepiece.js';
import { invalid } from './tokenizer-schema.js';

/** @throws HybridError TOKENIZER_INVALID or MODEL_UNSUPPORTED */
export function rebuildTokenizer(meta: GgufMetadata): TokenizerFiles {
  const model = meta.text('tokenizer.ggml.model');
  const tokens = meta.texts('tokenizer.ggml.tokens');
  if (model === undefined || tokens === undefined) throw invalid('the GGUF file holds no tokenizer');
  const types = meta.numbers('tokenizer.ggml.token_type');
  if (types && types.length !== tokens.length) {
    throw invalid(`tokenizer.ggml.token_type has ${types.length} entries for ${tokens.length} tokens`);
  }
  const vocab = vocabOf(tokens);
  const typeOf = (id: number) => types?.[id] ?? PieceType.normal;
  const build = model === 'gpt2' ? byteLevelBpe : model === 'llama' ? sentencepiece : null;
  if (build === null) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `tokenizer.ggml.model ${JSON.stringify(model)} is not supported`,
      {
        hint: 'Supported: gpt2 (byte-level BPE) and llama (sentencepiece).',
      },
    );
  }
  const built = build(meta, tokens, vocab, typeOf);
  const added = tokens.flatMap((content, id) => addedToken(content, id, typeOf(id)));
  const special = (name: string, fallback?: number): string | undefined => {
    const id = meta.integer(`tokenizer.ggml.${name}_token_id`, 0, tokens.length - 1) ?? fallback;
    return id === undefined ? undefined : tokens[id];
  };
  const config = {
    bos_token: special('bos'),
    eos_token: special('eos'),
    unk_token: special('unknown'),
    pad_token: special('padding'),
    add_bos_token: meta.flag('tokenizer.ggml.add_bos_token') ?? built.addBos,
    add_eos_token: meta.flag('tokenizer.ggml.add_eos_token') ?? false,
    clean_up_tokenization_spaces: false,
  };
  return {
    tokenizerJson: JSON.stringify({
      version: '1.0',
      added_tokens: added,
      post_processor: null,
      ...built.json,
    }),
    tokenizerConfigJson: JSON.stringify(config),
    chatTemplate: meta.text('tokenizer.chat_template') ?? null,
    generationConfigJson: null,
  };
}

function vocabOf(tokens: readonly string[]): Map<string, number> {
  const vocab = new Map<string, number>();
  for (const [id, token] of tokens.entries()) {
    const other = vocab.get(token);
    if (other !== undefined) {
      throw invalid(`tokenizer.ggml.tokens: ${JSON.stringify(token)} has the ids ${other} and ${id}`);
    }
    vocab.set(token, id);
  }
  return vocab;
}

function addedToken(content: string, id: number, type: number): object[] {
  const { control, userDefined, unknown } = PieceType;
  if (type !== control && type !== userDefined && type !== unknown) return [];
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
  return content === '' ? [] : [{ id, content, ...flags, special: type !== userDefined }];
}

interface Built {
  json: object;
  addBos: boolean;
}
type Vocab = ReadonlyMap<string, number>;

function byteLevelBpe(meta: GgufMetadata, _tokens: readonly string[], vocab: Vocab): Built {
  const name = meta.text('tokenizer.ggml.pre');
  if (name === undefined) {
    throw new HybridError(
      'TOKENIZER_INVALID',
      'tokenizer.ggml.pre is missing: how texts are cut is not known',
      { hint: 'The file was made by a converter of before May 2024; convert the model again.' },
    );
  }
  const pre = Object.hasOwn(PRE_TOKENIZERS, name) ? PRE_TOKENIZERS[name] : undefined;
  if (pre === undefined) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `tokenizer.ggml.pre ${JSON.stringify(name)} is not supported`,
      {
        hint: `Supported: ${Object.keys(PRE_TOKENIZERS).join(', ')}. The Hugging Face folder needs no such name.`,
      },
    );
  }
  const merges = meta.texts('tokenizer.ggml.merges');
  if (merges === undefined) throw invalid('tokenizer.ggml.merges is missing');
  return {
    addBos: pre.addBos ?? false,
    json: {
      normalizer: pre.nfc ? { type: 'NFC' } : null,
      pre_tokenizer: preTokenizerJson(pre),
      decoder: byteLevel(),
      model: bpe(vocab, merges, { ignore_merges: pre.ignoreMerges ?? false }),
    },
  };
}

function sentencepiece(
  meta: GgufMetadata,
  tokens: readonly string[],
  vocab: Vocab,
  typeOf: (id: number) => number,
): Built {
  const scores = meta.numbers('tokenizer.ggml.scores');
  if (scores === undefined || scores.length !== tokens.length) {
    throw invalid(`tokenizer.ggml.scores has ${scores?.length ?? 'no'} entries for ${tokens.length} tokens`);
  }
  const json = sentencepieceJson(
    {
      tokens,
      scores,
      typeOf,
      model: 'bpe',
      unknownId: meta.integer('tokenizer.ggml.unknown_token_id', 0, tokens.length - 1),
      addSpacePrefix: meta.flag('tokenizer.ggml.add_space_prefix') ?? true,
      removeExtraSpaces: meta.flag('tokenizer.ggml.remove_extra_whitespaces') ?? false,
      byteFallback: true,
      where: 'tokenizer.ggml.scores',
    },
    vocab,
  );
  return { addBos: true, json };
}
