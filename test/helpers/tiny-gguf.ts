/** Tiny GGUF files for tests: the same weights as the Hugging Face folder of the same options. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { TENSOR_TYPES } from '../../src/model/gguf-types.js';
import { toHalfBits } from './float-bits.js';
import {
  encodeTensor,
  tempFolder,
  tinyConfig,
  tinyTensors,
  tinyVocab,
  type TinyOptions,
} from './tiny-models.js';

export type GgufType = 'F32' | 'F16' | 'BF16' | 'Q8_0' | 'Q4_0';

export interface TinyGgufOptions extends TinyOptions {
  /** Type of the matrices; vectors stay F32. @default 'F32' */
  ggufType?: GgufType;
  alignment?: number; // 32
  /** @default 'gpt2': byte-level BPE; 'llama': sentencepiece */
  tokenizer?: 'gpt2' | 'llama';
  /** Merged over the metadata; null removes a key. */
  metadata?: Record<string, GgufMeta | null>;
}

/** A metadata value with its type in the file. */
export type GgufMeta =
  | { type: 'u8' | 'i8' | 'u16' | 'i16' | 'u32' | 'i32' | 'f32' | 'f64'; value: number }
  | { type: 'u64' | 'i64'; value: bigint }
  | { type: 'bool'; value: boolean }
  | { type: 'string'; value: string }
  | { type: 'array'; of: 'string'; value: string[] }
  | { type: 'array'; of: 'i32' | 'u32' | 'f32'; value: number[] };

const TYPE_NUMBERS = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;
const TENSOR_NUMBERS: Record<GgufType, number> = { F32: 0, F16: 1, Q4_0: 2, Q8_0: 8, BF16: 30 };

export const u16 = (value: number): GgufMeta => ({ type: 'u16', value });
export const u32 = (value: number): GgufMeta => ({ type: 'u32', value });
export const f32 = (value: number): GgufMeta => ({ type: 'f32', value });
export const text = (value: string): GgufMeta => ({ type: 'string', value });
export const bool = (value: boolean): GgufMeta => ({ type: 'bool', value });

// ---- writing -----------------------------------------------------------------------------------------

const number = (type: keyof typeof TYPE_NUMBERS, value: number | bigint | boolean): Buffer => {
  const b = Buffer.alloc(8);
  switch (type) {
    case 'u8':
    case 'bool':
      return b.subarray(0, b.writeUInt8(Number(value)));
    case 'i8':
      return b.subarray(0, b.writeInt8(Number(value)));
    case 'u16':
      return b.subarray(0, b.writeUInt16LE(Number(value)));
    case 'i16':
      return b.subarray(0, b.writeInt16LE(Number(value)));
    case 'u32':
      return b.subarray(0, b.writeUInt32LE(Number(value)));
    case 'i32':
      return b.subarray(0, b.writeInt32LE(Number(value)));
    case 'f32':
      return b.subarray(0, b.writeFloatLE(Number(value)));
    case 'f64':
      return b.subarray(0, b.writeDoubleLE(Number(value)));
    case 'i64':
      return b.subarray(0, b.writeBigInt64LE(BigInt(value)));
    default:
      return b.subarray(0, b.writeBigUInt64LE(BigInt(value)));
  }
};
const string = (value: string): Buffer => {
  const bytes = Buffer.from(value, 'utf8');
  return Buffer.concat([number('u64', bytes.length), bytes]);
};

function meta(value: GgufMeta): Buffer {
  const type = number('u32', TYPE_NUMBERS[value.type]);
  if (value.type === 'string') return Buffer.concat([type, string(value.value)]);
  if (value.type !== 'array') return Buffer.concat([type, number(value.type, value.value)]);
  const items =
    value.of === 'string' ? value.value.map(string) : value.value.map((v) => number(value.of as 'u32', v));
  return Buffer.concat([
    type,
    number('u32', TYPE_NUMBERS[value.of]),
    number('u64', value.value.length),
    ...items,
  ]);
}

