/**
 * The architectures this runtime reads: one table, one row each; everything else is refused by name. A row says
 * how a config of this kind spells what block.ts describes, and how its files call the tensors.
 * docs/models.md shows how to add one.
 */
import type { ActivationKind } from '../kernels/kernels.js';
import {
  blockLike,
  LLAMA_BLOCK,
  LLAMA_ENDS,
  type BlockDifference,
  type Ends,
  type ExpertsDescription,
  type LayerType,
} from './block.js';
import type { RawConfig } from './config-schema.js';
import { fusedQkv, HUGGING_FACE, namedLike, type Naming } from './tensor-names.js';
import type { ModelConfig } from './types.js';

/** What a row may say about a model; what it leaves out is as in Llama. */
export interface Difference {
  block?: BlockDifference;
  ends?: Partial<Ends>;
  qkvBias?: boolean;
  outputBias?: boolean;
  kvHeads?: number;
  embeddingScale?: number;
  residualScale?: number;
  logitScale?: number;
  /** Files that differ from the row's `names` with the config. */
  names?: Naming;
}

export interface Architecture {
  /** As `architectures[0]` of config.json says. */
  name: string;
  /** Config fields under another name than usual: theirs -> the usual one (config-schema.ts). */
  fields?: Readonly<Record<string, string>>;
  /** What a config of this kind means by leaving a field out. */
  defaults?: Readonly<Record<string, unknown>>;
  /**
   * `hidden_act` values the architecture knows, and what they compute.
   * @default ACTIVATIONS
   */
  activations?: Readonly<Record<string, ActivationKind>>;
  /** Model types whose code ignores `hidden_act`: the model type decides. */
  activationByModelType?: Readonly<Record<string, ActivationKind>>;
  /** @param refuse throws MODEL_UNSUPPORTED with what is not supported */
  describe?(raw: RawConfig, refuse: (what: string) => never): Difference;
  /** @default HUGGING_FACE */
  names?: Naming;
}

export const ACTIVATIONS: Readonly<Record<string, ActivationKind>> = {
  relu: 'relu',
  fatrelu: 'fatrelu',
  relu2: 'relu2',
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  quick_gelu: 'gelu_quick',
};
const DRELU: Readonly<Record<string, ActivationKind>> = { relu: 'drelu', drelu: 'drelu' };

const biases = (raw: RawConfig): Difference => ({
  qkvBias: raw.attention_bias === true,
  outputBias: raw.attention_bias === true,
});
const ffnBias = (raw: RawConfig) => ({ ffn: { bias: raw.mlp_bias === true } });

/**
 * @param windowed which layers see `sliding_window` positions only
 * @param rotates which layers have positions
 */
function layerTypes(
  raw: RawConfig,
  windowed: (layer: number) => boolean,
  rotates: (layer: number) => boolean = () => true,
): BlockDifference {
  const size = raw.sliding_window;
  const window = size !== undefined && size < raw.max_position_embeddings ? size : null;
  const layers = Array.from({ length: raw.num_hidden_layers }, (_, l): LayerType => ({
    rotates: rotates(l),
    window: windowed(l) ? window : null,
  }));
  return layers.some((layer) => !layer.rotates || layer.window !== null) ? { layers } : {};
}

/** Qwen's and Mistral's newer configs name the kind of every layer; older Qwens the first that is windowed. */
function windowsByLayer(raw: RawConfig): BlockDifference {
  if (raw.use_sliding_window === false) return {};
  const types = raw.layer_types;
  if (types) return layerTypes(raw, (l) => types[l] === 'sliding_attention');
  return layerTypes(raw, (l) => l >= (raw.max_window_layers ?? 0));
}

// ---- Llama and its relatives -------------------------------------------------------------------------------

const LLAMA: Omit<Architecture, 'name'> = {
  activationByModelType: { llama_sparse_relu: 'relu' },
  describe: (raw) => ({ ...biases(raw), block: ffnBias(raw) }),
};

const layer = (name: string) => `model.layers.{l}.${name}`;

/** relu² without a gate: fc1 is called up. */
const UNGATED_NAMES = namedLike(HUGGING_FACE, {
  places: {
    gate: layer('mlp.up_proj.weight'),
    gateBias: layer('mlp.up_proj.bias'),
  },
});

/** Both branches read the same norm. */
const ONE_NORM = namedLike(HUGGING_FACE, {
  places: {
    ffnNorm: layer('input_layernorm.weight'),
    ffnNormBias: layer('input_layernorm.bias'),
  },
});

