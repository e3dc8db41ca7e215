/**
 * GGUF's architectures, one row each: how the metadata of one spells what block.ts describes, and where its
 * tensors lie. Keys are those of llama.cpp's converter, after the architecture's name and a dot.
 */
import type { ActivationKind } from '../kernels/kernels.js';
import type { Difference } from './architectures.js';
import type { ExpertsDescription, LayerType } from './block.js';
import type { GgufFacts } from './gguf-config.js';
import type { GgufMetadata } from './gguf-metadata.js';
import * as limits from './limits.js';
import { fusedQkv, GGUF, namedLike, type Naming } from './tensor-names.js';

export interface GgufArchitecture {
  /** What llama.cpp computes for it, unless the file names another. */
  activation: ActivationKind;
  /** @param key a metadata key without the architecture's name */
  describe?(meta: GgufMetadata, key: (name: string) => string, facts: GgufFacts): Difference;
  names: Naming;
}

const blk = (name: string) => `blk.{l}.${name}`;
/** Converters of Llama's relatives interleave the halves of every head of q and k. */
const INTERLEAVED: Naming = namedLike(GGUF, { interleavedHeads: true });
const STACKED: Naming['places'] = {
  gate: { in: blk('ffn_gate_exps.weight'), as: 'experts' },
  up: { in: blk('ffn_up_exps.weight'), as: 'experts' },
  down: { in: blk('ffn_down_exps.weight'), as: 'experts' },
};
const FUSED_QKV = fusedQkv(blk('attn_qkv'), 'qkv');
/** The only matrix before the activation is called up. */
const UNGATED: Naming['places'] = { gate: blk('ffn_up.weight'), gateBias: blk('ffn_up.bias') };

/** Blocks in parallel, where both branches read attention's norm. */
const ONE_NORM: Naming['places'] = { ffnNorm: blk('attn_norm.weight'), ffnNormBias: blk('attn_norm.bias') };

/** Biases are there or not; the metadata does not say. */
const biases = ({ hasTensor }: GgufFacts): Difference => ({
  qkvBias: ['q', 'k', 'v', 'qkv'].some((name) => hasTensor(`blk.0.attn_${name}.bias`)),
  outputBias: hasTensor('blk.0.attn_output.bias'),
});
const ffnBias = ({ hasTensor }: GgufFacts): boolean => hasTensor('blk.0.ffn_down.bias');

/** llama.cpp's numbers of router functions. */
const SCORING: Readonly<Record<number, ExpertsDescription['scoring']>> = { 1: 'softmax', 2: 'sigmoid' };

function experts(
  meta: GgufMetadata,
  key: (name: string) => string,
  routerInput: ExpertsDescription['routerInput'],
  normalized = true,
): ExpertsDescription | null {
  const count = meta.integer(key('expert_count'), 0, limits.MAX_EXPERTS) ?? 0;
  if (count === 0) return null;
  const active = meta.required(key('expert_used_count'), limits.MAX_EXPERTS);
  const gating = meta.integer(key('expert_gating_func'), 0, 255) ?? 1;
  const scoring = SCORING[gating];
  if (scoring === undefined) throw meta.unsupported(`${key('expert_gating_func')} ${gating}`);
  return { count, active, scoring, normalized, routerInput };
}

/** Of architectures that are nothing without experts. */
function someExperts(...[meta, key, ...more]: Parameters<typeof experts>): ExpertsDescription {
  const found = experts(meta, key, ...more);
  if (found === null) throw meta.invalid(`${key('expert_count')} is missing`);
  return found;
}

/** Every layer's window, from `attention.sliding_window`. */
function windows(
  meta: GgufMetadata,
  key: (name: string) => string,
  windowed: (layer: number) => boolean,
  rotates: (layer: number) => boolean = () => true,
): LayerType[] | null {
  const context = meta.integer(key('context_length'), 1, limits.MAX_CONTEXT) ?? 2048;
  const size = meta.integer(key('attention.sliding_window'), 0, limits.MAX_CONTEXT) ?? 0;
  const window = size > 0 && size < context ? size : null;
  const count = meta.required(key('block_count'), limits.MAX_LAYERS);
  const layers = Array.from({ length: count }, (_, l): LayerType => ({
    rotates: rotates(l),
    window: windowed(l) ? window : null,
  }));
  return layers.some((layer) => !layer.rotates || layer.window !== null) ? layers : null;
}

