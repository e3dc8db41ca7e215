/** The kernels of a token beside its matrices, against the reference kernels: norms, heads, attention, embedding. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createFrom, createStorage, readBuffer } from '../../../src/gpu/webgpu/buffers.js';
import { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { encodePass, type KernelText, type Workgroups } from '../../../src/gpu/webgpu/kernel.js';
import { attentionKernel } from '../../../src/gpu/webgpu/kernels/attention.js';
import { embedGroups, embedKernel } from '../../../src/gpu/webgpu/kernels/embed.js';
import { headsKernel, kvRowWords, type HeadsShape } from '../../../src/gpu/webgpu/kernels/heads.js';
import { normKernel, type NormShape } from '../../../src/gpu/webgpu/kernels/norm.js';
import type { KvFormat } from '../../../src/kernels/kernels.js';
import { KV_PAGE, rowBytes, WEIGHT_FORMATS } from '../../../src/kernels/layout.js';
import { createReferenceKernels } from '../../../src/kernels/reference.js';
import { randomFloats } from '../memory-pack.js';
import { reason } from './adapter.js';

const memory = new WebAssembly.Memory({ initial: 64, maximum: 64, shared: true });
const reference = createReferenceKernels(memory);
const f32 = new Float32Array(memory.buffer);
const u32 = new Uint32Array(memory.buffer);

/** Rows of `width` floats, `stride` apart, zeros between. */
function padded(values: Float32Array, width: number, stride: number): Float32Array {
  const rows = values.length / width;
  const out = new Float32Array(rows * stride);
  for (let t = 0; t < rows; t++) out.set(values.subarray(t * width, (t + 1) * width), t * stride);
  return out;
}

const near = (actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: number): void => {
  expect(actual.length).toBe(expected.length);
  let worst = 0;
  for (let i = 0; i < expected.length; i++) worst = Math.max(worst, Math.abs(actual[i] - expected[i]));
  expect(worst).toBeLessThan(tolerance);
};

