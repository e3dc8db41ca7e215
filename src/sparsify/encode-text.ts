/**
 * Long texts to ids, piece by piece: a tokenizer's time limit is meant for prompts, and a piece of this size takes
 * a small part of it even on a machine with much other work.
 */
import { TimeLimitError } from '../model/time-limit.js';
import type { Tokenizer } from '../model/tokenizer.js';

const PIECE_CHARACTERS = 8192;
/** Its limit is wall-clock time: a process that got no processor for a second is no fault of the tokenizer. */
const ATTEMPTS = 8;

/**
 * The ids of the whole text. Cuts stand before the space between two words, where tokenizers that split words cut
 * anyway: for those the ids are the same as in one go.
 */
export function encodeText(
  tokenizer: Tokenizer,
  text: string,
  pieceCharacters = PIECE_CHARACTERS,
): Int32Array {
  const encode = (part: string): number[] => patiently(() => tokenizer.encode(part, { addSpecial: false }));
  // sentencepiece puts a space before every text: a later piece's own one would be a second.
  const addsSpace = `${encode('of the')}` === `${[...encode('of'), ...encode('the')]}`;
  const ids: number[] = [];
  const between = /(?<=\S) (?=\p{L})/gu;
  for (let begin = 0; begin < text.length;) {
    between.lastIndex = begin + pieceCharacters;
    const end =
      begin + pieceCharacters < text.length ? (between.exec(text)?.index ?? text.length) : text.length;
    const part = text.slice(begin > 0 && addsSpace ? begin + 1 : begin, end);
    for (const id of encode(part)) ids.push(id);
    begin = end;
  }
  return Int32Array.from(ids);
}

/** Work that a tokenizer bounds in time, tried again when it was the machine that took the time. */
export function patiently<T>(work: () => T): T {
  for (let attempt = 1; ; attempt++) {
    try {
      return work();
    } catch (error) {
      const late = error instanceof Error && error.cause instanceof TimeLimitError;
      if (!late || attempt === ATTEMPTS) throw error;
    }
  }
}
