/** Finding and loading the native addon, and choosing its variant for this CPU. */
import { createRequire } from 'node:module';
import { HybridError } from '../../errors.js';
import type { Kernels } from '../kernels.js';
import { kernelsOfParameters, MAX_ARGUMENTS } from '../call.js';
import { declarationsDigest } from './declarations.js';
import { findAddon } from './find-addon.js';

/** What the addon exports; addon.cc says the same. */
interface Addon {
  /** Variants that this CPU runs, best first. */
  variants(): string[];
  /** Functions that take no arguments: they find them in `parameters`, and leave their result in parameters[0]. */
  bind(
    arena: Uint8Array,
    parameters: Float64Array,
    variant: string,
    digest: string,
  ): Record<string, () => void>;
  adviseHugePages(arena: Uint8Array): boolean;
}

export interface NativeStatus {
  available: boolean;
  /** The addon file, when there is one. */
  path?: string;
  /** `avx512-vnni`, `avx512`, `avx2-vnni`, `avx2`, `neon-dotprod`, `neon` or `scalar`. */
  variant?: string;
  /** All variants this CPU runs, best first. */
  variants?: string[];
  /** Why native kernels are not available, and what to do about it. */
  reason?: string;
  hint?: string;
}

/** Forces a variant, for tests and comparisons. */
const VARIANT_VARIABLE = 'HYBRID_INFER_NATIVE_ISA';
const SWITCH_VARIABLE = 'HYBRID_INFER_NATIVE';

type Loaded = { addon: Addon; path: string } | { reason: string; hint: string; path?: string };

let loaded: Loaded | undefined;

/** Whether native kernels can be used here, with the reason when not. Loads the addon on the first call. */
export function nativeStatus(): NativeStatus {
  if (isOff()) {
    const reason = `switched off by ${SWITCH_VARIABLE}`;
    return { available: false, reason, hint: `Unset ${SWITCH_VARIABLE}, or use --kernels wasm.` };
  }
  const result = load();
  if ('reason' in result) return { available: false, ...result };
  const { path } = result;
  const variants = result.addon.variants();
  const wanted = process.env[VARIANT_VARIABLE] || variants[0];
  if (!variants.includes(wanted)) {
    const reason = `${VARIANT_VARIABLE}=${wanted}: this CPU and build have ${variants.join(', ')}`;
    return { available: false, path, variants, reason, hint: 'Set it to one of these, or unset it.' };
  }
  return { available: true, path, variants, variant: wanted };
}

/**
 * Kernels over `memory`, which must not grow afterwards. Each thread makes its own.
 *
 * @param variant one of `nativeStatus().variants`; default: the best one, or what HYBRID_INFER_NATIVE_ISA says
 * @throws HybridError KERNELS_UNAVAILABLE with the reason that `nativeStatus` gives
 */
export function createNativeKernels(memory: WebAssembly.Memory, variant?: string): Kernels {
  const status = nativeStatus();
  const chosen = variant ?? status.variant;
  if (chosen === undefined || !status.variants?.includes(chosen)) {
    const reason = status.reason ?? `no variant ${chosen} (there are ${status.variants?.join(', ')})`;
    throw new HybridError('KERNELS_UNAVAILABLE', `native kernels are not available: ${reason}`, {
      hint: status.hint ?? 'Name one of these.',
    });
  }
  const parameters = new Float64Array(MAX_ARGUMENTS);
  const bound = addonOrThrow().bind(new Uint8Array(memory.buffer), parameters, chosen, declarationsDigest());
  // The addon holds only an address in the memory: the kernels keep it.
  const kernels: Kernels & { memory: WebAssembly.Memory } = {
    name: `native (${chosen})`,
    memory,
    ...kernelsOfParameters(parameters, bound),
  };
  return kernels;
}

/**
 * Ask the system for 2 MB pages behind the first `bytes` (default: all) of an arena; must come before it is first
 * touched. Fewer address translations are missed when rows are read from all over it. False where the system has
 * none, or no addon is built.
 */
export function adviseHugePages(memory: WebAssembly.Memory, bytes?: number): boolean {
  if (isOff()) return false;
  const result = load();
  return 'addon' in result && result.addon.adviseHugePages(new Uint8Array(memory.buffer, 0, bytes));
}

// ---- loading ---------------------------------------------------------------------------------------------

const isOff = (): boolean => ['off', '0', 'false'].includes(process.env[SWITCH_VARIABLE] ?? '');

function load(): Loaded {
  loaded ??= tryLoad();
  return loaded;
}

function tryLoad(): Loaded {
  const found = findAddon();
  if ('reason' in found) return found;
  const { path } = found;
  try {
    return { addon: createRequire(import.meta.url)(path) as Addon, path };
  } catch (error) {
    // Built for another platform or Node, or against libraries this system lacks.
    const reason = `the addon does not load: ${(error as Error).message.split('\n')[0]}`;
    return { reason, hint: 'Build it on this machine, or use --kernels wasm.', path };
  }
}

function addonOrThrow(): Addon {
  const result = load();
  if ('addon' in result) return result.addon;
  throw new HybridError('KERNELS_UNAVAILABLE', `native kernels are not available: ${result.reason}`);
}
