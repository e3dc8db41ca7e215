/** ModelConfig -> the general.* and llama.* metadata of a GGUF file. */
import { yarnMagnitude } from '../model/rope.js';
import type { ModelConfig, RopeScaling, WeightSource } from '../model/types.js';
import type { GgufMeta, GgufType } from './gguf-file.js';
import { commonWindow } from './llama-block.js';

export { GGUF_TYPES, type GgufType } from './gguf-file.js';

/** As llama.cpp numbers file types. */
const FILE_TYPES: Readonly<Record<GgufType, number>> = { f16: 1, q4_0: 2, q8_0: 7 };

/** @param arch prefix of the keys, and the architecture the file claims */
export async function modelMetadata(
  source: WeightSource,
  arch: string,
  type: GgufType,
): Promise<Map<string, GgufMeta>> {
  const { config } = source;
  const meta = new Map<string, GgufMeta>([
    ['general.architecture', { string: arch }],
    ['general.name', { string: source.name }],
    ['general.file_type', { u32: FILE_TYPES[type] }],
    ['general.quantization_version', { u32: 2 }],
  ]);
  const u32 = (key: string, value: number) => meta.set(`${arch}.${key}`, { u32: value });
  u32('vocab_size', config.vocabSize);
  u32('context_length', config.maxContext);
  u32('embedding_length', config.hiddenSize);
  u32('block_count', config.layers);
  u32('feed_forward_length', config.intermediateSize);
  u32('attention.head_count', config.heads);
  u32('attention.head_count_kv', config.kvHeads);
  u32('attention.key_length', config.headDim);
  u32('attention.value_length', config.headDim);
  meta.set(`${arch}.attention.layer_norm_rms_epsilon`, { f32: config.rmsEpsilon });
  u32('rope.dimension_count', config.headDim);
  meta.set(`${arch}.rope.freq_base`, { f32: config.ropeTheta });
  if (config.ropeScaling?.type === 'linear') {
    meta.set(`${arch}.rope.scaling.type`, { string: 'linear' });
    meta.set(`${arch}.rope.scaling.factor`, { f32: config.ropeScaling.factor });
  }
  if (config.ropeScaling?.type === 'yarn') writeYarn(meta, `${arch}.rope.scaling.`, config.ropeScaling);
  const window = commonWindow(config);
  if (window !== null) u32('attention.sliding_window', window);
  // What the model really computes; llama.cpp's own architecture `llama` means SiLU and ignores these.
  meta.set('hybrid_infer.activation', { string: config.activation.kind });
  if (config.activation.kind === 'fatrelu') {
    meta.set('hybrid_infer.activation_threshold', { f32: config.activation.threshold });
  }
  meta.set('hybrid_infer.fingerprint', { string: await source.fingerprint() });
  return meta;
}

/** Readers multiply the attention factor with YaRN's own; the file holds what is left. */
function writeYarn(
  meta: Map<string, GgufMeta>,
  prefix: string,
  yarn: Extract<RopeScaling, { type: 'yarn' }>,
): void {
  meta.set(`${prefix}type`, { string: 'yarn' });
  meta.set(`${prefix}factor`, { f32: yarn.factor });
  meta.set(`${prefix}original_context_length`, { u32: yarn.originalMaxPosition });
  meta.set(`${prefix}yarn_beta_fast`, { f32: yarn.betaFast });
  meta.set(`${prefix}yarn_beta_slow`, { f32: yarn.betaSlow });
  meta.set(`${prefix}attn_factor`, { f32: yarn.attentionFactor / yarnMagnitude(yarn.factor) });
}

/** Divisors of the rotary frequencies that Llama 3.1 models carry as a tensor; null for all other models. */
export function ropeDivisors(config: ModelConfig): Float32Array | null {
  const scaling = config.ropeScaling;
  if (scaling?.type !== 'llama3') return null;
  return Float32Array.from({ length: config.headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * config.ropeTheta ** ((2 * i) / config.headDim);
    return llama3Divisor(wavelength, scaling);
  });
}

function llama3Divisor(wavelength: number, s: Extract<RopeScaling, { type: 'llama3' }>): number {
  if (wavelength < s.originalMaxPosition / s.highFreqFactor) return 1;
  if (wavelength > s.originalMaxPosition / s.lowFreqFactor) return s.factor;
  const smooth =
    (s.originalMaxPosition / wavelength - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
  return 1 / ((1 - smooth) / s.factor + smooth);
}

/**
 * Scales that GGUF's `llama` has no keys for become part of the weights, which changes nothing that is
 * computed: RMSNorm undoes any common scale before a layer, and the last norm's weight carries what is left.
 */
export function foldedScale(name: string, config: ModelConfig): number {
  if (name === 'embed') return config.embeddingScale;
  if (name === 'outNorm') {
    return config.logitScale / (config.tiedEmbeddings ? config.embeddingScale : 1);
  }
  return /\.(o|oBias|down)$/.test(name) ? config.residualScale : 1;
}
