/**
 * A conversation with one model. A session is its history; what was computed for it stands in the model's KV
 * cache as long as nobody needs the room, so that a turn costs its own tokens only.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { HybridError, UsageError } from '../errors.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import { parseStrictJson } from '../io/strict-json.js';
import type { ChatMessage } from '../model/chat.js';
import type { Generation } from './generation.js';
import type { GenerateOptions, HybridModel } from './hybrid-model.js';

export interface SessionOptions {
  /** The system prompt of `chat`. */
  system?: string;
}

/** What a session file holds; JSON. */
const FORMAT = 'hybrid-infer session';
const VERSION = 1;
const MAX_FILE_BYTES = 256 * 2 ** 20;
export const sessionSchema = z.strictObject({
  format: z.literal(FORMAT),
  version: z.literal(VERSION),
  fingerprint: z.string(),
  tokens: z.array(z.int().nonnegative()),
  messages: z.array(
    z.strictObject({
      role: z.string(),
      content: z.string(),
      tool_calls: z
        .array(
          z.strictObject({
            id: z.string(),
            type: z.literal('function'),
            function: z.strictObject({ name: z.string(), arguments: z.unknown() }),
          }),
        )
        .optional(),
      tool_call_id: z.string().optional(),
    }),
  ),
});

/** Where the history stood before a question. */
interface Turn {
  question: string;
  tokens: number;
  messages: number;
}

export class Session {
  /** Tokens of everything said so far with `generate`. */
  private tokens: number[] = [];
  /** The conversation of `chat`, without the system prompt. */
  private said: ChatMessage[] = [];
  private turns: Turn[] = [];
  private busy = false;
  /** The system prompt of `chat`; may be changed between its answers. */
  system: string | null;

  constructor(
    private readonly model: HybridModel,
    options: SessionOptions = {},
    saved?: { tokens: number[]; messages: ChatMessage[] },
  ) {
    this.system = options.system ?? null;
    if (!saved) return;
    const [first] = saved.messages;
    if (first?.role === 'system') this.system = first.content;
    this.said = first?.role === 'system' ? saved.messages.slice(1) : saved.messages;
    this.tokens = saved.tokens;
    this.turns = this.said.flatMap(({ role, content }, messages) =>
      role === 'user' ? [{ question: content, tokens: saved.tokens.length, messages }] : [],
    );
  }

  /** The conversation of `chat`, the system prompt first. */
  get messages(): readonly ChatMessage[] {
    return this.system === null ? this.said : [{ role: 'system', content: this.system }, ...this.said];
  }

  /** Tokens of the history of `generate`. */
  get length(): number {
    return this.tokens.length;
  }

  /**
   * Continue the text so far with `text` and generate on from there. Both join the history when the generation
   * ends, aborted or not; one that fails leaves it as it was.
   * @throws UsageError while a generation of this session is under way
   */
  generate(text: string, options: GenerateOptions = {}): Generation {
    const fresh =
      this.tokens.length === 0
        ? this.model.promptIds(text)
        : this.model.tokenizer.encode(text, { addSpecial: false });
    const prompt = [...this.tokens, ...fresh];
    const generation = this.begin(() => this.model.generate(prompt, options));
    void generation.then(
      (result) => {
        this.busy = false;
        this.remember(text);
        this.tokens = [...prompt, ...this.tokensOf(result.text, result.tokens)];
      },
      () => (this.busy = false),
    );
    return generation;
  }

  /**
   * Answer further messages with the model's chat template. They and the answer join the conversation when the
   * generation ends, aborted or not; one that fails leaves it as it was.
   * @throws UsageError while a generation of this session is under way; HybridError TEMPLATE_INVALID
   */
  chat(messages: readonly ChatMessage[] | string, options: GenerateOptions = {}): Generation {
    const fresh = typeof messages === 'string' ? [{ role: 'user', content: messages }] : messages;
    const generation = this.begin(() => this.model.chat([...this.messages, ...fresh], options));
    void generation.then(
      ({ text }) => {
        this.busy = false;
        this.remember(fresh.findLast((message) => message.role === 'user')?.content ?? '');
        this.said = [...this.said, ...fresh, { role: 'assistant', content: text }];
      },
      () => (this.busy = false),
    );
    return generation;
  }

