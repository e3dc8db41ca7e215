/**
 * tiktoken's files -> tokenizer.json. A line holds a token's bytes in base64 and its rank, which is its id. Two
 * neighbours are joined when their union is a token, lowest rank first. How texts are cut and which special
 * tokens follow is in the programs that use such a file, so a file is known by its number of ranks.
 */
import { HybridError } from '../errors.js';
import { MAX_VOCAB } from './limits.js';
import { byteLevel, PRE_TOKENIZERS, preTokenizerJson } from './pre-tokenizers.js';
import { bpe, mergesBy } from './sentencepiece.js';
import { byteLevelAlphabet } from './token-bytes.js';
import { invalid } from './tokenizer-schema.js';

interface Vocabulary {
  name: string;
  ranks: number;
  /** In PRE_TOKENIZERS. */
  pre: string;
  bos: string | null;
  eos: string;
  /** From id `ranks` on; null: a number that no token has. */
  special: readonly (string | null)[];
}

const numbered = (prefix: string, from: number, to: number, suffix = '|>'): string[] =>
  Array.from({ length: to - from + 1 }, (_, i) => `${prefix}${from + i}${suffix}`);

const VOCABULARIES: readonly Vocabulary[] = [
  {
    name: 'Llama 3',
    ranks: 128000,
    pre: 'llama-bpe',
    bos: '<|begin_of_text|>',
    eos: '<|end_of_text|>',
    special: [
      '<|begin_of_text|>',
      '<|end_of_text|>',
      ...numbered('<|reserved_special_token_', 0, 3),
      '<|start_header_id|>',
      '<|end_header_id|>',
      '<|reserved_special_token_4|>',
      '<|eot_id|>',
      ...numbered('<|reserved_special_token_', 5, 250),
    ],
  },
  {
    name: 'Qwen',
    ranks: 151643,
    pre: 'qwen2',
    bos: null,
    eos: '<|endoftext|>',
    special: ['<|endoftext|>', '<|im_start|>', '<|im_end|>', ...numbered('<|extra_', 0, 204)],
  },
  {
    name: 'GPT-4 (cl100k_base)',
    ranks: 100256,
    pre: 'dbrx',
    bos: null,
    eos: '<|endoftext|>',
    special: [null, '<|endoftext|>', '<|fim_prefix|>', '<|fim_middle|>', '<|fim_suffix|>'],
  },
  {
    name: 'GPT-4o (o200k_base)',
    ranks: 199998,
    pre: 'gpt-4o',
    bos: null,
    eos: '<|endoftext|>',
    special: [null, '<|endoftext|>'],
  },
  {
    name: 'GPT-2 (r50k_base)',
    ranks: 50256,
    pre: 'gpt-2',
    bos: null,
    eos: '<|endoftext|>',
    special: ['<|endoftext|>'],
  },
];

/** Longest line in use: 128 spaces in base64 and six digits. */
const LINE = /^([A-Za-z0-9+/]{1,1024}={0,2}) (\d{1,7})$/;

/**
 * @param text the file  @param name for messages
 * @throws HybridError TOKENIZER_INVALID; MODEL_UNSUPPORTED for a vocabulary of unknown size
 */
export function readTiktoken(
  text: string,
  name: string,
): { json: Record<string, unknown>; bos: string | null; eos: string } {
  const tokens = readRanks(text, name);
  const known = VOCABULARIES.find(({ ranks }) => ranks === tokens.length);
  if (known === undefined) {
    throw new HybridError(
      'MODEL_UNSUPPORTED',
      `${name}: a tiktoken file of ${tokens.length} tokens: how it cuts texts is not known`,
      {
        hint:
          `Known: ${VOCABULARIES.map((v) => `${v.name} with ${v.ranks}`).join(', ')}. ` +
          'Save the tokenizer in its fast form (tokenizer.json) into the folder.',
      },
    );
  }
  return { json: tiktokenJson(tokens, known), bos: known.bos, eos: known.eos };
}

/** For tests of small vocabularies: the tokenizer.json of any ranks. */
export function tiktokenJson(
  tokens: readonly string[],
  { pre, special, ranks }: Pick<Vocabulary, 'pre' | 'special' | 'ranks'>,
): Record<string, unknown> {
  const vocab = new Map(tokens.map((token, id) => [token, id]));
  const cut = PRE_TOKENIZERS[pre];
  const merges = mergesBy(
    tokens,
    vocab,
    () => true,
    (id) => id,
  );
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  return {
    version: '1.0',
    added_tokens: special.flatMap((content, i) =>
      content === null ? [] : [{ id: ranks + i, content, ...flags }],
    ),
    normalizer: cut.nfc ? { type: 'NFC' } : null,
    pre_tokenizer: preTokenizerJson(cut),
    post_processor: null,
    decoder: byteLevel(),
    model: bpe(vocab, merges, { ignore_merges: true }),
  };
}

/** Tokens by rank, in the alphabet that byte-level BPE spells bytes in. */
export function readRanks(text: string, name: string): string[] {
  const alphabet = byteLevelAlphabet();
  const lines = text.split('\n');
  if (lines[lines.length - 1] === '') lines.pop();
  if (lines.length > MAX_VOCAB)
    throw invalid(`${name}: ${lines.length} lines, expected at most ${MAX_VOCAB}`);
  const tokens = new Array<string | undefined>(lines.length);
  const seen = new Set<string>();
  for (const [i, line] of lines.entries()) {
    const match = LINE.exec(line.trimEnd());
    if (!match) {
      throw invalid(
        `${name}: line ${i + 1}: expected base64 and a rank, found ${JSON.stringify(line.slice(0, 40))}`,
      );
    }
    const rank = Number(match[2]);
    if (rank >= lines.length || tokens[rank] !== undefined) {
      throw invalid(`${name}: line ${i + 1}: rank ${rank} of ${lines.length} tokens, or used twice`);
    }
    const token = Array.from(Buffer.from(match[1], 'base64'), (byte) => alphabet[byte]).join('');
    if (token === '' || seen.has(token))
      throw invalid(`${name}: line ${i + 1}: an empty token, or one used twice`);
    seen.add(token);
    tokens[rank] = token;
  }
  return tokens as string[];
}
