/** Every GGUF architecture: the same description and weights as the Hugging Face folder it was converted from. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { GGUF_ARCHITECTURES } from '../../src/model/gguf-architectures.js';
import { openModel } from '../../src/model/index.js';
import { baseConfig, randomTensors, writeModel } from '../helpers/any-model.js';
import { rejection } from '../helpers/expect-reject.js';
import { BLOCK_TYPES } from '../../src/model/decode-blocks.js';
import { TENSOR_TYPES } from '../../src/model/gguf-types.js';
import {
  bool,
  f32,
  ggufBytes,
  interleaveHeads,
  text,
  tinyGgufMetadata,
  u32,
  writeTypedGguf,
  type GgufMeta,
} from '../helpers/tiny-gguf.js';
import { tempFolder, type TinyTensor } from '../helpers/tiny-models.js';

type Tensors = Map<string, TinyTensor>;

/** What llama.cpp's converter does to the tensors, written once more: names, order of rows, sums. */
interface Case {
  architecture: string;
  config: Record<string, unknown>;
  /** Metadata after the architecture's name. */
  keys?: Record<string, GgufMeta>;
  activation?: string;
  names: [RegExp, string][];
  /** Heads of q and k are interleaved. */
  interleaved?: boolean;
  change?(tensors: Tensors): void;
}

const USUAL: [RegExp, string][] = [
  [/^model\.embed_tokens/, 'token_embd'],
  [/^model\.norm/, 'output_norm'],
  [/^lm_head/, 'output'],
  [/^model\.layers\.(\d+)\./, 'blk.$1.'],
  [/self_attn\.([qkv])_proj/, 'attn_$1'],
  [/self_attn\.o_proj/, 'attn_output'],
  [/self_attn\.([qk])_norm/, 'attn_$1_norm'],
  [/input_layernorm/, 'attn_norm'],
  [/post_attention_layernorm/, 'ffn_norm'],
  [/mlp\.(gate|up|down)_proj/, 'ffn_$1'],
];

/** experts.0.w1, experts.1.w1, ... -> one tensor [experts, rows, cols]. */
function stackExperts(tensors: Tensors, names: Record<string, string>): void {
  for (const [theirs, ours] of Object.entries(names)) {
    for (let l = 0; l < 2; l++) {
      const parts: TinyTensor[] = [];
      for (let e = 0; ; e++) {
        const name = `model.layers.${l}.${theirs.replace('{e}', String(e))}.weight`;
        const part = tensors.get(name);
        if (!part) break;
        parts.push(part);
        tensors.delete(name);
      }
      const data = Float32Array.from(parts.flatMap((p) => [...p.data]));
      tensors.set(`blk.${l}.ffn_${ours}_exps.weight`, { shape: [parts.length, ...parts[0].shape], data });
    }
  }
}

/** Names of a layer's experts -> theirs in a GGUF file. */
const experts = (block: string, names: Record<string, string>): Record<string, string> =>
  Object.fromEntries(Object.entries(names).map(([w, ours]) => [`${block}.experts.{e}.${w}`, ours]));

/** From groups (their query heads, a key and a value head of 8 rows) to all q, all k, all v. */
function ungroup(tensors: Tensors, name: RegExp, order: number[]): void {
  for (const [theirs, { shape, data }] of tensors) {
    if (!name.test(theirs)) continue;
    const size = data.length / order.length;
    const heads = order.flatMap((h) => [...data.subarray(h * size, (h + 1) * size)]);
    tensors.set(theirs, { shape, data: Float32Array.from(heads) });
  }
}

/** The converter adds the one. */
function addOneToNorms(tensors: Tensors): void {
  for (const [name, tensor] of tensors)
    if (/norm.*weight$/.test(name)) tensors.set(name, { ...tensor, data: tensor.data.map((v) => v + 1) });
}

const LONG_ROPE = {
  type: 'longrope',
  short_factor: [1, 1.05, 1.1, 1.2],
  long_factor: [1, 2, 3.3, 6],
};

