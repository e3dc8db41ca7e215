import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gguf } from '@huggingface/gguf';
import { describe, expect, it } from 'vitest';
import { openRegularFile } from '../../src/io/regular-file.js';
import { readGgufHeader } from '../../src/model/gguf-file.js';
import { createTokenizer, openModel } from '../../src/model/index.js';
import type { TensorName, WeightSource } from '../../src/model/types.js';
import {
  bool,
  f32,
  text,
  tinyGgufMetadata,
  u32,
  writeTinyGguf,
  type TinyGgufOptions,
} from '../helpers/tiny-gguf.js';
import { tempFolder, tinyTensors, writeTinyFolder, type TinyOptions } from '../helpers/tiny-models.js';

process.env['HYBRID_INFER_CACHE'] = tempFolder('cache-'); // fingerprints are cached

async function withModel<T>(path: string, use: (model: WeightSource) => Promise<T> | T): Promise<T> {
  const model = await openModel(path);
  try {
    return await use(model);
  } finally {
    await model.close();
  }
}

const allRows = async (model: WeightSource, name: TensorName): Promise<Float32Array> => {
  const { shape } = model.tensors.get(name)!;
  return model.readRows(name, 0, shape.length === 1 ? 1 : shape[0]);
};

const maxDifference = (a: Float32Array, b: Float32Array) =>
  a.reduce((m, v, i) => Math.max(m, Math.abs(v - b[i])), 0);

const fails = async (o: TinyGgufOptions): Promise<Error & { code: string }> => {
  try {
    await withModel(writeTinyGguf(o), () => undefined);
  } catch (error) {
    return error as Error & { code: string };
  }
  throw new Error('the file opened');
};

