/** A conversation in the terminal: what was said, how answers are made, and keeping both in a file. */
import { randomInt } from 'node:crypto';
import { HybridError, UsageError } from '../errors.js';
import { writeFileAtomic } from '../io/atomic-write.js';
import { readSmallText } from '../io/regular-file.js';
import { isObject, parseStrictJson } from '../io/strict-json.js';
import type { Backend, BackendResult, SamplingRequest } from '../serve/backend.js';
import { Encoder } from '../serve/encoder.js';
import { PLAIN_STOPS, PLAIN_TEMPLATE } from '../serve/plain-template.js';
import type { TemplateMessage } from '../serve/render.js';
import { decimal, wholeNumber } from './parse.js';

/** Settings that `/set` knows; a value that is none is refused by name. */
const SETTINGS = {
  temperature: decimal('temperature', 0, 100),
  top_p: decimal('top_p', 1e-6, 1),
  top_k: wholeNumber('top_k', 0, 2 ** 31 - 1),
  min_p: decimal('min_p', 0, 1),
  repetition_penalty: decimal('repetition_penalty', 0.01, 100),
  max_tokens: wholeNumber('max_tokens', 1, 2 ** 24),
  seed: wholeNumber('seed', 0, 2 ** 32 - 1),
  measure_recall: wholeNumber('measure_recall', 0, 1),
};
export type Setting = keyof typeof SETTINGS;
export type Settings = Partial<Record<Setting, number>>;
export const SETTING_NAMES = Object.keys(SETTINGS) as Setting[];

const FORMAT = 'hybrid-infer chat 1';
const MAX_FILE_BYTES = 16 << 20;

export class ChatSession {
  messages: TemplateMessage[] = [];
  system: string | null = null;
  last: BackendResult | null = null;
  readonly settings: Settings;
  /** False: the model has no template, and text is continued. */
  readonly chats: boolean;
  private readonly encoder: Encoder;
  private readonly stops: readonly string[];

  /** @param template `plain`, Jinja source, or null for the model's own */
  constructor(
    private readonly backend: Backend,
    template: string | null,
    settings: Settings,
  ) {
    const source = template === 'plain' ? PLAIN_TEMPLATE : (template ?? backend.tokenizer.chatTemplate);
    this.stops = template === 'plain' ? PLAIN_STOPS : [];
    this.chats = source !== null;
    this.encoder = new Encoder({ files: backend.tokenizer, template: source });
    this.settings = { ...settings };
  }

  get name(): string {
    return this.backend.name;
  }

  /**
   * Answer `text`, and remember both. What was not answered at all is not remembered.
   * @throws HybridError CONTEXT_FULL when the conversation does not fit any more
   */
  async ask(text: string, signal: AbortSignal, onText: (piece: string) => void): Promise<BackendResult> {
    const before = this.messages;
    this.messages = [...before, { role: 'user', content: text }];
    try {
      const result = await this.backend.generate(await this.prompt(), this.request(signal), { onText });
      if (result.text === '' && result.stopReason === 'abort') this.messages = before;
      else this.messages.push({ role: 'assistant', content: result.text });
      return (this.last = result);
    } catch (error) {
      this.messages = before;
      throw error;
    }
  }

  /** Takes the last answer back. @returns the question, null when there is none */
  takeBack(): string | null {
    const at = this.messages.findLastIndex((message) => message.role === 'user');
    if (at < 0) return null;
    const { content } = this.messages[at];
    this.messages = this.messages.slice(0, at);
    return content;
  }

  reset(): void {
    this.messages = [];
    this.last = null;
  }

  /** @throws UsageError naming the settings there are */
  set(name: string, value: string): void {
    if (!Object.hasOwn(SETTINGS, name))
      throw new UsageError(`no setting ${JSON.stringify(name)}; there are ${SETTING_NAMES.join(', ')}`);
    if (value === 'default') delete this.settings[name as Setting];
    else this.settings[name as Setting] = SETTINGS[name as Setting](value);
  }

  async save(path: string): Promise<void> {
    const { system, messages, settings, name } = this;
    await writeFileAtomic(
      path,
      JSON.stringify({ format: FORMAT, model: name, system, settings, messages }, null, 1),
    );
  }

  /**
   * Goes on with a saved conversation; until the file was read and found right, nothing changes.
   * @throws HybridError FILE_NOT_FOUND, FILE_INVALID
   */
  load(path: string): void {
    const fail = (message: string): HybridError => new HybridError('FILE_INVALID', message);
    const value = parseStrictJson(readSmallText(path, MAX_FILE_BYTES, fail), path, fail);
    if (!isObject(value) || value.format !== FORMAT)
      throw fail(`${path}: no conversation saved by this program`);
    const { messages, system, settings } = value;
    const right =
      Array.isArray(messages) &&
      messages.every(isMessage) &&
      (system === null || typeof system === 'string') &&
      isObject(settings);
    if (!right) throw fail(`${path}: a damaged conversation`);
    const read: Settings = {};
    for (const [name, setting] of Object.entries(settings)) {
      if (!Object.hasOwn(SETTINGS, name)) throw fail(`${path}: unknown setting ${JSON.stringify(name)}`);
      read[name as Setting] = SETTINGS[name as Setting](String(setting));
    }
    this.messages = messages;
    this.system = system;
    for (const name of SETTING_NAMES) delete this.settings[name];
    Object.assign(this.settings, read);
  }

  async close(): Promise<void> {
    await this.encoder.close();
    await this.backend.close();
  }

  private async prompt(): Promise<number[]> {
    const system = this.system === null ? [] : [{ role: 'system', content: this.system }];
    const ids = this.chats
      ? await this.encoder.encode({ kind: 'chat', conversation: { messages: [...system, ...this.messages] } })
      : await this.encoder.encode({
          kind: 'text',
          text: this.messages.map((message) => message.content).join(''),
        });
    if (ids.length <= this.backend.contextLength) return ids;
    throw new HybridError(
      'CONTEXT_FULL',
      `the conversation has ${ids.length} tokens, the context holds ${this.backend.contextLength}`,
      {
        hint: 'Begin a new one with /reset.',
      },
    );
  }

  private request(signal: AbortSignal): SamplingRequest {
    const { settings: s } = this;
    return {
      signal,
      maxTokens: s.max_tokens ?? this.backend.defaultMaxTokens,
      seed: s.seed ?? randomInt(2 ** 32),
      temperature: s.temperature,
      topP: s.top_p,
      topK: s.top_k,
      minP: s.min_p,
      repetitionPenalty: s.repetition_penalty,
      measureRecall: s.measure_recall === 1,
      stop: this.stops,
    };
  }
}

function isMessage(value: unknown): value is TemplateMessage {
  return (
    isObject(value) &&
    (value.role === 'user' || value.role === 'assistant') &&
    typeof value.content === 'string'
  );
}
