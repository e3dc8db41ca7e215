/** One model behind the API: its backend, its prompts' thread, its queue, and what constraining its tokens needs. */
import { TokenMasks, type Node } from '../constrain/index.js';
import { HybridError } from '../errors.js';
import { Admission } from './admission.js';
import type { Backend } from './backend.js';
import type { EncodeTask } from './encode-worker.js';
import { Encoder } from './encoder.js';
import type { ServeLimits } from './limits.js';
import { toolFormatOf, type ToolFormat } from './tool-format.js';

/** Normalisers may make a text shorter before it is cut into tokens. */
const SHRINK = 2;

export class ServedModel {
  readonly encoder: Encoder;
  readonly admission: Admission;
  readonly toolFormat: ToolFormat | null;
  readonly createdSeconds = Math.floor(Date.now() / 1000);
  /** By id; control tokens as their names. */
  private readonly bytes: readonly (Uint8Array | undefined)[];
  private readonly masks: TokenMasks;
  private readonly mostCharacters: number;

  constructor(
    readonly backend: Backend,
    limits: ServeLimits,
  ) {
    const { tokenizer, chatForm, vocabSize } = backend;
    this.toolFormat = chatForm && toolFormatOf(chatForm.template);
    this.encoder = new Encoder({ files: backend.tokenizerFiles, form: chatForm });
    this.admission = new Admission({ slots: backend.slots, queue: limits.queue, waitMs: limits.queueMs });
    this.bytes = Array.from({ length: vocabSize }, (_, id) => tokenizer.bytesOf(id));
    const longest = this.bytes.reduce((most, part) => Math.max(most, part?.length ?? 0), 1);
    this.mostCharacters = SHRINK * longest * backend.contextLength;
    this.masks = new TokenMasks({
      size: vocabSize,
      bytes: this.bytes.map((part, id) => (tokenizer.isSpecial(id) ? undefined : part)),
      endIds: backend.eosIds,
    });
  }

  /** Texts that end an answer because of the template. */
  get chatStops(): readonly string[] {
    return this.backend.chatForm?.stops ?? [];
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
