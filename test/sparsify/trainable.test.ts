/** Which models training takes: the graph is Llama's block, and everything else is refused before any work. */
import { describe, expect, it } from 'vitest';
import { openTrainable } from '../../src/sparsify/sparsify.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';

describe('training', () => {
  it.each<[string, Record<string, unknown>]>([
    ['LlamaForCausalLM', { hidden_act: 'silu' }],
    ['MistralForCausalLM', { hidden_act: 'silu', sliding_window: 8 }],
  ])('takes %s', async (name, fields) => {
    const source = await openTrainable(writeModel(baseConfig(name, fields)));
    await source.close();
  });

  it.each<[string, Record<string, unknown>]>([
    ['Qwen3ForCausalLM', { head_dim: 8 }],
    ['SmolLM3ForCausalLM', { no_rope_layers: [1, 0] }],
    ['GemmaForCausalLM', { head_dim: 8 }],
    ['InternLM2ForCausalLM', {}],
    ['MixtralForCausalLM', { num_local_experts: 2, num_experts_per_tok: 1 }],
  ])('refuses %s', async (name, fields) => {
    await expect(openTrainable(writeModel(baseConfig(name, fields)))).rejects.toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining(`training ${name} is not supported`) as string,
    });
  });
});
