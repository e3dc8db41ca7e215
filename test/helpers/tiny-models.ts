/**
 * Tiny models for tests: a Hugging Face folder or a GGUF file with random weights, a few kilobytes each.
 * Everything follows from the options and the seed, so two calls with the same options write the same bytes.
 */
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { toBf16Bits, toHalfBits } from './float-bits.js';

export interface TinyOptions {
  /** @default 'LlamaForCausalLM' */
  architecture?: string;
  /** @default 'llama' */
  modelType?: string;
  /** @default 'relu' */
  hiddenAct?: string;
  /** FATReLU threshold, written as `hidden_act_param` when given. */
  threshold?: number;
  hiddenSize?: number; // 64
  intermediateSize?: number; // 96
  layers?: number; // 2
  heads?: number; // 4
  kvHeads?: number; // 2
  /** Written to the config only when given. @default hiddenSize / heads */
  headDim?: number;
  /** At least 258: two special tokens and 256 bytes; the rest are merges. @default 288 */
  vocabSize?: number;
  maxContext?: number; // 128
  tied?: boolean; // false
  attentionBias?: boolean; // false
  /** Type of every tensor in the folder. @default 'F32' */
  dtype?: 'F32' | 'F16' | 'BF16';
  /** Split over this many safetensors files with an index. @default 1: one model.safetensors */
  shards?: number;
  seed?: number; // 1
  /** Spread of the weights, relative to 1/sqrt(columns). @default 1 */
  gain?: number;
  /** This token's embedding is the largest f32 has: scaled up, it is no number any more. */
  poisonedToken?: number;
  /** Merged over config.json. */
  config?: Record<string, unknown>;
}

export interface TinyTensor {
  shape: number[];
  data: Float32Array;
}

/** Small deterministic generator (mulberry32): uniform numbers in [0, 1). */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const dims = (o: TinyOptions) => {
  const hiddenSize = o.hiddenSize ?? 64;
  const heads = o.heads ?? 4;
  return {
    hiddenSize,
    intermediateSize: o.intermediateSize ?? 96,
    layers: o.layers ?? 2,
    heads,
    kvHeads: o.kvHeads ?? 2,
    headDim: o.headDim ?? hiddenSize / heads,
    vocabSize: o.vocabSize ?? 288,
    maxContext: o.maxContext ?? 128,
  };
};

/** config.json of the options. */
export function tinyConfig(o: TinyOptions = {}): Record<string, unknown> {
  const d = dims(o);
  return {
    architectures: [o.architecture ?? 'LlamaForCausalLM'],
    model_type: o.modelType ?? 'llama',
    hidden_act: o.hiddenAct ?? 'relu',
    ...(o.threshold === undefined ? {} : { hidden_act_param: o.threshold }),
    vocab_size: d.vocabSize,
    hidden_size: d.hiddenSize,
    intermediate_size: d.intermediateSize,
    num_hidden_layers: d.layers,
    num_attention_heads: d.heads,
    num_key_value_heads: d.kvHeads,
    ...(o.headDim === undefined ? {} : { head_dim: o.headDim }),
    max_position_embeddings: d.maxContext,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    bos_token_id: 0,
    eos_token_id: 1,
    tie_word_embeddings: o.tied ?? false,
    attention_bias: o.attentionBias ?? false,
    ...o.config,
  };
}

/** All tensors by their Hugging Face names, in f32 before any rounding to the stored type. */
export function tinyTensors(o: TinyOptions = {}): Map<string, TinyTensor> {
  const d = dims(o);
  const next = random(o.seed ?? 1);
  const tensors = new Map<string, TinyTensor>();
  const add = (name: string, shape: number[], centre = 0) => {
    const spread = shape.length === 2 ? (o.gain ?? 1) * Math.sqrt(3 / shape[1]) : 0.1;
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    for (let i = 0; i < data.length; i++) data[i] = centre + (2 * next() - 1) * spread;
    tensors.set(name, { shape, data });
  };
  const { hiddenSize, intermediateSize } = d;
  const qRows = d.heads * d.headDim;
  const kvRows = d.kvHeads * d.headDim;

  add('model.embed_tokens.weight', [d.vocabSize, hiddenSize]);
  if (o.poisonedToken !== undefined) {
    const { data } = tensors.get('model.embed_tokens.weight')!;
    data.fill(3e38, o.poisonedToken * hiddenSize, (o.poisonedToken + 1) * hiddenSize);
  }
  for (let layer = 0; layer < d.layers; layer++) {
    const p = `model.layers.${layer}.`;
    add(`${p}input_layernorm.weight`, [hiddenSize], 1);
    add(`${p}self_attn.q_proj.weight`, [qRows, hiddenSize]);
    add(`${p}self_attn.k_proj.weight`, [kvRows, hiddenSize]);
    add(`${p}self_attn.v_proj.weight`, [kvRows, hiddenSize]);
    add(`${p}self_attn.o_proj.weight`, [hiddenSize, qRows]);
    if (o.attentionBias) {
      add(`${p}self_attn.q_proj.bias`, [qRows]);
      add(`${p}self_attn.k_proj.bias`, [kvRows]);
      add(`${p}self_attn.v_proj.bias`, [kvRows]);
      add(`${p}self_attn.o_proj.bias`, [hiddenSize]);
    }
    add(`${p}post_attention_layernorm.weight`, [hiddenSize], 1);
    add(`${p}mlp.gate_proj.weight`, [intermediateSize, hiddenSize]);
    add(`${p}mlp.up_proj.weight`, [intermediateSize, hiddenSize]);
    add(`${p}mlp.down_proj.weight`, [hiddenSize, intermediateSize]);
  }
  add('model.norm.weight', [hiddenSize], 1);
  if (!o.tied) add('lm_head.weight', [d.vocabSize, hiddenSize]);
  return tensors;
}