// ---- Falcon ------------------------------------------------------------------------------------------------

const falconNames = (norms: { attn: string; ffn: string }): Naming => {
  const h = (name: string) => `transformer.h.{l}.${name}`;
  return {
    places: {
      embed: 'transformer.word_embeddings.weight',
      outNorm: 'transformer.ln_f.weight',
      outNormBias: 'transformer.ln_f.bias',
      lmHead: 'lm_head.weight',
      attnNorm: h(`${norms.attn}.weight`),
      attnNormBias: h(`${norms.attn}.bias`),
      ffnNorm: h(`${norms.ffn}.weight`),
      ffnNormBias: h(`${norms.ffn}.bias`),
      ...fusedQkv(h('self_attention.query_key_value'), 'qkv-by-group'),
      o: h('self_attention.dense.weight'),
      oBias: h('self_attention.dense.bias'),
      gate: h('mlp.dense_h_to_4h.weight'),
      gateBias: h('mlp.dense_h_to_4h.bias'),
      down: h('mlp.dense_4h_to_h.weight'),
      downBias: h('mlp.dense_4h_to_h.bias'),
    },
  };
};

function describeFalcon(raw: RawConfig, refuse: (what: string) => never): Difference {
  if (raw.alibi === true) refuse('alibi positions');
  const grouped = raw.new_decoder_architecture === true;
  const parallel = grouped || (raw.parallel_attn ?? true);
  const two = (raw.num_ln_in_parallel_attn ?? (grouped ? 2 : 1)) === 2;
  const norms = !parallel
    ? { attn: 'input_layernorm', ffn: 'post_attention_layernorm' }
    : grouped && two
      ? { attn: 'ln_attn', ffn: 'ln_mlp' }
      : { attn: 'input_layernorm', ffn: 'input_layernorm' };
  const bias = raw.bias === true;
  return {
    block: { norm: { kind: 'layer', bias: true }, parallel, ffn: { gated: false, bias } },
    qkvBias: bias,
    outputBias: bias,
    kvHeads: grouped
      ? (raw.num_key_value_heads ?? raw.num_attention_heads)
      : (raw.multi_query ?? true)
        ? 1
        : raw.num_attention_heads,
    names: falconNames(norms),
  };
}

// ---- GPT-NeoX ----------------------------------------------------------------------------------------------

const neox = (name: string) => `gpt_neox.layers.{l}.${name}`;
const NEOX_NAMES: Naming = {
  places: {
    embed: 'gpt_neox.embed_in.weight',
    outNorm: 'gpt_neox.final_layer_norm.weight',
    outNormBias: 'gpt_neox.final_layer_norm.bias',
    lmHead: 'embed_out.weight',
    attnNorm: neox('input_layernorm.weight'),
    attnNormBias: neox('input_layernorm.bias'),
    ffnNorm: neox('post_attention_layernorm.weight'),
    ffnNormBias: neox('post_attention_layernorm.bias'),
    ...fusedQkv(neox('attention.query_key_value'), 'qkv-by-group'),
    o: neox('attention.dense.weight'),
    oBias: neox('attention.dense.bias'),
    gate: neox('mlp.dense_h_to_4h.weight'),
    gateBias: neox('mlp.dense_h_to_4h.bias'),
    down: neox('mlp.dense_4h_to_h.weight'),
    downBias: neox('mlp.dense_4h_to_h.bias'),
  },
};

// ---- OPT ---------------------------------------------------------------------------------------------------

const opt = (name: string) => `model.decoder.layers.{l}.${name}`;
const optNames = (finalNorm: string): Naming => ({
  places: {
    embed: 'model.decoder.embed_tokens.weight',
    positions: 'model.decoder.embed_positions.weight',
    projectIn: 'model.decoder.project_in.weight',
    projectOut: 'model.decoder.project_out.weight',
    outNorm: `${finalNorm}.weight`,
    outNormBias: `${finalNorm}.bias`,
    lmHead: 'lm_head.weight',
    attnNorm: opt('self_attn_layer_norm.weight'),
    attnNormBias: opt('self_attn_layer_norm.bias'),
    q: opt('self_attn.q_proj.weight'),
    k: opt('self_attn.k_proj.weight'),
    v: opt('self_attn.v_proj.weight'),
    o: opt('self_attn.out_proj.weight'),
    qBias: opt('self_attn.q_proj.bias'),
    kBias: opt('self_attn.k_proj.bias'),
    vBias: opt('self_attn.v_proj.bias'),
    oBias: opt('self_attn.out_proj.bias'),
    ffnNorm: opt('final_layer_norm.weight'),
    ffnNormBias: opt('final_layer_norm.bias'),
    gate: opt('fc1.weight'),
    gateBias: opt('fc1.bias'),
    down: opt('fc2.weight'),
    downBias: opt('fc2.bias'),
  },
});

