/**
 * An operation: one product or step of a layer, prepared when a model is loaded. Its pipelines are compiled and its
 * buffers bound; what is left for a token is to know how many rows of a step there are.
 */
import { isSketch, rowBytes, sketchBits, sketchRowBytes } from '../../kernels/layout.js';
import { createUniform } from './buffers.js';
import type { GpuDevice } from './device.js';
import type { Dispatch } from './kernel.js';
import type { GpuRows, RowPart } from './rows.js';

/** What one token meets: what an operation reads depends on it. */
export interface TokenLoad {
  /** Positions in its cache. */
  context: number;
  /** Neurons of a layer: candidates of a predictor; scored after the gate; passed by the gate; with x1 != 0. */
  candidates: number;
  scored: number;
  passed: number;
  active: number;
}

export interface Operation {
  /** What it computes, in tables. */
  readonly name: string;
  /** What a step with so many tokens dispatches, in order. */
  dispatches(tokens: number): readonly Dispatch[];
  /** Bytes of weights and of the cache that one token alone reads. */
  reads(load: TokenLoad): number;
}

/** Keeps what `make` says for each number of tokens: a step allocates nothing the second time. */
export function operation(
  name: string,
  make: (tokens: number) => readonly Dispatch[],
  reads: Operation['reads'] = () => 0,
): Operation {
  const made = new Map<number, readonly Dispatch[]>();
  return {
    name,
    reads,
    dispatches(tokens) {
      let found = made.get(tokens);
      if (!found) made.set(tokens, (found = make(tokens)));
      return found;
    },
  };
}

/** The same under a name that says what it is for. */
export const named = (name: string, { dispatches, reads }: Operation): Operation => ({
  name,
  dispatches,
  reads,
});

/** Uniform of a part of a matrix, as kernels read it: first row, rows, and two words of the kernel's own. */
export const PART_TYPE = 'vec4<u32>';

/** One uniform buffer for every part of `rows`. */
export async function partUniforms(
  gpu: GpuDevice,
  label: string,
  rows: GpuRows,
  own: readonly [number, number] = [0, 0],
): Promise<{ part: RowPart; uniform: GPUBuffer }[]> {
  const made = [];
  for (const part of rows.parts) {
    made.push({ part, uniform: await createUniform(gpu, label, [part.first, part.rows, ...own]) });
  }
  return made;
}

/** Bytes of a row, without what stands between it and the next. */
export const bytesOfRow = ({ format, cols }: Pick<GpuRows, 'format' | 'cols'>): number =>
  isSketch(format) ? sketchRowBytes(sketchBits(format), cols) : rowBytes(format, cols);

/** The bits of an f32, for uniforms of words. */
export function floatBits(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0];
}
