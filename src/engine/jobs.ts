/**
 * Messages between the main thread and the lanes. Every lane gets every job; lane 0 also gets messages about
 * sequences while a `serve` job runs, and answers with events.
 */
import type { MessagePort } from 'node:worker_threads';
import type { ErrorCode } from '../errors.js';
import type { KernelChoice } from '../kernels/select.js';
import type { ActivationCut, FfnMode } from './ffn-plan.js';
import type { LoadItem, ModelLayout } from './layout.js';
import type { SamplingOptions } from './sampler.js';
import type { TraceRequest } from './trace.js';

/** What a lane needs to start; sent as the piscina task. */
export interface LaneTask {
  lane: number;
  layout: ModelLayout;
  memories: WebAssembly.Memory[];
  kernels: KernelChoice;
  control: SharedArrayBuffer;
  /** step.ts */
  step: SharedArrayBuffer;
  /** stats.ts */
  stats: SharedArrayBuffer;
  /** Lanes spin at barriers only when there is a core for each. */
  cores: number;
  /** timeline.ts; null: not recorded */
  timeline: SharedArrayBuffer | null;
  port: MessagePort;
  /** Messages about sequences; lane 0 only. */
  inbox: MessagePort | null;
}

/** Copy this lane's share of the pack into the arenas and fill the RoPE tables. */
export interface LoadJob {
  type: 'load';
  fd: number;
  path: string;
  items: LoadItem[];
}
/** Norms of all down columns, for weighted recall. */
export interface NormsJob {
  type: 'norms';
}
export interface Failure {
  code: ErrorCode;
  message: string;
  hint: string;
}
/** Run steps until no sequence is left. */
export interface ServeJob {
  type: 'serve';
  /** Why the job before failed, when the others can go on without the sequence of FAILED_ROW. */
  culprit: Failure | null;
  modes: FfnMode[];
  /** What each layer cuts in its mode. */
  cuts: ActivationCut[];
  /** Use the GPU units of the layout. */
  gpu: boolean;
  /** Keys and values of all pages are lost, with the GPU that had them: sequences under way begin again. */
  forget: boolean;
  /** Only for a job of one `score` sequence without a known prefix. */
  trace: TraceRequest | null;
}
export interface CloseJob {
  type: 'close';
}
export type LaneJob = LoadJob | NormsJob | ServeJob | CloseJob;

export type StopReason = 'stop' | 'length' | 'abort';

/** A sequence of tokens to be computed: generated after a prompt, or scored as it is. */
export interface SequenceRequest {
  id: number;
  /** What besides the tokens decides keys and values (modes, cuts, GPU): prefixes are shared within one salt. */
  salt: number;
  tokens: Int32Array;
  measureRecall: boolean;
  generate: GenerateTask | null;
  /** Null unless the sequence is scored. */
  score: ScoreTask | null;
}
export interface GenerateTask {
  maxTokens: number;
  sampling: Omit<SamplingOptions, 'logitBias' | 'topLogprobs'>;
  /** Tokens that end the text; not part of the output. */
  stopIds: number[];
  /** Log-probabilities of the chosen and this many likeliest tokens; null: none wanted. */
  logprobs: number | null;
  logitBias: [id: number, bias: number][];
  /** answer-box.ts: a mask is asked for before every choice; null: no constraint */
  mask: SharedArrayBuffer | null;
  /** Propose from the text itself. */
  ngram: boolean;
  /** Send what the answer counts while it is written. */
  counters: boolean;
  /** answer-box.ts: another model's proposals are asked for after every choice; null: none */
  drafts: SharedArrayBuffer | null;
}
export interface ScoreTask {
  /** f32 [tokens][vocab]; null: not wanted */
  logits: SharedArrayBuffer | null;
  /** f32 [tokens][d], after the final norm; null: not wanted */
  hidden: SharedArrayBuffer | null;
}

/** To lane 0, about sequences. */
export type SequenceMessage =
  | { type: 'submit'; request: SequenceRequest }
  | { type: 'cancel'; id: number }
  /** Every sequence is gone: the job failed. Their pages and the cache of prefixes are dropped. */
  | { type: 'reset' };

/** ln P of one sampled token, and of the likeliest ones. */
export interface TokenLogprob {
  id: number;
  logprob: number;
  top: { id: number; logprob: number }[];
}

/** Lane 0's account of a sequence that ended. */
export interface SequenceAccount {
  /** From the first step it took part in to the first choice, to the end. */
  promptMs: number;
  decodeMs: number;
  /** Tokens chosen after the first one, a final stop token included. */
  decodedTokens: number;
  cachedTokens: number;
  draftTokens: number;
  acceptedTokens: number;
  /** stats.ts: [layers][STATS_PER_LAYER] */
  promptCounters: Float64Array;
  answerCounters: Float64Array;
}

export type SequenceEvent =
  | { type: 'prompt'; id: number; done: number }
  | { type: 'tokens'; id: number; tokens: number[]; logprobs: TokenLogprob[] | null }
  /** What the answer counted since the last such event: stats.ts, [layers][STATS_PER_LAYER]. */
  | { type: 'counters'; id: number; counters: Float64Array }
  /** A mask is wanted for the token after all that were sent. */
  | { type: 'mask'; id: number }
  /** Drafts are wanted for what may follow all tokens that were sent. */
  | { type: 'draft'; id: number }
  | { type: 'end'; id: number; stopReason: StopReason; account: SequenceAccount }
  | ({ type: 'failed'; id: number } & Failure);

export type LaneMessage =
  | { type: 'ready' }
  | { type: 'progress'; done: number } // bytes loaded
  | { type: 'events'; events: SequenceEvent[] }
  | { type: 'done' }
  /** This lane left the job because another one failed. */
  | { type: 'interrupted' }
  | ({ type: 'failed' } & Failure);
