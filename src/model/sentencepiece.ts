/** Pieces with scores -> tokenizer.json: for GGUF's `llama` tokenizers and for SentencePiece's own files. */
import { invalid } from './tokenizer-schema.js';
import { NEVER } from './unigram.js';

/** As both kinds of file number them. */
export const PieceType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface Pieces {
  tokens: readonly string[];
  /** By id; better pieces are joined first (BPE) or have the higher log probability (unigram). */
  scores: ArrayLike<number>;
  typeOf(id: number): number;
  model: 'bpe' | 'unigram';
  unknownId: number | undefined;
  /** A space is put before the text. */
  addSpacePrefix: boolean;
  /** Spaces at both ends are dropped, and runs of them become one. */
  removeExtraSpaces: boolean;
  byteFallback: boolean;
  /** For messages: where the scores stand. */
  where: string;
}

const SPACE = '\u2581';

/** normalizer, pre_tokenizer, decoder and model of a tokenizer.json. */
export function sentencepieceJson(pieces: Pieces, vocab: ReadonlyMap<string, number>): object {
  const { addSpacePrefix, removeExtraSpaces } = pieces;
  const replace = (pattern: object, content: string) => ({ type: 'Replace', pattern, content });
  const normalizers = [
    ...(removeExtraSpaces
      ? [{ type: 'Strip', strip_left: true, strip_right: true }, replace({ Regex: ' {2,}' }, ' ')]
      : []),
    ...(addSpacePrefix ? [{ type: 'Prepend', prepend: SPACE }] : []),
    replace({ String: ' ' }, SPACE),
  ];
  const decoders = [
    replace({ String: SPACE }, ' '),
    { type: 'ByteFallback' },
    { type: 'Fuse' },
    ...(addSpacePrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
  ];
  return {
    normalizer: { type: 'Sequence', normalizers },
    pre_tokenizer: null,
    decoder: { type: 'Sequence', decoders },
    model: pieces.model === 'bpe' ? bpeModel(pieces, vocab) : unigramModel(pieces),
  };
}

/** `Object.fromEntries` keeps a token named `__proto__` as an own key. */
export const bpe = (
  vocab: ReadonlyMap<string, number>,
  merges: readonly [string, string][] | readonly string[],
  more: object,
) => ({
  type: 'BPE',
  dropout: null,
  unk_token: null,
  continuing_subword_prefix: null,
  end_of_word_suffix: null,
  fuse_unk: false,
  byte_fallback: false,
  ...more,
  vocab: Object.fromEntries(vocab),
  merges,
});

function bpeModel(pieces: Pieces, vocab: ReadonlyMap<string, number>): object {
  const { tokens, scores, typeOf, unknownId, where } = pieces;
  const joinable = (id: number): boolean => typeOf(id) === PieceType.normal;
  for (let id = 0; id < tokens.length; id++) {
    if (typeOf(id) === PieceType.normal && !Number.isFinite(scores[id]))
      throw invalid(`${where}[${id}] is ${scores[id]}`);
  }
  return bpe(
    vocab,
    mergesBy(tokens, vocab, joinable, (id) => -scores[id]),
    {
      unk_token: unknownId === undefined ? null : tokens[unknownId],
      fuse_unk: true,
      byte_fallback: pieces.byteFallback,
    },
  );
}

function unigramModel({ tokens, scores, typeOf, unknownId, byteFallback, where }: Pieces): object {
  if (unknownId === undefined) throw invalid(`${where}: a unigram model needs an unknown piece`);
  const vocab = tokens.map((token, id) => {
    const score = scores[id];
    if (!Number.isFinite(score)) throw invalid(`${where}[${id}] is ${score}`);
    // Only these are found in texts: the others have no probability.
    const found = typeOf(id) === PieceType.normal || typeOf(id) === PieceType.userDefined;
    return [token, found ? score : Math.min(score, NEVER)];
  });
  return { type: 'Unigram', unk_id: unknownId, vocab, byte_fallback: byteFallback };
}

/** Longer pieces are words of repeated characters; cutting them in every place would take quadratic time. */
const MAX_MERGED_CHARACTERS = 256;

/**
 * Sentencepiece (and tiktoken) join the neighbours whose union has the best score (rank); BPE files join by the
 * rank of the pair. Every way to cut a token into two tokens is a pair, ranked by the token.
 * @param rankOf lower is joined first
 */
export function mergesBy(
  tokens: readonly string[],
  vocab: ReadonlyMap<string, number>,
  joinable: (id: number) => boolean,
  rankOf: (id: number) => number,
): [string, string][] {
  const usable = (token: string): number | undefined => {
    const id = vocab.get(token);
    return id !== undefined && joinable(id) ? id : undefined;
  };
  const found: { left: number; right: number; rank: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (!joinable(id)) continue;
    const characters = Array.from(token);
    if (characters.length > MAX_MERGED_CHARACTERS) continue;
    for (let cut = characters[0]?.length ?? 0, i = 1; i < characters.length; cut += characters[i++].length) {
      const left = usable(token.slice(0, cut));
      const right = left === undefined ? undefined : usable(token.slice(cut));
      if (left !== undefined && right !== undefined) found.push({ left, right, rank: rankOf(id) });
    }
  }
  found.sort((a, b) => a.rank - b.rank || a.left - b.left || a.right - b.right);
  return found.map(({ left, right }) => [tokens[left], tokens[right]]);
}
