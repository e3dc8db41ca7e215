import { execFileSync } from 'node:child_process';
import {
  appendFileSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { openRegularFile } from '../../src/io/regular-file.js';
import { openModel } from '../../src/model/index.js';
import { readSafetensorsHeader } from '../../src/model/safetensors.js';
import { rejection } from '../helpers/expect-reject.js';
import {
  encodeTensor,
  safetensorsBytes,
  safetensorsWithHeader,
  tempFolder,
  tinyTensors,
  writeTinyFolder,
  type TinyTensor,
} from '../helpers/tiny-models.js';

const folder = tempFolder();
const path = join(folder, 'model.safetensors');

function parse(bytes: Uint8Array) {
  writeFileSync(path, bytes);
  const file = openRegularFile(path);
  try {
    return readSafetensorsHeader(file);
  } finally {
    file.close();
  }
}

/** A file whose header is `entries` over `bytes` zero bytes. */
const withHeader = (entries: unknown, bytes = 8) =>
  safetensorsWithHeader(
    typeof entries === 'string' ? entries : JSON.stringify(entries),
    new Uint8Array(bytes),
  );
const entry = (shape: unknown[], offsets: unknown[], dtype = 'F32') => ({
  dtype,
  shape,
  data_offsets: offsets,
});

const small = safetensorsBytes([
  ['a', { dtype: 'F32', shape: [2, 2], bytes: new Uint8Array(16) }],
  ['b', { dtype: 'F16', shape: [3], bytes: new Uint8Array(6) }],
]);

/** A folder whose single weights file was rewritten from bent tensors. */
function folderWith(bend: (tensors: Map<string, TinyTensor>) => void): string {
  const target = writeTinyFolder();
  const tensors = tinyTensors();
  bend(tensors);
  writeFileSync(
    join(target, 'model.safetensors'),
    safetensorsBytes(
      [...tensors].map(([n, t]) => [n, { dtype: 'F32', shape: t.shape, bytes: encodeTensor(t.data, 'F32') }]),
    ),
  );
  return target;
}

describe('the safetensors header', () => {
  it('is read with shapes, types and offsets', () => {
    expect(parse(small).map((t) => [t.name, t.dtype, t.shape, t.bytes])).toEqual([
      ['a', 'F32', [2, 2], 16],
      ['b', 'F16', [3], 6],
    ]);
  });

  it('is refused when the file is cut at any byte', () => {
    for (let length = 0; length < small.length; length++) {
      expect(() => parse(small.subarray(0, length)), `cut at ${length}`).toThrow(HybridError);
    }
  });

  it('is refused or stays within limits when any bit of it is flipped', () => {
    const headerBits = (8 + small[0]) * 8;
    for (let bit = 0; bit < headerBits; bit++) {
      const bent = Uint8Array.from(small);
      bent[bit >> 3] ^= 1 << (bit & 7);
      try {
        for (const tensor of parse(bent))
          expect(tensor.offset + tensor.bytes).toBeLessThanOrEqual(bent.length);
      } catch (error) {
        expect(error).toBeInstanceOf(HybridError);
      }
    }
  });

  it.each([0n, 1n, 30n, 100_000_001n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n])(
    'is refused with length %d',
    (length) => {
      const bytes = Buffer.concat([Buffer.alloc(8), Buffer.from('{}'), Buffer.alloc(20)]);
      bytes.writeBigUInt64LE(length);
      expect(() => parse(bytes)).toThrow(/header/);
    },
  );

  it.each<[string, Uint8Array, RegExp]>([
    ['overlapping tensors', withHeader({ a: entry([1], [0, 4]), b: entry([2], [0, 8]) }), /overlaps/],
    ['a gap', withHeader({ a: entry([1], [4, 8]) }), /gap/],
    ['a reversed range', withHeader({ a: entry([1], [8, 4]) }), /not a range/],
    ['a range past the end', withHeader({ a: entry([3], [0, 12]) }), /ends at 12/],
    ['bytes behind the last tensor', withHeader({ a: entry([1], [0, 4]) }), /4 bytes after/],
    ['a negative dimension', withHeader({ a: entry([-1], [0, 4]) }), /shape/],
    ['a fraction', withHeader({ a: entry([1.5], [0, 6]) }), /shape/],
    ['a text for a dimension', withHeader({ a: entry(['3'], [0, 12]) }), /shape/],
    [
      'a dimension above 2^53',
      withHeader('{"a":{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,8]}}'),
      /shape/,
    ],
    ['five dimensions', withHeader({ a: entry([1, 1, 1, 1, 2], [0, 8]) }), /4 dimensions/],
    ['a product above 2^53', withHeader({ a: entry([2 ** 40, 2 ** 40], [0, 8]) }), /product/],
    ['a size above 2^53', withHeader({ a: entry([2 ** 52], [0, 8]) }), /product/],
    ['an unknown dtype', withHeader({ a: entry([2], [0, 8], 'F33') }), /unknown dtype/],
    ['a dtype named like a method', withHeader({ a: entry([2], [0, 8], 'constructor') }), /unknown dtype/],
    ['a dtype that contradicts the size', withHeader({ a: entry([2], [0, 8], 'F16') }), /takes 4 bytes/],
    ['a fractional offset', withHeader({ a: entry([2], [0.5, 8.5]) }), /not a range/],
    ['three offsets', withHeader({ a: entry([2], [0, 8, 8]) }), /two data_offsets/],
    ['a list for an entry', withHeader({ a: [] }), /expected \{dtype/],
    [
      'a duplicate tensor',
      withHeader('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\\u0061":{}}'),
      /appears twice/,
    ],
    ['metadata that is no text', withHeader({ __metadata__: { a: 1 } }, 0), /__metadata__/],
    ['a list for a header', withHeader('[]'), /not a JSON object/],
    ['broken JSON', withHeader('{"a":}'), /not valid JSON/],
    [
      'broken UTF-8',
      Buffer.concat([Buffer.from([4, 0, 0, 0, 0, 0, 0, 0]), Buffer.from([0x7b, 0xc3, 0x28, 0x7d])]),
      /UTF-8/,
    ],
  ])('is refused with %s', (_, bytes, message) => {
    expect(() => parse(bytes)).toThrow(message);
  });

  it('accepts scalars and empty tensors, which the model check then judges', () => {
    const tensors = parse(
      withHeader({ a: entry([], [0, 4]), b: entry([0, 7], [4, 4]), c: entry([1], [4, 8]) }),
    );
    expect(tensors.map((t) => t.bytes)).toEqual([4, 0, 4]);
  });

  it('treats __proto__ as a name like any other', () => {
    const bytes = withHeader('{"__proto__":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}');
    expect(parse(bytes)[0].name).toBe('__proto__');
    expect(({} as { dtype?: string }).dtype).toBeUndefined();
  });
});

describe('a file that is something else', () => {
  it.each<[string, string | Uint8Array, RegExp]>([
    ['empty', '', /is empty/],
    [
      'a Git LFS pointer',
      'version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n',
      /Git LFS pointer/,
    ],
    ['an HTML page', '<!DOCTYPE html><html></html>', /HTML page/],
    ['a GGUF file', 'GGUF\u0003\0\0\0aaaaaaaaaaaaaaaaaaaaa', /GGUF file/],
    ['a PyTorch checkpoint', 'PK\u0003\u0004aaaaaaaaaaaaaaaaaaaaaaaa', /zip archive/],
  ])('is named: %s', (_, content, message) => {
    expect(() => parse(Buffer.from(content))).toThrow(message);
  });
});

describe('a model folder', () => {
  it.each(['F32', 'F16', 'BF16'] as const)('gives rows of %s weights', async (dtype) => {
    const original = tinyTensors().get('model.layers.1.mlp.up_proj.weight')!.data;
    const model = await openModel(writeTinyFolder({ dtype }));
    const rows = await model.readRows('layers.1.up', 10, 30);
    const tolerance = { F32: 0, F16: 2 ** -11, BF16: 2 ** -8 }[dtype];
    rows.forEach((v, i) => {
      const expected = original[640 + i];
      expect(Math.abs(v - expected)).toBeLessThanOrEqual(
        Math.abs(expected) * tolerance + 1e-7 * Math.sign(tolerance),
      );
    });
    await model.close();
  });

  it('gives the same rows from shards as from one file, into a given array', async () => {
    const one = await openModel(writeTinyFolder());
    const three = await openModel(writeTinyFolder({ shards: 3 }));
    expect([...three.tensors.keys()]).toEqual([...one.tensors.keys()]);
    for (const [name, { shape }] of one.tensors) {
      const rows = shape.length === 1 ? 1 : shape[0];
      const into = new Float32Array(rows * shape.at(-1)! + 1);
      expect(await three.readRows(name, 0, rows, into)).toBe(into);
      expect(into.subarray(0, -1)).toEqual(await one.readRows(name, 0, rows));
    }
    await one.close();
    await three.close();
  });

  it('opens through the path of its weights file', async () => {
    const model = await openModel(join(writeTinyFolder(), 'model.safetensors'));
    expect(model.kind).toBe('safetensors');
    await model.close();
  });

  it('is refused with every missing and misshapen tensor in one message', async () => {
    const target = folderWith((tensors) => {
      tensors.delete('model.norm.weight');
      tensors.delete('model.layers.1.mlp.up_proj.weight');
      tensors.set('model.layers.0.self_attn.q_proj.weight', {
        shape: [64, 63],
        data: new Float32Array(64 * 63),
      });
      tensors.set('lm_head.weight', { shape: [0, 64], data: new Float32Array(0) });
    });
    const { message } = await rejection(target);
    expect(message).toContain('model.norm.weight is missing');
    expect(message).toContain('model.layers.1.mlp.up_proj.weight is missing (expected [96, 64])');
    expect(message).toContain('q_proj.weight: expected [64, 64], found [64, 63] F32');
    expect(message).toContain('lm_head.weight: expected [288, 64], found [0, 64]');
  });

  it('is refused with the first of many missing tensors, and how many more there are', async () => {
    const target = folderWith((tensors) => tensors.forEach((_, name) => tensors.delete(name)));
    const { message } = await rejection(target);
    expect(message.match(/ is missing/g)).toHaveLength(5);
    expect(message).toMatch(/ and \d+ more$/);
  });

  it('warns about tensors it does not use', async () => {
    const model = await openModel(
      folderWith((t) => t.set('model.extra', { shape: [1], data: new Float32Array(1) })),
    );
    expect(model.warnings).toEqual(['1 tensors are not used: model.extra']);
    await model.close();
  });

  it('refuses weights of a type it cannot read, by name', async () => {
    const target = writeTinyFolder();
    const stored = [...tinyTensors()].map(
      ([name, t]): [string, { dtype: string; shape: number[]; bytes: Uint8Array }] => [
        name,
        { dtype: 'I32', shape: t.shape, bytes: new Uint8Array(t.data.length * 4) },
      ],
    );
    writeFileSync(join(target, 'model.safetensors'), safetensorsBytes(stored));
    expect(await rejection(target)).toMatchObject({
      code: 'MODEL_UNSUPPORTED',
      message: expect.stringContaining('type I32'),
    });
  });

  it.each(['F32', 'F16', 'BF16'] as const)('names tensor and row of a NaN in %s', async (dtype) => {
    const target = writeTinyFolder({ dtype });
    const weights = tinyTensors();
    weights.get('model.layers.0.mlp.gate_proj.weight')!.data[5 * 64 + 3] = dtype === 'F16' ? Infinity : NaN;
    const stored = [...weights].map(
      ([n, t]): [string, { dtype: string; shape: number[]; bytes: Uint8Array }] => [
        n,
        { dtype, shape: t.shape, bytes: encodeTensor(t.data, dtype) },
      ],
    );
    writeFileSync(join(target, 'model.safetensors'), safetensorsBytes(stored));
    const model = await openModel(target);
    await expect(model.readRows('layers.0.gate', 0, 96)).rejects.toThrow(
      /gate_proj\.weight, row 5: a value is NaN or infinite/,
    );
    await expect(model.readRows('layers.0.gate', 4, 8)).rejects.toThrow(/row 5/);
    expect((await model.readRows('layers.0.gate', 6, 8)).length).toBe(128);
    await model.close();
  });

  it('notices that a file became shorter after it was opened', async () => {
    const target = writeTinyFolder();
    const model = await openModel(target);
    truncateSync(join(target, 'model.safetensors'), statSync(join(target, 'model.safetensors')).size - 1000);
    await expect(model.readRows('lmHead', 0, 288)).rejects.toThrow(/changed while in use/);
    await model.close();
  });

  it('keeps reading the file it validated when another takes its name', async () => {
    const target = writeTinyFolder();
    const model = await openModel(target);
    const before = await model.readRows('embed', 0, 2);
    writeFileSync(
      join(target, 'other'),
      readFileSync(join(writeTinyFolder({ seed: 9 }), 'model.safetensors')),
    );
    renameSync(join(target, 'other'), join(target, 'model.safetensors'));
    expect(await model.readRows('embed', 0, 2)).toEqual(before);
    await model.close();
  });

  it('refuses impossible ranges and reading after close', async () => {
    const model = await openModel(writeTinyFolder());
    for (const [begin, end] of [
      [-1, 2],
      [2, 1],
      [0, 289],
      [0.5, 1],
    ]) {
      await expect(model.readRows('embed', begin, end)).rejects.toThrow(HybridError);
    }
    await model.close();
    await expect(model.readRows('embed', 0, 1)).rejects.toMatchObject({ code: 'CLOSED' });
  });

  it.each(['model.safetensors', 'config.json', 'tokenizer.json'])(
    'refuses a FIFO as %s without hanging',
    async (name) => {
      const target = writeTinyFolder();
      rmSync(join(target, name));
      execFileSync('mkfifo', [join(target, name)]);
      expect((await rejection(target)).message).toContain('a FIFO');
    },
  );

  it('refuses links that leave it', async () => {
    const target = writeTinyFolder();
    const elsewhere = join(writeTinyFolder(), 'model.safetensors');
    rmSync(join(target, 'model.safetensors'));
    symlinkSync(elsewhere, join(target, 'model.safetensors'));
    expect((await rejection(target)).message).toContain('leaves the model folder');
  });

  it('names what is missing', async () => {
    expect((await rejection(tempFolder())).message).toContain('no config.json');
    expect((await rejection('/nonexistent/model')).code).toBe('FILE_NOT_FOUND');
    const target = writeTinyFolder();
    renameSync(join(target, 'model.safetensors'), join(target, 'pytorch_model.bin'));
    expect((await rejection(target)).hint).toContain('PyTorch checkpoint');
  });

  it.each([
    ['config.json', 5 << 20],
    ['tokenizer_config.json', 5 << 20],
    ['tokenizer.json', 65 << 20],
  ])('refuses an oversized %s before reading it', async (name, size) => {
    const target = writeTinyFolder();
    truncateSync(join(target, name), size); // sparse: no bytes on the disk
    expect((await rejection(target)).message).toMatch(/expected at most/);
  });
});

describe('a sharded folder', () => {
  const shards = () => {
    const target = writeTinyFolder({ shards: 2 });
    const indexPath = join(target, 'model.safetensors.index.json');
    const index = JSON.parse(readFileSync(indexPath, 'utf8')) as { weight_map: Record<string, string> };
    const save = () => writeFileSync(indexPath, JSON.stringify(index));
    return { target, index, save };
  };

  it.each([
    '../model-00001-of-00002.safetensors',
    '/etc/passwd',
    'C:\\model.safetensors',
    'sub/model.safetensors',
    'a\0b.safetensors',
    'https://example.com/model.safetensors',
    '..',
    '',
  ])('is refused with the shard name %j', async (name) => {
    const { target, index, save } = shards();
    index.weight_map['lm_head.weight'] = name;
    save();
    expect((await rejection(target)).message).toContain('base name');
  });

  it('is refused without one of its shards', async () => {
    const { target } = shards();
    rmSync(join(target, 'model-00002-of-00002.safetensors'));
    expect(await rejection(target)).toMatchObject({
      code: 'FILE_NOT_FOUND',
      message: expect.stringContaining('model-00002-of-00002'),
    });
  });

  it('is refused when a tensor lies in another shard than the index says', async () => {
    const { target, index, save } = shards();
    index.weight_map['lm_head.weight'] = 'model-00001-of-00002.safetensors';
    save();
    expect((await rejection(target)).message).toMatch(
      /lm_head\.weight lies here, the index says model-00001/,
    );
  });

  it('is refused when no shard holds a tensor of the index', async () => {
    const { target, index, save } = shards();
    index.weight_map['ghost'] = 'model-00001-of-00002.safetensors';
    save();
    expect((await rejection(target)).message).toContain('does not hold: ghost');
  });

  it('is refused with bytes behind the last tensor of a shard', async () => {
    const { target } = shards();
    appendFileSync(join(target, 'model-00001-of-00002.safetensors'), 'x');
    expect((await rejection(target)).message).toContain('1 bytes after the last tensor');
  });
});