/** The position table's first rows are for padding. */
const OPT_POSITION_OFFSET = 2;

function describeOpt(raw: RawConfig, refuse: (what: string) => never): Difference {
  if (raw.layer_norm_elementwise_affine === false) refuse('norms without weights');
  const before = raw.do_layer_norm_before ?? true;
  const bias = raw.enable_bias ?? true;
  const embedding = raw.word_embed_proj_dim ?? raw.hidden_size;
  return {
    block: {
      norm: { kind: 'layer', bias: true, place: before ? 'before' : 'sum' },
      attention: { rotaryDims: 0 },
      ffn: { gated: false, bias },
    },
    ends: {
      embeddingSize: embedding === raw.hidden_size ? null : embedding,
      learnedPositions: {
        rows: raw.max_position_embeddings + OPT_POSITION_OFFSET,
        offset: OPT_POSITION_OFFSET,
      },
      finalNorm: before && raw._remove_final_layer_norm !== true,
    },
    qkvBias: bias,
    outputBias: bias,
    kvHeads: raw.num_attention_heads,
  };
}

// ---- experts -----------------------------------------------------------------------------------------------

const moe = (name: string) => layer(`block_sparse_moe.${name}`);

const EXPERTS_IN_MLP = namedLike(HUGGING_FACE, {
  places: {
    router: layer('mlp.gate.weight'),
    gate: layer('mlp.experts.{e}.gate_proj.weight'),
    up: layer('mlp.experts.{e}.up_proj.weight'),
    down: layer('mlp.experts.{e}.down_proj.weight'),
  },
});

/** Experts chosen by a softmax over all of them, from what the FFN reads. */
function softmaxExperts(
  raw: RawConfig,
  refuse: (what: string) => never,
  normalized: boolean,
): ExpertsDescription {
  const { num_local_experts: count, num_experts_per_tok: active } = raw;
  if (count === undefined || active === undefined) {
    return refuse('a mixture that does not say how many experts it has and chooses');
  }
  return { count, active, scoring: 'softmax', normalized, routerInput: 'ffn' };
}

function describeQwen3Moe(raw: RawConfig, refuse: (what: string) => never): Difference {
  if ((raw.decoder_sparse_step ?? 1) !== 1 || (raw.mlp_only_layers ?? []).length > 0) {
    refuse('layers without experts');
  }
  return {
    ...biases(raw),
    block: {
      ...(raw.use_sliding_window === true ? layerTypes(raw, () => true) : {}),
      attention: { headNorm: 'head' },
      ffn: { experts: softmaxExperts(raw, refuse, raw.norm_topk_prob === true) },
    },
  };
}

function describeSmallThinker(raw: RawConfig, refuse: (what: string) => never): Difference {
  const { num_local_experts: count, num_experts_per_tok: active, rope_layout: rope } = raw;
  if (count === undefined || active === undefined) {
    return refuse('a model without moe_num_primary_experts and moe_num_active_primary_experts');
  }
  if (raw.moe_layer_layout?.includes(0)) refuse('layers without experts');
  if (raw.moe_enable_secondary_experts === true) refuse('secondary experts');
  const layouts = [rope, raw.sliding_window_layout].filter((layout) => layout !== undefined);
  if (layouts.some(({ length }) => length !== raw.num_hidden_layers)) {
    refuse(`rope_layout or sliding_window_layout of another length than num_hidden_layers`);
  }
  const softmax = raw.moe_primary_router_apply_softmax === true;
  return {
    block: {
      ...layerTypes(
        raw,
        (l) => raw.sliding_window_layout?.[l] === 1,
        (l) => rope?.[l] !== 0,
      ),
      ffn: {
        experts: {
          count,
          active,
          scoring: softmax ? 'softmax' : 'sigmoid',
          // The softmax is one over the chosen.
          normalized: softmax || raw.norm_topk_prob !== false,
          routerInput: 'block',
        },
      },
    },
  };
}

