/** What can be asked of an engine, and what it answers. */
import type { OnProgress } from '../io/progress.js';
import type { KernelBackend, KvFormat } from '../kernels/kernels.js';
import type { FfnMode, FfnPlan } from './ffn-plan.js';
import type { GpuUnits } from './gpu-mailbox.js';
import type { StopReason } from './jobs.js';
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
  /** Prompt tokens that share one pass over the weights. @default 64 */
  batchTokens?: number;
  /** Units on a GPU (gpu/ starts the worker that serves them). @default null: CPU only */
  gpu?: EngineGpu | null;
  /** Record what lanes and GPU do when; read it with `chromeTrace()`. @default false */
  timeline?: boolean;
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
  signal?: AbortSignal;
  /** Tokens as they come. Return true to stop after them. */
  onTokens?: (tokens: number[]) => boolean | void;
  onPrompt?: (done: number, total: number) => void;
}

export interface RunStats {
  promptTokens: number;
  promptTokensPerSecond: number;
  generatedTokens: number;
  /** Forward passes of one token per second; 0 when there was none. */
  decodeTokensPerSecond: number;
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
}

export interface LogitsRequest {
  tokens: ArrayLike<number>;
  /** @default true */
  logits?: boolean;
  /** Run `predicted` layers with their predictor. @default true */
  applyPredictor?: boolean;
  measureRecall?: boolean;
  trace?: { inputs?: boolean; gates?: boolean; activations?: boolean };
  signal?: AbortSignal;
  onProgress?: (done: number) => void;
}

export interface LogitsResult {
  /** f32 [tokens][vocab]; empty when not asked for */
  logits: Float32Array;
  layers: LayerDensity[];
  /** f32 [layers][tokens][d or nFf], in the model's neuron order */
  inputs: Float32Array | null;
  gates: Float32Array | null;
  activations: Float32Array | null;
}
