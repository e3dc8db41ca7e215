import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ARCHITECTURES } from '../../src/model/index.js';
import { readConfig } from '../../src/model/config.js';
import { rejection } from '../helpers/expect-reject.js';
import { tinyConfig, writeTinyFolder, type TinyOptions } from '../helpers/tiny-models.js';

const read = (o: TinyOptions) => readConfig(tinyConfig(o), 'config.json');
const config = (fields: Record<string, unknown>, o: TinyOptions = {}) => read({ ...o, config: fields });

describe('activations', () => {
  it.each<[string, TinyOptions, string, number]>([
    ['Llama with relu', { hiddenAct: 'relu' }, 'relu', 0],
    ['Llama with silu', { hiddenAct: 'silu' }, 'silu', 0],
    ['Llama with relu2', { hiddenAct: 'relu2' }, 'relu2', 0],
    [
      'ProSparse',
      {
        architecture: 'SparseLlamaForCausalLM',
        modelType: 'sparsellama',
        hiddenAct: 'fatrelu',
        threshold: 0.01,
      },
      'fatrelu',
      0.01,
    ],
    [
      'llama_sparse_relu, whose config says silu',
      { architecture: 'SparseLlamaForCausalLM', modelType: 'llama_sparse_relu', hiddenAct: 'silu' },
      'relu',
      0,
    ],
    ['Mistral', { architecture: 'MistralForCausalLM', modelType: 'mistral', hiddenAct: 'silu' }, 'silu', 0],
    ['Bamboo', { architecture: 'BambooForCausalLM', modelType: 'bamboo', hiddenAct: 'relu' }, 'drelu', 0],
    [
      'MiniCPM',
      { architecture: 'MiniCPMForCausalLM', modelType: 'minicpm', hiddenAct: 'fatrelu', threshold: 0.02 },
      'fatrelu',
      0.02,
    ],
  ])('of %s', (_, options, kind, threshold) => {
    expect(read(options).config.activation).toEqual({ kind, threshold });
  });

  it('are decided by the model type before hidden_act, with a warning', () => {
    const { warnings } = read({
      architecture: 'SparseLlamaForCausalLM',
      modelType: 'llama_sparse_relu',
      hiddenAct: 'silu',
    });
    expect(warnings.join()).toContain('hidden_act says silu');
  });

  it.each(['mish', 'constructor', '__proto__'])(
    'named %s are refused with the supported ones',
    (hiddenAct) => {
      expect(() => read({ hiddenAct })).toThrow(`hidden_act "${hiddenAct}" is not supported`);
    },
  );

  it('of FATReLU need a threshold', () => {
    expect(() => read({ hiddenAct: 'fatrelu' })).toThrow(/hidden_act_param/);
    expect(() => read({ hiddenAct: 'fatrelu', threshold: -1 })).toThrow(/hidden_act_param/);
  });
});

describe('architectures', () => {
  it('have one row each', () => {
    expect(new Set(ARCHITECTURES.map((a) => a.name)).size).toBe(ARCHITECTURES.length);
  });

  it.each(['MambaForCausalLM', 'GPT2LMHeadModel', 'constructor'])(
    'other than those are refused by name: %s',
    (architecture) => {
      expect(() => read({ architecture })).toThrow(`architecture ${architecture} is not supported`);
    },
  );

  it('scale as MiniCPM says', () => {
    const { config: c } = config(
      { scale_emb: 12, scale_depth: 1.4, dim_model_base: 16 },
      { architecture: 'MiniCPMForCausalLM', layers: 4, hiddenSize: 64 },
    );
    expect(c.embeddingScale).toBe(12);
    expect(c.residualScale).toBeCloseTo(0.7);
    expect(c.logitScale).toBe(0.25);
  });

  it('scale by one where MiniCPM leaves a constant out', () => {
    const { config: c } = config({}, { architecture: 'MiniCPMForCausalLM', layers: 4, hiddenSize: 64 });
    expect([c.embeddingScale, c.residualScale, c.logitScale]).toEqual([1, 0.5, 1 / 64]);
  });

  it('other than MiniCPM ignore its constants', () => {
    expect(config({ scale_emb: 12, scale_depth: 1.4, dim_model_base: 16 }).config).toMatchObject({
      embeddingScale: 1,
      residualScale: 1,
      logitScale: 1,
    });
  });
});

