/**
 * The quantised engine against an independent forward pass in float64 over the very weights it holds: each row
 * quantised and read back. What is left between them is the rounding of activations to 8 bits: about 0.6 % of a
 * vector each of the seven times, 2.2 % in the logits together.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { rowBytes, type WeightFormat } from '../../src/kernels/layout.js';
import { createReferenceKernels } from '../../src/kernels/reference.js';
import { openModel } from '../../src/model/open-model.js';
import type { WeightSource } from '../../src/model/types.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';
import { openEngine, removePacks } from './open.js';
import { plainForward } from './plain-forward.js';

afterAll(removePacks);

const TOKENS = Array.from({ length: 45 }, (_, i) => (i * 53 + 7) % 288);

/** `values` as they come back from rows of `format`. */
function rounded(format: WeightFormat, values: Float32Array, cols: number): Float32Array {
  const memory = new WebAssembly.Memory({ initial: 16, maximum: 16, shared: true });
  const kernels = createReferenceKernels(memory);
  const f32 = new Float32Array(memory.buffer);
  const [from, row, to] = [64, 65_536, 131_072];
  const out = new Float32Array(values.length);
  for (let at = 0; at < values.length; at += cols) {
    f32.set(values.subarray(at, at + cols), from / 4);
    kernels.quantizeRows(format, from, cols * 4, 1, row, rowBytes(format, cols), cols);
    kernels.dequantizeRow(format, row, to, cols);
    out.set(f32.subarray(to / 4, to / 4 + cols), at);
  }
  return out;
}

const transpose = (m: Float32Array, rows: number, cols: number): Float32Array =>
  Float32Array.from(m, (_, i) => m[(i % rows) * cols + Math.floor(i / rows)]);

/** Matrices as a pack of this quantisation holds them: down by column, the embedding in 8 bits at least. */
function quantised(source: WeightSource, quant: 'q8' | 'q4'): WeightSource {
  return new Proxy(source, {
    get(target, key) {
      if (key !== 'readRows') return Reflect.get(target, key, target) as unknown;
      return async (...args: Parameters<WeightSource['readRows']>) => {
        const values = await target.readRows(...args);
        const shape = target.tensors.get(args[0])!.shape;
        if (shape.length < 2) return values;
        const [rows, cols] = shape;
        const format = args[0] === 'embed' || args[0] === 'lmHead' ? 'q8' : quant;
        if (!args[0].endsWith('.down')) return rounded(format, values, cols);
        expect(values.length).toBe(rows * cols); // plainForward reads whole matrices
        return transpose(rounded(format, transpose(values, rows, cols), rows), cols, rows);
      };
    },
  });
}

describe.each(['q8', 'q4'] as const)('%s', (quant) => {
  let folder: string;
  beforeAll(() => {
    folder = writeTinyFolder({ hiddenSize: 128, heads: 4, kvHeads: 2, intermediateSize: 288 });
  });

  it.each(['dense', 'exact'] as const)('%s has the logits of its own weights', async (ffn) => {
    const source = await openModel(folder);
    const expected = await plainForward(quantised(source, quant), TOKENS);
    await source.close();
    for (const kernels of ['reference', 'wasm', 'native'] as const) {
      const engine = await openEngine(folder, quant, { ffn, kernels, kvCache: 'f32' });
      const { logits } = await engine.logits({ tokens: TOKENS });
      const vocab = engine.layout.config.vocabSize;
      let squares = 0;
      let all = 0;
      let worst = 0;
      let largest = 0;
      expected.logits.forEach((row, t) =>
        row.forEach((value, i) => {
          const difference = Math.abs(value - logits[t * vocab + i]);
          squares += difference ** 2;
          all += value ** 2;
          worst = Math.max(worst, difference);
          largest = Math.max(largest, Math.abs(value));
        }),
      );
      await engine.close();
      const name = `${kernels}: difference of the logits`;
      expect(Math.sqrt(squares / all), `${name}, root mean square`).toBeLessThan(0.03);
      expect(worst / largest, `${name}, largest`).toBeLessThan(0.04);
    }
  });
});
