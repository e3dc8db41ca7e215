/** One model behind the API: its backend, its prompts' thread, its queue, and what constraining its tokens needs. */
import { TokenMasks, type Node } from '../constrain/index.js';
import { HybridError } from '../errors.js';
import { parseStrictJson } from '../io/strict-json.js';
import { byteSpelling, tokenBytes } from '../model/token-bytes.js';
import { checkTokenizerJson, invalid } from '../model/tokenizer-schema.js';
import { Admission } from './admission.js';
import type { Backend } from './backend.js';
import type { EncodeTask } from './encode-worker.js';
import { Encoder } from './encoder.js';
import type { ServeLimits } from './limits.js';
import { PLAIN_STOPS, PLAIN_TEMPLATE } from './plain-template.js';
import { toolFormatOf, type ToolFormat } from './tool-format.js';

/** `plain` (plain-template.ts), or Jinja source; null: the model's own. */
export type TemplateChoice = string | null;

/** Normalisers may make a text shorter before it is cut into tokens. */
const SHRINK = 2;
const MAX_TOKENIZER_VALUES = 1 << 23;

export class ServedModel {
  readonly encoder: Encoder;
  readonly admission: Admission;
  readonly toolFormat: ToolFormat | null;
  /** Texts that end an answer because of the template. */
  readonly templateStops: readonly string[];
  readonly createdSeconds = Math.floor(Date.now() / 1000);
  /** By id; control tokens as their names. */
  private readonly bytes: readonly (Uint8Array | undefined)[];
  private readonly masks: TokenMasks;
  private readonly mostCharacters: number;

  constructor(
    readonly backend: Backend,
    template: TemplateChoice,
    limits: ServeLimits,
  ) {
    const files = backend.tokenizer;
    const source = template === 'plain' ? PLAIN_TEMPLATE : (template ?? files.chatTemplate);
    this.templateStops = template === 'plain' ? PLAIN_STOPS : [];
    this.toolFormat = source === null ? null : toolFormatOf(source);
    this.encoder = new Encoder({ files, template: source });
    this.admission = new Admission({ slots: backend.slots, queue: limits.queue, waitMs: limits.queueMs });
    const checked = checkTokenizerJson(
      parseStrictJson(files.tokenizerJson, 'tokenizer.json', invalid, MAX_TOKENIZER_VALUES),
    );
    this.bytes = tokenBytes(checked, byteSpelling(checked));
    const longest = this.bytes.reduce((most, part) => Math.max(most, part?.length ?? 0), 1);
    this.mostCharacters = SHRINK * longest * backend.contextLength;
    const control = new Set(checked.added.filter((token) => token.special).map((token) => token.id));
    this.masks = new TokenMasks({
      size: backend.vocabSize,
      bytes: this.bytes.map((part, id) => (control.has(id) ? undefined : part)),
      endIds: backend.eosIds,
    });
  }

  /**
   * A prompt's tokens. What could not fit whatever its tokens are is refused before it is encoded: a megabyte
   * takes seconds, and other prompts would wait.
   * @throws HybridError CONTEXT_FULL, TEMPLATE_INVALID, TOKENIZER_INVALID
   */
  async encode(task: EncodeTask): Promise<number[]> {
    const length = lengthOf(task);
    if (length > this.mostCharacters) {
      throw new HybridError(
        'CONTEXT_FULL',
        `the prompt has ${length} characters, the context holds ${this.backend.contextLength} tokens`,
      );
    }
    return this.encoder.encode(task);
  }

  get name(): string {
    return this.backend.name;
  }

  mask(grammar: Node): (tokens: readonly number[]) => Uint32Array {
    return this.masks.start(grammar);
  }

  tokenBytes(id: number): Uint8Array {
    return this.bytes[id] ?? new Uint8Array();
  }

  async close(): Promise<void> {
    await this.encoder.close();
    await this.backend.close();
  }
}

const lengthOf = (task: EncodeTask): number =>
  task.kind === 'text'
    ? task.text.length
    : task.conversation.messages.reduce((sum, message) => sum + message.content.length, 0);
