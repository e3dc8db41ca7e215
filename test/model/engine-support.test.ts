import { describe, expect, it } from 'vitest';
import { readConfig } from '../../src/model/config.js';
import { configForEngine } from '../../src/model/engine-support.js';
import { baseConfig } from '../helpers/any-model.js';

const refusal = (architecture: string, fields: Record<string, unknown> = {}): string => {
  const { config } = readConfig(baseConfig(architecture, fields), 'config.json');
  try {
    configForEngine(config, 'm.pack');
  } catch (error) {
    return (error as Error).message;
  }
  return '';
};

describe('what the engine does not compute yet', () => {
  it.each<[string, Record<string, unknown>, string]>([
    ['ArceeForCausalLM', { hidden_act: 'relu2' }, 'FFNs without a gate'],
    ['BitNetForCausalLM', {}, 'norms before the down and output projections'],
    ['LlamaForCausalLM', { mlp_bias: true }, 'biases in the FFN'],
    ['Olmo2ForCausalLM', {}, 'norms behind attention and FFN'],
    ['Qwen3ForCausalLM', {}, 'norms of queries and keys'],
    ['GraniteForCausalLM', { attention_multiplier: 0.1 }, 'an attention scale of its own'],
    ['Phi3ForCausalLM', { partial_rotary_factor: 0.5 }, 'rotate a part of each head'],
    ['MixtralForCausalLM', { num_local_experts: 4, num_experts_per_tok: 2 }, 'mixtures of experts'],
    ['LlamaForCausalLM', { rope_scaling: { type: 'yarn', factor: 2 } }, 'rope scaling yarn'],
  ])('is refused by name, in one line: %s', (architecture, fields, what) => {
    const message = refusal(architecture, fields);
    expect(message).toContain(`m.pack: ${architecture}: running`);
    expect(message).toContain(what);
    expect(message).not.toContain('\n');
  });

  it.each(['LlamaForCausalLM', 'Qwen2ForCausalLM', 'MistralForCausalLM', 'Phi3ForCausalLM'])(
    'does not include %s',
    (architecture) => expect(refusal(architecture)).toBe(''),
  );
});