const CASES: Record<string, Case> = {
  llama: {
    architecture: 'LlamaForCausalLM',
    config: { mlp_bias: true, attention_bias: true },
    names: USUAL,
    interleaved: true,
  },
  'llama with experts': {
    architecture: 'MixtralForCausalLM',
    config: { num_local_experts: 3, num_experts_per_tok: 2, rope_theta: 1e6 },
    keys: { expert_count: u32(3), expert_used_count: u32(2), 'rope.freq_base': f32(1e6) },
    names: [...USUAL, [/block_sparse_moe\.gate/, 'ffn_gate_inp']],
    interleaved: true,
    change: (t) => stackExperts(t, experts('block_sparse_moe', { w1: 'gate', w3: 'up', w2: 'down' })),
  },
  arcee: {
    architecture: 'ArceeForCausalLM',
    config: { hidden_act: 'relu2' },
    activation: '',
    names: USUAL,
    interleaved: true,
  },
  nemotron: {
    architecture: 'NemotronForCausalLM',
    config: { hidden_act: 'relu2' },
    keys: { 'rope.dimension_count': u32(4), 'attention.layer_norm_epsilon': f32(1e-5) },
    activation: '',
    names: USUAL,
    change: addOneToNorms,
  },
  bitnet: {
    architecture: 'BitNetForCausalLM',
    config: { hidden_act: 'relu2' },
    names: [[/self_attn\.attn_sub_norm/, 'attn_sub_norm'], [/mlp\.ffn_sub_norm/, 'ffn_sub_norm'], ...USUAL],
    activation: 'relu2',
  },
  falcon: {
    architecture: 'FalconForCausalLM',
    config: {
      activation: 'relu',
      new_decoder_architecture: true,
      num_kv_heads: 2,
      ffn_hidden_size: 48,
      tie_word_embeddings: true,
    },
    keys: { 'attention.layer_norm_epsilon': f32(1e-5) },
    names: [
      [/^transformer\.word_embeddings/, 'token_embd'],
      [/^transformer\.ln_f/, 'output_norm'],
      [/^transformer\.h\.(\d+)\./, 'blk.$1.'],
      [/self_attention\.query_key_value/, 'attn_qkv'],
      [/self_attention\.dense/, 'attn_output'],
      [/ln_attn/, 'attn_norm_2'],
      [/ln_mlp/, 'attn_norm'],
      [/mlp\.dense_h_to_4h/, 'ffn_up'],
      [/mlp\.dense_4h_to_h/, 'ffn_down'],
    ],
    change: (t) => ungroup(t, /query_key_value/, [0, 1, 4, 5, 2, 6, 3, 7]),
  },
  qwen2: { architecture: 'Qwen2ForCausalLM', config: {}, names: USUAL },
  qwen3: {
    architecture: 'Qwen3ForCausalLM',
    config: { head_dim: 16 },
    keys: { 'attention.key_length': u32(16), 'attention.value_length': u32(16) },
    names: USUAL,
  },
  phi3: {
    architecture: 'Phi3ForCausalLM',
    config: {},
    names: [...USUAL, [/self_attn\.qkv_proj/, 'attn_qkv'], [/mlp\.gate_up_proj/, 'ffn_up']],
  },
  'phi3 of 128k': {
    architecture: 'Phi3ForCausalLM',
    config: { original_max_position_embeddings: 16, rope_scaling: LONG_ROPE },
    keys: {
      'rope.scaling.original_context_length': u32(16),
      'rope.scaling.attn_factor': f32(Math.sqrt(1 + Math.log(4) / Math.log(16))),
    },
    names: [...USUAL, [/self_attn\.qkv_proj/, 'attn_qkv'], [/mlp\.gate_up_proj/, 'ffn_up']],
    change: (t) => {
      for (const which of ['short', 'long'] as const) {
        const data = Float32Array.from(LONG_ROPE[`${which}_factor`]);
        t.set(`rope_factors_${which}.weight`, { shape: [4], data });
      }
    },
  },
  smollm3: {
    architecture: 'SmolLM3ForCausalLM',
    config: { num_hidden_layers: 4 },
    keys: { block_count: u32(4) },
    names: USUAL,
    interleaved: true,
  },
  granite: {
    architecture: 'GraniteForCausalLM',
    config: {
      attention_multiplier: 0.125,
      embedding_multiplier: 12,
      residual_multiplier: 0.25,
      logits_scaling: 8,
    },
    keys: {
      'attention.scale': f32(0.125),
      embedding_scale: f32(12),
      residual_scale: f32(0.25),
      logit_scale: f32(8),
    },
    names: USUAL,
    interleaved: true,
  },
  olmo2: {
    architecture: 'Olmo2ForCausalLM',
    config: {},
    names: [
      [/post_attention_layernorm/, 'post_attention_norm'],
      [/post_feedforward_layernorm/, 'post_ffw_norm'],
      ...USUAL,
    ],
  },
  gemma: {
    architecture: 'GemmaForCausalLM',
    config: { hidden_act: 'gelu', head_dim: 16, tie_word_embeddings: true },
    keys: { 'attention.key_length': u32(16), 'attention.value_length': u32(16) },
    activation: '',
    names: USUAL,
    change: addOneToNorms,
  },
  'command-r': {
    architecture: 'CohereForCausalLM',
    config: { logit_scale: 0.25, tie_word_embeddings: true },
    keys: { 'attention.layer_norm_epsilon': f32(1e-5), logit_scale: f32(0.25) },
    names: USUAL,
  },
  starcoder2: {
    architecture: 'Starcoder2ForCausalLM',
    config: { hidden_act: null, sliding_window: 16 },
    keys: { 'attention.layer_norm_epsilon': f32(1e-5), 'attention.sliding_window': u32(16) },
    activation: '',
    names: [...USUAL, [/mlp\.c_fc/, 'ffn_up'], [/mlp\.c_proj/, 'ffn_down']],
  },
  gptneox: {
    architecture: 'GPTNeoXForCausalLM',
    config: { hidden_act: null, use_parallel_residual: false },
    keys: {
      'attention.layer_norm_epsilon': f32(1e-5),
      'attention.head_count_kv': u32(4),
      'rope.dimension_count': u32(2),
      use_parallel_residual: bool(false),
    },
    activation: '',
    names: [
      [/^gpt_neox\.embed_in/, 'token_embd'],
      [/^gpt_neox\.final_layer_norm/, 'output_norm'],
      [/^embed_out/, 'output'],
      [/^gpt_neox\.layers\.(\d+)\./, 'blk.$1.'],
      [/attention\.query_key_value/, 'attn_qkv'],
      [/attention\.dense/, 'attn_output'],
      [/mlp\.dense_h_to_4h/, 'ffn_up'],
      [/mlp\.dense_4h_to_h/, 'ffn_down'],
      [/input_layernorm/, 'attn_norm'],
      [/post_attention_layernorm/, 'ffn_norm'],
    ],
    change: (t) => ungroup(t, /query_key_value/, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]),
  },
  stablelm: {
    architecture: 'StableLmForCausalLM',
    config: { use_qkv_bias: true, partial_rotary_factor: 0.5 },
    keys: { 'attention.layer_norm_epsilon': f32(1e-5), 'rope.dimension_count': u32(4) },
    names: USUAL,
  },
  'stablelm in parallel': {
    architecture: 'StableLmForCausalLM',
    config: { use_parallel_residual: true, partial_rotary_factor: 0.5 },
    keys: { 'attention.layer_norm_epsilon': f32(1e-5), 'rope.dimension_count': u32(4) },
    names: USUAL,
  },
  internlm2: {
    architecture: 'InternLM2ForCausalLM',
    config: { bias: false },
    names: [
      [/^model\.tok_embeddings/, 'token_embd'],
      ...USUAL,
      [/^output\./, 'output.'],
      [/attention\.wo/, 'attn_output'],
      [/attention_norm/, 'attn_norm'],
      [/feed_forward\.w1/, 'ffn_gate'],
      [/feed_forward\.w2/, 'ffn_down'],
      [/feed_forward\.w3/, 'ffn_up'],
    ],
    interleaved: true,
    change: (t) => {
      // Taken apart: q, k and v have tensors of their own.
      ungroup(t, /wqkv/, [0, 1, 4, 5, 2, 6, 3, 7]);
      for (const [name, { data }] of [...t].filter(([theirs]) => /wqkv/.test(theirs))) {
        t.delete(name);
        let at = 0;
        for (const [role, rows] of [
          ['q', 32],
          ['k', 16],
          ['v', 16],
        ] as const) {
          const part = data.slice(at * 32, (at += rows) * 32);
          t.set(name.replace('attention.wqkv', `self_attn.${role}_proj`), { shape: [rows, 32], data: part });
        }
      }
    },
  },
  qwen3moe: {
    architecture: 'Qwen3MoeForCausalLM',
    config: { moe_intermediate_size: 24, num_experts: 4, num_experts_per_tok: 2, norm_topk_prob: true },
    keys: { expert_count: u32(4), expert_used_count: u32(2), expert_feed_forward_length: u32(24) },
    names: [[/mlp\.gate\./, 'ffn_gate_inp.'], ...USUAL],
    change: (t) => stackExperts(t, experts('mlp', { gate_proj: 'gate', up_proj: 'up', down_proj: 'down' })),
  },
  olmoe: {
    architecture: 'OlmoeForCausalLM',
    config: { num_experts: 4, num_experts_per_tok: 2 },
    keys: { expert_count: u32(4), expert_used_count: u32(2) },
    names: [[/mlp\.gate\./, 'ffn_gate_inp.'], ...USUAL],
    change: (t) => stackExperts(t, experts('mlp', { gate_proj: 'gate', up_proj: 'up', down_proj: 'down' })),
  },
  smallthinker: {
    architecture: 'SmallThinkerForCausalLM',
    config: {
      hidden_act: null,
      moe_ffn_hidden_size: 48,
      moe_num_primary_experts: 4,
      moe_num_active_primary_experts: 2,
      rope_layout: [0, 1],
      sliding_window_layout: [0, 1],
      sliding_window_size: 8,
    },
    keys: {
      expert_count: u32(4),
      expert_used_count: u32(2),
      expert_feed_forward_length: u32(48),
      expert_gating_func: u32(2),
      'attention.sliding_window': u32(8),
    },
    activation: '',
    names: [...USUAL, [/block_sparse_moe\.primary_router/, 'ffn_gate_inp']],
    change: (t) => stackExperts(t, experts('block_sparse_moe', { gate: 'gate', up: 'up', down: 'down' })),
  },
};

