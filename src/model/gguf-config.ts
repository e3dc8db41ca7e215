/** GGUF metadata -> ModelConfig, with the row of the file's architecture. */
import { ACTIVATION_KINDS, isSmooth, type ActivationKind } from '../kernels/kernels.js';
import { likeLlama } from './architectures.js';
import { checkShape, checkTokenIds, type ReadConfig } from './config.js';
import { GGUF_ARCHITECTURES } from './gguf-architectures.js';
import type { GgufMetadata } from './gguf-metadata.js';
import * as limits from './limits.js';
import { yarnMagnitude } from './rope.js';
import type { ModelConfig, RopeScaling } from './types.js';

/** What tensors the file holds, as far as the config depends on it. */
export interface GgufFacts {
  hasTensor(name: string): boolean;
  /** The tensors of rotary divisors that the file has, by name. */
  ropeFactors: ReadonlyMap<string, Float32Array>;
}

/** @throws ModelError naming the metadata key */
export function readGgufConfig(meta: GgufMetadata, facts: GgufFacts): ReadConfig {
  const architecture = meta.text('general.architecture');
  const row =
    architecture !== undefined && Object.hasOwn(GGUF_ARCHITECTURES, architecture)
      ? GGUF_ARCHITECTURES[architecture]
      : undefined;
  if (architecture === undefined || row === undefined) {
    const found = architecture === undefined ? 'no general.architecture' : `architecture ${architecture}`;
    throw meta.unsupported(
      `${found} is not supported`,
      `Supported in GGUF files: ${Object.keys(GGUF_ARCHITECTURES).join(', ')}.`,
    );
  }
  const key = (name: string): string => `${architecture}.${name}`;
  const warnings: string[] = [];
  const other = row.describe?.(meta, key, facts) ?? {};
  const { block, ends } = likeLlama(other);

  const hiddenSize = meta.required(key('embedding_length'), limits.MAX_HIDDEN);
  const heads = meta.required(key('attention.head_count'), limits.MAX_HEADS);
  const headDim = meta.integer(key('attention.key_length'), 1, limits.MAX_HEAD_DIM) ?? hiddenSize / heads;
  const tokens = meta.texts('tokenizer.ggml.tokens');
  const vocabSize = meta.integer(key('vocab_size'), 1, limits.MAX_VOCAB) ?? tokens?.length;
  if (vocabSize === undefined) throw meta.invalid(`neither ${key('vocab_size')} nor tokenizer.ggml.tokens`);
  const rotary = meta.integer(key('rope.dimension_count'), 1, limits.MAX_HEAD_DIM) ?? headDim;
  if (rotary !== headDim) block.attention.rotaryDims = rotary;
  const ropeTheta = meta.positive(key('rope.freq_base')) ?? 10000;
  const { experts } = block.ffn;
  const own = experts
    ? meta.integer(key('expert_feed_forward_length'), 1, limits.MAX_INTERMEDIATE)
    : undefined;
  const neurons = own ?? meta.required(key('feed_forward_length'), limits.MAX_INTERMEDIATE);
  const maxContext = meta.integer(key('context_length'), 1, limits.MAX_CONTEXT) ?? 2048;

  const config: ModelConfig = {
    architecture,
    hiddenSize,
    intermediateSize: neurons * (experts?.count ?? 1),
    layers: meta.required(key('block_count'), limits.MAX_LAYERS),
    heads,
    kvHeads: meta.integer(key('attention.head_count_kv'), 1, limits.MAX_HEADS) ?? heads,
    headDim,
    vocabSize,
    maxContext,
    rmsEpsilon: readEpsilon(meta, key, block.norm.kind),
    ropeTheta,
    ropeScaling: readRopeScaling(meta, key, rotary, ropeTheta, maxContext, facts.ropeFactors),
    activation: readActivation(meta, architecture, row.activation, warnings),
    qkvBias: other.qkvBias ?? false,
    outputBias: other.outputBias ?? false,
    tiedEmbeddings: !facts.hasTensor('output.weight'),
    embeddingScale: other.embeddingScale ?? 1,
    residualScale: other.residualScale ?? 1,
    logitScale: other.logitScale ?? 1,
    block,
    ends,
    bosId: tokenId(meta, 'bos') ?? null,
    eosIds: stopIds(meta),
  };
  checkShape(config, 'GGUF metadata');
  checkTokenIds(config, 'GGUF metadata');
  const valueLength = meta.integer(key('attention.value_length'), 1, limits.MAX_HEAD_DIM) ?? headDim;
  if (valueLength !== headDim) {
    throw meta.unsupported(
      `${key('attention.value_length')} is ${valueLength}; only the head size ${headDim} is supported`,
    );
  }
  if ((other.names ?? row.names).interleavedHeads && rotary !== headDim)
    throw meta.unsupported(`${key('rope.dimension_count')} is ${rotary} of ${headDim}`);
  return { config, naming: other.names ?? row.names, warnings };
}

function readEpsilon(meta: GgufMetadata, key: (name: string) => string, kind: 'rms' | 'layer'): number {
  const name = key(kind === 'rms' ? 'attention.layer_norm_rms_epsilon' : 'attention.layer_norm_epsilon');
  const epsilon = meta.positive(name) ?? 1e-5;
  if (epsilon <= 1) return epsilon;
  throw meta.invalid(`${name} is ${epsilon}, expected at most 1`);
}

