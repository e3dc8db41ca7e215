/**
 * Conversations to text by the model's own Jinja template, with tools. The template is the model's, the
 * content is the user's: what the user writes can never become a control token (`ControlGuard`).
 */
import { randomBytes } from 'node:crypto';
import { Environment, parse, tokenize } from '@huggingface/jinja';
import { HybridError } from '../errors.js';
import { limitedInterpreter, limitedRange, TemplateLimitError } from '../model/template-limits.js';
import { runWithin, TimeLimitError } from '../model/time-limit.js';

/** As templates of tool-using models expect it. */
export interface TemplateMessage {
  role: string;
  content: string;
  /** `arguments` as an object. */
  tool_calls?: { id: string; type: 'function'; function: { name: string; arguments: unknown } }[];
  tool_call_id?: string;
  name?: string;
}

export interface Conversation {
  messages: TemplateMessage[];
  /** Function tools in OpenAI's form; undefined: none. */
  tools?: unknown[];
}

/** Real templates render in a few milliseconds. */
const RENDER_MS = 900;

/**
 * @param template Jinja source
 * @param specials bos_token and its like, by name
 * @throws HybridError TEMPLATE_INVALID
 */
export function renderConversation(
  template: string,
  specials: Readonly<Record<string, string>>,
  { messages, tools }: Conversation,
): string {
  try {
    return runWithin(RENDER_MS, () => {
      const env = new Environment();
      const globals = {
        ...GLOBALS,
        ...specials,
        messages,
        tools: tools ?? null,
        add_generation_prompt: true,
      };
      for (const [name, value] of Object.entries(globals)) env.set(name, value);
      const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
      return limitedInterpreter(env).run(program).value as string;
    });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    const limited = cause instanceof TemplateLimitError || cause instanceof TimeLimitError;
    const what = cause instanceof Refused ? 'refuses these messages' : limited ? 'was stopped' : 'failed';
    throw new HybridError('TEMPLATE_INVALID', `the chat template ${what}: ${why}`, { cause });
  }
}

class Refused extends Error {}

const GLOBALS = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  range: limitedRange,
  raise_exception: (message: unknown) => {
    throw new Refused(String(message));
  },
  strftime_now: (format: unknown) => {
    const iso = new Date().toISOString();
    const codes: Record<string, string> = {
      Y: iso.slice(0, 4),
      m: iso.slice(5, 7),
      d: iso.slice(8, 10),
      H: iso.slice(11, 13),
      M: iso.slice(14, 16),
      S: iso.slice(17, 19),
      b: MONTHS[Number(iso.slice(5, 7)) - 1],
    };
    return String(format).replace(/%([a-zA-Z])/g, (text, code: string) => codes[code] ?? text);
  },
};
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/**
 * Breaks every control token that stands in a user's text: a random mark goes between its first character
 * and the rest, stays there through the template, and is where the rendered text is cut before encoding.
 */
export class ControlGuard {
  readonly mark: string;
  private readonly pattern: RegExp | null;

  /** @param controls texts of the tokenizer's special tokens */
  constructor(controls: readonly string[]) {
    // Private-use characters: no vocabulary or template gives them a meaning.
    this.mark = `\ue000${randomBytes(8).toString('hex')}\ue001`;
    const longestFirst = controls.filter((text) => text.length > 1).sort((a, b) => b.length - a.length);
    this.pattern = longestFirst.length > 0 ? new RegExp(longestFirst.map(escaped).join('|'), 'gu') : null;
  }

  protect(text: string): string {
    if (!this.pattern) return text;
    return text.replace(this.pattern, (control) => {
      const [first] = control;
      return first + this.mark + control.slice(first.length);
    });
  }

  /** Every text inside a value. */
  protectAll<T>(value: T): T {
    if (typeof value === 'string') return this.protect(value) as T;
    if (Array.isArray(value)) return value.map((item) => this.protectAll<unknown>(item)) as T;
    if (typeof value !== 'object' || value === null) return value;
    const entries = Object.entries(value).map(([key, item]) => [
      this.protect(key),
      this.protectAll<unknown>(item),
    ]);
    return Object.fromEntries(entries) as T;
  }

  /** Pieces to encode one by one: no control token of the user's spans a border. */
  cut(text: string): string[] {
    return text.split(this.mark);
  }
}

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\/-]/g, '\\$&');