export interface GgufTensor {
  name: string;
  /** As the file stores it: fastest dimension first. */
  sizes: number[];
  type: number;
  bytes: Uint8Array;
  /** Written in the place of the true offset, when given. */
  offset?: number | bigint;
}

/** Any GGUF file, also a broken one: counts, version and offsets can be set. */
export function ggufBytes(
  metadata: Iterable<[string, GgufMeta]>,
  tensors: readonly GgufTensor[],
  options: { alignment?: number; version?: number; tensorCount?: bigint; metadataCount?: bigint } = {},
): Buffer {
  const alignment = options.alignment ?? 32;
  const pad = (n: number) => Buffer.alloc((alignment - (n % alignment)) % alignment);
  const entries = [...metadata];
  const head: Buffer[] = [
    Buffer.from('GGUF'),
    number('u32', options.version ?? 3),
    number('u64', options.tensorCount ?? tensors.length),
    number('u64', options.metadataCount ?? entries.length),
    ...entries.flatMap(([key, value]) => [string(key), meta(value)]),
  ];
  const data: Buffer[] = [];
  let at = 0;
  for (const { name, sizes, type, bytes, offset } of tensors) {
    head.push(string(name), number('u32', sizes.length), ...sizes.map((n) => number('u64', n)));
    head.push(number('u32', type), number('u64', offset ?? at));
    const padding = pad(bytes.length);
    data.push(Buffer.from(bytes), padding);
    at += bytes.length + padding.length;
  }
  const header = Buffer.concat(head);
  return Buffer.concat([header, pad(header.length), ...data]);
}

// ---- weights -----------------------------------------------------------------------------------------

/** Blocks of 32: the largest value by size gives the scale. */
function encodeBlocks(data: Float32Array, type: 'Q8_0' | 'Q4_0'): Uint8Array {
  const blockBytes = type === 'Q8_0' ? 34 : 18;
  const out = new Uint8Array((data.length / 32) * blockBytes);
  const view = new DataView(out.buffer);
  for (let block = 0; block * 32 < data.length; block++) {
    const values = data.subarray(block * 32, block * 32 + 32);
    let extreme = 0;
    for (const v of values) if (Math.abs(v) > Math.abs(extreme)) extreme = v;
    const scale = type === 'Q8_0' ? Math.abs(extreme) / 127 : extreme / -8;
    const at = block * blockBytes;
    view.setUint16(at, toHalfBits(scale), true);
    for (let j = 0; j < 32; j++) {
      const q = scale === 0 ? 0 : values[j] / scale;
      if (type === 'Q8_0') view.setInt8(at + 2 + j, Math.max(-127, Math.min(127, Math.round(q))));
      else out[at + 2 + (j % 16)] |= Math.max(0, Math.min(15, Math.round(q) + 8)) << (j < 16 ? 0 : 4);
    }
  }
  return out;
}

const encode = (data: Float32Array, type: GgufType): Uint8Array =>
  type === 'Q8_0' || type === 'Q4_0' ? encodeBlocks(data, type) : encodeTensor(data, type);

/** Rotate-half order -> interleaved halves, as GGUF stores q and k. `cols` is 1 for a bias. */
export function interleaveHeads(data: Float32Array, headDim: number, cols: number): Float32Array {
  const out = new Float32Array(data.length);
  const rows = data.length / cols;
  for (let row = 0; row < rows; row++) {
    const inHead = row % headDim;
    const half = headDim / 2;
    const target = row - inHead + 2 * (inHead % half) + Math.floor(inHead / half);
    out.set(data.subarray(row * cols, (row + 1) * cols), target * cols);
  }
  return out;
}