/** The case's folder, and its GGUF file. `bend` changes the metadata. */
function write(name: string, bend: (meta: Map<string, GgufMeta>) => void = () => {}) {
  const { architecture, config: fields, keys, activation, names, interleaved, change } = CASES[name];
  const arch = name.split(' ')[0];
  const config = baseConfig(architecture, fields);
  const tensors = randomTensors(config);
  const folder = writeModel(config, tensors);
  change?.(tensors);
  const stored = [...tensors].map(([theirs, { shape, data }]) => {
    const isRotated = interleaved && /self_attn\.[qk]_proj/.test(theirs);
    const values = isRotated ? interleaveHeads(data, 8, shape[1] ?? 1) : data;
    const ours = names.reduce((n, [from, to]) => n.replace(from, to), theirs);
    return { name: ours, sizes: [...shape].reverse(), type: 0, bytes: new Uint8Array(values.slice().buffer) };
  });
  const meta = new Map<string, GgufMeta>();
  const base = tinyGgufMetadata({ hiddenSize: 32, intermediateSize: 48, maxContext: 64, hiddenAct: 'relu' });
  for (const [key, value] of base) meta.set(key.replace(/^llama\./, `${arch}.`), value);
  meta.set('general.architecture', text(arch));
  if (activation === '') meta.delete('hybrid_infer.activation');
  else if (activation) meta.set('hybrid_infer.activation', text(activation));
  for (const [key, value] of Object.entries(keys ?? {})) meta.set(`${arch}.${key}`, value);
  bend(meta);
  const path = join(tempFolder(), 'any.gguf');
  writeFileSync(path, ggufBytes(meta, stored));
  return { folder, path };
}

