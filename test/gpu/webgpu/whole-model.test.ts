/** Whole models on the GPU against the CPU: architectures, FFN modes, formats, companions, and a lost device. */
import { afterAll, describe, expect, it } from 'vitest';
import { Engine } from '../../../src/engine/engine.js';
import type { LayerDensity } from '../../../src/engine/stats.js';
import { unsupportedWhole } from '../../../src/gpu/webgpu/fits.js';
import { openModel } from '../../../src/model/open-model.js';
import { openPack } from '../../../src/pack/reader.js';
import { baseConfig, randomTensors, writeModel } from '../../helpers/any-model.js';
import { ROWS } from '../../helpers/architecture-rows.js';
import { writeTinyFolder } from '../../helpers/tiny-models.js';
import { DEMO, GREEDY, packOf, removePacks } from '../../engine/open.js';
import { contributionPlan, sketchPlan } from '../../engine/plans.js';
import { reason } from './adapter.js';
import { distance, openOnGpu, TINY } from './open.js';

afterAll(removePacks);

const TOKENS = Array.from({ length: 37 }, (_, i) => (i * 53 + 7) % 288);
/** f32: only the order of sums differs. Quantised: the CPU rounds activations to 8 bits, the GPU does not. */
const TOLERANCE = { f32: 1e-4, q8: 2e-2, q4: 2e-2 };

const MODELS: [string, string, Record<string, unknown>][] = [
  ...ROWS.map(([name, fields]): [string, string, Record<string, unknown>] => [name, name, fields]),
  ['OPT with norms before', 'OPTForCausalLM', { ffn_dim: 48, activation_function: 'relu' }],
  ['OPT without its final norm', 'OPTForCausalLM', { ffn_dim: 48, _remove_final_layer_norm: true }],
  ['Falcon with biases', 'FalconForCausalLM', { activation: 'relu', bias: true, parallel_attn: false }],
  [
    'StableLM in parallel',
    'StableLmForCausalLM',
    { use_parallel_residual: true, partial_rotary_factor: 0.5 },
  ],
];

const open = async (folder: string, quant: 'f32' | 'q8' | 'q4', options = {}) =>
  Engine.open(openPack(await packOf(folder, quant)), { ...TINY, ...options });

