/** The choice of a token on the GPU against the sampler's. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { GREEDY, SamplerScratch, TokenChooser, type SamplingOptions } from '../../../src/engine/sampler.js';
import { NOT_CHOSEN, NOT_FINITE, Wanted } from '../../../src/engine/step.js';
import { createFrom, createStorage, readBuffer } from '../../../src/gpu/webgpu/buffers.js';
import { GpuDevice } from '../../../src/gpu/webgpu/device.js';
import { encodePass } from '../../../src/gpu/webgpu/kernel.js';
import { chooseKernel } from '../../../src/gpu/webgpu/kernels/choose.js';
import { randomFloats } from '../memory-pack.js';
import { reason } from './adapter.js';

const VOCAB = 1000;

describe.skipIf(reason !== null)(
  `choosing on the GPU${reason === null ? '' : ` (skipped: ${reason})`}`,
  () => {
    let gpu: GpuDevice;
    beforeAll(async () => void (gpu = await GpuDevice.open()));
    afterAll(() => gpu.close());

    /** One token for each row of logits. */
    async function choose(
      logits: Float32Array,
      wanted: number,
      { topK = 0, draws = [0, 0, 0, 0], scale = 1 }: { topK?: number; draws?: number[]; scale?: number } = {},
    ): Promise<number[]> {
      const rows = logits.length / VOCAB;
      const step = new Uint32Array(rows * 6);
      const floats = new Float32Array(step.buffer);
      for (let i = 0; i < rows; i++) {
        step[i] = wanted;
        step[rows + i] = topK;
        floats.set(draws, 2 * rows + 4 * i);
      }
      const text = chooseKernel({
        vocabSize: VOCAB,
        logitScale: scale,
        wanted: 0,
        topK: rows,
        draws: 2 * rows,
      });
      const kernel = await gpu.kernel(text);
      const chosen = await createStorage(gpu, 'chosen', rows * 4);
      const bindings = kernel.bind(await createFrom(gpu, 'step', step), await createFrom(gpu, 'logits', logits), chosen); // prettier-ignore
      gpu.submit((encoder) => encodePass(encoder, [{ kernel, bindings, workgroups: [rows] }]));
      return [...new Int32Array((await readBuffer(gpu, chosen)).buffer)];
    }

    const chooser = (options: Partial<SamplingOptions>): TokenChooser =>
      new TokenChooser(new SamplerScratch(VOCAB), { ...GREEDY, ...options });

    it('takes the likeliest token, the first of equal ones', async () => {
      const logits = randomFloats(3 * VOCAB, 1);
      for (const id of [17, 400, 999]) logits[id] = 50;
      logits[2 * VOCAB] = 60;
      const tokens = await choose(logits, Wanted.GREEDY);
      expect(tokens).toEqual([17, chooser({}).next(logits.slice(VOCAB, 2 * VOCAB)), 0]);
    });

    it('says when a logit is no finite number, or none is allowed', async () => {
      const logits = randomFloats(4 * VOCAB, 2);
      logits[5] = NaN;
      logits[VOCAB + 5] = Infinity;
      logits.fill(-Infinity, 2 * VOCAB, 3 * VOCAB);
      logits[3 * VOCAB + 5] = -Infinity;
      const tokens = await choose(logits, Wanted.GREEDY);
      expect(tokens.slice(0, 3)).toEqual([NOT_FINITE, NOT_FINITE, NOT_FINITE]);
      expect(tokens[3]).toBeGreaterThanOrEqual(0);
    });

    it('leaves the choice to who wants the logits', async () => {
      expect(await choose(randomFloats(VOCAB, 3), Wanted.LOGITS)).toEqual([NOT_CHOSEN]);
    });

    it.each<[string, Partial<SamplingOptions>]>([
      ['top-k', { temperature: 1, topK: 5 }],
      ['top-k and top-p', { temperature: 0.8, topK: 40, topP: 0.7 }],
      ['top-k, top-p and min-p', { temperature: 1.5, topK: 200, topP: 0.95, minP: 0.05 }],
      ['a single candidate', { temperature: 1, topK: 1 }],
    ])('draws as the sampler does: %s', async (_, options) => {
      const rows = 24;
      const logits = randomFloats(rows * VOCAB, 4).map((v) => 3 * v);
      // Ties across the border of the k largest: the lowest ids stay.
      for (let i = 0; i < rows; i += 2) logits.fill(2.5, i * VOCAB + 100, i * VOCAB + 500);
      const cpu: number[] = [];
      const gpuTokens: number[] = [];
      for (let i = 0; i < rows; i++) {
        const row = logits.slice(i * VOCAB, (i + 1) * VOCAB);
        const one = chooser({ ...options, seed: i });
        const { topK, temperature, topP, minP, random } = one.delegate(0) as Exclude<
          ReturnType<TokenChooser['delegate']>,
          'greedy' | null
        >;
        gpuTokens.push(
          ...(await choose(row, Wanted.DRAW, { topK, draws: [temperature, topP, minP, random] })),
        );
        cpu.push(one.next(row));
      }
      // f32 instead of f64: a draw at the border of two tokens may fall to the other one.
      const different = cpu.filter((token, i) => token !== gpuTokens[i]).length;
      expect(different).toBeLessThanOrEqual(1);
      if (options.topK !== 1) expect(new Set(cpu).size).toBeGreaterThan(3);
    });

    it('looks ahead to the numbers that later choices will draw', () => {
      const [a, b] = [
        chooser({ temperature: 1, topK: 3, seed: 9 }),
        chooser({ temperature: 1, topK: 3, seed: 9 }),
      ];
      const second = a.delegate(1);
      b.delegated();
      expect(b.delegate(0)).toEqual(second);
      expect(chooser({ repetitionPenalty: 1.1, repetitionWindow: 8 }).delegate(0)).toBeNull();
    });
  },
);