const NAMES: [RegExp, string][] = [
  [/^model\.embed_tokens\./, 'token_embd.'],
  [/^model\.norm\./, 'output_norm.'],
  [/^lm_head\./, 'output.'],
  [/^model\.layers\.(\d+)\./, 'blk.$1.'],
  [/input_layernorm/, 'attn_norm'],
  [/post_attention_layernorm/, 'ffn_norm'],
  [/self_attn\.([qkv])_proj/, 'attn_$1'],
  [/self_attn\.o_proj/, 'attn_output'],
  [/mlp\.(gate|up|down)_proj/, 'ffn_$1'],
];
const ggufName = (name: string): string => NAMES.reduce((n, [from, to]) => n.replace(from, to), name);

// ---- the whole file ----------------------------------------------------------------------------------

/** The sentencepiece counterpart of `tinyVocab`: unknown, begin, end, 256 bytes, then pieces. */
export function tinySentencepiece(vocabSize = 288): { tokens: string[]; scores: number[]; types: number[] } {
  const tokens = ['<unk>', '<s>', '</s>'];
  for (let b = 0; b < 256; b++) tokens.push(`<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`);
  const types = tokens.map((_, id): number => (id === 0 ? 2 : id < 3 ? 3 : 6));
  const pieces = [
    '\u2581t',
    'he',
    '\u2581the',
    'in',
    '\u2581a',
    'an',
    '\u2581',
    'e',
    't',
    'h',
    'a',
    'i',
    'n',
    's',
    'o',
    'r',
  ];
  while (tokens.length < vocabSize) {
    tokens.push(pieces[tokens.length - 259] ?? `<extra${tokens.length}>`);
    types.push(1);
  }
  return { tokens, scores: tokens.map((_, id) => (id < 259 ? 0 : -(id - 259))), types };
}