describe.skipIf(reason !== null)(`whole models on WebGPU${reason ? ` (skipped: ${reason})` : ''}`, () => {
  it.each(MODELS)(
    'computes what the CPU computes: %s',
    async (_, architecture, fields) => {
      const folder = writeModel(baseConfig(architecture, fields));
      const source = await openModel(folder);
      const shape = { contextLength: 64, slots: 4, kvPages: 5, kvFormat: 'f32' as const };
      const refused = unsupportedWhole(source.config, shape);
      await source.close();
      if (refused !== null) return expect(refused).toMatch(/mixtures of experts|a norm between x1/);
      const cpu = await open(folder, 'f32');
      const { engine, close } = await openOnGpu(folder, 'f32', 'whole');
      const [a, b] = [await cpu.logits({ tokens: TOKENS }), await engine.logits({ tokens: TOKENS })];
      expect(distance(b.logits, a.logits)).toBeLessThan(TOLERANCE.f32);
      const request = { prompt: TOKENS.slice(0, 9), maxTokens: 8, sampling: GREEDY };
      const [x, y] = [await cpu.generate(request), await engine.generate(request)];
      expect(y.tokens).toEqual(x.tokens);
      await Promise.all([cpu.close(), close()]);
    },
    120_000,
  );

  it.each(['q8', 'q4'] as const)(
    'is near the CPU with the demo model in %s',
    async (quant) => {
      const cpu = await open(DEMO, quant);
      const { engine, close } = await openOnGpu(DEMO, quant, 'whole');
      const tokens = [355, 278, 289, 690];
      const [a, b] = [await cpu.logits({ tokens }), await engine.logits({ tokens })];
      expect(distance(b.logits, a.logits)).toBeLessThan(TOLERANCE[quant]);
      await Promise.all([cpu.close(), close()]);
    },
    120_000,
  );

  describe('with predictors of contributions', () => {
    const cuts = { exact: { gate: 0.05, contribution: 0 }, predicted: { gate: 0, contribution: 0.02 } };

    it.each<[string, string, Record<string, unknown>]>([
      ['sketches of up behind the gate', 'LlamaForCausalLM', { hidden_act: 'silu', mlp_bias: true }],
      ['scores of a plain FFN', 'FalconForCausalLM', { activation: 'gelu', bias: true }],
    ])(
      'chooses and counts as the CPU does: %s',
      async (_, architecture, fields) => {
        const folder = writeModel(baseConfig(architecture, fields));
        const plan = await contributionPlan(folder, cuts, 0.05, 1);
        const cpu = await open(folder, 'f32', { plan });
        const { engine, close } = await openOnGpu(folder, 'f32', 'whole', { plan });
        for (const ffn of [undefined, 'exact'] as const) {
          const [a, b] = [
            await cpu.logits({ tokens: TOKENS, ffn }),
            await engine.logits({ tokens: TOKENS, ffn }),
          ];
          expect(distance(b.logits, a.logits)).toBeLessThan(TOLERANCE.f32);
          const chosen = ({ candidates, gates, scored }: LayerDensity) => ({ candidates, gates, scored });
          expect(b.layers.map(chosen)).toEqual(a.layers.map(chosen));
          expect(a.layers[0].gated).toBeLessThan(engine.layout.config.intermediateSize);
          expect(b.layers.map(({ sparsity }) => sparsity)).toEqual(a.layers.map(({ sparsity }) => sparsity));
        }
        await Promise.all([cpu.close(), close()]);
      },
      120_000,
    );
  });

  describe('with FFN modes', () => {
    const folder = writeTinyFolder({ attentionBias: true });

    it.each(['f32', 'q8', 'q4'] as const)(
      'computes dense, exact and predicted FFNs of %s packs',
      async (quant) => {
        const plan = await sketchPlan(folder);
        const cpu = await open(folder, quant, { plan, ffn: 'predicted' });
        const { engine, close } = await openOnGpu(folder, quant, 'whole', { plan, ffn: 'predicted' });
        const all = await cpu.logits({ tokens: TOKENS });
        const predicted = await engine.logits({ tokens: TOKENS });
        expect(distance(predicted.logits, all.logits)).toBeLessThan(TOLERANCE[quant]);
        if (quant === 'f32') expect(predicted.layers).toEqual(all.layers);
        for (const ffn of ['dense', 'exact'] as const) {
          const [a, b] = [
            await cpu.logits({ tokens: TOKENS, ffn }),
            await engine.logits({ tokens: TOKENS, ffn }),
          ];
          expect(distance(b.logits, a.logits)).toBeLessThan(TOLERANCE[quant]);
          if (quant === 'f32') expect(b.layers).toEqual(a.layers);
        }
        await Promise.all([cpu.close(), close()]);
      },
      120_000,
    );

    it('gives a text that does not depend on what runs beside it, or how its prompt is cut', async () => {
      const { engine, close } = await openOnGpu(folder, 'q8', 'whole', { ffn: 'exact' });
      const request = (prompt: number[], seed: number) => ({
        prompt,
        maxTokens: 10,
        sampling: { ...GREEDY, temperature: 0.8, topK: 20, topP: 0.95, seed },
        cachePrompt: false,
      });
      const prompts = [TOKENS.slice(0, 5), TOKENS.slice(3, 24), TOKENS.slice(10, 12)];
      const alone = [];
      for (const [i, prompt] of prompts.entries())
        alone.push((await engine.generate(request(prompt, i))).tokens);
      const together = await Promise.all(prompts.map((prompt, i) => engine.generate(request(prompt, i))));
      expect(together.map(({ tokens }) => tokens)).toEqual(alone);
      await close();
    }, 120_000);

    it('shares prefixes, speculates, and gives logits to whoever needs all of them', async () => {
      const cpu = await open(folder, 'f32');
      const { engine, close } = await openOnGpu(folder, 'f32', 'whole');
      const base = { prompt: [...TOKENS, ...TOKENS.slice(0, 8)], maxTokens: 8, sampling: GREEDY };
      const requests = [
        base,
        base, // the prompt stands in the cache
        { ...base, speculate: 'ngram' as const },
        { ...base, logprobs: 2 },
        { ...base, sampling: { ...GREEDY, repetitionPenalty: 1.3, repetitionWindow: 16 } },
        { ...base, mask: () => new Uint32Array(9).fill(0x55555555) },
        { ...base, sampling: { ...GREEDY, temperature: 1.2, topK: 0, seed: 4 } },
      ];
      for (const [i, request] of requests.entries()) {
        const [a, b] = [await cpu.generate(request), await engine.generate(request)];
        expect(b.tokens, `request ${i}`).toEqual(a.tokens);
        if (i === 1) expect(b.stats.cachedPromptTokens).toBe(a.stats.cachedPromptTokens);
        if (i === 3) expect(b.logprobs![0].logprob).toBeCloseTo(a.logprobs![0].logprob, 4);
      }
      const [a, b] = [
        await cpu.logits({ tokens: TOKENS, logits: false, hidden: true }),
        await engine.logits({ tokens: TOKENS, logits: false, hidden: true }),
      ];
      expect(distance(b.hidden!, a.hidden!)).toBeLessThan(TOLERANCE.f32);
      await Promise.all([cpu.close(), close()]);
    }, 120_000);

    it('records on the CPU, and refuses to measure recall by name', async () => {
      const { engine, close } = await openOnGpu(folder, 'f32', 'whole', { ffn: 'exact' });
      const traced = await engine.logits({ tokens: TOKENS, trace: { gates: true } });
      expect(traced.gates!.some((gate) => gate !== 0)).toBe(true);
      const measured = engine.logits({ tokens: TOKENS, measureRecall: true });
      await expect(measured).rejects.toMatchObject({ code: 'USAGE', message: /recall/ });
      await close();
    }, 60_000);

    it('ends with one error when the device is lost in the middle of a step', async () => {
      const { engine, close } = await openOnGpu(folder, 'f32', 'whole', { failAfterRuns: 3 });
      const run = engine.generate({ prompt: TOKENS.slice(0, 4), maxTokens: 12, sampling: GREEDY });
      await expect(run).rejects.toMatchObject({ code: 'GPU_FAILED' });
      await close();
    }, 60_000);

    it('goes on with the same text on the CPU where that was left to it', async () => {
      const cpu = await open(folder, 'f32');
      const options = { failAfterRuns: 3, onFailure: 'cpu' as const };
      const { engine, close } = await openOnGpu(folder, 'f32', 'whole', options);
      const request = { prompt: TOKENS.slice(0, 4), maxTokens: 12, sampling: GREEDY };
      const run = await engine.generate(request);
      expect(run.tokens).toEqual((await cpu.generate(request)).tokens);
      expect(run.stats.gpu!.failure).toMatch(/lost/);
      expect((await engine.generate(request)).tokens).toEqual(run.tokens);
      await Promise.all([cpu.close(), close()]);
    }, 60_000);

    it('fails the sequence whose numbers are not finite, and no other', async () => {
      const config = baseConfig('LlamaForCausalLM', {});
      const tensors = randomTensors(config);
      // The embedding of token 7.
      tensors.get('model.embed_tokens.weight')!.data.fill(1e38, 7 * 32, 8 * 32);
      const { engine, close } = await openOnGpu(writeModel(config, tensors), 'f32', 'whole');
      const request = (prompt: number[]) => ({ prompt, maxTokens: 6, sampling: GREEDY });
      const [good, bad] = await Promise.allSettled([
        engine.generate(request([3, 4])),
        engine.generate(request([3, 7])),
      ]);
      expect(bad).toMatchObject({ status: 'rejected', reason: { code: 'NUMERIC' } });
      expect(good).toMatchObject({ status: 'fulfilled' });
      expect((await engine.generate(request([3, 4]))).tokens).toHaveLength(6);
      await close();
    }, 60_000);
  });
});