  /**
   * Take the last question and its answer back.
   * @returns the question, to ask it again or otherwise; null when there is none. A saved history of `generate`
   *   does not say where its turns began.
   */
  retract(): string | null {
    this.refuseWhileBusy();
    const turn = this.turns.pop();
    if (!turn) return null;
    this.tokens = this.tokens.slice(0, turn.tokens);
    this.said = this.said.slice(0, turn.messages);
    return turn.question;
  }

  /** Forget what was said; the system prompt stays. */
  reset(): void {
    this.refuseWhileBusy();
    this.tokens = [];
    this.said = [];
    this.turns = [];
  }

  /** Write the history to a file, whole or not at all. `restoreSession` reads it. */
  async save(path: string): Promise<void> {
    this.refuseWhileBusy();
    const { fingerprint } = this.model.engine.pack.header;
    const content = {
      format: FORMAT,
      version: VERSION,
      fingerprint,
      tokens: this.tokens,
      messages: this.messages,
    };
    await writeFileAtomic(path, JSON.stringify(content));
  }

  private remember(question: string): void {
    this.turns.push({ question, tokens: this.tokens.length, messages: this.said.length });
  }

  private begin(start: () => Generation): Generation {
    this.refuseWhileBusy();
    const generation = start();
    this.busy = true;
    return generation;
  }

  private refuseWhileBusy(): void {
    if (this.busy) {
      throw new UsageError(
        'this session is generating',
        'Wait for its answer, or use a second session: they run side by side.',
      );
    }
  }

  /** A stop string ends the text before the tokens end: the history takes what the user saw. */
  private tokensOf(text: string, tokens: number[]): number[] {
    const { tokenizer } = this.model;
    if (tokenizer.decode(tokens) === text) return tokens;
    return tokenizer.encode(text, { addSpecial: false });
  }
}

/** @throws HybridError SESSION_INVALID or FILE_NOT_FOUND; the model stays as it was */
export async function restoreSession(model: HybridModel, path: string): Promise<Session> {
  const invalid = (what: string): HybridError =>
    new HybridError('SESSION_INVALID', `${path}: ${what}`, {
      hint: 'Sessions are written by session.save() and read with the same model.',
    });
  const bytes = await readFile(path).catch((cause: NodeJS.ErrnoException) => {
    const code = cause.code === 'ENOENT' ? 'FILE_NOT_FOUND' : 'IO_FAILED';
    throw new HybridError(code, `${path} cannot be read: ${cause.message}`, { cause });
  });
  if (bytes.length > MAX_FILE_BYTES)
    throw invalid(`${bytes.length} bytes, expected at most ${MAX_FILE_BYTES}`);
  const value = parseStrictJson(bytes.toString('utf8'), path, invalid, MAX_FILE_BYTES);
  const parsed = sessionSchema.safeParse(value);
  if (!parsed.success) {
    const { path: at, message } = parsed.error.issues[0];
    throw invalid(`not a session of this version (${at.join('.') || 'top level'}: ${message})`);
  }
  const { fingerprint, tokens, messages } = parsed.data;
  const { header } = model.engine.pack;
  if (fingerprint !== header.fingerprint) {
    throw invalid(`made with model ${fingerprint.slice(0, 12)}, this is ${header.fingerprint.slice(0, 12)}`);
  }
  const { vocabSize } = header.config;
  const wrong = tokens.findIndex((id) => id >= vocabSize);
  if (wrong >= 0) throw invalid(`token ${wrong} is ${tokens[wrong]}, the vocabulary has ${vocabSize}`);
  return new Session(model, {}, { tokens, messages });
}
