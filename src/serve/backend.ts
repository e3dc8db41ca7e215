/**
 * What the server needs of a model, and the only file of the server that knows the library. Everything else
 * is written against `Backend`; tests put a reference implementation behind it.
 */
import type { Generation, GenerationResult } from '../api/generation.js';
import type { GenerateOptions, HybridModel } from '../api/hybrid-model.js';
import { UsageError } from '../errors.js';
import type { RunStats } from '../engine/engine.js';
import type { LayerDensity } from '../engine/stats.js';
import type { TokenizerFiles } from '../model/types.js';

export interface SamplingRequest {
  /** Most tokens to generate; the context's end ends the text too. */
  maxTokens: number;
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

export interface TokenLogprob {
  id: number;
  logprob: number;
  top: { id: number; logprob: number }[];
}

export interface GenerationEvents {
  /** Whole characters; concatenated they are the text. */
  onText(piece: string): void;
  /** Before the text that holds the token; only when log probabilities were asked for. */
  onToken?(token: TokenLogprob): void;
  /** Densities of every layer so far, now and then. */
  onLayers?(layers: readonly LayerDensity[]): void;
}

export interface BackendResult {
  text: string;
  tokens: number[];
  stopReason: 'stop' | 'length' | 'abort';
  stats: RunStats & { cachedPromptTokens?: number };
  layers: LayerDensity[];
}

/** What an engine may lack. */
export type Capability = 'mask' | 'logprobs' | 'penalties' | 'logit_bias' | 'embeddings';

export interface Backend {
  readonly name: string;
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly bosId: number | null;
  /** Tokens that end a text. */
  readonly eosIds: readonly number[];
  readonly tokenizer: TokenizerFiles;
  /** Sequences that run at once. */
  readonly slots: number;
  /** Tokens of an answer whose request names no limit. */
  readonly defaultMaxTokens: number;
  readonly lacks: ReadonlySet<Capability>;
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

/** Layers are looked at this often while an answer is written. */
const LAYERS_INTERVAL_MS = 100;
const DEFAULT_MAX_TOKENS = 256;

/** This library's engine: one request after the other, and no options that its sampler does not have. */
export class HybridBackend implements Backend {
  readonly slots: number = 1;
  readonly lacks: ReadonlySet<Capability> = new Set([
    'mask',
    'logprobs',
    'penalties',
    'logit_bias',
    'embeddings',
  ] satisfies Capability[]);

  constructor(
    private readonly model: HybridModel,
    readonly name = model.name,
  ) {}

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

  get tokenizer(): TokenizerFiles {
    return this.model.engine.pack.header.tokenizer;
  }

  get defaultMaxTokens(): number {
    return Math.min(DEFAULT_MAX_TOKENS, this.contextLength);
  }

  async generate(
    prompt: readonly number[],
    request: SamplingRequest,
    events: GenerationEvents,
  ): Promise<BackendResult> {
    const { mask, logprobs, presencePenalty, frequencyPenalty, logitBias, ...options } = request;
    const refused = { mask, logprobs, penalties: presencePenalty || frequencyPenalty, logit_bias: logitBias };
    const asked = Object.entries(refused).find(([, value]) => value !== undefined && value !== 0);
    if (asked) throw lacking(asked[0] as Capability);
    const generation = this.model.generate(prompt, options satisfies GenerateOptions);
    const watch = this.watchLayers(events, request.measureRecall ?? false);
    try {
      return await this.stream(generation, events);
    } finally {
      clearInterval(watch);
    }
  }

  async embed(): Promise<Float32Array[]> {
    throw lacking('embeddings');
  }

  close(): Promise<void> {
    return this.model.close();
  }

  private async stream(generation: Generation, events: GenerationEvents): Promise<GenerationResult> {
    for await (const piece of generation) events.onText(piece);
    const result = await generation;
    events.onLayers?.(result.layers);
    return result;
  }

  private watchLayers(events: GenerationEvents, measured: boolean): NodeJS.Timeout | undefined {
    const { onLayers } = events;
    if (!onLayers) return undefined;
    const { engine } = this.model;
    return setInterval(
      () => onLayers(engine['densities'](engine['lanes'].decodeStats, true, measured)),
      LAYERS_INTERVAL_MS,
    );
  }
}

const NAMES: Record<Capability, string> = {
  mask: 'constrained decoding (response_format, tool_choice)',
  logprobs: 'log probabilities',
  penalties: 'presence_penalty and frequency_penalty',
  logit_bias: 'logit_bias',
  embeddings: 'embeddings',
};

export const lacking = (capability: Capability): UsageError =>
  new UsageError(`this engine has no ${NAMES[capability]}`);