function tokenizerMetadata(o: TinyGgufOptions): [string, GgufMeta][] {
  const special = (bos: number, eos: number): [string, GgufMeta][] => [
    ['tokenizer.ggml.bos_token_id', u32(bos)],
    ['tokenizer.ggml.eos_token_id', u32(eos)],
  ];
  if (o.tokenizer === 'llama') {
    const { tokens, scores, types } = tinySentencepiece(o.vocabSize);
    return [
      ['tokenizer.ggml.model', text('llama')],
      ['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: tokens }],
      ['tokenizer.ggml.scores', { type: 'array', of: 'f32', value: scores }],
      ['tokenizer.ggml.token_type', { type: 'array', of: 'i32', value: types }],
      ['tokenizer.ggml.unknown_token_id', u32(0)],
      ...special(1, 2),
    ];
  }
  const { tokens, merges } = tinyVocab(o.vocabSize);
  return [
    ['tokenizer.ggml.model', text('gpt2')],
    ['tokenizer.ggml.pre', text('gpt-2')],
    ['tokenizer.ggml.tokens', { type: 'array', of: 'string', value: tokens }],
    [
      'tokenizer.ggml.token_type',
      { type: 'array', of: 'i32', value: tokens.map((_, id) => (id < 2 ? 3 : 1)) },
    ],
    ['tokenizer.ggml.merges', { type: 'array', of: 'string', value: merges }],
    ['tokenizer.ggml.add_bos_token', bool(false)],
    ...special(0, 1),
  ];
}

/** Metadata of the options; activations other than silu as this program's own exports write them. */
export function tinyGgufMetadata(o: TinyGgufOptions = {}): Map<string, GgufMeta> {
  const c = tinyConfig(o) as Record<string, number>;
  const act = o.hiddenAct ?? 'relu';
  const all = new Map<string, GgufMeta | null>([
    ['general.architecture', text('llama')],
    ['general.name', text('tiny')],
    ['general.alignment', u32(o.alignment ?? 32)],
    ['llama.block_count', u32(c['num_hidden_layers'])],
    ['llama.context_length', u32(c['max_position_embeddings'])],
    ['llama.embedding_length', u32(c['hidden_size'])],
    ['llama.feed_forward_length', u32(c['intermediate_size'])],
    ['llama.attention.head_count', u32(c['num_attention_heads'])],
    ['llama.attention.head_count_kv', u32(c['num_key_value_heads'])],
    ['llama.attention.layer_norm_rms_epsilon', f32(c['rms_norm_eps'])],
    ['llama.rope.freq_base', f32(c['rope_theta'])],
    ['llama.vocab_size', u32(c['vocab_size'])],
    ['llama.attention.key_length', o.headDim === undefined ? null : u32(o.headDim)],
    ['llama.attention.value_length', o.headDim === undefined ? null : u32(o.headDim)],
    ['hybrid_infer.activation', act === 'silu' ? null : text(act)],
    ['hybrid_infer.activation_threshold', o.threshold === undefined ? null : f32(o.threshold)],
    ...tokenizerMetadata(o),
    ...Object.entries(o.metadata ?? {}),
  ]);
  return new Map([...all].filter((entry): entry is [string, GgufMeta] => entry[1] !== null));
}

export function tinyGgufTensors(o: TinyGgufOptions = {}): GgufTensor[] {
  const headDim = o.headDim ?? (o.hiddenSize ?? 64) / (o.heads ?? 4);
  return [...tinyTensors(o)].map(([name, { shape, data }]) => {
    const type = shape.length === 1 ? 'F32' : (o.ggufType ?? 'F32');
    const permuted = /self_attn\.[qk]_proj/.test(name) ? interleaveHeads(data, headDim, shape[1] ?? 1) : data;
    return {
      name: ggufName(name),
      sizes: [...shape].reverse(),
      type: TENSOR_NUMBERS[type],
      bytes: encode(permuted, type),
    };
  });
}

/** Bytes of a complete GGUF file. */
export const tinyGgufBytes = (o: TinyGgufOptions = {}): Buffer =>
  ggufBytes(tinyGgufMetadata(o), tinyGgufTensors(o), { alignment: o.alignment });

/** Write a complete GGUF file. @returns its path */
export function writeTinyGguf(o: TinyGgufOptions = {}, folder = tempFolder(), name = 'tiny.gguf'): string {
  const path = join(folder, name);
  writeFileSync(path, tinyGgufBytes(o));
  return path;
}

/** A model of width 256 whose gate matrices have this type: all bytes zero but what `bend` writes. @returns its path */
export function writeTypedGguf(type: number, bend: (bytes: Uint8Array) => void = () => {}): string {
  const o = { hiddenSize: 256, heads: 2, kvHeads: 1, intermediateSize: 32, layers: 1 };
  const { blockElements, blockBytes } = TENSOR_TYPES.get(type)!;
  const tensors = tinyGgufTensors(o).map((tensor) => {
    if (tensor.name !== 'blk.0.ffn_gate.weight') return tensor;
    const bytes = new Uint8Array(((256 * 32) / blockElements) * blockBytes);
    bend(bytes);
    return { ...tensor, type, bytes };
  });
  const path = join(tempFolder(), 'typed.gguf');
  writeFileSync(path, ggufBytes(tinyGgufMetadata(o), tensors));
  return path;
}

/** `tiny-00002-of-00003.gguf`: the second part (i = 1) of three. */
export const partName = (i: number, parts = 3): string =>
  `tiny-${String(i + 1).padStart(5, '0')}-of-${String(parts).padStart(5, '0')}.gguf`;

/** The tiny model in parts, as gguf-split writes them: metadata in the first, the split keys in all. @returns the folder */
export function writeGgufParts(
  bend: (i: number, keys: Map<string, GgufMeta>) => void = () => {},
  parts = 3,
): string {
  const folder = tempFolder();
  const tensors = tinyGgufTensors();
  for (let i = 0; i < parts; i++) {
    const keys = i === 0 ? tinyGgufMetadata() : new Map<string, GgufMeta>();
    keys.set('split.no', u16(i));
    keys.set('split.count', u16(parts));
    keys.set('split.tensors.count', { type: 'i32', value: tensors.length });
    bend(i, keys);
    const share = tensors.filter((_, t) => t % parts === i);
    writeFileSync(join(folder, partName(i, parts)), ggufBytes(keys, share));
  }
  return folder;
}
