/**
 * Typed errors. Every error a user can cause names what was expected, what was found, where, and (in
 * `hint`) what to do next. The CLI prints `message` and `hint` and exits with `exitCode`.
 */

export type ErrorCode =
  | 'MODEL_INVALID' // a model file or config is broken or contradicts itself
  | 'MODEL_UNSUPPORTED' // well-formed, but not something this runtime runs
  | 'TOKENIZER_INVALID'
  | 'TEMPLATE_INVALID'
  | 'PACK_INVALID'
  | 'ARTIFACT_INVALID' // profile or predictor: broken, of another version
  | 'ARTIFACT_MISMATCH' // profile or predictor of another model
  | 'SESSION_INVALID' // a saved session: broken, of another version or model
  | 'FILE_NOT_FOUND'
  | 'FILE_INVALID' // not a regular file, wrong magic, unreadable
  | 'IO_FAILED' // disk full, permission, short read
  | 'DOWNLOAD_FAILED' // a server refused, failed or went away
  | 'LOCKED' // another process is writing the same artifact
  | 'USAGE' // impossible option or combination of options
  | 'CONTEXT_FULL'
  | 'KERNELS_UNAVAILABLE'
  | 'ONNX_MISSING' // the optional package onnxruntime-node is not installed
  | 'ONNX_FAILED' // onnxruntime refused or failed a graph on the CPU
  | 'GPU_UNAVAILABLE'
  | 'GPU_FAILED'
  | 'LANE_FAILED' // a worker died or stopped answering
  | 'NUMERIC' // NaN or Infinity where a number was needed
  | 'OUT_OF_MEMORY'
  | 'CLOSED' // the model was closed
  | 'ABORTED';

export interface ErrorDetails {
  /** One sentence: what the user can do about it. */
  hint?: string;
  cause?: unknown;
}

/** Base of all errors this project throws on purpose. */
export class HybridError extends Error {
  readonly code: ErrorCode;
  readonly hint: string;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = details.hint ?? '';
  }

  /** 2: the input or the request is at fault; 1: the run failed. */
  get exitCode(): number {
    return FAULT_CODES.has(this.code) ? 1 : 2;
  }

  /** The shape `--json` prints: `{error: {code, message, hint}}`. */
  toJSON(): { error: { code: string; message: string; hint: string } } {
    return { error: { code: this.code, message: this.message, hint: this.hint } };
  }
}

const FAULT_CODES: ReadonlySet<ErrorCode> = new Set([
  'LANE_FAILED',
  'GPU_FAILED',
  'ONNX_FAILED',
  'NUMERIC',
  'ABORTED',
  'IO_FAILED',
  'DOWNLOAD_FAILED',
]);

/** A model folder, GGUF file, config or tokenizer is broken or unsupported. */
export class ModelError extends HybridError {}
/** A pack file is broken. */
export class PackError extends HybridError {}
/** A profile or predictor is broken or belongs to another model. */
export class ArtifactError extends HybridError {}
/** An impossible option or combination of options. */
export class UsageError extends HybridError {
  constructor(message: string, hint = '') {
    super('USAGE', message, { hint });
  }
}
/** Something failed while running: a lane died, logits were NaN, the GPU session was lost. */
export class RuntimeFault extends HybridError {}

/** For messages: the first few of many, and how many more there are. */
export const firstFew = (all: readonly string[], most: number, separator = ', '): string =>
  all.slice(0, most).join(separator) + (all.length > most ? ` and ${all.length - most} more` : '');
