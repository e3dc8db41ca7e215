/**
 * What the server needs of a model, and the only file of the server that knows the library. Everything else
 * is written against `Backend`; tests put a reference implementation behind it.
 */
import type { GenerateOptions, HybridModel } from '../api/hybrid-model.js';
import type { RunStats } from '../engine/engine.js';
import type { TokenLogprob } from '../engine/jobs.js';
import type { LayerDensity } from '../engine/stats.js';
import type { ChatForm } from '../model/chat.js';
import type { Tokenizer } from '../model/tokenizer.js';
import type { TokenizerFiles } from '../model/types.js';

export type { TokenLogprob };

export interface SamplingRequest {
  /** Most tokens to generate; the context's end ends the text too. @default the model's, else 256 */
  maxTokens?: number;
  seed: number;
  temperature?: number;
  topP?: number;
  topK?: number;
  minP?: number;
  repetitionPenalty?: number;
  /** OpenAI's: logit -= presence (once seen) + frequency * times seen. */
  presencePenalty?: number;
  frequencyPenalty?: number;
  /** Added to the logits of these ids. */
  logitBias?: Record<number, number>;
  /** Alternatives reported beside each chosen token; undefined: no log probabilities. */
  logprobs?: number;
  stop?: readonly string[];
  /** Bit id & 31 of word id >> 5 says whether a token may come next; null: all may. */
  mask?: (tokens: readonly number[]) => Uint32Array | null;
  measureRecall?: boolean;
  signal: AbortSignal;
}

export interface GenerationEvents {
  /** Whole characters; concatenated they are the text. */
  onText(piece: string): void;
  /** Before the text that holds the token; only when log probabilities were asked for. */
  onToken?(token: TokenLogprob): void;
  /** Densities of every layer over the last `tokens` tokens, while the answer is written. */
  onLayers?(layers: readonly LayerDensity[], tokens: number): void;
}

export interface BackendResult {
  text: string;
  tokens: number[];
  stopReason: 'stop' | 'length' | 'abort';
  stats: RunStats;
  layers: LayerDensity[];
}

export interface Backend {
  readonly name: string;
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly bosId: number | null;
  /** Tokens that end a text. */
  readonly eosIds: readonly number[];
  readonly tokenizer: Tokenizer;
  /** For the thread that encodes prompts. */
  readonly tokenizerFiles: TokenizerFiles;
  /** Null: the model does not chat. */
  readonly chatForm: ChatForm | null;
  /** Sequences that run at once. */
  readonly slots: number;
  /** @throws HybridError CONTEXT_FULL, LANE_FAILED, ... */
  generate(
    prompt: readonly number[],
    request: SamplingRequest,
    events: GenerationEvents,
  ): Promise<BackendResult>;
  /** Mean of the last hidden state of each prompt, normalised; f32 [hiddenSize] each. */
  embed(prompts: readonly (readonly number[])[], signal: AbortSignal): Promise<Float32Array[]>;
  close(): Promise<void>;
}

/** This library's engine. */
export class HybridBackend implements Backend {
  constructor(
    protected readonly model: HybridModel,
    readonly name = model.name,
  ) {}

  get slots(): number {
    return this.model.engine.layout.slots;
  }

  get contextLength(): number {
    return this.model.engine.layout.contextLength;
  }

  get vocabSize(): number {
    return this.model.config.vocabSize;
  }

  get bosId(): number | null {
    return this.model.config.bosId;
  }

  get eosIds(): readonly number[] {
    return [...new Set([...this.model.config.eosIds, ...this.model.tokenizer.eosIds])];
  }

  get tokenizer(): Tokenizer {
    return this.model.tokenizer;
  }

  get tokenizerFiles(): TokenizerFiles {
    return this.model.engine.pack.header.tokenizer;
  }

  get chatForm(): ChatForm | null {
    return this.model.chatForm;
  }

  async generate(
    prompt: readonly number[],
    request: SamplingRequest,
    events: GenerationEvents,
  ): Promise<BackendResult> {
    const options: GenerateOptions = { ...request, onLayers: events.onLayers };
    const generation = this.model.generate(prompt, options);
    for await (const { text, logprobs } of generation.pieces()) {
      for (const token of logprobs ?? []) events.onToken?.(token);
      if (text !== '') events.onText(text);
    }
    return generation;
  }

  embed(prompts: readonly (readonly number[])[], signal: AbortSignal): Promise<Float32Array[]> {
    return this.model.embed(prompts, signal);
  }

  close(): Promise<void> {
    return this.model.close();
  }
}
