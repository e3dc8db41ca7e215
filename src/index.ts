/** hybrid-infer's public API. */
export { HybridModel, type GenerateOptions, type LoadOptions } from './api/hybrid-model.js';
export { Generation, type GenerationPiece, type GenerationResult } from './api/generation.js';
export type { Session, SessionOptions } from './api/session.js';
export type { RunStats } from './engine/engine.js';
export type { StopReason, TokenLogprob } from './engine/jobs.js';
export type { LayerDensity } from './engine/stats.js';
export type { FfnMode } from './engine/ffn-plan.js';
export type { WeightFormat } from './kernels/layout.js';
export type { ActivationKind, KernelBackend, KvFormat } from './kernels/kernels.js';
export type { ChatForm, ChatMessage } from './model/chat.js';
export type { GpuChoice, GpuProvider } from './gpu/providers.js';
export { findPlan, type FindPlanOptions } from './profiler/find-plan.js';
export type {
  AttentionDescription,
  Block,
  Ends,
  ExpertsDescription,
  FfnDescription,
  LayerType,
  NormDescription,
} from './model/block.js';
export type { ModelConfig, RopeScaling } from './model/types.js';
export type { StreamDecoder, Tokenizer } from './model/tokenizer.js';
export type { OnProgress, Progress } from './io/progress.js';
export {
  ArtifactError,
  HybridError,
  ModelError,
  PackError,
  RuntimeFault,
  UsageError,
  type ErrorCode,
  type ErrorDetails,
} from './errors.js';