/** Architectures imply an activation; files exported by this program, and some others, say what the model computes. */
function readActivation(
  meta: GgufMetadata,
  architecture: string,
  usual: ActivationKind,
  warnings: string[],
): ModelConfig['activation'] {
  const keys = ['hybrid_infer.activation', `${architecture}.hidden_act`, `${architecture}.hidden_activation`];
  const key = keys.find((k) => meta.has(k));
  if (key === undefined) {
    const name = meta.text('general.name') ?? '';
    if (isSmooth(usual) && /relu|prosparse|sparse/i.test(name)) {
      warnings.push(
        `the name ${JSON.stringify(name)} suggests a ReLU model, but the file does not say so: computed as ${usual}. ` +
          'Use the Hugging Face folder, whose config names the activation',
      );
    }
    return { kind: usual, threshold: 0 };
  }
  const found = meta.text(key);
  const kind = ACTIVATION_KINDS.find((k) => k === found) as ActivationKind | undefined;
  if (kind === undefined) {
    throw meta.unsupported(
      `${key} is ${JSON.stringify(found)}`,
      `Supported: ${ACTIVATION_KINDS.join(', ')}.`,
    );
  }
  if (kind !== 'fatrelu') return { kind, threshold: 0 };
  const threshold = meta.number('hybrid_infer.activation_threshold');
  if (threshold === undefined || threshold < 0) {
    throw meta.invalid('fatrelu needs hybrid_infer.activation_threshold >= 0');
  }
  return { kind, threshold };
}

const tokenId = (meta: GgufMetadata, name: string): number | undefined =>
  meta.integer(`tokenizer.ggml.${name}_token_id`, 0, limits.MAX_VOCAB);

function stopIds(meta: GgufMetadata): number[] {
  const ids = ['eos', 'eot', 'eom'].map((name) => tokenId(meta, name));
  return [...new Set(ids.filter((id) => id !== undefined))];
}

// ---- rotary embedding --------------------------------------------------------------------------------

function readRopeScaling(
  meta: GgufMetadata,
  key: (name: string) => string,
  dims: number,
  theta: number,
  context: number,
  factors: GgufFacts['ropeFactors'],
): RopeScaling {
  const type = meta.text(key('rope.scaling.type')) ?? 'none';
  const factor = meta.positive(key('rope.scaling.factor')) ?? meta.positive(key('rope.scale_linear')) ?? 1;
  const original =
    meta.integer(key('rope.scaling.original_context_length'), 1, limits.MAX_CONTEXT) ?? context;
  const llama3 = factors.get('rope_freqs.weight');
  if (llama3) {
    if (type !== 'none') throw meta.unsupported(`rope scaling ${type} together with rope_freqs.weight`);
    return recogniseLlama3(meta, dims, theta, llama3);
  }
  const [short, long] = ['short', 'long'].map((which) => factors.get(`rope_factors_${which}.weight`));
  // Files of Phi-3 have the two tensors and name no type.
  if (type === 'longrope' || (type === 'none' && (short || long))) {
    if (!short || !long)
      throw meta.invalid(`rope_factors_${short ? 'long' : 'short'}.weight is missing: longrope needs both`);
    return {
      type: 'longrope',
      shortFactors: [...short],
      longFactors: [...long],
      originalMaxPosition: original,
      attentionFactor: meta.positive(key('rope.scaling.attn_factor')) ?? 1,
    };
  }
  if (type === 'linear' || (type === 'none' && meta.has(key('rope.scale_linear')))) {
    return factor === 1 ? null : { type: 'linear', factor };
  }
  if (type === 'yarn') {
    return {
      type,
      factor,
      originalMaxPosition: original,
      betaFast: meta.positive(key('rope.scaling.yarn_beta_fast')) ?? 32,
      betaSlow: meta.positive(key('rope.scaling.yarn_beta_slow')) ?? 1,
      // llama.cpp multiplies what the file says with YaRN's own factor.
      attentionFactor: (meta.positive(key('rope.scaling.attn_factor')) ?? 1) * yarnMagnitude(factor),
      truncate: true,
    };
  }
  if (type === 'none') return null;
  throw meta.unsupported(
    `rope scaling ${JSON.stringify(type)}`,
    'Supported: none, linear, yarn, longrope, and the llama3 table.',
  );
}

/** What Llama 3.1 and later use; GGUF keeps only the resulting divisors, one for each pair of dimensions. */
const LLAMA3 = { lowFreqFactor: 1, highFreqFactor: 4, originalMaxPosition: 8192 };

function recogniseLlama3(
  meta: GgufMetadata,
  headDim: number,
  theta: number,
  factors: Float32Array,
): RopeScaling {
  if (factors.every((f) => f === 1)) return null;
  const factor = Math.max(...factors);
  const matches = factors.every((found, i) => {
    const expected = llama3Divisor((2 * Math.PI) / theta ** ((-2 * i) / headDim), factor);
    return Math.abs(found - expected) <= 1e-3 * expected;
  });
  if (!matches) throw meta.unsupported('rope_freqs.weight is not the table of Llama 3');
  return { type: 'llama3', factor, ...LLAMA3 };
}

function llama3Divisor(wavelength: number, factor: number): number {
  const { lowFreqFactor, highFreqFactor, originalMaxPosition } = LLAMA3;
  if (wavelength < originalMaxPosition / highFreqFactor) return 1;
  if (wavelength > originalMaxPosition / lowFreqFactor) return factor;
  const smooth = (originalMaxPosition / wavelength - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return 1 / ((1 - smooth) / factor + smooth);
}
