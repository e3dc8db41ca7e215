/** `profile` where FFNs differ from Llama's: without a gate, with a norm between x1 and down, with experts. */
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { Engine } from '../../src/engine/engine.js';
import { openPack } from '../../src/pack/reader.js';
import { packFor } from '../../src/pack/cache.js';
import { findPlan, type FindPlanOptions } from '../../src/profiler/find-plan.js';
import { profile, type ProfileResult } from '../../src/profiler/profile.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { ownCache } from '../helpers/own-cache.js';
import { random } from '../helpers/tiny-models.js';

const folder = ownCache('blocks');

const next = random(7);
const text = Array.from({ length: 4000 }, () => String.fromCharCode(97 + Math.floor(next() * 26))).join('');
const TOKENS = Array.from({ length: 29 }, (_, i) => (i * 31 + 5) % 288);

const MIXTURE = { num_local_experts: 4, num_experts_per_tok: 2 };
const MODELS: [string, string, Record<string, unknown>][] = [
  ['no gate, with biases', 'OPTForCausalLM', { ffn_dim: 96 }],
  ['a norm of x1', 'BitNetForCausalLM', { hidden_act: 'relu2' }],
  ['experts', 'MixtralForCausalLM', MIXTURE],
  ['experts with dReLU', 'MixtralForCausalLM', { ...MIXTURE, hidden_act: 'drelu' }],
  [
    'experts chosen before attention',
    'SmallThinkerForCausalLM',
    { hidden_act: null, moe_ffn_hidden_size: 21, ...MIXTURE },
  ],
];

describe.each(MODELS)('%s', (name, architecture, fields) => {
  const model = writeModel(baseConfig(architecture, fields));
  let result: ProfileResult;
  beforeAll(async () => {
    result = await profile(model, join(folder, name), 'q8', {
      texts: [{ name: 'letters.txt', text }],
      window: 32,
      threads: 1,
      seed: 5,
      target: { recall: 0.97 },
    });
  });

  const open = async (ffn: 'exact' | 'predicted', options: FindPlanOptions): Promise<Engine> => {
    const pack = openPack(await packFor(model, 'q8'));
    const plan = findPlan(pack, { predictor: result.artifacts.predictor, ...options })!;
    // The plan may say `exact` for layers as small as these: what is asked here is what their predictors find.
    plan.layers.forEach((layer) => (layer.mode = ffn));
    return Engine.open(pack, { ffn, plan, threads: 1 });
  };

  it('is told with its sparsity, recall and predicted sparsity', () => {
    for (const { heldOut } of result.predictor.layers) {
      expect(heldOut.sparsity).toBeGreaterThan(0.1);
      expect(heldOut.sparsity).toBeLessThan(1);
      expect(heldOut.recall).toBeGreaterThan(0.9);
      expect(heldOut.weightedRecall).toBeGreaterThanOrEqual(heldOut.recall - 0.02);
      expect(heldOut.predictedSparsity).toBeGreaterThan(0);
    }
  });

  it('predicted equals exact where recall is 1', async () => {
    const exact = await open('exact', {});
    const a = await exact.logits({ tokens: TOKENS });
    await exact.close();
    const predicted = await open('predicted', { thresholdShift: -1e6 });
    const b = await predicted.logits({ tokens: TOKENS, measureRecall: true });
    await predicted.close();
    for (const layer of b.layers) expect(layer.recall).toBe(1);
    const largest = a.logits.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    a.logits.forEach((v, i) => expect(Math.abs(v - b.logits[i])).toBeLessThan(1e-3 * largest));
  });
});
