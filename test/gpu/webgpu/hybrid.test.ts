/** Hot neurons and large matrices on the GPU, the rest on the lanes at the same time: any share gives the same text. */
import { afterAll, describe, expect, it } from 'vitest';
import { Engine } from '../../../src/engine/engine.js';
import { openGpu } from '../../../src/gpu/open-gpu.js';
import type { GpuPlacement } from '../../../src/gpu/hot-ffn.js';
import { openPack } from '../../../src/pack/reader.js';
import { baseConfig, writeModel } from '../../helpers/any-model.js';
import { writeTinyFolder } from '../../helpers/tiny-models.js';
import { GREEDY, packOf, removePacks } from '../../engine/open.js';
import { sketchPlan } from '../../engine/plans.js';
import { reason } from './adapter.js';
import { distance, openOnGpu, TINY } from './open.js';

afterAll(removePacks);

const NFF = 96;
const PROMPT = Array.from({ length: 21 }, (_, i) => (i * 31 + 5) % 288);
/** Only the order of sums differs. */
const TOLERANCE = 1e-4;

/** Every layer's first neurons of a shuffled order, and what else is wanted there. */
function share(
  part: number,
  rest: Partial<{ qkv: boolean; o: boolean; lmHead: boolean }> = {},
): GpuPlacement {
  const shuffled = Array.from({ length: NFF }, (_, i) => (i * 37) % NFF);
  const hotNeurons = Uint32Array.from(shuffled.slice(0, part * NFF)).sort();
  const layer = { qkv: rest.qkv ?? false, o: rest.o ?? false, hotNeurons };
  return { weights: 'rows', lmHead: rest.lmHead ?? false, layers: [layer, layer] };
}
const everything = { qkv: true, o: true, lmHead: true };

describe.skipIf(reason !== null)(`hybrid on WebGPU${reason ? ` (skipped: ${reason})` : ''}`, () => {
  const folder = writeTinyFolder({ attentionBias: true });
  const request = { prompt: PROMPT, maxTokens: 8, sampling: GREEDY };
  const onCpu = async (model: string, quant: 'f32', options = {}) => {
    const cpu = await Engine.open(openPack(await packOf(model, quant)), { ...TINY, ...options });
    const { logits } = await cpu.logits({ tokens: PROMPT });
    const { tokens } = await cpu.generate(request);
    await cpu.close();
    return { logits, tokens };
  };

  it('gives the same text at 25, 50 and 100 % of the FFN, and with everything but attention there', async () => {
    const cpu = await onCpu(folder, 'f32', { ffn: 'exact' });
    const placements = [share(0.25), share(0.5), share(1), share(0.5, everything), share(1, everything)];
    for (const [i, where] of placements.entries()) {
      const { engine, close } = await openOnGpu(folder, 'f32', where, { ffn: 'exact' });
      const { logits } = await engine.logits({ tokens: PROMPT });
      expect(distance(logits, cpu.logits)).toBeLessThan(TOLERANCE);
      expect((await engine.generate(request)).tokens, `placement ${i}`).toEqual(cpu.tokens);
      await close();
    }
  }, 120_000);

  it.each(['q8', 'q4'] as const)(
    'reads the rows of %s packs as whole models do',
    async (quant) => {
      // On the lanes nothing is left but attention, whose cache rounds nothing here.
      const options = { ffn: 'exact' as const, kvCache: 'f32' as const };
      const whole = await openOnGpu(folder, quant, 'whole', options);
      const units = await openOnGpu(folder, quant, share(1, everything), options);
      const [a, b] = [
        await whole.engine.logits({ tokens: PROMPT }),
        await units.engine.logits({ tokens: PROMPT }),
      ];
      expect(distance(b.logits, a.logits)).toBeLessThan(TOLERANCE);
      await Promise.all([whole.close(), units.close()]);
    },
    60_000,
  );

  it('leaves cold neurons to the predictor', async () => {
    const plan = await sketchPlan(folder);
    const { engine, close } = await openOnGpu(folder, 'f32', share(0.5), { plan, ffn: 'predicted' });
    const all = await openOnGpu(folder, 'f32', share(1), { plan, ffn: 'predicted' });
    const cpu = await onCpu(folder, 'f32', { ffn: 'exact' });
    // All neurons on the GPU: nothing is left that a predictor could miss.
    expect(distance((await all.engine.logits({ tokens: PROMPT })).logits, cpu.logits)).toBeLessThan(TOLERANCE); // prettier-ignore
    expect((await engine.generate(request)).stats.predictedSparsity).toBeLessThan(1);
    await Promise.all([close(), all.close()]);
  }, 60_000);

  it.each<[string, Record<string, unknown>]>([
    ['OPTForCausalLM', { ffn_dim: NFF, word_embed_proj_dim: 16, do_layer_norm_before: false }],
    [
      'LlamaForCausalLM',
      { mlp_bias: true, attention_bias: true, intermediate_size: NFF, hidden_act: 'gelu' },
    ],
  ])(
    'computes FFNs without a gate, with biases, with GELU: %s',
    async (architecture, fields) => {
      const model = writeModel(baseConfig(architecture, fields));
      const cpu = await onCpu(model, 'f32');
      const { engine, close } = await openOnGpu(model, 'f32', share(0.5, everything));
      expect(distance((await engine.logits({ tokens: PROMPT })).logits, cpu.logits)).toBeLessThan(TOLERANCE);
      await close();
    },
    60_000,
  );

  it('ends with one error when the device is lost in the middle of a unit, or goes on on the CPU', async () => {
    const lost = await openOnGpu(folder, 'f32', share(0.5), { failAfterRuns: 5 });
    await expect(lost.engine.generate(request)).rejects.toMatchObject({ code: 'GPU_FAILED' });
    await lost.close();
    const cpu = await onCpu(folder, 'f32');
    const left = await openOnGpu(folder, 'f32', share(0.5), { failAfterRuns: 5, onFailure: 'cpu' });
    const run = await left.engine.generate(request);
    expect(run.tokens).toEqual(cpu.tokens);
    expect(run.stats.gpu!.failure).not.toBe('');
    await left.close();
  }, 60_000);

  it('chooses: the whole model where it fits, hot neurons in less memory', async () => {
    const pack = openPack(await packOf(folder, 'f32'));
    const base = {
      pack,
      choice: 'webgpu' as const,
      plan: null,
      ffn: 'exact' as const,
      lanes: 1,
      maxTokens: 16,
    };
    const whole = { contextLength: 64, slots: 4, kvPages: 5, kvFormat: 'f32' as const };
    const all = await openGpu({ ...base, whole });
    expect(all).toMatchObject({ whole: true, placement: null });
    expect(all.note).toMatch(/^webgpu, the whole model/);
    await all.close();
    const some = await openGpu({ ...base, whole, budgetBytes: 60_000 });
    expect(some, some.note).toMatchObject({ whole: false });
    expect(some.placement!.layers[0].hotNeurons.length).toBeGreaterThan(0);
    await some.close();
    pack.close();
  }, 120_000);
});
