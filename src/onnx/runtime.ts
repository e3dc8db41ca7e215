/**
 * The optional package onnxruntime-node: the one place that imports it, on first use. Inference on the CPU never
 * touches it; training, fitting of predictors and the GPU need it, and say so before they begin.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

import { HybridError } from '../errors.js';

export type Ort = typeof import('onnxruntime-node');

const NAME = 'onnxruntime-node';

/** What to type where it is missing. Its install script only fetches CUDA, from outside the npm registry. */
export function addOnnxRuntime(): string {
  return `npm install ${NAME}@${wantedVersion()} --ignore-scripts`;
}

/** Folder of the installed package, null when there is none. */
export function onnxRuntimeFolder(): string | null {
  try {
    // Its main file is dist/index.js; package.json itself is not among its exports.
    return join(dirname(createRequire(import.meta.url).resolve(NAME)), '..');
  } catch {
    return null;
  }
}

/**
 * For the beginning of work that cannot go on without onnxruntime.
 * @param purpose who needs it, as the subject of a sentence
 * @throws HybridError ONNX_MISSING when the package is not installed
 */
export function requireOnnxRuntime(purpose: string): void {
  if (onnxRuntimeFolder() === null) throw missing(purpose);
}

let loading: Promise<Ort> | undefined;

/** The binding. @throws HybridError ONNX_MISSING without the package, ONNX_FAILED when it does not load here */
export async function loadOnnxRuntime(): Promise<Ort> {
  loading ??= importIt();
  return loading;
}

async function importIt(): Promise<Ort> {
  requireOnnxRuntime('This');
  try {
    const module = await import('onnxruntime-node');
    return (module as Ort & { default?: Ort }).default ?? module;
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new HybridError(
      'ONNX_FAILED',
      `onnxruntime cannot be loaded on ${process.platform}/${process.arch}: ${message}`,
      { cause, hint: 'Reinstall onnxruntime-node, or run without --gpu and with trained artifacts.' },
    );
  }
}

const missing = (purpose: string): HybridError =>
  new HybridError('ONNX_MISSING', `${purpose} needs the optional package ${NAME}, which is not installed`, {
    hint: `Add it with \`${addOnnxRuntime()}\`.`,
  });

/** The version this package was tested with. */
function wantedVersion(): string {
  const file = new URL('../../package.json', import.meta.url);
  const { optionalDependencies } = JSON.parse(readFileSync(file, 'utf8')) as {
    optionalDependencies: Record<string, string>;
  };
  return optionalDependencies[NAME];
}
