/**
 * Every architecture of the table, and what they have in variants, on tiny random models: the engine against the
 * plain float64 forward pass, and rows computed one by one against the same rows together.
 */
import { afterAll, describe, expect, it } from 'vitest';
import type { FfnMode } from '../../src/engine/ffn-plan.js';
import { isSmooth } from '../../src/kernels/kernels.js';
import { openModel } from '../../src/model/open-model.js';
import type { WeightSource } from '../../src/model/types.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { ROWS } from '../helpers/architecture-rows.js';
import { openEngine, removePacks } from './open.js';
import { plainForward } from './plain-forward.js';

afterAll(removePacks);

const TOKENS = Array.from({ length: 37 }, (_, i) => (i * 53 + 7) % 288);
/** Of the largest logit: sums in f32. */
const TOLERANCE = 1e-5;

const MODELS: [string, string, Record<string, unknown>][] = [
  ...ROWS.map(([name, fields]): [string, string, Record<string, unknown>] => [name, name, fields]),
  ['OPT with norms before', 'OPTForCausalLM', { ffn_dim: 48, activation_function: 'relu' }],
  ['OPT without its final norm', 'OPTForCausalLM', { ffn_dim: 48, _remove_final_layer_norm: true }],
  [
    'Falcon-7B: one norm, one KV head',
    'FalconForCausalLM',
    { activation: 'relu', num_key_value_heads: null },
  ],
  ['Falcon with biases', 'FalconForCausalLM', { activation: 'relu', bias: true, parallel_attn: false }],
  [
    'StableLM in parallel',
    'StableLmForCausalLM',
    { use_parallel_residual: true, partial_rotary_factor: 0.5 },
  ],
  ['GPT-NeoX one after the other', 'GPTNeoXForCausalLM', { use_parallel_residual: false }],
  [
    'Qwen3-MoE, normalized',
    'Qwen3MoeForCausalLM',
    { moe_intermediate_size: 24, num_experts: 4, num_experts_per_tok: 3, norm_topk_prob: true },
  ],
  [
    'SmallThinker by softmax',
    'SmallThinkerForCausalLM',
    {
      hidden_act: null,
      moe_ffn_hidden_size: 23,
      moe_num_primary_experts: 5,
      moe_num_active_primary_experts: 3,
      moe_primary_router_apply_softmax: true,
    },
  ],
  ['Mixtral with one expert', 'MixtralForCausalLM', { num_local_experts: 3, num_experts_per_tok: 1 }],
  [
    'Mixtral with SiLU',
    'MixtralForCausalLM',
    { num_local_experts: 3, num_experts_per_tok: 2, hidden_act: 'silu' },
  ],
  [
    'yarn rope scaling',
    'LlamaForCausalLM',
    { rope_scaling: { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 16 } },
  ],
  [
    'dynamic rope scaling',
    'LlamaForCausalLM',
    { rope_scaling: { type: 'dynamic', factor: 2, original_max_position_embeddings: 32 } },
  ],
];

const folders = new Map<string, string>();
function folderOf(name: string, architecture: string, fields: Record<string, unknown>): string {
  const folder = folders.get(name) ?? writeModel(baseConfig(architecture, fields));
  folders.set(name, folder);
  return folder;
}

const largest = (values: ArrayLike<number>): number =>
  Array.from(values).reduce((most, v) => Math.max(most, Math.abs(v)), 0);

async function expectedOf(source: WeightSource) {
  const { logits, sparsity } = await plainForward(source, TOKENS);
  return { logits: Float64Array.from(logits.flatMap((row) => [...row])), sparsity };
}

describe('the engine computes the described block', () => {
  it.each(MODELS)('%s', async (name, architecture, fields) => {
    const folder = folderOf(name, architecture, fields);
    const source = await openModel(folder);
    const expected = await expectedOf(source);
    const modes: FfnMode[] = isSmooth(source.config.activation.kind) ? ['dense'] : ['dense', 'exact'];
    const { maxContext } = source.config;
    await source.close();
    for (const ffn of modes) {
      const engine = await openEngine(folder, 'f32', { ffn, batchTokens: 16, contextLength: maxContext });
      const { logits, layers } = await engine.logits({ tokens: TOKENS });
      await engine.close();
      const worst = expected.logits.reduce((most, v, i) => Math.max(most, Math.abs(v - logits[i])), 0);
      expect(worst / largest(expected.logits), ffn).toBeLessThan(TOLERANCE);
      layers.forEach((layer, l) => expect(layer.sparsity).toBeCloseTo(expected.sparsity[l], 2));
    }
  });
});

describe('a row has the same bits in whatever company it is computed', () => {
  // Rows of a mixture and of every kind of block on both kernels and formats in turn: opening engines takes long.
  const cases = MODELS.map(
    (model, i) => [...model, ...(i % 2 ? (['native', 'q4'] as const) : (['wasm', 'q8'] as const))] as const,
  );
  it.each(cases)('%s', async (name, architecture, fields, kernels, quant) => {
    const folder = folderOf(name, architecture, fields);
    const logits = async (batchTokens: number, threads: number): Promise<Float32Array> => {
      const engine = await openEngine(folder, quant, { kernels, batchTokens, threads, slots: 1 });
      const got = await engine.logits({ tokens: TOKENS });
      await engine.close();
      return got.logits;
    };
    const together = await logits(64, 2);
    expect(largest(together)).toBeGreaterThan(0.1);
    expect(await logits(1, 2), `${kernels}, ${quant}, one by one`).toEqual(together);
    expect(await logits(5, 3), `${kernels}, ${quant}, in fives on 3 lanes`).toEqual(together);
  });
});
