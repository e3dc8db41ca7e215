/** Finding and loading the native addon, and choosing its variant for this CPU. */
import { createRequire } from 'node:module';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { HybridError } from '../../errors.js';
import type { Kernels } from '../kernels.js';
import { kernelsOfParameters, MAX_ARGUMENTS } from '../call.js';
import { describeKernels, type KernelDescriptor } from './descriptors.js';

/** What the addon exports; addon.cc says the same. */
interface Addon {
  /** Variants that this CPU runs, best first. */
  variants(): string[];
  /** Functions that take no arguments: they find them in `parameters`, and leave their result in parameters[0]. */
  bind(
    arena: Uint8Array,
    parameters: Float64Array,
    variant: string,
    kernels: KernelDescriptor[],
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

/** Compiled code has the addon beside it; under test this file is in src/ and the addon in dist/. */
const FOLDER = import.meta.url.endsWith('.ts') ? '../../../dist/kernels/native/' : './';
const ADDON_PATH = fileURLToPath(new URL(`${FOLDER}hybrid-infer.node`, import.meta.url));
const INFO_PATH = fileURLToPath(new URL(`${FOLDER}build-info.json`, import.meta.url));

const NOT_BUILT = 'Install a C++ compiler and run `npm run build:native`, or use --kernels wasm.';

let loaded: { addon: Addon } | { reason: string } | undefined;

/** Whether native kernels can be used here, with the reason when not. Loads the addon on the first call. */
export function nativeStatus(): NativeStatus {
  const path = existsSync(ADDON_PATH) ? ADDON_PATH : undefined;
  if (isOff()) {
    const reason = `switched off by ${SWITCH_VARIABLE}`;
    return { available: false, path, reason, hint: `Unset ${SWITCH_VARIABLE}, or use --kernels wasm.` };
  }
  const result = load();
  if ('reason' in result) return { available: false, path, reason: result.reason, hint: NOT_BUILT };
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
  const bound = addonOrThrow().bind(new Uint8Array(memory.buffer), parameters, chosen, describeKernels());
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

function load(): { addon: Addon } | { reason: string } {
  loaded ??= tryLoad();
  return loaded;
}

function tryLoad(): { addon: Addon } | { reason: string } {
  if (!existsSync(ADDON_PATH)) return { reason: buildFailure() };
  try {
    return { addon: createRequire(import.meta.url)(ADDON_PATH) as Addon };
  } catch (error) {
    // Built for another platform or Node, or against libraries this system lacks.
    return { reason: `the addon does not load: ${(error as Error).message.split('\n')[0]}` };
  }
}

/** What tools/build-native.mjs wrote down. */
function buildFailure(): string {
  try {
    const info = JSON.parse(readFileSync(INFO_PATH, 'utf8')) as { reason?: unknown };
    if (typeof info.reason === 'string') return info.reason;
  } catch {
    // no build was tried
  }
  return 'not built (npm run build:native)';
}

function addonOrThrow(): Addon {
  const result = load();
  if ('addon' in result) return result.addon;
  throw new HybridError('KERNELS_UNAVAILABLE', `native kernels are not available: ${result.reason}`);
}
