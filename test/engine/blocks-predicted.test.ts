/** FFN modes `exact` and `predicted` where blocks differ from Llama's: no gate, biases, a norm of x1, experts. */
import { afterAll, describe, expect, it } from 'vitest';
import { bytesPerToken } from '../../src/engine/bytes.js';
import { activeNeurons, expertShape } from '../../src/model/block.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { openEngine, removePacks } from './open.js';
import { sketchPlan } from './plans.js';

afterAll(removePacks);

const TOKENS = Array.from({ length: 29 }, (_, i) => (i * 31 + 5) % 288);
const MIXTURE = { num_local_experts: 4, num_experts_per_tok: 2 };

const MODELS: [string, string, Record<string, unknown>][] = [
  ['no gate, with biases', 'OPTForCausalLM', { ffn_dim: 48 }],
  ['no gate, squared', 'NemotronForCausalLM', { hidden_act: 'relu2' }],
  ['gate, up and down with biases', 'LlamaForCausalLM', { mlp_bias: true }],
  ['a norm of x1', 'BitNetForCausalLM', { hidden_act: 'relu2' }],
  ['parallel branches', 'FalconForCausalLM', { activation: 'relu', bias: true }],
  ['experts', 'MixtralForCausalLM', MIXTURE],
  ['experts with dReLU', 'MixtralForCausalLM', { ...MIXTURE, hidden_act: 'drelu' }],
  [
    'experts chosen before attention',
    'SmallThinkerForCausalLM',
    { hidden_act: null, moe_ffn_hidden_size: 21, ...MIXTURE },
  ],
];

const difference = (a: Float32Array, b: Float32Array): number =>
  a.reduce((worst, v, i) => Math.max(worst, Math.abs(v - b[i])), 0);

describe.each(MODELS)('%s', (_, architecture, fields) => {
  const folder = writeModel(baseConfig(architecture, fields));

  it('predicted equals exact where the predictor finds every active neuron', async () => {
    const exact = await openEngine(folder, 'f32', { ffn: 'exact' });
    const plan = await sketchPlan(folder, -1e-5, Infinity);
    const predicted = await openEngine(folder, 'f32', { ffn: 'predicted', plan });
    const a = await exact.logits({ tokens: TOKENS });
    const b = await predicted.logits({ tokens: TOKENS, measureRecall: true });
    expect(difference(a.logits, b.logits)).toBeLessThan(1e-4);
    b.layers.forEach((layer, l) => {
      expect([layer.recall, layer.weightedRecall]).toEqual([1, 1]);
      expect(layer.sparsity).toBeCloseTo(a.layers[l].sparsity, 3);
      expect(layer.predictedSparsity).toBeGreaterThan(0.3);
    });
    await exact.close();
    await predicted.close();
  });

  it('recall counts what a predictor misses, as recordings have it', async () => {
    const exact = await openEngine(folder, 'f32', { ffn: 'exact' });
    const truth = await exact.logits({ tokens: TOKENS, trace: { activations: true } });
    const plan = await sketchPlan(folder, -1e-5, 3);
    const predicted = await openEngine(folder, 'f32', { ffn: 'predicted', plan });
    const got = await predicted.logits({ tokens: TOKENS, measureRecall: true });
    const { size } = expertShape(exact.layout.config);
    const met = activeNeurons(exact.layout.config);
    const expertAt = (i: number): number => truth.experts?.ids[Math.floor(i / size)] ?? 0;
    const active = [...truth.activations!.subarray(0, TOKENS.length * met)].flatMap((x1, i) =>
      x1 === 0 ? [] : [expertAt(i) * size + (i % size)],
    );
    const found = active.filter((i) => i % 3 !== 0 || i % 11 === 0);
    expect(got.layers[0].recall).toBeCloseTo(found.length / active.length, 6);
    await exact.close();
    await predicted.close();
  });

  it('one token reads the rows of the neurons it meets', async () => {
    const engine = await openEngine(folder, 'f32', { ffn: 'exact' });
    const { layers } = await engine.logits({ tokens: TOKENS });
    const { layout } = engine;
    const met = activeNeurons(layout.config);
    const bytes = bytesPerToken(layout, layers, 10);
    layers.forEach(({ candidates, gated }) => {
      expect(candidates).toBe(met);
      expect(gated).toBeLessThan(0.8 * met);
    });
    expect(bytes.gate).toBe(2 * met * layout.layers[0].gate.stride);
    expect(bytes.router > 0).toBe(layout.layers[0].router !== null);
    await engine.close();
  });
});
