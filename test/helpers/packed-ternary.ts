/** A BitNet folder with packed ternary weights: four values a byte, and the scale of every projection. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { baseConfig, randomTensors, writeModel } from './any-model.js';
import { encodeTensor, safetensorsBytes } from './tiny-models.js';

type Stored = Map<string, { dtype: string; shape: number[]; bytes: Uint8Array }>;

export const PACKED_CONFIG = baseConfig('BitNetForCausalLM', {
  hidden_act: 'relu2',
  quantization_config: {
    quant_method: 'bitnet',
    linear_class: 'autobitlinear',
    quantization_mode: 'offline',
  },
});

/** The code (0, 1 or 2) of a projection's weight. */
export const packedCode = (row: number, col: number): number => (row * 5 + col * 3) % 3;

/** @param bend changes what is stored  @returns the folder */
export function writePackedTernary(
  fields: Record<string, unknown> = {},
  bend: (stored: Stored) => void = () => {},
): string {
  const folder = writeModel({ ...PACKED_CONFIG, ...fields });
  const stored: Stored = new Map();
  for (const [name, { shape, data }] of randomTensors(PACKED_CONFIG)) {
    if (!/_proj\.weight$/.test(name)) {
      stored.set(name, { dtype: 'F32', shape, bytes: encodeTensor(data, 'F32') });
      continue;
    }
    const [rows, cols] = [shape[0] / 4, shape[1]];
    const bytes = new Uint8Array(rows * cols);
    for (let r = 0; r < shape[0]; r++)
      for (let c = 0; c < cols; c++)
        bytes[(r % rows) * cols + c] |= packedCode(r, c) << (2 * Math.floor(r / rows));
    stored.set(name, { dtype: 'U8', shape: [rows, cols], bytes });
    stored.set(`${name}_scale`, {
      dtype: 'F32',
      shape: [1],
      bytes: encodeTensor(Float32Array.of(0.5), 'F32'),
    });
  }
  bend(stored);
  writeFileSync(join(folder, 'model.safetensors'), safetensorsBytes(stored));
  return folder;
}
