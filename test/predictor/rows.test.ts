import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bf16ToNumber, groupCount, q8aLayout } from '../../src/kernels/layout.js';
import type { KernelBackend } from '../../src/kernels/kernels.js';
import { instantiateKernels, selectKernels } from '../../src/kernels/select.js';
import {
  levels,
  packRows,
  predictorRowBytes,
  q4Scales,
  scaleBits,
  selectRows,
  toQ4,
  unpackRows,
} from '../../src/predictor/rows.js';
import { PREDICTOR_FORMATS, type PredictorFormat, type RowMatrix } from '../../src/predictor/types.js';
import { random } from '../helpers/tiny-models.js';

function randomRows(format: PredictorFormat, rows: number, cols: number, seed: number) {
  const next = random(seed);
  const { min, max, odd } = levels(format);
  const code = Int8Array.from({ length: rows * cols }, () =>
    odd ? 2 * Math.floor(next() * (max + 1)) - max : Math.floor(next() * (max - min + 1)) + min,
  );
  const scale = Uint16Array.from({ length: rows * groupCount(cols) }, () => scaleBits(0.01 + next()));
  return { code, scale, matrix: packRows(format, code, scale, rows, cols) };
}

const shape = fc.record({
  format: fc.constantFrom(...PREDICTOR_FORMATS),
  rows: fc.integer({ min: 1, max: 5 }),
  cols: fc.integer({ min: 1, max: 300 }),
  seed: fc.nat(1000),
});

/** The native backend is optional, and WASM must have been built. */
function isBuilt(backend: KernelBackend): boolean {
  try {
    selectKernels(backend);
    return true;
  } catch {
    return false;
  }
}

describe('predictor rows', () => {
  it('give back every level times its scale', () => {
    fc.assert(
      fc.property(shape, ({ format, rows, cols, seed }) => {
        const { code, scale, matrix } = randomRows(format, rows, cols, seed);
        const expected = Float32Array.from(code, (level, i) => {
          const group = Math.floor(i / cols) * groupCount(cols) + Math.floor((i % cols) / 128);
          return level * bf16ToNumber(scale[group]);
        });
        expect(unpackRows(matrix)).toEqual(expected);
      }),
    );
  });

  for (const backend of ['reference', 'wasm', 'native'] as const) {
    it.skipIf(!isBuilt(backend))(`mean to the ${backend} kernels what they mean here`, () => {
      fc.assert(
        fc.property(shape, ({ format, rows, cols, seed }) => {
          const { matrix } = randomRows(format, rows, cols, seed);
          const x = Float32Array.from({ length: cols }, random(seed + 1)).map((v) => v - 0.5);
          const { scores, stored } = kernelScores(backend, matrix, x);
          const values = unpackRows(matrix);
          for (let r = 0; r < rows; r++) {
            let sum = 0;
            for (let c = 0; c < cols; c++) sum += values[r * cols + c] * stored[c];
            expect(Math.abs(scores[r] - sum)).toBeLessThan(1e-4 * (1 + Math.abs(sum)));
          }
        }),
      );
    });
  }

  it('take as many bits as they say', () => {
    // d = 256: codes, two bf16 scales
    expect(PREDICTOR_FORMATS.map((f) => predictorRowBytes(f, 256))).toEqual([36, 68, 100, 132, 260]);
  });

  it('of q4 keep every value within half a step', () => {
    const values = Float32Array.from({ length: 4 * 160 }, random(5)).map((v) => v - 0.5);
    const scales = q4Scales(values, 4, 160);
    const back = unpackRows(toQ4(values, scales, 4, 160));
    values.forEach((v, i) => {
      const step = Math.abs(bf16ToNumber(scales[Math.floor(i / 160) * 2 + Math.floor((i % 160) / 128)]));
      expect(Math.abs(v - back[i])).toBeLessThan(1.6 * step); // the largest values may be clipped
    });
  });

  it('can be chosen by number', () => {
    const { matrix } = randomRows('q3', 6, 64, 1);
    const some = selectRows(matrix, Uint32Array.of(4, 1));
    const all = unpackRows(matrix);
    expect([...unpackRows(some)]).toEqual([...all.slice(4 * 64, 5 * 64), ...all.slice(64, 128)]);
  });
});

/** Scores by one backend's kernels, and the input as they saw it (8-bit codes times scales). */
function kernelScores(
  backend: KernelBackend,
  matrix: RowMatrix,
  x: Float32Array,
): { scores: Float32Array; stored: Float64Array } {
  const memory = new WebAssembly.Memory({ initial: 2, maximum: 2, shared: true });
  const kernels = instantiateKernels(selectKernels(backend), memory);
  const [xAt, xq, w, out] = [64, 4096, 16384, 65536];
  new Float32Array(memory.buffer, xAt, x.length).set(x);
  new Uint8Array(memory.buffer).set(matrix.data, w);
  kernels.quantize(xAt, xq, x.length);
  const { format, stride, rows, cols } = matrix;
  kernels.dot(format, w, stride, rows, xq, 0, 1, out, rows, cols);
  const codes = new Int8Array(memory.buffer, xq, x.length);
  const scales = new Float32Array(memory.buffer, xq + q8aLayout(x.length).scales, groupCount(x.length));
  return {
    scores: new Float32Array(memory.buffer, out, matrix.rows).slice(),
    stored: Float64Array.from(codes, (code, c) => code * scales[Math.floor(c / 128)]),
  };
}
