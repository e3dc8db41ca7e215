/** Generated text on its way out: stop strings found across piece borders, and never half a character. */
import type { StreamDecoder } from '../model/tokenizer.js';

/**
 * Feeds token ids through a stream decoder and holds back whatever might become a stop string.
 * `stopped` is true once one was found; the text ends before it.
 */
export class TextStream {
  stopped = false;
  private held = '';

  constructor(
    private readonly decoder: StreamDecoder,
    private readonly stops: readonly string[],
  ) {}

  /** @returns text that is now certain */
  push(tokens: readonly number[]): string {
    let out = '';
    for (const token of tokens) {
      if (this.stopped) break;
      out += this.take(this.decoder.push(token));
    }
    return out;
  }

  /** The rest, when no more tokens come. */
  end(): string {
    if (this.stopped) return '';
    const rest = this.take(this.decoder.flush()) + (this.stopped ? '' : this.held);
    this.held = '';
    return rest;
  }

  private take(piece: string): string {
    const text = this.held + piece;
    let cut = -1;
    for (const stop of this.stops) {
      const at = text.indexOf(stop);
      if (at >= 0 && (cut < 0 || at < cut)) cut = at;
    }
    if (cut >= 0) {
      this.stopped = true;
      this.held = '';
      return text.slice(0, cut);
    }
    const keep = this.longestOpenStop(text);
    this.held = text.slice(text.length - keep);
    return text.slice(0, text.length - keep);
  }

  /** Length of the longest end of `text` that is the beginning of a stop string. */
  private longestOpenStop(text: string): number {
    let longest = 0;
    for (const stop of this.stops) longest = Math.max(longest, openLength(text, stop));
    return longest;
  }
}

/** Length of the longest end of `text` that is a beginning of `mark`, and not all of it. */
export function openLength(text: string, mark: string): number {
  for (let n = Math.min(mark.length - 1, text.length); n > 0; n--)
    if (text.endsWith(mark.slice(0, n))) return n;
  return 0;
}