describe('attention', () => {
  it('takes grouped heads, a head size of its own, biases and tied embeddings', () => {
    const { config: c } = read({ heads: 8, kvHeads: 2, headDim: 32, attentionBias: true, tied: true });
    expect(c).toMatchObject({
      heads: 8,
      kvHeads: 2,
      headDim: 32,
      qkvBias: true,
      outputBias: true,
      tiedEmbeddings: true,
    });
  });

  it('has as many key heads as heads when the config names none', () => {
    expect(config({ num_key_value_heads: null }).config.kvHeads).toBe(4);
  });

  it('has windows by layer where the architecture has them', () => {
    const mistral = { architecture: 'MistralForCausalLM' };
    const windowed = { rotates: true, window: 32 };
    const { config: c } = config({ sliding_window: 32 }, mistral);
    expect([c.maxContext, c.block.layers]).toEqual([128, [windowed, windowed]]);
    expect(config({ sliding_window: null }, mistral).config.block.layers).toBeNull();
    expect(config({ sliding_window: 128 }, mistral).config.block.layers).toBeNull();
    expect(config({ sliding_window: 32 }).config.block.layers).toBeNull();
  });
});

describe('rotary embeddings', () => {
  const llama3 = {
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };

  it.each([
    ['rope_scaling with type', { rope_scaling: { type: 'linear', factor: 2 } }],
    ['rope_scaling with rope_type', { rope_scaling: { rope_type: 'linear', factor: 2 } }],
    [
      'rope_parameters',
      { rope_theta: null, rope_parameters: { rope_type: 'linear', factor: 2, rope_theta: 5e5 } },
    ],
  ])('scale linearly by %s', (_, fields) => {
    const c = config(fields).config;
    expect(c.ropeScaling).toEqual({ type: 'linear', factor: 2 });
    expect(c.ropeTheta).toBe('rope_parameters' in fields ? 5e5 : 10000);
  });

  it('scale as Llama 3', () => {
    expect(config({ rope_scaling: { rope_type: 'llama3', ...llama3 } }).config.ropeScaling).toEqual({
      type: 'llama3',
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPosition: 8192,
    });
  });

  it('scale as YaRN, with its own attention factor unless one is given', () => {
    const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 32 };
    const { config: c } = config({ rope_scaling: yarn });
    expect(c.ropeScaling).toEqual({
      type: 'yarn',
      factor: 4,
      originalMaxPosition: 32,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: 0.1 * Math.log(4) + 1,
      truncate: true,
    });
    expect(config({ rope_scaling: { ...yarn, attention_factor: 1.5 } }).config.ropeScaling).toMatchObject({
      attentionFactor: 1.5,
    });
    const deepseek = { ...yarn, mscale: 1, mscale_all_dim: 1 };
    expect(config({ rope_scaling: deepseek }).config.ropeScaling).toMatchObject({ attentionFactor: 1 });
  });

  it('scale as longrope, with the original context beside or inside, and a factor of the stretch', () => {
    const eight = (value: number): number[] => Array(8).fill(value);
    const rope_scaling = { type: 'longrope', short_factor: eight(1), long_factor: eight(3) };
    const wanted = {
      type: 'longrope',
      shortFactors: eight(1),
      longFactors: eight(3),
      originalMaxPosition: 32,
      attentionFactor: Math.sqrt(1 + Math.log(4) / Math.log(32)),
    };
    const beside = config({ rope_scaling, original_max_position_embeddings: 32 });
    expect(beside.config).toMatchObject({ maxContext: 128, ropeScaling: wanted });
    const inside = { ...rope_scaling, original_max_position_embeddings: 32, attention_factor: 1.25 };
    expect(config({ rope_scaling: inside }).config.ropeScaling).toEqual({ ...wanted, attentionFactor: 1.25 });
  });

  it('stretch the context where the original one is stated', () => {
    const rope_scaling = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 128 };
    expect(config({ rope_scaling }).config.maxContext).toBe(512);
    expect(config({ rope_scaling: { type: 'dynamic', factor: 2 } }).config).toMatchObject({
      maxContext: 256,
      ropeScaling: { type: 'dynamic', factor: 2, originalMaxPosition: 128 },
    });
  });

  it('rotate a part of each head', () => {
    expect(config({ partial_rotary_factor: 0.5 }).config.block.attention.rotaryDims).toBe(8);
    const rope_parameters = { rope_type: 'default', rope_theta: 1e4, partial_rotary_factor: 0.25 };
    expect(config({ rope_parameters }).config.block.attention.rotaryDims).toBe(4);
    expect(config({ partial_rotary_factor: 1 }).config.block.attention.rotaryDims).toBeNull();
    // What the file says, not what its architecture means by silence.
    const nemotron = { architectures: ['NemotronForCausalLM'], hidden_act: 'relu2', rope_parameters };
    expect(config(nemotron).config.block.attention.rotaryDims).toBe(4);
  });

  it.each([{ rope_scaling: null }, { rope_parameters: { rope_type: 'default', rope_theta: 10000 } }])(
    'do not scale by %j',
    (fields) => {
      expect(config(fields).config.ropeScaling).toBeNull();
    },
  );

  it.each<[Record<string, unknown>, RegExp]>([
    [{ rope_scaling: { type: 'su', factor: 2 } }, /"su" is not supported/],
    [{ rope_scaling: { type: 'longrope', short_factor: [1] } }, /longrope without long_factor/],
    [{ rope_scaling: { type: 'longrope', short_factor: [1], long_factor: [1] } }, /1 factors for 8 pairs/],
    [{ rope_scaling: { rope_type: 'yarn' } }, /yarn without factor/],
    [{ rope_scaling: { type: 'linear' } }, /without factor/],
    [{ rope_scaling: { rope_type: 'llama3', ...llama3, high_freq_factor: 1 } }, /high_freq_factor/],
    [{ rope_scaling: { type: 'linear', factor: -1 } }, /factor/],
    [{ partial_rotary_factor: 1.5 }, /partial_rotary_factor/],
  ])('are refused with %j', (fields, message) => {
    expect(() => config(fields)).toThrow(message);
  });
});