describe('GGUF architectures', () => {
  it('have a case here for every row', () => {
    const rows = new Set(Object.keys(CASES).map((name) => name.split(' ')[0]));
    expect([...rows].sort()).toEqual(Object.keys(GGUF_ARCHITECTURES).sort());
  });

  it.each(Object.keys(CASES))('%s: described and read as the folder it came from', async (name) => {
    const { folder, path } = write(name);
    const [gguf, source] = [await openModel(path), await openModel(folder)];
    // Metadata are numbers of 32 bits.
    const comparable = (config: typeof gguf.config) =>
      JSON.parse(
        JSON.stringify({ ...config, architecture: '' }, (_, v: unknown) =>
          typeof v === 'number' ? Math.fround(v) : v,
        ),
      ) as object;
    expect(comparable(gguf.config)).toEqual(comparable(source.config));
    expect(gguf.warnings).toEqual([]);
    for (const [tensor, { shape }] of source.tensors) {
      const rows = shape.length === 1 ? 1 : shape[0];
      expect(await gguf.readRows(tensor, 0, rows), tensor).toEqual(await source.readRows(tensor, 0, rows));
    }
    await gguf.close();
    await source.close();
  });

  it.each(Object.keys(CASES))('%s: refused when a number of its metadata is no size', async (name) => {
    const arch = name.split(' ')[0];
    for (const key of ['block_count', 'embedding_length', 'attention.head_count']) {
      const { path } = write(name, (meta) => meta.set(`${arch}.${key}`, u32(0)));
      expect((await rejection(path)).message).toContain(`${arch}.${key}`);
    }
  });

  it.each<[string, string, (meta: Map<string, GgufMeta>) => unknown, RegExp]>([
    [
      'falcon',
      'an activation that is not known',
      (m) => m.set('hybrid_infer.activation', text('mish')),
      /mish/,
    ],
    ['smallthinker', 'no experts', (m) => m.delete('smallthinker.expert_count'), /expert_count is missing/],
    [
      'smallthinker',
      'another router',
      (m) => m.set('smallthinker.expert_gating_func', u32(9)),
      /expert_gating_func 9/,
    ],
    [
      'llama with experts',
      'more chosen than there are',
      (m) => m.set('llama.expert_used_count', u32(5)),
      /5 active experts of 3/,
    ],
    [
      'llama with experts',
      'another number of experts',
      (m) => m.set('llama.expert_count', u32(4)),
      /ffn_gate_exps.weight: expected \[4, 48, 32\]/,
    ],
    [
      'nemotron',
      'half a pair that rotates',
      (m) => m.set('nemotron.rope.dimension_count', u32(3)),
      /3 of 8 head dimensions/,
    ],
  ])('%s is refused with %s', async (name, _, bend, message) => {
    expect((await rejection(write(name, bend).path)).message).toMatch(message);
  });
});

describe('block-quantised tensors of a GGUF file', () => {
  const types = [...TENSOR_TYPES].filter(([, { name }]) => Object.hasOwn(BLOCK_TYPES, name));

  it.each(types)('are read by type %i', async (type) => {
    const source = await openModel(writeTypedGguf(type));
    expect(source.tensors.get('layers.0.gate')!.dtype).toBe(TENSOR_TYPES.get(type)!.name);
    expect((await source.readRows('layers.0.gate', 3, 9)).every((v) => v === 0)).toBe(true);
    await source.close();
  });

  it('of types that are not read are named once', async () => {
    const error = await rejection(writeTypedGguf(16)); // IQ2_XXS
    expect(error.message).toMatch(/typed.gguf: weights of type IQ2_XXS \(blk.0.ffn_gate.weight\)$/);
  });
});
