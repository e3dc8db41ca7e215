/** One damaged file of every format that models come in, as a person meets it: exit code 2, one line, nothing written. */
import { copyFileSync, existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { BLOCK_TYPES } from '../../src/model/decode-blocks.js';
import { TENSOR_TYPES } from '../../src/model/gguf-types.js';
import { writePackedTernary } from '../helpers/packed-ternary.js';
import {
  f32,
  ggufBytes,
  partName,
  text,
  tinyGgufMetadata,
  tinyGgufTensors,
  u32,
  writeGgufParts,
  writeTinyGguf,
  writeTypedGguf,
  type GgufMeta,
  type GgufTensor,
  type TinyGgufOptions,
} from '../helpers/tiny-gguf.js';
import { tempFolder, writeTinyFolder } from '../helpers/tiny-models.js';
import { cli, scratch } from './command.js';

/** What is damaged, where (a path for the command), and what the line must say. */
type Damage = [string, () => string, RegExp];

// ---- weights in GGUF files ---------------------------------------------------------------------------------

const READ = new Set([...Object.keys(BLOCK_TYPES), 'F32', 'F16', 'BF16']);

/** In row 5 every byte is 0x7f and 0xff: NaN in all the types' numbers. */
const NANS: Damage[] = [...TENSOR_TYPES]
  .filter(([, { name }]) => READ.has(name))
  .map(([type, { name, blockElements, blockBytes }]): Damage => {
    const rowBytes = (256 / blockElements) * blockBytes;
    const spoil = (bytes: Uint8Array) =>
      bytes.subarray(5 * rowBytes, 6 * rowBytes).forEach((_, i, row) => (row[i] = i % 2 ? 0x7f : 0xff));
    const what = blockElements > 1 ? 'a scale' : 'a value';
    return [
      `${name}: a scale or value that is no number`,
      () => writeTypedGguf(type, spoil),
      new RegExp(`typed.gguf: tensor blk.0.ffn_gate.weight, row 5: ${what} is NaN or infinite`),
    ];
  });

/** The tiny GGUF model with other metadata and more tensors. */
function gguf(
  meta: Record<string, GgufMeta | null>,
  o: TinyGgufOptions = {},
  more: GgufTensor[] = [],
): string {
  const path = join(tempFolder(), 'tiny.gguf');
  writeFileSync(
    path,
    ggufBytes(tinyGgufMetadata({ ...o, metadata: meta }), [...tinyGgufTensors(o), ...more]),
  );
  return path;
}
const factors = (which: string, length: number): GgufTensor => ({
  name: `rope_factors_${which}.weight`,
  sizes: [length],
  type: 0,
  bytes: new Uint8Array(Float32Array.from({ length }, () => 1.5).buffer),
});
const strings = (value: string[]): GgufMeta => ({ type: 'array', of: 'string', value });

const GGUF: Damage[] = [
  [
    'Q4_K: rows that are no whole blocks',
    () => {
      const path = join(tempFolder(), 'tiny.gguf');
      const tensors = tinyGgufTensors().map((t) =>
        t.name === 'blk.1.ffn_up.weight' ? { ...t, type: 12, bytes: new Uint8Array(24 * 144) } : t,
      );
      writeFileSync(path, ggufBytes(tinyGgufMetadata(), tensors));
      return path;
    },
    /blk.1.ffn_up.weight.*64.*256/,
  ],
  [
    'longrope: one set of factors',
    () => gguf({}, {}, [factors('long', 8)]),
    /rope_factors_short.weight is missing/,
  ],
  [
    'longrope: factors of another length',
    () => gguf({}, {}, [factors('long', 8), factors('short', 5)]),
    /longrope has 5 factors for 8 pairs/,
  ],
  ['tokenizer: none', () => gguf({ 'tokenizer.ggml.model': null }), /no tokenizer/],
  [
    'tokenizer: an unknown kind',
    () => gguf({ 'tokenizer.ggml.model': text('rwkv') }),
    /tokenizer.ggml.model.*rwkv/,
  ],
  [
    'tokenizer: texts are cut in an unknown way',
    () => gguf({ 'tokenizer.ggml.pre': text('mystery') }),
    /tokenizer.ggml.pre.*mystery/,
  ],
  [
    'tokenizer: a merge of what is no token, by the file that has it',
    () => gguf({ 'tokenizer.ggml.merges': strings(['t zzz']) }),
    /tiny.gguf.*merge.*zzz/,
  ],
  [
    'tokenizer: fewer scores than tokens',
    () =>
      gguf({ 'tokenizer.ggml.scores': { type: 'array', of: 'f32', value: [1, 2] } }, { tokenizer: 'llama' }),
    /tokenizer.ggml.scores.*2/,
  ],
  [
    'tokenizer: a token twice',
    () => gguf({ 'tokenizer.ggml.tokens': strings(new Array<string>(288).fill('a')) }),
    /token/,
  ],
  ['an epsilon below zero', () => gguf({ 'llama.attention.layer_norm_rms_epsilon': f32(-1) }), /epsilon/],
  [
    'experts without their number',
    () => gguf({ 'llama.expert_count': u32(4) }),
    /expert_used_count is missing/,
  ],
];

// ---- parts and shards --------------------------------------------------------------------------------------

function parts(damage: (folder: string) => void, named = partName(0)): string {
  const folder = writeGgufParts();
  damage(folder);
  return join(folder, named);
}

/** Two shards with their index. */
function shards(damage: (folder: string) => void): string {
  const folder = writeTinyFolder({ shards: 2 });
  damage(folder);
  return folder;
}
const SECOND = 'model-00002-of-00002.safetensors';
const INDEX = 'model.safetensors.index.json';

const SPLIT: Damage[] = [
  ['a missing part', () => parts((f) => rmSync(join(f, partName(1)))), /tiny-00002-of-00003.gguf: missing/],
  [
    'a part in the place of another',
    () => parts((f) => copyFileSync(join(f, partName(2)), join(f, partName(1)))),
    /00002-of-00003.gguf.*split.no is 2, expected 1/,
  ],
  [
    'a part of another number of parts',
    () => parts((f) => copyFileSync(join(f, partName(1)), join(f, partName(1, 2))), partName(1, 2)),
    /00001-of-00002.gguf: missing/,
  ],
  [
    'a part that ends early',
    () => parts((f) => truncateSync(join(f, partName(2)), readFileSync(join(f, partName(2))).length - 64)),
    /00003-of-00003.gguf.*(ends|past|beyond)/,
  ],
  ['a missing shard', () => shards((f) => rmSync(join(f, SECOND))), /model-00002-of-00002.safetensors/],
  [
    'a shard that ends early',
    () => shards((f) => truncateSync(join(f, SECOND), readFileSync(join(f, SECOND)).length - 4)),
    /model-00002-of-00002.safetensors.*(ends|past|beyond)/,
  ],
  [
    'an index that is no JSON',
    () => shards((f) => writeFileSync(join(f, INDEX), '{"weight_map": {')),
    /index.json/,
  ],
  [
    'an index that names a file elsewhere',
    () =>
      shards((f) =>
        writeFileSync(
          join(f, INDEX),
          readFileSync(join(f, INDEX), 'utf8').replaceAll(SECOND, '../w.safetensors'),
        ),
      ),
    /index.json.*\.\.\/w.safetensors/,
  ],
];

// ---- tokenizers of older files, ternary weights ------------------------------------------------------------

/** A folder whose tokenizer.json is replaced. */
function withTokenizer(name: string, bytes: Uint8Array | string): string {
  const folder = writeTinyFolder({ vocabSize: 360 });
  rmSync(join(folder, 'tokenizer.json'));
  writeFileSync(join(folder, name), bytes);
  return folder;
}
const sentencePiece = readFileSync(new URL('../model/sentencepiece/bpe.model', import.meta.url));

const OTHERS: Damage[] = [
  [
    'SentencePiece: a file that ends early',
    () => withTokenizer('tokenizer.model', sentencePiece.subarray(0, 700)),
    /tokenizer.model: offset \d+/,
  ],
  [
    'SentencePiece: a file that is something else',
    () => withTokenizer('tokenizer.model', Uint8Array.from([10, 3, 250, 251, 252])),
    /tokenizer.model/,
  ],
  [
    'tiktoken: a line that is none',
    () => withTokenizer('qwen.tiktoken', 'IQ== 0\nhello'),
    /qwen.tiktoken: line 2/,
  ],
  [
    'tiktoken: an unknown vocabulary',
    () => withTokenizer('qwen.tiktoken', 'IQ== 0\nIg== 1'),
    /qwen.tiktoken: a tiktoken file of 2 tokens/,
  ],
  [
    'packed BitNet: a code that is none',
    () =>
      writePackedTernary({}, (stored) => {
        stored.get('model.layers.1.mlp.gate_proj.weight')!.bytes[100] |= 3;
      }),
    /layers.1.mlp.gate_proj.weight, row 3: a packed code of 3/,
  ],
  [
    'packed BitNet: a missing scale',
    () => writePackedTernary({}, (s) => void s.delete('model.layers.0.self_attn.q_proj.weight_scale')),
    /layers.0.self_attn.q_proj.weight_scale is missing/,
  ],
  [
    'packed BitNet: a scale that is no number',
    () =>
      writePackedTernary({}, (stored) => {
        stored.get('model.layers.0.mlp.up_proj.weight_scale')!.bytes.fill(0xff);
      }),
    /up_proj.weight_scale, row 0: a value is NaN/,
  ],
  [
    'packed BitNet: a matrix of another size',
    () =>
      writePackedTernary({}, (s) => {
        s.set('model.layers.0.self_attn.q_proj.weight', {
          dtype: 'U8',
          shape: [9, 32],
          bytes: new Uint8Array(288),
        });
      }),
    /q_proj.weight: expected \[8, 32\], found \[9, 32\] U8/,
  ],
];

describe('a damaged model is refused in one line', () => {
  it.concurrent.each([...NANS, ...GGUF, ...SPLIT, ...OTHERS])('%s', async (name, write, message) => {
    const pack = scratch(`${name.replace(/\W+/g, '-')}.pack`);
    const { code, stdout, stderr } = await cli(['convert', write(), '-o', pack, '--quant', 'q8']);
    expect(code).toBe(2);
    expect(stdout).toBe('');
    const [error, ...rest] = stderr.trimEnd().split('\n');
    expect(error).toMatch(/^error: /);
    expect(error).toMatch(message);
    expect(rest.every((line) => line.startsWith('hint: ')) && rest.length <= 1, stderr).toBe(true);
    expect(existsSync(pack)).toBe(false);
  });

  it('and one that is whole is converted', async () => {
    for (const path of [
      writeTinyGguf(),
      writePackedTernary(),
      withTokenizer('tokenizer.model', sentencePiece),
    ]) {
      const pack = scratch('whole.pack');
      expect(await cli(['convert', path, '-o', pack, '--quant', 'q8'])).toMatchObject({ code: 0 });
      rmSync(pack);
    }
  });
});