describe('configs that cannot be', () => {
  it.each<[Record<string, unknown>, RegExp]>([
    [{ num_hidden_layers: 0 }, /num_hidden_layers/],
    [{ num_hidden_layers: -1 }, /num_hidden_layers/],
    [{ num_hidden_layers: 1e9 }, /num_hidden_layers/],
    [{ num_hidden_layers: 2.5 }, /num_hidden_layers/],
    [{ num_hidden_layers: '2' }, /num_hidden_layers/],
    [{ hidden_size: 66 }, /does not divide into 4 heads/],
    [{ num_key_value_heads: 3 }, /3 key\/value heads/],
    [{ num_key_value_heads: 8 }, /8 key\/value heads/],
    [{ head_dim: 7 }, /odd/],
    [{ rms_norm_eps: 0 }, /rms_norm_eps/],
    [{ rms_norm_eps: null }, /rms_norm_eps/],
    [{ rope_theta: -1 }, /rope_theta/],
    [{ eos_token_id: 288 }, /token id 288/],
    [{ bos_token_id: -1 }, /bos_token_id/],
    [{ quantization_config: { quant_method: 'gptq' } }, /quantization_config/],
    [{ architectures: [] }, /architectures/],
    [{ architectures: 'LlamaForCausalLM' }, /architectures/],
  ])('are refused: %j', (fields, message) => {
    expect(() => config(fields)).toThrow(message);
  });

  it.each<[string, RegExp]>([
    ['{"rms_norm_eps": NaN}', /not valid JSON/],
    ['{"a":1,"a":2}', /appears twice/],
    ['[]', /architectures/],
    ['version https://git-lfs.github.com/spec/v1\n', /Git LFS pointer/],
    ['', /is empty/],
  ])('are refused as a file: %s', async (content, message) => {
    const folder = writeTinyFolder();
    writeFileSync(join(folder, 'config.json'), content);
    expect((await rejection(folder)).message).toMatch(message);
  });

  it('are refused when the vocabulary is not the embedding', async () => {
    const folder = writeTinyFolder();
    writeFileSync(join(folder, 'config.json'), JSON.stringify(tinyConfig({ vocabSize: 300 })));
    expect((await rejection(folder)).message).toContain(
      'embed_tokens.weight: expected [300, 64], found [288, 64]',
    );
  });

  it('are refused with a stop token of generation_config.json outside the vocabulary', async () => {
    const folder = writeTinyFolder();
    writeFileSync(join(folder, 'generation_config.json'), '{"eos_token_id":[1,9999]}');
    expect((await rejection(folder)).message).toContain('eos_token_id 9999');
  });
});
