/** Engine options with their defaults filled in, or a message that says what was expected. */
import { availableParallelism } from 'node:os';
import { HybridError, ModelError, UsageError } from '../errors.js';
import type { ActivationKind, KvFormat } from '../kernels/kernels.js';
import { KV_PAGE, type WeightFormat } from '../kernels/layout.js';
import type { ModelConfig } from '../model/types.js';
import type { PackHeader } from '../pack/types.js';
import { canSkip, type FfnMode } from './ffn-plan.js';
import type { EngineOptions } from './requests.js';

/** A cache for 128k positions would take many gigabytes; who needs more than this asks for it. */
export const DEFAULT_CONTEXT = 4096;
const DEFAULT_BATCH = 64;
/** Scratch grows with the batch; past this size nothing is gained. */
const MAX_BATCH = 4096;
/** More lanes than this is a typing error: no machine this runs on has them. */
const MAX_THREADS = 256;

/** Sequences at once when nobody says. */
const DEFAULT_SLOTS = 4;
/** Each has a page table and counters; more than this waits in the queue just as well. */
const MAX_SLOTS = 256;
/** Of a whole context, what every slot beside the first one gets in the KV cache by default. */
const SHARE_PER_SLOT = 1 / 4;

export interface ResolvedOptions {
  ffn: FfnMode;
  threads: number;
  contextLength: number;
  batchTokens: number;
  slots: number;
  kvPages: number;
  kvFormat: KvFormat;
}

/** @throws UsageError on impossible values; ModelError or HybridError when the FFN mode cannot be run */
export function resolveOptions(header: PackHeader, options: EngineOptions): ResolvedOptions {
  const { config, quant } = header;
  const { maxContext } = config;
  const contextLength = wholeNumber(
    'contextLength',
    options.contextLength ?? Math.min(maxContext, DEFAULT_CONTEXT),
    1,
    maxContext,
  );
  const batchTokens = wholeNumber('batchTokens', options.batchTokens ?? DEFAULT_BATCH, 1, MAX_BATCH);
  const kvFormat = options.kvCache ?? defaultKvFormat(quant);
  const slots = wholeNumber('slots', options.slots ?? DEFAULT_SLOTS, 1, MAX_SLOTS);
  return {
    ffn: chooseFfn(config.activation.kind, options),
    threads: wholeNumber('threads', options.threads ?? availableParallelism(), 1, MAX_THREADS),
    contextLength,
    // Every running sequence must find a row in each step.
    batchTokens: Math.max(slots, Math.min(contextLength, batchTokens)),
    slots,
    kvPages: kvPages(header, contextLength, slots, kvFormat, options.kvMemory),
    kvFormat,
  };
}

/** Pages of the KV cache: what `kvMemory` bytes hold, else one whole context and a share of it per further slot. */
function kvPages(
  { config }: PackHeader,
  contextLength: number,
  slots: number,
  format: KvFormat,
  kvMemory: number | undefined,
): number {
  const most = slots * Math.ceil(contextLength / KV_PAGE);
  if (kvMemory === undefined) {
    const positions = contextLength * (1 + (slots - 1) * SHARE_PER_SLOT);
    return Math.min(most, Math.ceil(positions / KV_PAGE) + slots - 1);
  }
  const page = KV_PAGE * positionBytes(config, format);
  const pages = Math.floor(wholeNumber('kvMemory', kvMemory, 1, Number.MAX_SAFE_INTEGER) / page);
  if (pages >= 2) return pages;
  throw new UsageError(
    `kvMemory is ${kvMemory} bytes, a page of ${KV_PAGE} positions takes ${page}`,
    `Give at least ${2 * page} bytes.`,
  );
}

/** Bytes of keys and values of one position in all layers. */
export const positionBytes = (config: ModelConfig, format: KvFormat): number =>
  2 * config.layers * config.kvHeads * (format === 'f32' ? config.headDim * 4 : config.headDim + 4);

/** Quantised weights already cost more accuracy than 8-bit keys and values do, and these are a quarter of the bytes. */
export const defaultKvFormat = (quant: WeightFormat): KvFormat => (quant === 'f32' ? 'f32' : 'q8');

function chooseFfn(kind: ActivationKind, options: EngineOptions): FfnMode {
  const asked = options.ffn ?? 'auto';
  if (!canSkip(kind, options.plan)) {
    if (asked === 'auto' || asked === 'dense') return 'dense';
    throw new ModelError(
      'MODEL_UNSUPPORTED',
      `FFN mode ${asked} needs an activation with zeros; this model has ${kind}, which has none`,
      {
        hint: 'Use --ffn dense, or find what can be left out: hybrid-infer profile <model> --sparsify 1%.',
      },
    );
  }
  const modes = options.plan?.layers.map((layer) => layer.mode) ?? ['exact'];
  if (asked === 'predicted' && !modes.includes('predicted')) {
    throw new HybridError(
      'ARTIFACT_INVALID',
      'FFN mode predicted needs a profile and predictor for this model; no layer has a predictor',
      {
        hint: 'Make them with: hybrid-infer profile <model>. Where it found that other modes read less, use --ffn auto.',
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
