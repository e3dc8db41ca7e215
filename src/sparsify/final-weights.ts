/** Trained weights as they will stand in a file: adapters merged, rounded to the type of the file. */
import { HybridError } from '../errors.js';
import { fromFloat16, toFloat16 } from '../onnx/float16.js';
import { ADAPTER_SCALE, type Parameter } from './parameters.js';

export type FileType = 'F32' | 'F16' | 'BF16';

/** W += scale B A for every adapter, and B = 0: the same model without the adapters. */
export function mergeAdapters(parameters: readonly Parameter[], weights: Float32Array): void {
  const byName = new Map(parameters.map((p) => [p.name, p]));
  for (const p of parameters) {
    const [a, b] = [byName.get(`${p.name}:a`), byName.get(`${p.name}:b`)];
    if (!a || !b) continue;
    const [rank, cols] = a.shape;
    const scale = ADAPTER_SCALE / rank;
    for (let r = 0; r < p.shape[0]; r++) {
      for (let k = 0; k < rank; k++) {
        const factor = scale * weights[b.begin + r * rank + k];
        if (factor === 0) continue;
        for (let c = 0; c < cols; c++) {
          weights[p.begin + r * cols + c] += factor * weights[a.begin + k * cols + c];
        }
      }
    }
    weights.fill(0, b.begin, b.begin + b.size);
  }
}

/** @throws HybridError NUMERIC when a weight is beyond what the type holds, naming the tensor */
export function roundWeights(
  parameters: readonly Parameter[],
  weights: Float32Array,
  typeOf: (name: string) => FileType,
): void {
  for (const { name, begin, size } of parameters) {
    if (name.includes(':')) continue;
    const round = ROUND[typeOf(name)];
    for (let i = begin; i < begin + size; i++) {
      weights[i] = round(weights[i]);
      if (!Number.isFinite(weights[i])) {
        throw new HybridError('NUMERIC', `tensor ${name}: a trained weight is beyond ${typeOf(name)}`, {
          hint: 'Write f32 with --dtype f32.',
        });
      }
    }
  }
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** Bits of the nearest bfloat16, ties to even. */
export function toBfloat16(value: number): number {
  f32[0] = value;
  return (u32[0] + 0x7fff + ((u32[0] >>> 16) & 1)) >>> 16;
}

function fromBfloat16(bits: number): number {
  u32[0] = bits << 16;
  return f32[0];
}

const ROUND: Readonly<Record<FileType, (value: number) => number>> = {
  F32: (value) => value,
  F16: (value) => fromFloat16(toFloat16(value)),
  BF16: (value) => fromBfloat16(toBfloat16(value)),
};

/** Little-endian bytes of values that `roundWeights` has been over. */
export function encodeValues(values: Float32Array, type: FileType): Uint8Array {
  if (type === 'F32') return new Uint8Array(values.slice().buffer);
  const bits = Uint16Array.from(values, type === 'F16' ? toFloat16 : toBfloat16);
  return new Uint8Array(bits.buffer);
}
