/** Row dot on the pack's rows against the reference kernels' values, f32 activations on both sides. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createFrom, createStorage, createUniform, readBuffer } from '../../../src/gpu/webgpu/buffers.js';
import { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { encodePass } from '../../../src/gpu/webgpu/kernel.js';
import { rowDot } from '../../../src/gpu/webgpu/kernels/row-dot.js';
import { vectorStride } from '../../../src/gpu/webgpu/rows.js';
import { defaultTuning, type Tuning } from '../../../src/gpu/webgpu/tuning.js';
import { ROW_FORMATS } from '../../../src/kernels/layout.js';
import { normals } from '../../kernels/samples.js';
import { reason } from './adapter.js';
import { rowsOf, uploadTestRows } from './rows.js';

describe.skipIf(reason !== null)(`row dot${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  let gpu: GpuDevice;
  let tuning: Tuning;
  beforeAll(async () => {
    gpu = await GpuDevice.open();
    tuning = defaultTuning(gpu.facts);
  });
  afterAll(() => gpu.close());

  async function products(
    format: (typeof ROW_FORMATS)[number],
    rows: number,
    cols: number,
    tokens: number,
    maxBytes?: number,
  ) {
    const w = rowsOf(format, rows, cols, 1);
    const uploaded = await uploadTestRows(gpu, w, maxBytes);
    const xStride = vectorStride(cols);
    const x = new Float32Array(tokens * xStride);
    for (let t = 0; t < tokens; t++) x.set(normals(cols, 50 + t), t * xStride);
    const out = await createStorage(gpu, 'out', tokens * (rows + 3) * 4);
    const operation = await rowDot(
      gpu,
      tuning,
      uploaded,
      { outStride: rows + 3 },
      {
        x: await createFrom(gpu, 'x', x),
        step: await createUniform(gpu, 'step', [tokens]),
        out,
      },
    );
    gpu.submit((encoder) => encodePass(encoder, operation.dispatches(tokens)));
    const found = new Float32Array((await readBuffer(gpu, out)).buffer);
    let worst = 0;
    for (let t = 0; t < tokens; t++) {
      for (let r = 0; r < rows; r++) {
        const [expected, size] = w.values[r].reduce(
          ([sum, all], value, c) => [
            sum + value * x[t * xStride + c],
            all + Math.abs(value * x[t * xStride + c]),
          ],
          [0, 1e-30],
        );
        worst = Math.max(worst, Math.abs(found[t * (rows + 3) + r] - expected) / size);
      }
      expect([...found.slice(t * (rows + 3) + rows, (t + 1) * (rows + 3))]).toEqual([0, 0, 0]);
    }
    return worst;
  }

  it.each(ROW_FORMATS)('%s rows of many widths, one token', async (format) => {
    for (const cols of [1, 100, 300, 4096]) {
      expect(await products(format, 37, cols, 1), `${cols} columns`).toBeLessThan(1e-6);
    }
  });

  it.each(ROW_FORMATS)('%s rows, several tokens', async (format) => {
    for (const tokens of [2, 5]) expect(await products(format, 21, 300, tokens)).toBeLessThan(1e-6);
  });

  it('a matrix cut into parts', async () => {
    expect(await products('q4', 100, 256, 3, 16 * 1024)).toBeLessThan(1e-6);
  });
});