/** Llama, Mistral and, with experts, Mixtral. */
const llama: GgufArchitecture = {
  activation: 'silu',
  describe: (meta, key, facts) => ({
    ...biases(facts),
    block: {
      layers: windows(meta, key, () => true),
      ffn: { bias: ffnBias(facts), experts: experts(meta, key, 'ffn') },
    },
    embeddingScale: meta.positive('hybrid_infer.embedding_scale'),
    residualScale: meta.positive('hybrid_infer.residual_scale'),
    logitScale: meta.positive('hybrid_infer.logit_scale'),
    names: facts.hasTensor('blk.0.ffn_gate_exps.weight')
      ? namedLike(INTERLEAVED, { places: STACKED })
      : INTERLEAVED,
  }),
  names: INTERLEAVED,
};

/** Every fourth layer of SmolLM3 has no positions. */
const SMOLLM3_GROUP = 4;
/** SmallThinker's layers in groups of four: the first sees everything without positions, the others a window. */
const SMALLTHINKER_GROUP = 4;

export const GGUF_ARCHITECTURES: Readonly<Record<string, GgufArchitecture>> = {
  llama,
  arcee: {
    activation: 'relu2',
    describe: (_meta, _key, facts) => ({
      ...biases(facts),
      block: { ffn: { gated: false, bias: ffnBias(facts) } },
    }),
    names: namedLike(INTERLEAVED, { places: UNGATED }),
  },
  nemotron: {
    // The converter has added the one to the norms' weights.
    activation: 'relu2',
    describe: (_meta, _key, facts) => ({
      ...biases(facts),
      block: { norm: { kind: 'layer', bias: true }, ffn: { gated: false, bias: ffnBias(facts) } },
    }),
    names: namedLike(GGUF, { places: UNGATED }),
  },
  bitnet: {
    activation: 'silu',
    describe: (_meta, _key, facts) => ({
      ...biases(facts),
      block: { attention: { outputNorm: true }, ffn: { norm: true } },
    }),
    names: namedLike(GGUF, {
      downNorm: blk('ffn_sub_norm.weight'),
      scaleOf: { name: (matrix) => matrix.replace(/weight$/, 'scale'), divide: false, required: false },
    }),
  },
  falcon: {
    activation: 'gelu',
    describe: (_meta, _key, facts) => ({
      ...biases(facts),
      block: {
        norm: { kind: 'layer', bias: true },
        parallel: true,
        ffn: { gated: false, bias: ffnBias(facts) },
      },
      // Falcon-40B has a norm for each branch; attention's is the second one of the file.
      names: falconNames(facts.hasTensor('blk.0.attn_norm_2.weight') ? 'attn_norm_2' : 'attn_norm'),
    }),
    names: GGUF,
  },
  qwen2: { activation: 'silu', describe: () => ({ qkvBias: true }), names: GGUF },
  qwen3: {
    activation: 'silu',
    describe: (_meta, _key, facts) => ({ ...biases(facts), block: { attention: { headNorm: 'head' } } }),
    names: GGUF,
  },
  phi3: {
    activation: 'silu',
    describe: (meta, key) => ({ block: { layers: windows(meta, key, () => true) } }),
    names: namedLike(GGUF, {
      places: {
        ...FUSED_QKV,
        gate: { in: blk('ffn_up.weight'), as: 'gate-up' },
        up: { in: blk('ffn_up.weight'), as: 'gate-up' },
      },
    }),
  },
  smollm3: {
    activation: 'silu',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      block: {
        layers: windows(
          meta,
          key,
          () => false,
          (l) => (l + 1) % SMOLLM3_GROUP !== 0,
        ),
      },
    }),
    names: INTERLEAVED,
  },
  granite: {
    activation: 'silu',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      block: { attention: { scale: meta.positive(key('attention.scale')) ?? null } },
      embeddingScale: meta.positive(key('embedding_scale')),
      residualScale: meta.positive(key('residual_scale')),
      logitScale: 1 / (meta.positive(key('logit_scale')) ?? 1),
    }),
    names: INTERLEAVED,
  },
  olmo2: {
    activation: 'silu',
    describe: () => ({ block: { norm: { place: 'output' }, attention: { headNorm: 'all' } } }),
    names: namedLike(GGUF, {
      places: { attnNorm: blk('post_attention_norm.weight'), ffnNorm: blk('post_ffw_norm.weight') },
    }),
  },
  gemma: {
    // The converter has added the one to the norms' weights.
    activation: 'gelu_tanh',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      embeddingScale: Math.sqrt(meta.required(key('embedding_length'), limits.MAX_HIDDEN)),
    }),
    names: GGUF,
  },
  'command-r': {
    activation: 'silu',
    describe: (meta, key, facts) => {
      if (facts.hasTensor('blk.0.attn_q_norm.weight')) throw meta.unsupported('norms of queries and keys');
      return {
        ...biases(facts),
        block: { norm: { kind: 'layer' }, parallel: true },
        logitScale: meta.positive(key('logit_scale')),
      };
    },
    // Not the converter's doing: the model itself turns neighbouring dimensions.
    names: namedLike(INTERLEAVED, { places: ONE_NORM }),
  },
  starcoder2: {
    activation: 'gelu_tanh',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      block: {
        layers: windows(meta, key, () => true),
        norm: { kind: 'layer', bias: true },
        ffn: { gated: false, bias: ffnBias(facts) },
      },
    }),
    names: namedLike(GGUF, { places: UNGATED }),
  },
  gptneox: {
    activation: 'gelu',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      block: {
        norm: { kind: 'layer', bias: true },
        parallel: meta.flag(key('use_parallel_residual')) ?? true,
        ffn: { gated: false, bias: ffnBias(facts) },
      },
    }),
    names: namedLike(GGUF, { places: { ...FUSED_QKV, ...UNGATED } }),
  },
  stablelm: {
    activation: 'silu',
    describe: (meta, _key, facts) => {
      if (facts.hasTensor('blk.0.attn_q_norm.weight')) throw meta.unsupported('norms of queries and keys');
      const parallel = !facts.hasTensor('blk.0.ffn_norm.weight');
      return {
        ...biases(facts),
        block: { norm: { kind: 'layer', bias: true }, parallel },
        names: parallel ? namedLike(GGUF, { places: ONE_NORM }) : GGUF,
      };
    },
    names: GGUF,
  },
  internlm2: { activation: 'silu', describe: (_meta, _key, facts) => biases(facts), names: INTERLEAVED },
  qwen3moe: {
    activation: 'silu',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      block: { attention: { headNorm: 'head' }, ffn: { experts: someExperts(meta, key, 'ffn') } },
    }),
    names: namedLike(GGUF, { places: STACKED }),
  },
  olmoe: {
    activation: 'silu',
    describe: (meta, key, facts) => ({
      ...biases(facts),
      block: { attention: { headNorm: 'all' }, ffn: { experts: someExperts(meta, key, 'ffn', false) } },
    }),
    names: namedLike(GGUF, { places: STACKED }),
  },
  smallthinker: {
    activation: 'relu',
    describe: (meta, key) => {
      const window = meta.integer(key('attention.sliding_window'), 0, limits.MAX_CONTEXT) ?? 0;
      const first = (l: number) => window > 0 && l % SMALLTHINKER_GROUP === 0;
      return {
        block: {
          layers: windows(
            meta,
            key,
            (l) => !first(l),
            (l) => !first(l),
          ),
          ffn: { experts: someExperts(meta, key, 'block') },
        },
      };
    },
    names: namedLike(GGUF, { places: STACKED }),
  },
};

function falconNames(attnNorm: string): Naming {
  return namedLike(GGUF, {
    places: {
      ...FUSED_QKV,
      ...UNGATED,
      attnNorm: blk(`${attnNorm}.weight`),
      attnNormBias: blk(`${attnNorm}.bias`),
      ...ONE_NORM,
    },
  });
}
