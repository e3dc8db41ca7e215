/** Engine options with their defaults filled in, or a message that says what was expected. */
import { availableParallelism } from 'node:os';
import { HybridError, ModelError, UsageError } from '../errors.js';
import type { ActivationKind, KvFormat } from '../kernels/kernels.js';
import type { WeightFormat } from '../kernels/layout.js';
import type { PackHeader } from '../pack/types.js';
import type { FfnMode } from './ffn-plan.js';
import type { EngineOptions } from './requests.js';

/** A cache for 128k positions would take many gigabytes; who needs more than this asks for it. */
export const DEFAULT_CONTEXT = 4096;
const DEFAULT_BATCH = 64;
/** Scratch grows with the batch; past this size nothing is gained. */
const MAX_BATCH = 4096;
/** More lanes than this is a typing error: no machine this runs on has them. */
const MAX_THREADS = 256;

export interface ResolvedOptions {
  ffn: FfnMode;
  threads: number;
  contextLength: number;
  batchTokens: number;
  kvFormat: KvFormat;
}

/** @throws UsageError on impossible values; ModelError or HybridError when the FFN mode cannot be run */
export function resolveOptions({ config, quant }: PackHeader, options: EngineOptions): ResolvedOptions {
  const { maxContext } = config;
  const contextLength = wholeNumber(
    'contextLength',
    options.contextLength ?? Math.min(maxContext, DEFAULT_CONTEXT),
    1,
    maxContext,
  );
  const batchTokens = wholeNumber('batchTokens', options.batchTokens ?? DEFAULT_BATCH, 1, MAX_BATCH);
  return {
    ffn: chooseFfn(config.activation.kind, options),
    threads: wholeNumber('threads', options.threads ?? availableParallelism(), 1, MAX_THREADS),
    contextLength,
    batchTokens: Math.min(contextLength, batchTokens),
    kvFormat: options.kvCache ?? defaultKvFormat(quant),
  };
}

/** Quantised weights already cost more accuracy than 8-bit keys and values do, and these are a quarter of the bytes. */
export const defaultKvFormat = (quant: WeightFormat): KvFormat => (quant === 'f32' ? 'f32' : 'q8');

function chooseFfn(kind: ActivationKind, options: EngineOptions): FfnMode {
  const asked = options.ffn ?? 'auto';
  if (kind === 'silu') {
    if (asked === 'auto' || asked === 'dense') return 'dense';
    throw new ModelError(
      'MODEL_UNSUPPORTED',
      `FFN mode ${asked} needs an activation with zeros; this model has SiLU, which has none`,
      {
        hint: 'Use --ffn dense, or a ReLU-sparse model such as ProSparse.',
      },
    );
  }
  const modes = options.plan?.layers.map((layer) => layer.mode) ?? ['exact'];
  if (asked === 'predicted' && !modes.includes('predicted')) {
    throw new HybridError(
      'ARTIFACT_INVALID',
      'FFN mode predicted needs a profile and predictor for this model; no layer has a predictor',
      {
        hint: 'Make them with: hybrid-infer profile <model>',
      },
    );
  }
  if (asked !== 'auto') return asked;
  // `predicted` also means: each layer as planned. Where all are alike it is called by its own name.
  return modes.every((mode) => mode === modes[0]) ? modes[0] : 'predicted';
}

export function wholeNumber(name: string, value: number, min: number, max: number): number {
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new UsageError(`${name} is ${value}, expected a whole number from ${min} to ${max}`);
}

/**
 * Neuron chunks for a number of lanes. 1, 2 and 4 lanes share the same four chunks, so that they add in the
 * same order and write the same text; other numbers get one chunk a lane, which balances them.
 */
export const chunksFor = (lanes: number): number => (COMMON_CHUNKS % lanes === 0 ? COMMON_CHUNKS : lanes);
const COMMON_CHUNKS = 4;
