/**
 * SentencePiece's `tokenizer.model` -> tokenizer.json. The file is a protocol buffer (sentencepiece_model.proto):
 *
 *     1 piece, repeated   1 text | 2 score f32 | 3 type (as PieceType; default normal)
 *     2 trainer           3 model (1 unigram, 2 BPE) | 24 spaces as suffix | 35 byte fallback
 *                         40..43 ids of unknown, begin, end, padding (default 0, 1, 2, -1)
 *     3 normalizer        1 name | 2 character map | 3 add dummy prefix (default true)
 *                         4 remove extra spaces (default true) | 5 escape spaces (default true)
 */
import { HybridError } from '../errors.js';
import { MAX_VOCAB } from './limits.js';
import { fieldsOf, type Field } from './protobuf.js';
import { PieceType, sentencepieceJson } from './sentencepiece.js';
import { invalid } from './tokenizer-schema.js';

export interface SpecialPieces {
  bos: string | undefined;
  eos: string | undefined;
  unknown: string | undefined;
}

/**
 * @param name for messages
 * @returns the texts of a tokenizer.json's parts, and which pieces begin and end a text
 * @throws HybridError TOKENIZER_INVALID, MODEL_UNSUPPORTED
 */
export function readSentencePiece(
  bytes: Uint8Array,
  name: string,
): { json: Record<string, unknown>; special: SpecialPieces } {
  const tokens: string[] = [];
  const scores: number[] = [];
  const types: number[] = [];
  const trainer = new Settings(name, 'trainer');
  const normalizer = new Settings(name, 'normalizer');
  for (const field of fieldsOf(bytes, name, invalid)) {
    if (field.number === 1) {
      if (tokens.length === MAX_VOCAB) throw invalid(`${name}: more than ${MAX_VOCAB} pieces`);
      const piece = new Settings(name, `piece ${tokens.length}`).read(field);
      tokens.push(piece.text(1) ?? '');
      scores.push(piece.number(2) ?? 0);
      types.push(piece.number(3) ?? PieceType.normal);
    } else if (field.number === 2) trainer.read(field);
    else if (field.number === 3) normalizer.read(field);
  }
  if (tokens.length === 0) throw invalid(`${name}: no pieces: this is not a SentencePiece model`);
  refuseOthers(name, trainer, normalizer);

  const vocab = new Map<string, number>();
  for (const [id, token] of tokens.entries()) {
    const other = vocab.get(token);
    if (token === '' || other !== undefined) {
      const what = token === '' ? 'is empty' : `is piece ${other} too`;
      throw invalid(`${name}: piece ${id} ${what}`);
    }
    vocab.set(token, id);
  }
  const idOf = (field: number, fallback: number): number | undefined => {
    const id = trainer.number(field) ?? fallback;
    return id >= 0 && id < tokens.length ? id : undefined;
  };
  const unknownId = idOf(40, 0);
  const tokenOf = (id: number | undefined) => (id === undefined ? undefined : tokens[id]);
  const json = sentencepieceJson(
    {
      tokens,
      scores,
      typeOf: (id) => types[id],
      model: trainer.number(3) === 2 ? 'bpe' : 'unigram',
      unknownId,
      addSpacePrefix: normalizer.flag(3) ?? true,
      removeExtraSpaces: normalizer.flag(4) ?? true,
      byteFallback: trainer.flag(35) ?? false,
      where: `${name}: score of piece `,
    },
    vocab,
  );
  const added = tokens.flatMap((content, id) => {
    const type = types[id];
    const { unknown, control, userDefined } = PieceType;
    if (type !== unknown && type !== control && type !== userDefined) return [];
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return [{ id, content, ...flags, special: type !== userDefined }];
  });
  return {
    json: { version: '1.0', added_tokens: added, post_processor: null, ...json },
    special: { bos: tokenOf(idOf(41, 1)), eos: tokenOf(idOf(42, 2)), unknown: tokenOf(unknownId) },
  };
}

/** What this program would compute differently. */
function refuseOthers(name: string, trainer: Settings, normalizer: Settings): void {
  const refuse = (what: string) => {
    throw new HybridError('MODEL_UNSUPPORTED', `${name}: ${what} is not supported`, {
      hint: 'Save the tokenizer in its fast form (tokenizer.json) into the folder.',
    });
  };
  const model = trainer.number(3) ?? 1;
  if (model !== 1 && model !== 2) refuse(`model type ${model} (neither unigram nor BPE)`);
  const map = normalizer.bytes(2);
  if (map !== undefined && map.length > 0) {
    refuse(`the normalization ${JSON.stringify(normalizer.text(1) ?? '')}`);
  }
  if (trainer.flag(24)) refuse('treating spaces as suffixes');
  if (normalizer.flag(5) === false) refuse('a vocabulary that does not mark spaces');
}

/** A message's fields by number, the last of equal ones as the format wants it. */
class Settings {
  private readonly values = new Map<number, Field['value']>();

  constructor(
    private readonly file: string,
    private readonly what: string,
  ) {}

  read({ value }: Field): this {
    if (!(value instanceof Uint8Array)) throw invalid(`${this.file}: ${this.what}: expected a message`);
    for (const field of fieldsOf(value, `${this.file}: ${this.what}`, invalid))
      this.values.set(field.number, field.value);
    return this;
  }

  number(field: number): number | undefined {
    const value = this.values.get(field);
    if (value === undefined) return undefined;
    if (value instanceof Uint8Array) throw this.invalid(field, 'a number');
    return typeof value === 'bigint' ? Number(BigInt.asIntN(64, value)) : value;
  }

  flag(field: number): boolean | undefined {
    const value = this.number(field);
    return value === undefined ? undefined : value !== 0;
  }

  bytes(field: number): Uint8Array | undefined {
    const value = this.values.get(field);
    if (value === undefined || value instanceof Uint8Array) return value;
    throw this.invalid(field, 'bytes');
  }

  text(field: number): string | undefined {
    const bytes = this.bytes(field);
    if (bytes === undefined) return undefined;
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
      throw this.invalid(field, 'UTF-8');
    }
  }

  private invalid(field: number, expected: string) {
    return invalid(`${this.file}: ${this.what}: field ${field}: expected ${expected}`);
  }
}
