/** Cuts of activations without zeros: what FFN modes leave out, against a float64 pass that zeroes the same neurons. */
import { afterAll, describe, expect, it } from 'vitest';
import type { ActivationCut } from '../../src/engine/ffn-plan.js';
import { packSource } from '../../src/pack/pack-source.js';
import { openPack } from '../../src/pack/reader.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { openEngine, packOf, removePacks } from './open.js';
import { plainForward } from './plain-forward.js';
import { contributionPlan } from './plans.js';

afterAll(removePacks);

const TOKENS = Array.from({ length: 21 }, (_, i) => (i * 31 + 5) % 288);

const MODELS: [string, string, Record<string, unknown>][] = [
  ['silu', 'LlamaForCausalLM', { hidden_act: 'silu' }],
  ['silu with biases in the FFN', 'LlamaForCausalLM', { hidden_act: 'silu', mlp_bias: true }],
  ['gelu without a gate', 'FalconForCausalLM', { activation: 'gelu', bias: true }],
  ['gelu_tanh', 'LlamaForCausalLM', { hidden_act: 'gelu_pytorch_tanh' }],
  ['gelu_quick', 'LlamaForCausalLM', { hidden_act: 'quick_gelu' }],
  [
    'experts with silu',
    'MixtralForCausalLM',
    { hidden_act: 'silu', num_local_experts: 4, num_experts_per_tok: 2 },
  ],
];

const NONE: ActivationCut = { gate: 0, contribution: 0 };

describe.each(MODELS)('%s', (_, architecture, fields) => {
  const folder = writeModel(baseConfig(architecture, fields));
  const reference = async (cut: ActivationCut | null) => {
    const source = packSource(openPack(await packOf(folder, 'f32')));
    const layers = source.config.layers;
    const cuts = cut ? new Array<ActivationCut>(layers).fill(cut) : undefined;
    const { logits, sparsity } = await plainForward(source, TOKENS, { cuts });
    await source.close();
    return { values: logits.flatMap((row) => [...row]), sparsity };
  };
  const difference = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
    const largest = Array.from(b).reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    return Array.from(a).reduce((m, v, i) => Math.max(m, Math.abs(v - b[i])), 0) / largest;
  };

  it('dense knows no cut', async () => {
    const cuts = { exact: { gate: 0.1, contribution: 0 }, predicted: { gate: 0, contribution: 0.3 } };
    const plan = await contributionPlan(folder, cuts, 0.1);
    const engine = await openEngine(folder, 'f32', { plan });
    const { logits } = await engine.logits({ tokens: TOKENS, ffn: 'dense' });
    expect(difference(logits, (await reference(null)).values)).toBeLessThan(1e-5);
    await engine.close();
  });

  it('exact with a gate cut computes what is left when these neurons are zero', async () => {
    const cut = { gate: 0.12, contribution: 0 };
    const plan = await contributionPlan(folder, { exact: cut, predicted: NONE }, 0);
    const engine = await openEngine(folder, 'f32', { plan, ffn: 'exact' });
    const got = await engine.logits({ tokens: TOKENS });
    const wanted = await reference(cut);
    expect(difference(got.logits, wanted.values)).toBeLessThan(1e-5);
    got.layers.forEach((layer, l) => {
      expect(layer.sparsity).toBeCloseTo(wanted.sparsity[l], 6);
      expect(layer.sparsity).toBeGreaterThan(0.15);
      expect(layer.gated).toBeLessThan(layer.candidates);
    });
    await engine.close();
  });

  it('predicted with a contribution cut does too, and equals exact where recall is 1', async () => {
    const cut = { gate: 0, contribution: 0.15 };
    const plan = await contributionPlan(folder, { exact: cut, predicted: cut }, -1);
    const engine = await openEngine(folder, 'f32', { plan });
    const got = await engine.logits({ tokens: TOKENS, measureRecall: true });
    const wanted = await reference(cut);
    expect(difference(got.logits, wanted.values)).toBeLessThan(1e-5);
    got.layers.forEach((layer, l) => {
      expect([layer.recall, layer.weightedRecall]).toEqual([1, 1]);
      expect(layer.sparsity).toBeCloseTo(wanted.sparsity[l], 6);
      expect(layer.sparsity).toBeGreaterThan(0.15);
    });
    const exact = await engine.logits({ tokens: TOKENS, ffn: 'exact' });
    expect(exact.logits).toEqual(got.logits);
    await engine.close();
  });

  it('scores are contributions: candidates are the neurons whose |x1| is above the cut', async () => {
    const plan = await contributionPlan(folder, { exact: NONE, predicted: NONE }, 0.1);
    const engine = await openEngine(folder, 'f32', { plan });
    const dense = await engine.logits({ tokens: TOKENS, ffn: 'exact', trace: { activations: true } });
    const got = await engine.logits({ tokens: TOKENS });
    const { intermediateSize: nFf, block } = engine.layout.config;
    // Of a mixture only chosen experts are scored, and recordings hold x1 times the expert's weight.
    if (block.ffn.experts === null) {
      const x1 = dense.activations!.subarray(0, TOKENS.length * nFf);
      const above = x1.filter((value) => Math.abs(value) >= 0.1).length;
      expect(got.layers[0].candidates * TOKENS.length).toBeCloseTo(above, -0.5);
    }
    expect(got.layers[0].candidates).toBeGreaterThan(0);
    expect(got.layers[0].candidates).toBeLessThan(0.9 * nFf);
    await engine.close();
  });
});

describe('a model without zeros and without cuts', () => {
  const folder = writeModel(baseConfig('LlamaForCausalLM', { hidden_act: 'silu' }));

  it.each(['exact', 'predicted'] as const)(
    'refuses FFN mode %s by name, and says what to do',
    async (ffn) => {
      await expect(openEngine(folder, 'f32', { ffn })).rejects.toThrow(/silu, which has none/);
    },
  );

  it('runs dense', async () => {
    const engine = await openEngine(folder, 'f32');
    expect(engine.ffn).toBe('dense');
    await engine.close();
  });
});