describe('GGUF files', () => {
  it('give the same config and weights as the folder they came from', async () => {
    const options: TinyOptions = {
      hiddenAct: 'fatrelu',
      threshold: 0.25,
      attentionBias: true,
      headDim: 8,
      seed: 5,
    };
    const gguf = await openModel(writeTinyGguf(options));
    const folder = await openModel(writeTinyFolder(options));
    expect({ ...gguf.config, architecture: '', rmsEpsilon: 0 }).toEqual({
      ...folder.config,
      architecture: '',
      rmsEpsilon: 0,
    });
    expect(gguf.config.rmsEpsilon).toBeCloseTo(folder.config.rmsEpsilon, 10);
    expect([...gguf.tensors.keys()]).toEqual([...folder.tensors.keys()]);
    for (const name of gguf.tensors.keys())
      expect(await allRows(gguf, name)).toEqual(await allRows(folder, name));
    await gguf.close();
    await folder.close();
  });

  it('give parts of q and k in rotate-half order, whatever the range', async () => {
    const q = tinyTensors().get('model.layers.1.self_attn.q_proj.weight')!;
    await withModel(writeTinyGguf(), async (model) => {
      for (const [begin, end] of [
        [0, 1],
        [3, 21],
        [15, 17],
        [63, 64],
        [5, 5],
      ]) {
        expect(await model.readRows('layers.1.q', begin, end)).toEqual(
          q.data.subarray(begin * 64, end * 64).slice(),
        );
      }
    });
  });

  // Half of one step of the largest value of a block: 1/254 of the spread in 8 bits, 1/16 in 4.
  it.each([
    ['F16', 1e-3],
    ['BF16', 4e-3],
    ['Q8_0', 1e-2],
    ['Q4_0', 0.15],
  ] as const)('hold %s matrices', async (ggufType, relative) => {
    const original = tinyTensors().get('model.layers.0.mlp.gate_proj.weight')!;
    await withModel(writeTinyGguf({ ggufType }), async (model) => {
      expect(model.tensors.get('layers.0.gate')!.dtype).toBe(ggufType);
      const spread = Math.sqrt(3 / 64);
      expect(maxDifference(await allRows(model, 'layers.0.gate'), original.data)).toBeLessThan(
        relative * spread,
      );
    });
  });

  it('hold metadata as @huggingface/gguf reads it', async () => {
    const path = writeTinyGguf();
    const library = await gguf(path, { allowLocalFile: true });
    const theirs = library.metadata as unknown as Record<string, unknown>;
    const file = openRegularFile(path);
    const ours = readGgufHeader(file);
    for (const [key, value] of ours.metadata) {
      expect(value instanceof Float64Array ? [...value] : value, key).toEqual(theirs[key]);
    }
    expect(ours.metadata.size).toBe(Object.keys(theirs).length - 3); // version and two counts
    expect(ours.tensors.map((t) => [t.name, t.shape.map(BigInt).reverse()])).toEqual(
      library.tensorInfos.map((t) => [t.name, t.shape]),
    );
    file.close();
  });

  it('are SiLU unless they say otherwise, with a warning where the name suggests ReLU', async () => {
    const path = writeTinyGguf({ hiddenAct: 'silu', metadata: { 'general.name': text('prosparse-llama') } });
    await withModel(path, (model) => {
      expect(model.config.activation).toEqual({ kind: 'silu', threshold: 0 });
      expect(model.warnings.join()).toContain('suggests a ReLU model');
    });
  });

  it('are tied when they have no output matrix', async () => {
    await withModel(writeTinyGguf({ tied: true }), (model) => expect(model.config.tiedEmbeddings).toBe(true));
  });

  it('name the model they were exported from', async () => {
    const claimed = 'ab'.repeat(32);
    const path = writeTinyGguf({ metadata: { 'hybrid_infer.fingerprint': text(claimed) } });
    await withModel(path, async (model) => {
      expect(model.claimedFingerprint).toBe(claimed);
      expect(await model.fingerprint()).not.toBe(claimed);
    });
  });

  it('rebuild a byte-level tokenizer that equals the folder’s', async () => {
    const inFolder = await openModel(writeTinyFolder());
    await withModel(writeTinyGguf(), (model) => {
      const a = createTokenizer(model.tokenizer);
      const b = createTokenizer(inFolder.tokenizer);
      const sample = 'The other tale, 1234: <|end|> naïve 🦉\n\n  end';
      expect(a.encode(sample)).toEqual(b.encode(sample));
      expect(a.decode(a.encode(sample), { skipSpecial: false })).toBe(sample);
      expect(a.eosIds).toEqual([1]);
    });
    await inFolder.close();
  });

  it('rebuild a sentencepiece tokenizer with merges by score and byte fallback', async () => {
    await withModel(writeTinyGguf({ tokenizer: 'llama' }), (model) => {
      const tokenizer = createTokenizer(model.tokenizer);
      const ids = tokenizer.encode('the in 🦉');
      expect(ids[0]).toBe(1); // <s>
      expect(ids[1]).toBe(259 + 2); // "▁the" by "▁t" + "he"
      expect(tokenizer.decode(ids)).toBe('the in 🦉');
      expect(tokenizer.encode('the', { addSpecial: false })).toEqual([261]);
    });
  });

  it('recognise the rope table of Llama 3 and refuse another', async () => {
    const config = { rope_theta: 500000 };
    const path = (factors: number[]) => {
      const data = Float32Array.from(factors);
      const o: TinyGgufOptions = { config, hiddenSize: 64, heads: 2 };
      return { o, data };
    };
    const divisors = Array.from({ length: 16 }, (_, i) => {
      const wavelength = (2 * Math.PI) / 500000 ** ((-2 * i) / 32);
      if (wavelength < 2048) return 1;
      if (wavelength > 8192) return 8;
      const smooth = (8192 / wavelength - 1) / 3;
      return 1 / ((1 - smooth) / 8 + smooth);
    });
    const { ggufBytes, tinyGgufTensors } = await import('../helpers/tiny-gguf.js');
    const write = (factors: number[]) => {
      const { o, data } = path(factors);
      const file = join(tempFolder(), 'rope.gguf');
      const rope = { name: 'rope_freqs.weight', sizes: [16], type: 0, bytes: new Uint8Array(data.buffer) };
      writeFileSync(file, ggufBytes(tinyGgufMetadata(o), [...tinyGgufTensors(o), rope]));
      return file;
    };
    await withModel(write(divisors), (model) => {
      expect(model.config.ropeScaling).toMatchObject({
        type: 'llama3',
        factor: 8,
        originalMaxPosition: 8192,
      });
      expect(model.warnings).toEqual([]);
    });
    await expect(openModel(write(divisors.map((d, i) => (i === 3 ? 2 : d))))).rejects.toThrow(
      /not the table/,
    );
  });

  it.each<[string, TinyGgufOptions['metadata'], RegExp]>([
    ['another architecture', { 'general.architecture': text('mamba') }, /architecture mamba/],
    ['experts that are not counted', { 'llama.expert_count': u32(8) }, /expert_used_count is missing/],
    ['another rope scaling', { 'llama.rope.scaling.type': text('longrope') }, /longrope/],
    ['an unknown activation', { 'hybrid_infer.activation': text('mish') }, /mish/],
    ['no layers', { 'llama.block_count': u32(0) }, /block_count/],
    ['a billion layers', { 'llama.block_count': u32(1e9) }, /block_count/],
    ['an epsilon that is not a number', { 'llama.attention.layer_norm_rms_epsilon': f32(NaN) }, /epsilon/],
    ['heads that do not divide', { 'llama.attention.head_count_kv': u32(3) }, /3 key\/value heads/],
    ['a text for a number', { 'llama.block_count': text('2') }, /block_count/],
    [
      'a vocabulary that is not the embedding',
      { 'llama.vocab_size': u32(300) },
      /token_embd.weight: expected \[300/,
    ],
    ['a stop token outside the vocabulary', { 'tokenizer.ggml.eos_token_id': u32(5000) }, /5000/],
    ['no tokenizer', { 'tokenizer.ggml.model': null }, /no tokenizer/],
    ['an unknown tokenizer', { 'tokenizer.ggml.model': text('wordpiece') }, /wordpiece/],
    ['an unknown pre-tokenizer', { 'tokenizer.ggml.pre': text('mystery') }, /mystery/],
    ['a boolean that is a number', { 'tokenizer.ggml.add_bos_token': u32(1) }, /add_bos_token/],
    [
      'token types of another length',
      { 'tokenizer.ggml.token_type': { type: 'array', of: 'i32', value: [1] } },
      /token_type/,
    ],
    ['fatrelu without its threshold', { 'hybrid_infer.activation': text('fatrelu') }, /activation_threshold/],
    ['a flag in the place of a name', { 'general.architecture': bool(true) }, /general.architecture/],
  ])('are refused with %s', async (_, metadata, message) => {
    const error = await fails({ metadata });
    expect(error.message).toMatch(message);
    expect(['MODEL_INVALID', 'MODEL_UNSUPPORTED', 'TOKENIZER_INVALID']).toContain(error.code);
  });
});