describe.skipIf(reason !== null)(
  `kernels of a token${reason === null ? '' : ` (skipped: ${reason})`}`,
  () => {
    let gpu: GpuDevice;
    beforeAll(async () => void (gpu = await GpuDevice.open()));
    afterAll(() => gpu.close());

    const run = async (text: KernelText, workgroups: Workgroups, ...buffers: GPUBuffer[]): Promise<void> => {
      const kernel = await gpu.kernel(text);
      const dispatch = { kernel, bindings: kernel.bind(...buffers), workgroups };
      gpu.submit((encoder) => encodePass(encoder, [dispatch]));
      await gpu.finished();
    };
    const floats = async (buffer: GPUBuffer): Promise<Float32Array> =>
      new Float32Array((await readBuffer(gpu, buffer)).buffer);
    const words = (values: readonly number[]): Promise<GPUBuffer> =>
      createFrom(gpu, 'step', Uint32Array.from(values));

    // ---- norms -----------------------------------------------------------------------------------------------

    const WIDTH = 80;
    const STRIDE = 96;
    const base: NormShape = {
      width: WIDTH,
      stride: STRIDE,
      offset: 0,
      branchStride: STRIDE,
      outStride: STRIDE,
      epsilon: 1e-5,
      layerNorm: false,
      branch: null,
      bias: -1,
      sum: null,
      out: { weight: 0, bias: -1 },
      gather: -1,
      workgroup: 64,
    };
    const rows = 3;
    const x = randomFloats(rows * WIDTH, 1);
    const f = randomFloats(rows * WIDTH, 2);
    const vectors = randomFloats(3 * WIDTH, 3);
    /** norm of each row, with weight 0 and bias 1 of the vectors */
    const normed = (values: Float32Array, layerNorm: boolean, bias: boolean): Float32Array => {
      const out = new Float32Array(values.length);
      const at = (i: number): number => 4096 + i * 1024;
      f32.set(vectors, at(2) / 4);
      for (let t = 0; t < values.length / WIDTH; t++) {
        f32.set(values.subarray(t * WIDTH, (t + 1) * WIDTH), at(0) / 4);
        if (layerNorm) reference.layerNorm(at(0), at(2), bias ? at(2) + WIDTH * 4 : 0, at(1), WIDTH, 1e-5);
        else {
          reference.rmsNorm(at(0), at(2), at(1), WIDTH, 1e-5);
          if (bias) reference.addScaled(at(1), at(2) + WIDTH * 4, 1, WIDTH);
        }
        out.set(f32.subarray(at(1) / 4, at(1) / 4 + WIDTH), t * WIDTH);
      }
      return out;
    };
    const sum = (scale: number, a: Float32Array, b: Float32Array, bias: boolean): Float32Array =>
      a.map((v, i) => v + scale * (b[i] + (bias ? vectors[2 * WIDTH + (i % WIDTH)] : 0)));

    const norms: [
      string,
      Partial<NormShape>,
      (layerNorm: boolean) => { x?: Float32Array; out?: Float32Array },
    ][] = [
      ['norm(x)', {}, (layer) => ({ x, out: normed(x, layer, false) })],
      [
        'x + s (f + b), and its norm with a bias',
        { branch: { bias: 2 * WIDTH, scale: 0.5, norm: null }, out: { weight: 0, bias: WIDTH } },
        (layer) => ({ x: sum(0.5, x, f, true), out: normed(sum(0.5, x, f, true), layer, true) }),
      ],
      [
        'x + s norm(f)',
        { branch: { bias: -1, scale: 2, norm: { weight: 0, bias: -1 } }, out: null },
        (layer) => ({ x: sum(2, x, normed(f, layer, false), false) }),
      ],
      [
        'norm(x + f)',
        { branch: { bias: -1, scale: 1, norm: null }, sum: { weight: 0, bias: WIDTH }, out: null },
        (layer) => ({ x: normed(sum(1, x, f, false), layer, true) }),
      ],
      ['a copy of other rows', { out: 'copy', gather: 1 }, () => ({ x, out: Float32Array.of(...x.subarray(2 * WIDTH), ...x.subarray(0, WIDTH)) })], // prettier-ignore
    ];
    for (const layerNorm of [false, true]) {
      it.each(norms)(`computes %s, ${layerNorm ? 'layer' : 'RMS'} norms`, async (_, shape, expected) => {
        const want = expected(layerNorm);
        const xs = await createFrom(gpu, 'x', padded(x, WIDTH, STRIDE));
        const fs = await createFrom(gpu, 'f', padded(f, WIDTH, STRIDE));
        const out = await createStorage(gpu, 'out', rows * STRIDE * 4);
        const weights = await createFrom(gpu, 'vectors', vectors);
        const buffers = [await words([0, 2, 0]), weights];
        if (shape.out !== null && shape.out !== 'copy') buffers.push(weights);
        buffers.push(xs);
        if (shape.branch) buffers.push(fs);
        if (shape.out !== null) buffers.push(out);
        const count = want.out ? want.out.length / WIDTH : rows;
        await run(normKernel({ ...base, ...shape, layerNorm }), [count], ...buffers);
        if (want.x) near(await floats(xs), padded(want.x, WIDTH, STRIDE), 2e-6);
        if (want.out)
          near((await floats(out)).subarray(0, count * STRIDE), padded(want.out, WIDTH, STRIDE), 5e-6);
      });
    }

    // ---- heads and attention -----------------------------------------------------------------------------------

    const [HEADS, KV_HEADS, HEAD, PAGES] = [4, 2, 24, 4];
    const KV_ROWS = PAGES * KV_PAGE;
    const QKV = (HEADS + 2 * KV_HEADS) * HEAD;
    const CACHE = 1 << 20;
    const [TABLE, HEAD_AT, OUT_AT, SCORES] = [64, 8192, 65536, 131072];
    /** Two sequences: pages 2, 0 and 3; 40 and 7 positions before. */
    const tables = [2, 0, 3, 0];
    const step = [40, 7, 0, 1, ...tables];
    const shape: HeadsShape = {
      heads: HEADS,
      kvHeads: KV_HEADS,
      headDim: HEAD,
      kvRows: KV_ROWS,
      kvFormat: 'f32',
      rotaryDims: 16,
      bias: 0,
      qNorm: QKV,
      kNorm: QKV + HEAD,
      biasOnValuesOnly: false,
      epsilon: 1e-5,
      position: 0,
      slot: 2,
      tables: 4,
      tablePages: 2,
    };
    const rowOf = (slot: number, p: number): number => tables[slot * 2 + Math.floor(p / KV_PAGE)] * KV_PAGE + (p % KV_PAGE); // prettier-ignore

    const kvWords = (format: KvFormat): number => KV_HEADS * KV_ROWS * kvRowWords(format, HEAD);
    /** The reference's cache of one head, as the GPU has it. */
    function cacheWords(format: KvFormat, data: number, scales: number): Uint32Array {
      const row = kvRowWords(format, HEAD);
      const out = new Uint32Array(kvWords(format));
      for (let r = 0; r < KV_HEADS * KV_ROWS; r++) {
        const bytes = format === 'f32' ? HEAD * 4 : HEAD;
        const from = new Uint8Array(memory.buffer, data + r * bytes, bytes);
        new Uint8Array(out.buffer, r * row * 4, bytes).set(from);
        if (format === 'q8') out[r * row + HEAD / 4] = u32[scales / 4 + r];
      }
      return out;
    }

    describe.each<KvFormat>(['f32', 'q8'])('with a cache in %s', (format) => {
      it('gives heads their bias, norm, angle and place', async () => {
        const qkv = randomFloats(2 * QKV, 5);
        const vector = randomFloats(QKV + 2 * HEAD, 6);
        const angles = randomFloats(64 * 8 * 2, 7);
        const buffers = await Promise.all([
          words(step),
          createFrom(gpu, 'vectors', vector),
          createFrom(gpu, 'angles', angles),
          createFrom(gpu, 'qkv', qkv),
          createStorage(gpu, 'keys', kvWords(format) * 4),
          createStorage(gpu, 'values', kvWords(format) * 4),
        ]);
        await run(headsKernel({ ...shape, kvFormat: format }), [HEADS + 2 * KV_HEADS, 2], ...buffers);

        const expected = qkv.slice();
        const bytes = format === 'f32' ? HEAD * 4 : HEAD;
        const [keys, values] = [CACHE, CACHE * 2];
        const [keyScales, valueScales] = [CACHE * 3, CACHE * 3 + 65536];
        u32.fill(0, CACHE / 4);
        f32.set(vector, 512);
        for (let t = 0; t < 2; t++) {
          const position = step[t];
          for (let half = 0; half < 8; half++) {
            f32[4096 + half] = angles[(position * 8 + half) * 2];
            f32[4112 + half] = angles[(position * 8 + half) * 2 + 1];
          }
          for (let u = 0; u < HEADS + 2 * KV_HEADS; u++) {
            const at = t * QKV + u * HEAD;
            f32.set(qkv.subarray(at, at + HEAD), HEAD_AT / 4);
            reference.addScaled(HEAD_AT, 2048 + u * HEAD * 4, 1, HEAD);
            if (u < HEADS + KV_HEADS) {
              const weight = 2048 + (QKV + (u < HEADS ? 0 : HEAD)) * 4;
              reference.rmsNorm(HEAD_AT, weight, HEAD_AT, HEAD, 1e-5);
              reference.rope(HEAD_AT, 4096 * 4, 4112 * 4, 16);
            }
            if (u < HEADS) expected.set(f32.subarray(HEAD_AT / 4, HEAD_AT / 4 + HEAD), at);
            else {
              const kv = (u - HEADS) % KV_HEADS;
              const isValue = u >= HEADS + KV_HEADS;
              const data = (isValue ? values : keys) + kv * KV_ROWS * bytes;
              const scales = (isValue ? valueScales : keyScales) + kv * KV_ROWS * 4;
              reference.storeKv(format, HEAD_AT, data, scales, rowOf(t, position), HEAD);
            }
          }
        }
        const result = await floats(buffers[3]);
        for (let t = 0; t < 2; t++) {
          const q = (all: Float32Array) => all.subarray(t * QKV, t * QKV + HEADS * HEAD);
          near(q(result), q(expected), 5e-6);
        }
        for (const [buffer, data, scales] of [
          [buffers[4], keys, keyScales],
          [buffers[5], values, valueScales],
        ] as const) {
          const want = cacheWords(format, data, scales);
          const got = new Uint32Array((await readBuffer(gpu, buffer)).buffer);
          if (format === 'f32') near(new Float32Array(got.buffer), new Float32Array(want.buffer), 5e-6);
          else {
            // Codes may differ by one where a value lies between two.
            const codes = (all: Uint32Array) => new Int8Array(all.buffer);
            for (let r = 0; r < KV_HEADS * KV_ROWS; r++) {
              const at = r * kvRowWords('q8', HEAD);
              near(
                codes(got).subarray(4 * at, 4 * at + HEAD),
                codes(want).subarray(4 * at, 4 * at + HEAD),
                1.5,
              );
              const scale = (all: Uint32Array) => new Float32Array(all.buffer)[at + HEAD / 4];
              expect(scale(got)).toBeCloseTo(scale(want), 5);
            }
          }
        }
      });

      it.each([Infinity, 9])('attends over pages, seeing %s positions', async (window) => {
        const bytes = format === 'f32' ? HEAD * 4 : HEAD;
        const [keys, values] = [CACHE, CACHE * 2];
        const [keyScales, valueScales] = [CACHE * 3, CACHE * 3 + 65536];
        for (const [data, scales, seed] of [
          [keys, keyScales, 11],
          [values, valueScales, 12],
        ]) {
          const content = randomFloats(KV_HEADS * KV_ROWS * HEAD, seed);
          for (let r = 0; r < KV_HEADS * KV_ROWS; r++) {
            f32.set(content.subarray(r * HEAD, (r + 1) * HEAD), HEAD_AT / 4);
            reference.storeKv(format, HEAD_AT, data, scales, r, HEAD);
          }
        }
        const qkv = randomFloats(2 * QKV, 13);
        const outStride = HEADS * HEAD + 32;
        const buffers = await Promise.all([
          words(step),
          createFrom(gpu, 'qkv', qkv),
          createFrom(gpu, 'keys', cacheWords(format, keys, keyScales)),
          createFrom(gpu, 'values', cacheWords(format, values, valueScales)),
          createStorage(gpu, 'out', 2 * outStride * 4),
        ]);
        const text = attentionKernel({ ...shape, kvFormat: format, outStride, scale: 0.3, window });
        await run(text, [HEADS, 2], ...buffers);

        const expected = new Float32Array(2 * outStride);
        for (let t = 0; t < 2; t++) {
          u32.set(tables.slice(t * 2, t * 2 + 2), TABLE / 4);
          for (let h = 0; h < HEADS; h++) {
            f32.set(qkv.subarray(t * QKV + h * HEAD, t * QKV + (h + 1) * HEAD), HEAD_AT / 4);
            const kv = Math.floor(h / (HEADS / KV_HEADS)) * KV_ROWS;
            const [k, v] = [keys + kv * bytes, values + kv * bytes];
            const begin = Math.max(0, step[t] + 1 - window);
            reference.attention(format, HEAD_AT, k, keyScales + kv * 4, v, valueScales + kv * 4, TABLE, OUT_AT, SCORES, 1, begin, step[t] + 1, HEAD, 0.3); // prettier-ignore
            expected.set(f32.subarray(OUT_AT / 4, OUT_AT / 4 + HEAD), t * outStride + h * HEAD);
          }
        }
        near(await floats(buffers[4]), expected, 5e-6);
      });
    });

    // ---- embedding -----------------------------------------------------------------------------------------------

    it.each(WEIGHT_FORMATS)('reads embedding rows in %s, from the part that has them', async (format) => {
      const [tableRows, cols] = [6, 160];
      const stride = rowBytes(format, cols);
      f32.set(randomFloats(tableRows * cols, 21), CACHE / 4);
      reference.quantizeRows(format, CACHE, cols * 4, tableRows, CACHE * 2, stride, cols);
      const table = new Uint8Array(memory.buffer, CACHE * 2, tableRows * stride).slice();
      const tokens = [4, 1, 5];
      const step = await words([0, ...tokens]);
      const out = await createFrom(gpu, 'x', new Float32Array(3 * cols).fill(1));
      for (const [firstRow, count] of [
        [0, 4],
        [4, 2],
      ]) {
        const part = await createFrom(
          gpu,
          'part',
          table.slice(firstRow * stride, (firstRow + count) * stride),
        );
        const text = embedKernel({ format, cols, stride, outStride: cols, firstRow, rows: count, source: 1, shift: 0, scale: 2, add: true }); // prettier-ignore
        await run(text, [embedGroups(cols), 3], step, part, out);
      }
      const expected = tokens.flatMap((token) => {
        reference.dequantizeRow(format, CACHE * 2 + token * stride, CACHE * 3, cols);
        return Array.from(f32.subarray((CACHE * 3) / 4, (CACHE * 3) / 4 + cols), (v) => 1 + 2 * v);
      });
      near(await floats(out), expected, 1e-6);
    });
  },
);
