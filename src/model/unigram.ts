/**
 * Unigram segmentation (Kudo 2018): of all ways to cut a text into pieces, the one whose log probabilities have
 * the largest sum, by dynamic programming over its characters. The tokenizer library's has no byte fallback.
 */
import { fallbackToken } from './token-bytes.js';

/** What SentencePiece takes off the lowest score for a character that no piece covers. */
const UNKNOWN_PENALTY = 10;

interface Node {
  next: Map<string, Node>;
  /** Piece that ends here; -1: none. */
  id: number;
}

/**
 * @param pieces text and log probability by id
 * @returns a function that cuts a text into tokens
 */
export function createUnigram(
  pieces: readonly (readonly [string, number])[],
  unknownId: number,
  byteFallback: boolean,
): (text: string) => string[] {
  const root: Node = { next: new Map(), id: -1 };
  let lowest = 0;
  for (const [id, [text, score]] of pieces.entries()) {
    if (id === unknownId) continue;
    if (score > NEVER) lowest = Math.min(lowest, score);
    let node = root;
    for (const character of text) {
      let next = node.next.get(character);
      if (next === undefined) node.next.set(character, (next = { next: new Map(), id: -1 }));
      node = next;
    }
    node.id = id;
  }
  const unknownScore = lowest - UNKNOWN_PENALTY;
  const encoder = new TextEncoder();

  return (text) => {
    const characters = Array.from(text);
    const n = characters.length;
    const best = new Float64Array(n + 1).fill(-Infinity);
    const from = new Int32Array(n + 1);
    const piece = new Int32Array(n + 1);
    best[0] = 0;
    for (let i = 0; i < n; i++) {
      const offer = (end: number, score: number, id: number) => {
        if (best[i] + score <= best[end]) return;
        best[end] = best[i] + score;
        from[end] = i;
        piece[end] = id;
      };
      let single = false;
      let node: Node | undefined = root;
      for (let end = i; end < n && (node = node.next.get(characters[end])) !== undefined; end++) {
        if (node.id < 0 || pieces[node.id][1] <= NEVER) continue;
        offer(end + 1, pieces[node.id][1], node.id);
        single ||= end === i;
      }
      if (!single) offer(i + 1, unknownScore, unknownId);
    }
    const tokens: string[] = [];
    for (let end = n; end > 0; end = from[end]) {
      if (piece[end] !== unknownId) tokens.push(pieces[piece[end]][0]);
      else if (byteFallback) {
        const bytes = encoder.encode(characters[end - 1]);
        for (let i = bytes.length - 1; i >= 0; i--) tokens.push(fallbackToken(bytes[i]));
      } else if (from[end] === 0 || piece[from[end]] !== unknownId) tokens.push(pieces[unknownId][0]);
    }
    return tokens.reverse();
  };
}

/** Pieces of this score and below are never found in a text (control and byte pieces). */
export const NEVER = -1e4;
