/**
 * Loads the AssemblyScript kernels: compile once (main thread), instantiate per lane over its arenas. A
 * compiled WebAssembly.Module can be posted to workers and shares its machine code with them.
 */
import { readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { HybridError } from '../../errors.js';
import { kernelsOfNumbers, type NumberKernel } from '../call.js';
import type { Kernels } from '../kernels.js';

/** `relaxed`: with relaxed-SIMD dot products; `simd`: plain SIMD, runs everywhere. */
export type WasmVariant = 'relaxed' | 'simd';

export interface WasmModule {
  module: WebAssembly.Module;
  variant: WasmVariant;
}

/**
 * Compiles the best module this Node.js takes: relaxed SIMD if it validates, else plain SIMD.
 * @param only compile this variant (tests)
 * @throws HybridError KERNELS_UNAVAILABLE when the modules were not built, or V8 takes neither
 */
export function compileWasmModule(only?: WasmVariant): WasmModule {
  const variants: WasmVariant[] = only === undefined ? ['relaxed', 'simd'] : [only];
  for (const variant of variants) {
    const bytes = readModule(variant);
    if (isTaken(bytes, variant)) return { module: compileEagerly(bytes), variant };
  }
  throw new HybridError(
    'KERNELS_UNAVAILABLE',
    `this Node.js (${process.version}) does not take the WASM kernels`,
    {
      hint: 'WebAssembly SIMD and threads are needed: use Node.js 20.19 or newer, or the reference kernels',
    },
  );
}

/** Kernels over one arena. Without `compiled`, compiles in this thread. */
export function createWasmKernels(
  memory: WebAssembly.Memory,
  compiled: WasmModule = compileWasmModule(),
): Kernels {
  const instance = new WebAssembly.Instance(compiled.module, { env: { memory } });
  const functions = instance.exports as Record<string, NumberKernel>;
  return { name: wasmKernelsName(compiled.variant), ...kernelsOfNumbers(functions) };
}

export const wasmKernelsName = (variant: WasmVariant): string =>
  variant === 'relaxed' ? 'wasm (relaxed-simd)' : 'wasm (simd)';

/**
 * Node.js 20 has relaxed SIMD behind a flag; Node.js 22 has it as standard, and a V8 that no longer knows the
 * flag would complain on stderr: so it is set only where the module does not validate without it.
 */
function isTaken(bytes: Uint8Array<ArrayBuffer>, variant: WasmVariant): boolean {
  if (WebAssembly.validate(bytes)) return true;
  if (variant !== 'relaxed') return false;
  setFlagsFromString('--experimental-wasm-relaxed-simd');
  return WebAssembly.validate(bytes);
}

/**
 * Compiles with the optimising compiler at once. Otherwise the first tokens (and benchmark samples) run
 * baseline code, several times slower. The flags are put back for the process's other modules.
 */
function compileEagerly(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module {
  setFlagsFromString('--no-liftoff');
  setFlagsFromString('--no-wasm-lazy-compilation');
  try {
    return new WebAssembly.Module(bytes);
  } finally {
    setFlagsFromString('--liftoff');
    setFlagsFromString('--wasm-lazy-compilation');
  }
}

/** Beside this file when compiled; in dist/ when this file runs as TypeScript (tests). */
const MODULE_FOLDERS = ['./', '../../../dist/kernels/wasm/'];

function readModule(variant: WasmVariant): Uint8Array<ArrayBuffer> {
  for (const folder of MODULE_FOLDERS) {
    try {
      return new Uint8Array(readFileSync(new URL(`${folder}kernels.${variant}.wasm`, import.meta.url)));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  throw new HybridError('KERNELS_UNAVAILABLE', `kernels.${variant}.wasm: not found`, {
    hint: 'Run `npm run build:wasm`',
  });
}
