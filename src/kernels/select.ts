/** Choosing a kernel backend on the main thread, and making its kernels in every lane. */
import { HybridError } from '../errors.js';
import type { KernelBackend, Kernels } from './kernels.js';
import { adviseHugePages as adviseThroughAddon, createNativeKernels, nativeStatus } from './native/loader.js';
import { createReferenceKernels } from './reference.js';
import { compileWasmModule, createWasmKernels, wasmKernelsName, type WasmModule } from './wasm/loader.js';

/** What every lane needs to make the same kernels. Can be posted to workers. */
export interface KernelChoice {
  backend: KernelBackend;
  /** As in reports, such as `wasm (relaxed-simd)`. */
  name: string;
  /** Why better backends were not chosen; empty when the best one was, or one was asked for by name. */
  reasons: string[];
  /** wasm: compiled here once; lanes share its machine code. */
  wasm?: WasmModule;
  /** native: the instruction-set variant, such as `avx512-vnni`. */
  nativeVariant?: string;
}

/** Best first: what `auto` tries. */
const PREFERENCE: readonly KernelBackend[] = ['native', 'wasm', 'reference'];

/**
 * @param request a backend by name, or `auto`: native if it is built and loads, else wasm, else reference
 * @throws HybridError KERNELS_UNAVAILABLE when the backend asked for by name cannot be used
 */
export function selectKernels(request: KernelBackend | 'auto'): KernelChoice {
  if (request !== 'auto') return choose(request);
  const reasons: string[] = [];
  for (const backend of PREFERENCE) {
    try {
      return { ...choose(backend), reasons };
    } catch (error) {
      if (!(error instanceof HybridError)) throw error;
      reasons.push(`${backend}: ${error.message}`);
    }
  }
  throw new HybridError('KERNELS_UNAVAILABLE', `no kernels: ${reasons.join('; ')}`);
}

function choose(backend: KernelBackend): KernelChoice {
  switch (backend) {
    case 'reference':
      return { backend, name: 'reference', reasons: [] };
    case 'wasm': {
      const wasm = compileWasmModule();
      return { backend, name: wasmKernelsName(wasm.variant), reasons: [], wasm };
    }
    case 'native': {
      const { available, variant, reason, hint } = nativeStatus();
      if (available) return { backend, name: `native (${variant})`, reasons: [], nativeVariant: variant };
      throw new HybridError('KERNELS_UNAVAILABLE', reason ?? 'native kernels are not available', { hint });
    }
  }
}

/** The chosen kernels over one arena, in any thread. `memory` must not grow afterwards. */
export function instantiateKernels(choice: KernelChoice, memory: WebAssembly.Memory): Kernels {
  switch (choice.backend) {
    case 'reference':
      return createReferenceKernels(memory);
    case 'wasm':
      return createWasmKernels(memory, choice.wasm);
    case 'native':
      return createNativeKernels(memory, choice.nativeVariant);
  }
}

/**
 * Ask for huge pages before an arena is first touched: rows read from all over it then miss far fewer
 * address translations. It helps every backend, but only the addon can ask.
 * @param bytes - how much of the arena's beginning; all of it when left out
 * @returns false where the system or the addon cannot
 */
export function adviseHugePages(_choice: KernelChoice, memory: WebAssembly.Memory, bytes?: number): boolean {
  return adviseThroughAddon(memory, bytes);
}
