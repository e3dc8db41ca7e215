/** The fields of config.json that change what a model computes, under one name each; others are ignored. */
import { z } from 'zod';
import * as limits from './limits.js';

const count = (max: number) => z.number().int().min(1).max(max);
const positive = z.number().positive().finite();
const tokenId = z.number().int().min(0).max(limits.MAX_VOCAB);

/** JSON writers spell absence as null or by leaving the key out. */
const maybe = <T extends z.ZodType>(schema: T) => schema.nullish().transform((v) => v ?? undefined);

export const ropeSchema = z.object({
  rope_type: maybe(z.string()),
  type: maybe(z.string()),
  rope_theta: maybe(positive),
  partial_rotary_factor: maybe(positive.max(1)),
  factor: maybe(positive),
  low_freq_factor: maybe(positive),
  high_freq_factor: maybe(positive),
  original_max_position_embeddings: maybe(count(limits.MAX_CONTEXT)),
  beta_fast: maybe(positive),
  beta_slow: maybe(positive),
  attention_factor: maybe(positive),
  mscale: maybe(positive),
  mscale_all_dim: maybe(positive),
  truncate: maybe(z.boolean()),
  short_factor: maybe(z.array(positive).max(limits.MAX_HEAD_DIM)),
  long_factor: maybe(z.array(positive).max(limits.MAX_HEAD_DIM)),
  // One set of parameters for each kind of layer: a form of its own.
  full_attention: maybe(z.unknown()),
  sliding_attention: maybe(z.unknown()),
});
export type RawRope = z.infer<typeof ropeSchema>;

const flags = z.array(z.union([z.literal(0), z.literal(1)])).max(limits.MAX_LAYERS);

export const configSchema = z.object({
  architectures: z.array(z.string()).min(1),
  model_type: maybe(z.string()),
  hidden_act: maybe(z.string()),
  hidden_act_param: maybe(z.number().finite()),
  vocab_size: count(limits.MAX_VOCAB),
  hidden_size: count(limits.MAX_HIDDEN),
  intermediate_size: count(limits.MAX_INTERMEDIATE),
  num_hidden_layers: count(limits.MAX_LAYERS),
  num_attention_heads: count(limits.MAX_HEADS),
  num_key_value_heads: maybe(count(limits.MAX_HEADS)),
  head_dim: maybe(count(limits.MAX_HEAD_DIM)),
  max_position_embeddings: count(limits.MAX_CONTEXT).default(2048),
  rms_norm_eps: z.number().positive().max(1).default(1e-6),
  rope_theta: maybe(positive),
  rope_scaling: maybe(ropeSchema),
  rope_parameters: maybe(ropeSchema),
  partial_rotary_factor: maybe(positive.max(1)),
  original_max_position_embeddings: maybe(count(limits.MAX_CONTEXT)), // Phi-3's place for it
  attention_bias: maybe(z.boolean()),
  mlp_bias: maybe(z.boolean()),
  tie_word_embeddings: maybe(z.boolean()),
  bos_token_id: maybe(tokenId),
  eos_token_id: maybe(z.union([tokenId, z.array(tokenId).max(64)])),
  quantization_config: maybe(
    z.looseObject({
      quant_method: maybe(z.string()),
      linear_class: maybe(z.string()),
      quantization_mode: maybe(z.string()),
    }),
  ),

  // Windows and kinds of layers.
  sliding_window: maybe(count(limits.MAX_CONTEXT)),
  use_sliding_window: maybe(z.boolean()),
  max_window_layers: maybe(z.number().int().min(0).max(limits.MAX_LAYERS)),
  layer_types: maybe(z.array(z.string()).max(limits.MAX_LAYERS)),
  rope_layout: maybe(flags),
  sliding_window_layout: maybe(flags),
  no_rope_layers: maybe(flags), // SmolLM3's: 1 where a layer rotates
  no_rope_layer_interval: maybe(count(limits.MAX_LAYERS)),

  // Scales: MiniCPM, Granite.
  scale_emb: maybe(positive),
  scale_depth: maybe(positive),
  dim_model_base: maybe(positive),
  embedding_multiplier: maybe(positive),
  residual_multiplier: maybe(positive),
  attention_multiplier: maybe(positive),
  logits_scaling: maybe(positive),

  // Experts: Mixtral, Qwen3, OLMoE, SmallThinker.
  num_local_experts: maybe(count(limits.MAX_EXPERTS)),
  num_experts_per_tok: maybe(count(limits.MAX_EXPERTS)),
  norm_topk_prob: maybe(z.boolean()),
  clip_qkv: maybe(positive),
  decoder_sparse_step: maybe(z.number().int().min(0).max(limits.MAX_LAYERS)),
  mlp_only_layers: maybe(z.array(z.number().int().min(0)).max(limits.MAX_LAYERS)),
  moe_primary_router_apply_softmax: maybe(z.boolean()),
  moe_layer_layout: maybe(flags),
  moe_enable_secondary_experts: maybe(z.boolean()),

  // OPT.
  word_embed_proj_dim: maybe(count(limits.MAX_HIDDEN)),
  do_layer_norm_before: maybe(z.boolean()),
  _remove_final_layer_norm: maybe(z.boolean()),
  enable_bias: maybe(z.boolean()),
  layer_norm_elementwise_affine: maybe(z.boolean()),

  // Falcon.
  bias: maybe(z.boolean()),
  alibi: maybe(z.boolean()),
  multi_query: maybe(z.boolean()),
  parallel_attn: maybe(z.boolean()),
  new_decoder_architecture: maybe(z.boolean()),
  num_ln_in_parallel_attn: maybe(z.number().int().min(1).max(2)),

  // Gemma, Cohere, Starcoder2.
  use_bidirectional_attention: maybe(z.boolean()),
  use_qk_norm: maybe(z.boolean()),
  logit_scale: maybe(positive),
  use_bias: maybe(z.boolean()),

  // StableLM.
  use_qkv_bias: maybe(z.boolean()),
  qk_layernorm: maybe(z.boolean()),
  use_parallel_residual: maybe(z.boolean()),
});
export type RawConfig = z.infer<typeof configSchema>;
