/** Conversations -> the text a model was trained on, by the model's own Jinja template. */
import { Environment, parse, tokenize } from '@huggingface/jinja';
import { HybridError } from '../errors.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import { PLAIN_STOPS, PLAIN_TEMPLATE } from './plain-template.js';
import { limitedInterpreter, limitedRange, TemplateLimitError } from './template-limits.js';
import { runWithin, TimeLimitError } from './time-limit.js';
import { invalid } from './tokenizer-schema.js';
import { tokenText } from './tokenizer.js';
import type { TokenizerFiles } from './types.js';

export interface ChatMessage {
  role: string;
  content: string;
  /** Calls that an assistant made; `arguments` as an object. */
  tool_calls?: { id: string; type: 'function'; function: { name: string; arguments: unknown } }[];
  /** Which call a message of role `tool` answers. */
  tool_call_id?: string;
}

export interface Conversation {
  messages: readonly ChatMessage[];
  /** Function tools as templates read them, in OpenAI's form. @default none */
  tools?: readonly unknown[];
}

/** How a model is talked to. */
export interface ChatForm {
  /** Jinja source. */
  template: string;
  /** Texts that end an answer, beside the model's own end tokens. */
  stops: readonly string[];
}

/**
 * @param choice `plain` (plain-template.ts) or Jinja source. @default the model's own
 * @returns null: the model has no template and none was given
 */
export function chatForm(files: TokenizerFiles, choice?: string): ChatForm | null {
  if (choice === 'plain') return { template: PLAIN_TEMPLATE, stops: PLAIN_STOPS };
  const template = choice ?? files.chatTemplate;
  return template === null ? null : { template, stops: [] };
}

export const noTemplate = (): HybridError =>
  new HybridError('TEMPLATE_INVALID', 'this model has no chat template', {
    hint: 'It was not trained for chat, or its template is missing. Let it continue a text instead, or give it a template: plain is a simple dialogue.',
  });

/** Real templates render in a few milliseconds. */
const RENDER_MS = 900;

export class ChatTemplate {
  private readonly specials: Readonly<Record<string, string>>;
  private program: unknown = null;

  /** @param source Jinja; parsed when it is first needed */
  constructor(
    private readonly source: string,
    files: Pick<TokenizerFiles, 'tokenizerConfigJson'>,
  ) {
    this.specials = specialTokens(files.tokenizerConfigJson);
  }

  /**
   * @param addGenerationPrompt end with the opening of the assistant's turn. @default true
   * @returns text with the template's special tokens in it: encode it with `addSpecial: false`
   * @throws HybridError TEMPLATE_INVALID when the template is broken, refuses the messages, or takes too long
   */
  render({ messages, tools }: Conversation, addGenerationPrompt = true): string {
    try {
      return runWithin(RENDER_MS, () => {
        // The whitespace rules that transformers renders chat templates with.
        this.program ??= parse(tokenize(this.source, { lstrip_blocks: true, trim_blocks: true }));
        const env = new Environment();
        const given = { messages, tools: tools ?? null, add_generation_prompt: addGenerationPrompt };
        for (const [name, value] of Object.entries({ ...GLOBALS, ...this.specials, ...given }))
          env.set(name, value);
        return limitedInterpreter(env).run(this.program).value as string;
      });
    } catch (cause) {
      throw templateError(cause);
    }
  }
}

/** raise_exception in a template: its author's words for the user. */
class RaisedByTemplate extends Error {}

function templateError(cause: unknown): HybridError {
  const because = cause instanceof Error ? cause.message : String(cause);
  const fail = (what: string, hint?: string): HybridError =>
    new HybridError('TEMPLATE_INVALID', `the chat template ${what}: ${because}`, { hint, cause });
  if (cause instanceof RaisedByTemplate) return fail('refuses these messages');
  const limited = cause instanceof TemplateLimitError || cause instanceof TimeLimitError;
  return fail(
    limited ? 'was stopped' : 'is broken',
    'Let the model continue a text, or repair the template.',
  );
}

const GLOBALS = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  range: limitedRange,
  raise_exception: (message: unknown) => {
    throw new RaisedByTemplate(String(message));
  },
  strftime_now: (format: unknown) => strftime(String(format), new Date()),
};

const SPECIAL_NAMES = ['bos_token', 'eos_token', 'unk_token', 'pad_token'];

function specialTokens(tokenizerConfigJson: string): Record<string, string> {
  const config = parseStrictJson(tokenizerConfigJson, 'tokenizer_config.json', invalid);
  const text = (name: string): string => (isObject(config) ? tokenText(config[name]) : null) ?? '';
  return Object.fromEntries(SPECIAL_NAMES.map((name) => [name, text(name)]));
}

/** The date codes that chat templates use. */
function strftime(format: string, date: Date): string {
  const two = (n: number) => String(n).padStart(2, '0');
  const name = (options: Intl.DateTimeFormatOptions) =>
    new Intl.DateTimeFormat('en-US', options).format(date);
  const codes: Record<string, () => string> = {
    d: () => two(date.getDate()),
    m: () => two(date.getMonth() + 1),
    Y: () => String(date.getFullYear()),
    y: () => two(date.getFullYear() % 100),
    H: () => two(date.getHours()),
    M: () => two(date.getMinutes()),
    S: () => two(date.getSeconds()),
    b: () => name({ month: 'short' }),
    B: () => name({ month: 'long' }),
    a: () => name({ weekday: 'short' }),
    A: () => name({ weekday: 'long' }),
    '%': () => '%',
  };
  return format.replace(/%([a-zA-Z%])/g, (text, code: string) =>
    Object.hasOwn(codes, code) ? codes[code]() : text,
  );
}
