/**
 * The optional package webgpu (Dawn for Node): the one place that imports it, on first use. Two rules of Dawn's
 * binding, both found by trying:
 *
 *   - A device whose instance is gone crashes the process, and the garbage collector takes an instance that only
 *     its devices use. So a thread has one instance, held here until the thread ends.
 *   - A worker thread that is torn down (`terminate()`, `process.exit()` in it or anywhere) while one of Dawn's
 *     promises is pending aborts the whole process. So whoever ends such a thread closes its devices first
 *     (device.ts) and waits. On the main thread `process.exit()` and signals do no harm.
 *
 * While a promise of Dawn is pending its binding asks for events in every turn of the event loop: a thread that
 * waits for the GPU by a promise keeps a core busy.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

import { HybridError } from '../../errors.js';

const NAME = 'webgpu';

/** The flags of the WebGPU specification: Node has no globals for them. */
export const BufferUsage = {
  MAP_READ: 0x1,
  COPY_SRC: 0x4,
  COPY_DST: 0x8,
  UNIFORM: 0x40,
  STORAGE: 0x80,
  INDIRECT: 0x100,
  QUERY_RESOLVE: 0x200,
} as const;
export const MAP_READ = 1;
/** GPUShaderStage.COMPUTE */
export const COMPUTE_STAGE = 4;

/** What to type where it is missing. Its install script only takes a mark off a file, on macOS. */
export const addWebGpu = (): string => `npm install ${NAME}@${wantedVersion()} --ignore-scripts`;

/** Is the package there? Whether it loads, and whether there is an adapter, only trying tells. */
export function webGpuInstalled(): boolean {
  try {
    createRequire(import.meta.url).resolve(NAME);
    return true;
  } catch {
    return false;
  }
}

let instance: Promise<GPU> | undefined;

/** This thread's instance. @throws HybridError GPU_UNAVAILABLE without the package, or where it does not load */
export function loadDawn(): Promise<GPU> {
  instance ??= createInstance();
  return instance;
}

async function createInstance(): Promise<GPU> {
  if (!webGpuInstalled()) {
    throw new HybridError(
      'GPU_UNAVAILABLE',
      `WebGPU needs the optional package ${NAME}, which is not installed`,
      {
        hint: `Add it with \`${addWebGpu()}\`.`,
      },
    );
  }
  try {
    const { create } = await import('webgpu');
    // Timestamps are rounded to 0.1 ms for web pages' sake, which is longer than a kernel takes.
    return create(['disable-dawn-features=timestamp_quantization']);
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new HybridError(
      'GPU_UNAVAILABLE',
      `${NAME} cannot be loaded on ${process.platform}/${process.arch}: ${message}`,
      { cause, hint: `Reinstall it (\`${addWebGpu()}\`), or run without --gpu.` },
    );
  }
}

/** The version this package was tested with. */
function wantedVersion(): string {
  const file = new URL('../../../package.json', import.meta.url);
  const { optionalDependencies } = JSON.parse(readFileSync(file, 'utf8')) as {
    optionalDependencies: Record<string, string>;
  };
  return optionalDependencies[NAME];
}