/** Values as bytes of a stored type, little-endian. */
export function encodeTensor(data: Float32Array, dtype: 'F32' | 'F16' | 'BF16'): Uint8Array {
  if (dtype === 'F32') return new Uint8Array(data.slice().buffer);
  const bits = Uint16Array.from(data, dtype === 'F16' ? toHalfBits : toBf16Bits);
  return new Uint8Array(bits.buffer);
}

/** A safetensors file: length, JSON header, tensors one after the other. */
export function safetensorsBytes(
  tensors: Iterable<[string, { dtype: string; shape: number[]; bytes: Uint8Array }]>,
): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + bytes.length] };
    parts.push(bytes);
    at += bytes.length;
  }
  let json = JSON.stringify(header);
  json += ' '.repeat((8 - (json.length % 8)) % 8);
  return safetensorsWithHeader(json, Buffer.concat(parts));
}

/** A safetensors file with any text as its header: for tests of broken headers. */
export function safetensorsWithHeader(header: string, data: Uint8Array): Uint8Array {
  const text = Buffer.from(header, 'utf8');
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

// ---- tokenizer ---------------------------------------------------------------------------------------

/** The 256 printable characters that byte-level BPE writes bytes as. */
export function byteAlphabet(): string[] {
  const kept = new Set<number>();
  for (let b = 0x21; b <= 0x7e; b++) kept.add(b);
  for (let b = 0xa1; b <= 0xac; b++) kept.add(b);
  for (let b = 0xae; b <= 0xff; b++) kept.add(b);
  let extra = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(kept.has(b) ? b : extra++));
}

/** Vocabulary and merges of the byte-level BPE tokenizer that every tiny model has. */
export function tinyVocab(vocabSize = 288): { tokens: string[]; merges: string[] } {
  if (vocabSize < 258) throw new Error('a tiny model needs at least 258 tokens: 2 special and 256 bytes');
  const bytes = byteAlphabet();
  const tokens = ['<|begin|>', '<|end|>', ...bytes];
  const merges: string[] = [];
  const letters = ['e', 't', 'a', 'o', 'n', 'i', 's', 'h', 'r', 'd', 'l', 'u', bytes[0x20]];
  for (const left of letters) {
    for (const right of letters) {
      if (tokens.length === vocabSize) return { tokens, merges };
      tokens.push(left + right);
      merges.push(`${left} ${right}`);
    }
  }
  while (tokens.length < vocabSize) tokens.push(`<unused${tokens.length}>`);
  return { tokens, merges };
}

/** tokenizer.json of a tiny model, as an object that tests may bend before writing it. */
export function tinyTokenizerJson(vocabSize = 288) {
  const { tokens, merges } = tinyVocab(vocabSize);
  const special = (id: number) => ({
    id,
    content: tokens[id],
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  });
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [special(0), special(1)],
    normalizer: null as unknown,
    pre_tokenizer: {
      type: 'ByteLevel',
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: true,
    } as unknown,
    post_processor: null as unknown,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true } as unknown,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null as string | null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(tokens.map((t, id) => [t, id])) as Record<string, number>,
      merges,
    },
  };
}

// ---- a Hugging Face folder ---------------------------------------------------------------------------

/** A fresh folder under the system's temporary directory. The caller removes it (or leaves it to the system). */
export const tempFolder = (prefix = 'tiny-'): string => mkdtempSync(join(tmpdir(), prefix));

/** Write a complete Hugging Face folder. @returns the folder */
export function writeTinyFolder(o: TinyOptions = {}, folder = tempFolder()): string {
  mkdirSync(folder, { recursive: true });
  const dtype = o.dtype ?? 'F32';
  const json = (name: string, value: unknown) =>
    writeFileSync(join(folder, name), JSON.stringify(value, null, 2));
  json('config.json', tinyConfig(o));
  json('generation_config.json', { bos_token_id: 0, eos_token_id: 1, temperature: 0.8, do_sample: true });
  json('tokenizer.json', tinyTokenizerJson(o.vocabSize));
  json('tokenizer_config.json', {
    bos_token: '<|begin|>',
    eos_token: '<|end|>',
    add_bos_token: false,
    clean_up_tokenization_spaces: false,
  });

  const stored = [...tinyTensors(o)].map(
    ([name, t]) => [name, { dtype, shape: t.shape, bytes: encodeTensor(t.data, dtype) }] as const,
  );
  const shards = o.shards ?? 1;
  if (shards === 1) {
    writeFileSync(join(folder, 'model.safetensors'), safetensorsBytes(stored.map(([n, t]) => [n, t])));
    return folder;
  }
  const weightMap: Record<string, string> = {};
  const label = (i: number) => String(i).padStart(5, '0');
  for (let shard = 0; shard < shards; shard++) {
    const file = `model-${label(shard + 1)}-of-${label(shards)}.safetensors`;
    const part = stored.filter((_, i) => Math.floor((i * shards) / stored.length) === shard);
    for (const [name] of part) weightMap[name] = file;
    writeFileSync(join(folder, file), safetensorsBytes(part.map(([n, t]) => [n, t])));
  }
  json('model.safetensors.index.json', { metadata: {}, weight_map: weightMap });
  return folder;
}
