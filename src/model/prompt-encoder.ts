/**
 * What people write, as token ids. Templates are the model's and may hold control tokens; messages are the
 * user's: whatever stands in them is encoded as its characters and never becomes a control token.
 */
import { randomBytes } from 'node:crypto';
import { ChatTemplate, noTemplate, type ChatForm, type Conversation } from './chat.js';
import type { Tokenizer } from './tokenizer.js';
import type { TokenizerFiles } from './types.js';

export class PromptEncoder {
  private readonly template: ChatTemplate | null;

  constructor(
    private readonly tokenizer: Tokenizer,
    files: TokenizerFiles,
    form: ChatForm | null,
  ) {
    this.template = form && new ChatTemplate(form.template, files);
  }

  /** Text to continue, with what the tokenizer puts around it. @throws HybridError TOKENIZER_INVALID */
  text(text: string): number[] {
    const guard = new ControlGuard(this.tokenizer.controls);
    return this.encode(guard.cut(guard.protect(text)), true);
  }

  /** A conversation up to where the assistant speaks. @throws HybridError TEMPLATE_INVALID, TOKENIZER_INVALID */
  chat(conversation: Conversation): number[] {
    if (!this.template) throw noTemplate();
    const guard = new ControlGuard(this.tokenizer.controls);
    return this.encode(guard.cut(this.template.render(guard.protect(conversation))), false);
  }

  /** The first piece may get a begin token, the others are continuations. */
  private encode(pieces: readonly string[], addSpecial: boolean): number[] {
    return pieces.flatMap((piece, i) =>
      i > 0 && piece === '' ? [] : this.tokenizer.encode(piece, { addSpecial: addSpecial && i === 0 }),
    );
  }
}

/**
 * Breaks every control token that stands in a user's text: a random mark goes between its first character
 * and the rest, stays there through the template, and is where the rendered text is cut before encoding.
 */
class ControlGuard {
  private readonly mark: string;
  private readonly pattern: RegExp | null;

  constructor(controls: readonly string[]) {
    // Private-use characters: no vocabulary or template gives them a meaning.
    this.mark = `\ue000${randomBytes(8).toString('hex')}\ue001`;
    const longestFirst = controls.filter((text) => text.length > 1).sort((a, b) => b.length - a.length);
    this.pattern = longestFirst.length > 0 ? new RegExp(longestFirst.map(escaped).join('|'), 'gu') : null;
  }

  /** Every text inside a value. */
  protect<T>(value: T): T {
    if (typeof value === 'string') return this.protectText(value) as T;
    if (Array.isArray(value)) return value.map((item) => this.protect<unknown>(item)) as T;
    if (typeof value !== 'object' || value === null) return value;
    const entries = Object.entries(value).map(([key, item]) => [
      this.protectText(key),
      this.protect<unknown>(item),
    ]);
    return Object.fromEntries(entries) as T;
  }

  /** Pieces to encode one by one: no control token of the user's spans a border. */
  cut(text: string): string[] {
    return text.split(this.mark);
  }

  private protectText(text: string): string {
    if (!this.pattern) return text;
    return text.replace(this.pattern, (control) => {
      const [first] = control;
      return first + this.mark + control.slice(first.length);
    });
  }
}

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\/-]/g, '\\$&');
