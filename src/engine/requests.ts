/** What can be asked of an engine, and what it answers. */
import type { OnProgress } from '../io/progress.js';
import type { KernelBackend, KvFormat } from '../kernels/kernels.js';
import type { FfnMode, FfnPlan } from './ffn-plan.js';
import type { GpuUnits } from './gpu-mailbox.js';
import type { StopReason, TokenLogprob } from './jobs.js';
import type { SamplingOptions } from './sampler.js';
import type { LayerDensity } from './stats.js';

export interface EngineOptions {
  /** Lanes. @default the number of cores this process may use */
  threads?: number;
  /** @default 'auto': native when built, else wasm */
  kernels?: KernelBackend | 'auto';
  /** @default 'auto': the plan's modes when there is a plan, else `exact`; `dense` for SiLU models */
  ffn?: FfnMode | 'auto';
  /** Per-layer modes, neuron order and predictors. Needed for `predicted`. */
  plan?: FfnPlan | null;
  /** Positions the KV cache holds. @default the model's, at most DEFAULT_CONTEXT */
  contextLength?: number;
  /** @default 'q8'; 'f32' for an f32 pack */
  kvCache?: KvFormat;
  /** Rows of a step: tokens of prompts and answers that share one pass over the weights. @default 64 */
  batchTokens?: number;
  /** Requests that run side by side; more wait. @default 4 */
  slots?: number;
  /**
   * Bytes of the KV cache, for all sequences and for prefixes that are kept. @default what contextLength
   * positions need, and a quarter of that for every slot beside the first
   */
  kvMemory?: number;
  /** Units on a GPU (gpu/ starts the worker that serves them). @default null: CPU only */
  gpu?: EngineGpu | null;
  /** Record what lanes and GPU do when; read it with `chromeTrace()`. @default false */
  timeline?: boolean;
  /** Most bytes of one arena: a model in several can be made from a small one. @default almost 4 GiB */
  maxArenaBytes?: number;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

/** A GPU that serves this engine's requests; belongs to whoever made it, who closes it after the engine. */
export interface EngineGpu {
  units: GpuUnits;
  provider: string;
  device: string;
  /** Bytes of weights it holds. */
  bytes: number;
  /** When it fails: end the request with an error, or go on without it. */
  onFailure: 'error' | 'cpu';
}

export interface GenerateRequest {
  prompt: ArrayLike<number>;
  maxTokens: number;
  sampling: SamplingOptions;
  stopIds?: number[];
  measureRecall?: boolean;
  /** Report log-probabilities of each chosen token and this many of the likeliest. */
  logprobs?: number;
  /** Added to the logits before everything else, by token id. */
  logitBias?: Readonly<Record<number, number>>;
  /**
   * Called before every choice with the tokens generated so far: which tokens are allowed, a bit each (bit
   * id & 31 of word id >> 5), or null for all.
   */
  mask?: (tokens: readonly number[]) => Uint32Array | null;
  /**
   * Propose tokens and check several in one step; never changes the text. `ngram`: what followed the last tokens
   * earlier in the text; a function: what it answers, given the tokens generated so far, at most MAX_DRAFTS.
   * @default false
   */
  speculate?: 'ngram' | ((tokens: readonly number[]) => Promise<readonly number[]>) | false;
  /** Take known prefixes from the KV cache. @default true */
  cachePrompt?: boolean;
  signal?: AbortSignal;
  /** Tokens as they come, with their log-probabilities when asked for. Return true to stop after them. */
  onTokens?: (tokens: number[], logprobs: TokenLogprob[] | null) => boolean | void;
  onPrompt?: (done: number, total: number) => void;
  /**
   * What every layer did for the answer since the last call, as means over `tokens` of its tokens: soon after the
   * second one, then 25 times a second at most, and once more at the end. The calls together cover all rows of
   * the answer, refused drafts included; the first token comes from the prompt's.
   */
  onLayers?: (layers: LayerDensity[], tokens: number) => void;
}

export interface RunStats {
  promptTokens: number;
  /** Of these, how many stood in the KV cache already, from an earlier request. */
  cachedPromptTokens: number;
  /** Computed prompt tokens per second, from the first step to the first choice. */
  promptTokensPerSecond: number;
  generatedTokens: number;
  /** Tokens per second after the first one; 0 when there was none. */
  decodeTokensPerSecond: number;
  /** Tokens proposed by speculation, and how many of them were right. */
  draftTokens: number;
  acceptedTokens: number;
  ffnMode: FfnMode;
  kernels: string;
  threads: number;
  /** Null: CPU only. `failure`: why the run went on without it. */
  gpu: { provider: string; device: string; bytes: number; failure?: string } | null;
  /** Share of x1 = 0 over the generated tokens (the prompt's, when none was generated). */
  sparsity: number;
  predictedSparsity: number | null;
  recall: number | null;
  weightedRecall: number | null;
  /** Weight, predictor and cache bytes one decoded token reads, from the counted densities. */
  bytesPerToken: number;
}

export interface GenerateResult {
  tokens: number[];
  stopReason: StopReason;
  stats: RunStats;
  layers: LayerDensity[];
  /** One entry a token; null when not asked for. */
  logprobs: TokenLogprob[] | null;
}

export interface LogitsRequest {
  tokens: ArrayLike<number>;
  /** @default true */
  logits?: boolean;
  /** FFN mode of all layers for this request. @default each layer's own */
  ffn?: Exclude<FfnMode, 'predicted'>;
  measureRecall?: boolean;
  /** The last hidden state of every token, after the final norm. @default false */
  hidden?: boolean;
  trace?: { inputs?: boolean; gates?: boolean; activations?: boolean };
  /**
   * Where the answer's arrays go, kept by the caller for request after request: each answer overwrites the one
   * before. Shared memory is no reason for V8 to collect garbage, so without it many large answers pile up.
   * @default new arrays
   */
  buffers?: AnswerBuffers;
  signal?: AbortSignal;
  onProgress?: (done: number) => void;
}

/** Buffers by what they hold, each as large as the last answer needed. */
export type AnswerBuffers = Map<string, SharedArrayBuffer>;

export interface LogitsResult {
  /** f32 [tokens][vocab]; empty when not asked for */
  logits: Float32Array;
  /** f32 [tokens][d] */
  hidden: Float32Array | null;
  layers: LayerDensity[];
  /** f32 [layers][tokens][d] */
  inputs: Float32Array | null;
  /**
   * f32 [layers][tokens][nFf], in the model's neuron order. Of a mixture the neurons of the chosen experts, one
   * expert after the other as `experts` has them; activations before they meet the experts' weights.
   */
  gates: Float32Array | null;
  activations: Float32Array | null;
  /** Of a mixture, beside gates or activations: u32 and f32 [layers][tokens][active], the chosen ascending. */
  experts: { ids: Uint32Array; weights: Float32Array } | null;
}
