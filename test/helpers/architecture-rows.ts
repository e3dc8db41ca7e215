/** A case for every row of the table of architectures. */
import type { Block, Ends } from '../../src/model/block.js';

export type DeepPartial<T> = T extends object ? { [K in keyof T]?: DeepPartial<T[K]> } : T;
/** Architecture, config fields beside those of `baseConfig`, and the description they mean. */
export type Case = [
  string,
  Record<string, unknown>,
  { block?: DeepPartial<Block>; ends?: Partial<Ends>; config?: object },
];

export const ROWS: Case[] = [
  [
    'LlamaForCausalLM',
    { mlp_bias: true, attention_bias: true },
    { block: { ffn: { bias: true } }, config: { qkvBias: true, outputBias: true } },
  ],
  ['SparseLlamaForCausalLM', { hidden_act: 'fatrelu', hidden_act_param: 0.1 }, {}],
  [
    'MistralForCausalLM',
    { sliding_window: 8 },
    {
      block: {
        layers: [
          { rotates: true, window: 8 },
          { rotates: true, window: 8 },
        ],
      },
    },
  ],
  ['BambooForCausalLM', {}, { config: { activation: { kind: 'drelu', threshold: 0 } } }],
  [
    'MiniCPMForCausalLM',
    { scale_emb: 2, scale_depth: 1.4, dim_model_base: 16 },
    { config: { embeddingScale: 2, logitScale: 0.5 } },
  ],
  [
    'ArceeForCausalLM',
    { hidden_act: null, mlp_bias: true },
    { block: { ffn: { gated: false, bias: true } }, config: { activation: { kind: 'relu2', threshold: 0 } } },
  ],
  [
    'NemotronForCausalLM',
    { hidden_act: 'relu2', norm_eps: 1e-4, rms_norm_eps: null },
    {
      block: { norm: { kind: 'layer', bias: true }, attention: { rotaryDims: 4 }, ffn: { gated: false } },
      config: { rmsEpsilon: 1e-4 },
    },
  ],
  [
    'BitNetForCausalLM',
    { hidden_act: 'relu2' },
    { block: { attention: { outputNorm: true }, ffn: { norm: true } } },
  ],
  [
    'FalconForCausalLM',
    {
      activation: 'relu',
      new_decoder_architecture: true,
      num_kv_heads: 2,
      ffn_hidden_size: 48,
      layer_norm_epsilon: 1e-5,
    },
    { block: { norm: { kind: 'layer', bias: true }, parallel: true, ffn: { gated: false } } },
  ],
  [
    'OPTForCausalLM',
    { ffn_dim: 48, activation_function: 'relu', word_embed_proj_dim: 16, do_layer_norm_before: false },
    {
      block: {
        norm: { kind: 'layer', bias: true, place: 'sum' },
        attention: { rotaryDims: 0 },
        ffn: { gated: false, bias: true },
      },
      ends: { embeddingSize: 16, learnedPositions: { rows: 66, offset: 2 }, finalNorm: false },
      config: { qkvBias: true, outputBias: true, kvHeads: 4 },
    },
  ],
  [
    'Qwen2ForCausalLM',
    { sliding_window: 8, use_sliding_window: true, max_window_layers: 1 },
    {
      block: {
        layers: [
          { rotates: true, window: null },
          { rotates: true, window: 8 },
        ],
      },
      config: { qkvBias: true, outputBias: false },
    },
  ],
  [
    'Qwen3ForCausalLM',
    { head_dim: 16, layer_types: ['full_attention', 'full_attention'] },
    { block: { attention: { headNorm: 'head' } }, config: { headDim: 16 } },
  ],
  ['Phi3ForCausalLM', { partial_rotary_factor: 0.5 }, { block: { attention: { rotaryDims: 4 } } }],
  [
    'SmolLM3ForCausalLM',
    { no_rope_layer_interval: 2, sliding_window: 8, use_sliding_window: true },
    {
      block: {
        layers: [
          { rotates: true, window: null },
          { rotates: false, window: 8 },
        ],
      },
    },
  ],
  [
    'GraniteForCausalLM',
    { attention_multiplier: 0.1, embedding_multiplier: 12, residual_multiplier: 0.2, logits_scaling: 8 },
    {
      block: { attention: { scale: 0.1 } },
      config: { embeddingScale: 12, residualScale: 0.2, logitScale: 0.125 },
    },
  ],
  ['Olmo2ForCausalLM', {}, { block: { norm: { place: 'output' }, attention: { headNorm: 'all' } } }],
  [
    'MixtralForCausalLM',
    { num_local_experts: 4, num_experts_per_tok: 2, hidden_act: 'drelu' },
    {
      block: {
        ffn: { experts: { count: 4, active: 2, scoring: 'softmax', normalized: true, routerInput: 'ffn' } },
      },
      config: { intermediateSize: 192, activation: { kind: 'drelu', threshold: 0 } },
    },
  ],
  [
    'StableLmForCausalLM',
    { use_qkv_bias: true, partial_rotary_factor: 0.5 },
    {
      block: { norm: { kind: 'layer', bias: true }, attention: { rotaryDims: 4 } },
      config: { qkvBias: true, outputBias: false },
    },
  ],
  [
    'GemmaForCausalLM',
    { hidden_act: 'gelu', head_dim: 16, tie_word_embeddings: null },
    {
      config: {
        headDim: 16,
        embeddingScale: Math.sqrt(32),
        tiedEmbeddings: true,
        activation: { kind: 'gelu_tanh', threshold: 0 },
      },
    },
  ],
  [
    'CohereForCausalLM',
    { layer_norm_eps: 1e-4, logit_scale: 0.25, model_max_length: 128 },
    {
      block: { norm: { kind: 'layer' }, parallel: true },
      config: { rmsEpsilon: 1e-4, logitScale: 0.25, maxContext: 128 },
    },
  ],
  [
    'Starcoder2ForCausalLM',
    { hidden_act: null, norm_epsilon: 1e-4, sliding_window: 8 },
    {
      block: {
        norm: { kind: 'layer', bias: true },
        ffn: { gated: false, bias: true },
        layers: [
          { rotates: true, window: 8 },
          { rotates: true, window: 8 },
        ],
      },
      config: {
        rmsEpsilon: 1e-4,
        qkvBias: true,
        outputBias: true,
        activation: { kind: 'gelu_tanh', threshold: 0 },
      },
    },
  ],
  [
    'GPTNeoXForCausalLM',
    { hidden_act: null, rope_theta: null, rotary_emb_base: 20000 },
    {
      block: {
        norm: { kind: 'layer', bias: true },
        parallel: true,
        attention: { rotaryDims: 2 },
        ffn: { gated: false, bias: true },
      },
      config: { kvHeads: 4, ropeTheta: 20000, qkvBias: true, activation: { kind: 'gelu', threshold: 0 } },
    },
  ],
  ['InternLM2ForCausalLM', {}, { config: { qkvBias: true, outputBias: true } }],
  [
    'Qwen3MoeForCausalLM',
    { intermediate_size: 96, moe_intermediate_size: 24, num_experts: 4, num_experts_per_tok: 2 },
    {
      block: {
        attention: { headNorm: 'head' },
        ffn: { experts: { count: 4, active: 2, scoring: 'softmax', normalized: false, routerInput: 'ffn' } },
      },
      config: { intermediateSize: 96 },
    },
  ],
  [
    'OlmoeForCausalLM',
    { num_experts: 4, num_experts_per_tok: 2, clip_qkv: null, norm_topk_prob: false },
    {
      block: {
        attention: { headNorm: 'all' },
        ffn: { experts: { count: 4, active: 2, scoring: 'softmax', normalized: false, routerInput: 'ffn' } },
      },
    },
  ],
  [
    'SmallThinkerForCausalLM',
    {
      hidden_act: null,
      intermediate_size: null,
      moe_ffn_hidden_size: 48,
      moe_num_primary_experts: 4,
      moe_num_active_primary_experts: 2,
      rope_layout: [1, 0],
      sliding_window_layout: [1, 0],
      sliding_window_size: 8,
    },
    {
      block: {
        ffn: { experts: { count: 4, active: 2, scoring: 'sigmoid', normalized: true, routerInput: 'block' } },
        layers: [
          { rotates: true, window: 8 },
          { rotates: false, window: null },
        ],
      },
    },
  ],
];
