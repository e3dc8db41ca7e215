import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { exportGguf } from '../../src/export/export-gguf.js';
import { openModel } from '../../src/model/open-model.js';
import { baseConfig, writeModel } from '../helpers/any-model.js';
import { tempFolder } from '../helpers/tiny-models.js';

const exported = async (architecture: string, fields: Record<string, unknown>) => {
  const source = await openModel(writeModel(baseConfig(architecture, fields)));
  const path = join(tempFolder(), 'model.gguf');
  try {
    await exportGguf(source, path, { type: 'f16', threads: 1 });
    return { source, back: await openModel(path) };
  } finally {
    await source.close();
  }
};

describe('exports of what a Llama layer may have', () => {
  it.each<[string, string, Record<string, unknown>]>([
    ['biases everywhere', 'LlamaForCausalLM', { attention_bias: true, mlp_bias: true }],
    ['a window', 'MistralForCausalLM', { sliding_window: 8 }],
    [
      'YaRN',
      'LlamaForCausalLM',
      { rope_scaling: { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 16 } },
    ],
    ['biases on q, k and v', 'Qwen2ForCausalLM', {}],
    ['fused matrices', 'Phi3ForCausalLM', {}],
  ])('read back as they were: %s', async (_, architecture, fields) => {
    const { source, back } = await exported(architecture, fields);
    const { ropeScaling } = back.config;
    expect({ ...back.config, architecture, rmsEpsilon: 0, ropeScaling: null }).toEqual({
      ...source.config,
      rmsEpsilon: 0,
      ropeScaling: null,
    });
    expect(ropeScaling?.type).toBe(source.config.ropeScaling?.type);
    if (ropeScaling?.type === 'yarn' && source.config.ropeScaling?.type === 'yarn')
      expect(ropeScaling.attentionFactor).toBeCloseTo(source.config.ropeScaling.attentionFactor, 6);
    expect([...back.tensors.keys()]).toEqual([...source.tensors.keys()]);
    await back.close();
  });

  it.each<[string, Record<string, unknown>, RegExp]>([
    ['ArceeForCausalLM', { hidden_act: 'relu2' }, /FFN without a gate/],
    ['Olmo2ForCausalLM', {}, /norms on what attention and FFN add/],
    ['MixtralForCausalLM', { num_local_experts: 2, num_experts_per_tok: 1 }, /1 of 2 experts/],
    ['LlamaForCausalLM', { rope_scaling: { type: 'dynamic', factor: 2 } }, /dynamic rope scaling/],
  ])('and of others are refused by name: %s', async (architecture, fields, message) => {
    await expect(exported(architecture, fields)).rejects.toThrow(message);
  });
});