// ---- the table ---------------------------------------------------------------------------------------------

export const ARCHITECTURES: readonly Architecture[] = [
  { ...LLAMA, name: 'LlamaForCausalLM' },
  {
    // ProSparse (`sparsellama`, FATReLU), and `llama_sparse_relu`, whose config says silu but whose code is ReLU.
    ...LLAMA,
    name: 'SparseLlamaForCausalLM',
  },
  {
    name: 'MistralForCausalLM',
    describe: (raw) => ({ block: windowsByLayer(raw) }),
  },
  {
    // relu on the gate and on the up projection, whichever way the config spells it.
    name: 'BambooForCausalLM',
    activations: DRELU,
    describe: (raw) => ({ block: windowsByLayer(raw) }),
  },
  {
    // Absent constants are 1, as in the configuration class of MiniCPM's own code.
    name: 'MiniCPMForCausalLM',
    defaults: { tie_word_embeddings: true },
    describe: (raw) => ({
      ...biases(raw),
      embeddingScale: raw.scale_emb ?? 1,
      residualScale: (raw.scale_depth ?? 1) / Math.sqrt(raw.num_hidden_layers),
      logitScale: (raw.dim_model_base ?? 1) / raw.hidden_size,
    }),
  },
  {
    name: 'ArceeForCausalLM',
    defaults: { hidden_act: 'relu2', rms_norm_eps: 1e-5 },
    describe: (raw) => ({ ...biases(raw), block: { ffn: { gated: false, bias: raw.mlp_bias === true } } }),
    names: UNGATED_NAMES,
  },
  {
    name: 'NemotronForCausalLM',
    fields: { norm_eps: 'rms_norm_eps' },
    defaults: { hidden_act: 'relu2', norm_eps: 1e-5, partial_rotary_factor: 0.5 },
    describe: (raw) => ({
      ...biases(raw),
      block: { norm: { kind: 'layer', bias: true }, ffn: { gated: false, bias: raw.mlp_bias === true } },
    }),
    names: { ...UNGATED_NAMES, normsLessOne: true },
  },
  {
    name: 'BitNetForCausalLM',
    defaults: { hidden_act: 'relu2', rms_norm_eps: 1e-5, rope_theta: 500000 },
    describe: (raw) => ({ ...biases(raw), block: { attention: { outputNorm: true }, ffn: { norm: true } } }),
    names: namedLike(HUGGING_FACE, {
      places: { oNorm: layer('self_attn.attn_sub_norm.weight') },
      downNorm: layer('mlp.ffn_sub_norm.weight'),
    }),
  },
  {
    name: 'FalconForCausalLM',
    fields: {
      ffn_hidden_size: 'intermediate_size',
      activation: 'hidden_act',
      num_kv_heads: 'num_key_value_heads',
      layer_norm_epsilon: 'rms_norm_eps',
      n_head: 'num_attention_heads',
      n_layer: 'num_hidden_layers',
    },
    defaults: { activation: 'gelu', layer_norm_epsilon: 1e-5, tie_word_embeddings: true },
    describe: describeFalcon,
  },
  {
    name: 'OPTForCausalLM',
    fields: { ffn_dim: 'intermediate_size', activation_function: 'hidden_act' },
    defaults: { activation_function: 'relu', rms_norm_eps: 1e-5, tie_word_embeddings: true },
    describe: describeOpt,
    names: optNames('model.decoder.final_layer_norm'),
  },
  {
    name: 'Qwen2ForCausalLM',
    defaults: { use_sliding_window: false },
    describe: (raw) => ({ qkvBias: true, block: windowsByLayer(raw) }),
  },
  {
    name: 'Qwen3ForCausalLM',
    defaults: { head_dim: 128, use_sliding_window: false },
    describe: (raw) => ({
      ...biases(raw),
      block: { ...windowsByLayer(raw), attention: { headNorm: 'head' } },
    }),
  },
  {
    name: 'Phi3ForCausalLM',
    defaults: { rms_norm_eps: 1e-5 },
    describe: (raw) => ({ block: layerTypes(raw, () => true) }),
    names: namedLike(HUGGING_FACE, {
      places: {
        ...fusedQkv(layer('self_attn.qkv_proj'), 'qkv'),
        gate: { in: layer('mlp.gate_up_proj.weight'), as: 'gate-up' },
        up: { in: layer('mlp.gate_up_proj.weight'), as: 'gate-up' },
      },
    }),
  },
  {
    name: 'SmolLM3ForCausalLM',
    defaults: { use_sliding_window: false, tie_word_embeddings: true, rope_theta: 2e6 },
    describe(raw, refuse) {
      const rope = raw.no_rope_layers;
      if (rope && rope.length < raw.num_hidden_layers)
        refuse('no_rope_layers shorter than num_hidden_layers');
      const interval = raw.no_rope_layer_interval ?? 4;
      const rotates = (l: number) => (rope ? rope[l] === 1 : (l + 1) % interval !== 0);
      const windowed = (l: number) =>
        raw.use_sliding_window === true &&
        (raw.layer_types ? raw.layer_types[l] === 'sliding_attention' : !rotates(l));
      return { ...biases(raw), block: { ...ffnBias(raw), ...layerTypes(raw, windowed, rotates) } };
    },
  },
  {
    name: 'GraniteForCausalLM',
    describe: (raw) => ({
      ...biases(raw),
      block: { ...ffnBias(raw), attention: { scale: raw.attention_multiplier ?? 1 } },
      embeddingScale: raw.embedding_multiplier ?? 1,
      residualScale: raw.residual_multiplier ?? 1,
      logitScale: 1 / (raw.logits_scaling ?? 1),
    }),
  },
  {
    name: 'Olmo2ForCausalLM',
    defaults: { rms_norm_eps: 1e-5 },
    describe: (raw) => ({
      ...biases(raw),
      block: { norm: { place: 'output' }, attention: { headNorm: 'all' } },
    }),
    names: namedLike(HUGGING_FACE, {
      places: {
        attnNorm: layer('post_attention_layernorm.weight'),
        ffnNorm: layer('post_feedforward_layernorm.weight'),
      },
    }),
  },
  {
    // TurboSparse-Mixtral is this with dReLU.
    name: 'MixtralForCausalLM',
    defaults: { rms_norm_eps: 1e-5, rope_theta: 1e6 },
    activations: { ...ACTIVATIONS, drelu: 'drelu' },
    describe: (raw, refuse) => ({
      block: { ...layerTypes(raw, () => true), ffn: { experts: softmaxExperts(raw, refuse, true) } },
    }),
    names: namedLike(HUGGING_FACE, {
      places: {
        router: moe('gate.weight'),
        gate: moe('experts.{e}.w1.weight'),
        up: moe('experts.{e}.w3.weight'),
        down: moe('experts.{e}.w2.weight'),
      },
    }),
  },
  {
    name: 'StableLmForCausalLM',
    fields: { layer_norm_eps: 'rms_norm_eps' },
    defaults: { layer_norm_eps: 1e-5, partial_rotary_factor: 0.25 },
    describe(raw, refuse) {
      if (raw.qk_layernorm === true) refuse('qk_layernorm');
      const parallel = raw.use_parallel_residual === true;
      return {
        qkvBias: raw.use_qkv_bias === true,
        block: { norm: { kind: 'layer', bias: true }, parallel },
        names: parallel ? ONE_NORM : undefined,
      };
    },
  },
  {
    name: 'GemmaForCausalLM',
    fields: { hidden_activation: 'hidden_act' },
    defaults: { hidden_act: 'gelu_pytorch_tanh', head_dim: 256, tie_word_embeddings: true },
    // Its first configs say gelu; its authors' code and transformers compute the approximation all the same.
    activations: { ...ACTIVATIONS, gelu: 'gelu_tanh' },
    describe(raw, refuse) {
      if (raw.use_bidirectional_attention === true) refuse('use_bidirectional_attention');
      return { ...biases(raw), embeddingScale: Math.sqrt(raw.hidden_size) };
    },
    names: { ...HUGGING_FACE, normsLessOne: true },
  },
  {
    name: 'CohereForCausalLM',
    fields: { layer_norm_eps: 'rms_norm_eps', model_max_length: 'max_position_embeddings' },
    defaults: { layer_norm_eps: 1e-5, rope_theta: 500000, tie_word_embeddings: true },
    describe(raw, refuse) {
      if (raw.use_qk_norm === true) refuse('use_qk_norm');
      return {
        ...biases(raw),
        block: { norm: { kind: 'layer' }, parallel: true },
        logitScale: raw.logit_scale ?? 0.0625,
      };
    },
    // Its rotation turns neighbouring dimensions.
    names: { ...ONE_NORM, interleavedHeads: true },
  },
  {
    name: 'Starcoder2ForCausalLM',
    fields: { norm_epsilon: 'rms_norm_eps' },
    defaults: { hidden_act: 'gelu_pytorch_tanh', norm_epsilon: 1e-5, tie_word_embeddings: true },
    describe(raw) {
      const bias = raw.use_bias ?? true;
      return {
        qkvBias: bias,
        outputBias: bias,
        block: {
          ...layerTypes(raw, () => true),
          norm: { kind: 'layer', bias: true },
          ffn: { gated: false, bias },
        },
      };
    },
    names: namedLike(HUGGING_FACE, {
      places: {
        gate: layer('mlp.c_fc.weight'),
        gateBias: layer('mlp.c_fc.bias'),
        down: layer('mlp.c_proj.weight'),
        downBias: layer('mlp.c_proj.bias'),
      },
    }),
  },
  {
    // Pythia and its like.
    name: 'GPTNeoXForCausalLM',
    fields: {
      layer_norm_eps: 'rms_norm_eps',
      rotary_pct: 'partial_rotary_factor',
      rotary_emb_base: 'rope_theta',
    },
    defaults: { hidden_act: 'gelu', layer_norm_eps: 1e-5, rotary_pct: 0.25, attention_bias: true },
    describe: (raw) => ({
      ...biases(raw),
      block: {
        norm: { kind: 'layer', bias: true },
        parallel: raw.use_parallel_residual ?? true,
        ffn: { gated: false, bias: true },
      },
      kvHeads: raw.num_attention_heads,
    }),
    names: NEOX_NAMES,
  },
  {
    name: 'InternLM2ForCausalLM',
    defaults: { bias: true },
    describe: (raw) => ({ qkvBias: raw.bias === true, outputBias: raw.bias === true }),
    names: namedLike(HUGGING_FACE, {
      places: {
        embed: 'model.tok_embeddings.weight',
        lmHead: 'output.weight',
        attnNorm: layer('attention_norm.weight'),
        ...fusedQkv(layer('attention.wqkv'), 'qkv-by-group'),
        o: layer('attention.wo.weight'),
        oBias: layer('attention.wo.bias'),
        ffnNorm: layer('ffn_norm.weight'),
        gate: layer('feed_forward.w1.weight'),
        up: layer('feed_forward.w3.weight'),
        down: layer('feed_forward.w2.weight'),
      },
    }),
  },
  {
    name: 'Qwen3MoeForCausalLM',
    fields: { moe_intermediate_size: 'intermediate_size', num_experts: 'num_local_experts' },
    describe: describeQwen3Moe,
    names: EXPERTS_IN_MLP,
  },
  {
    name: 'OlmoeForCausalLM',
    fields: { num_experts: 'num_local_experts' },
    defaults: { rms_norm_eps: 1e-5 },
    describe(raw, refuse) {
      if (raw.clip_qkv !== undefined) refuse('clip_qkv');
      const experts = softmaxExperts(raw, refuse, raw.norm_topk_prob === true);
      return { ...biases(raw), block: { attention: { headNorm: 'all' }, ffn: { experts } } };
    },
    names: EXPERTS_IN_MLP,
  },
  {
    name: 'SmallThinkerForCausalLM',
    fields: {
      moe_ffn_hidden_size: 'intermediate_size',
      moe_num_primary_experts: 'num_local_experts',
      moe_num_active_primary_experts: 'num_experts_per_tok',
      sliding_window_size: 'sliding_window',
    },
    defaults: { hidden_act: 'relu' },
    activations: { relu: 'relu' },
    describe: describeSmallThinker,
    names: namedLike(HUGGING_FACE, {
      places: {
        router: moe('primary_router.weight'),
        gate: moe('experts.{e}.gate.weight'),
        up: moe('experts.{e}.up.weight'),
        down: moe('experts.{e}.down.weight'),
      },
    }),
  },
];

export const findArchitecture = (name: string): Architecture | undefined =>
  ARCHITECTURES.find((row) => row.name === name);

export const supportedNames = (): string => ARCHITECTURES.map((row) => row.name).join(', ');

/** The parts of a config that a difference decides, completed with Llama's. */
export const likeLlama = (other: Difference): Pick<ModelConfig, 'block' | 'ends'> => ({
  block: blockLike(LLAMA_BLOCK, other.block ?? {}),
  ends: { ...LLAMA_ENDS, ...other.ends },
});
