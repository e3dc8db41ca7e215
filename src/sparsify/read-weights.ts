/** The weights of a model as one flat array, adapters at their start. */
import { hash32 } from '../profiler/seeded.js';
import type { TensorName, WeightSource } from '../model/types.js';
import { elementsOf, type Parameter } from './parameters.js';

/** @throws ModelError when a value is NaN or infinite */
export async function readWeights(
  source: WeightSource,
  parameters: readonly Parameter[],
  seed: number,
): Promise<Float32Array> {
  const flat = new Float32Array(elementsOf(parameters));
  for (const { name, shape, begin, size } of parameters) {
    const into = flat.subarray(begin, begin + size);
    if (name.endsWith(':a')) startAdapter(into, shape[1], seed, begin);
    else if (!name.includes(':')) {
      await source.readRows(name as TensorName, 0, shape.length === 1 ? 1 : shape[0], into);
    }
  }
  return flat;
}

/** A is uniform in +-1/sqrt(in), B zero: the adapter starts as nothing. */
function startAdapter(into: Float32Array, cols: number, seed: number, begin: number): void {
  const bound = 1 / Math.sqrt(cols);
  for (let i = 0; i < into.length; i++) {
    into[i] = bound * (hash32(seed ^ begin, i) / 2 ** 31 - 1);
  }
}
