/** Options that several commands share, and what they mean to the engine. */
import { Option, type Command } from 'commander';
import type { LoadOptions } from '../api/hybrid-model.js';
import { UsageError } from '../errors.js';
import { GPU_CHOICES, type GpuChoice } from '../gpu/providers.js';
import type { KernelBackend, KvFormat } from '../kernels/kernels.js';
import { WEIGHT_FORMATS, type WeightFormat } from '../kernels/layout.js';
import { nativeStatus } from '../kernels/native/loader.js';
import type { CliContext } from './context.js';
import { byteSize, decimal, oneOf, share, wholeNumber } from './parse.js';

export const KERNEL_CHOICES = ['auto', 'native', 'wasm', 'reference'] as const;
export const FFN_CHOICES = ['auto', 'dense', 'exact', 'predicted'] as const;
/** As the engine checks it again; here the message names the option. */
const MAX_THREADS = 256;
const MAX_CONTEXT = 2 ** 24;

export interface EngineFlags {
  gpu?: GpuChoice;
  gpuMemory?: number;
  threads?: number;
  kernels?: KernelBackend | 'auto';
  ffn?: (typeof FFN_CHOICES)[number];
  quant?: WeightFormat;
  context?: number;
  kvCache?: KvFormat;
  kvMemory?: number;
}

/** Which predictors to use, and at which thresholds. */
export interface PlanFlags {
  profile?: string;
  predictor?: string;
  thresholdShift?: number;
  recall?: number;
}

export const threadsOption = (): Option =>
  new Option('-t, --threads <n>', 'CPU worker threads (default: one per core)').argParser(
    wholeNumber('--threads', 1, MAX_THREADS),
  );

export const quantOption = (): Option =>
  new Option(
    '--quant <format>',
    'weights: q4, q8 or f32 (default: q8, what a quantised file asks for, or what a pack holds)',
  ).argParser(oneOf('--quant', WEIGHT_FORMATS));

export const kvCacheOption = (): Option =>
  new Option('--kv-cache <format>', 'KV cache format (default: q8, f32 for an f32 pack)').choices([
    'f32',
    'q8',
  ]);

/** How the model is run: threads, kernels, FFN mode, quantisation, context, KV cache. */
export function engineOptions(command: Command): Command {
  return command
    .addOption(threadsOption())
    .addOption(new Option('--kernels <backend>', 'kernel backend').choices(KERNEL_CHOICES).default('auto'))
    .addOption(new Option('--ffn <mode>', 'FFN mode').choices(FFN_CHOICES).default('auto'))
    .addOption(quantOption())
    .addOption(
      new Option(
        '--context <n>',
        "positions the KV cache holds (default: the model's, at most 4096)",
      ).argParser(wholeNumber('--context', 1, MAX_CONTEXT)),
    )
    .addOption(kvCacheOption())
    .addOption(
      new Option(
        '--kv-memory <size>',
        'bytes of the KV cache, such as 2GiB (default: by --context)',
      ).argParser(byteSize('--kv-memory')),
    )
    .addOption(new Option('--gpu <provider>', 'where hot neurons live').choices(GPU_CHOICES).default('off'))
    .addOption(
      new Option('--gpu-memory <size>', 'bytes of GPU memory for weights, such as 4GiB').argParser(
        byteSize('--gpu-memory'),
      ),
    );
}

export function planOptions(command: Command): Command {
  return command
    .option('--profile <file>', 'profile to use (default: found by the name of the model)')
    .option('--predictor <file>', 'predictor to use (default: found by the name of the model)')
    .addOption(
      new Option('--recall <share>', 'choose thresholds for this mean recall').argParser(share('--recall')),
    )
    .addOption(
      new Option('--threshold-shift <x>', 'move every threshold: below 0 finds more neurons').argParser(
        decimal('--threshold-shift', -1e6, 1e6),
      ),
    );
}

export function outputOptions(command: Command): Command {
  return command
    .option('--json', 'print one JSON document on stdout, errors included')
    .option('-q, --quiet', 'no progress, warnings or statistics on stderr')
    .option('--verbose', 'show the stack of an unexpected error');
}

/**
 * LoadOptions of HybridModel for the flags of engineOptions and planOptions.
 * @throws UsageError when thresholds are asked for in a mode that has none
 */
export function loadOptions(context: CliContext, flags: EngineFlags & PlanFlags): LoadOptions {
  const { profile, predictor, recall, thresholdShift } = flags;
  const named = Object.entries({ predictor, recall, 'threshold-shift': thresholdShift });
  const useless = named.find(([, value]) => value !== undefined)?.[0];
  if (useless && (flags.ffn === 'dense' || flags.ffn === 'exact')) {
    throw new UsageError(`--${useless} needs FFN mode predicted, --ffn says ${flags.ffn}`);
  }
  if (flags.gpuMemory !== undefined && (flags.gpu ?? 'off') === 'off') {
    throw new UsageError('--gpu-memory without --gpu', 'Add --gpu auto, or a provider by name.');
  }
  noteKernels(context, flags.kernels);
  return {
    findPlan: async (pack) => {
      const { findPlan } = await import('../profiler/find-plan.js');
      return findPlan(pack, { profile, predictor, recall, thresholdShift });
    },
    threads: flags.threads,
    kernels: flags.kernels,
    ffn: flags.ffn,
    quant: flags.quant,
    contextLength: flags.context,
    kvCache: flags.kvCache,
    kvMemory: flags.kvMemory,
    gpu: flags.gpu,
    gpuMemory: flags.gpuMemory,
    signal: context.signal,
    onProgress: context.progress.report,
    onWarning: (message) => context.warn(message),
  };
}

/** Slower than it could be is worth one line; switched off on purpose, or another backend by name, is not. */
function noteKernels(context: CliContext, kernels: EngineFlags['kernels'] = 'auto'): void {
  if (kernels !== 'auto' || kernelsNoted) return;
  kernelsNoted = true;
  const { available, reason, hint } = nativeStatus();
  if (available || process.env.HYBRID_INFER_NATIVE) return;
  context.note(`WebAssembly kernels, since native ones are not there: ${reason}. ${hint}`);
}

/** `bench` and `eval` load several times. */
let kernelsNoted = false;
