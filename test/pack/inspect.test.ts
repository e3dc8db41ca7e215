import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { convert } from '../../src/pack/convert.js';
import { describePack, describeSource } from '../../src/pack/inspect.js';
import { openPack } from '../../src/pack/reader.js';
import { tempFolder } from '../helpers/tiny-models.js';
import { memorySource, tinyModelConfig } from './memory-source.js';

const config = tinyModelConfig({ hiddenSize: 128, headDim: 32, intermediateSize: 256, vocabSize: 100 });

async function described(over: Partial<typeof config> = {}) {
  const path = join(tempFolder(), 'tiny.pack');
  const source = memorySource({ ...config, ...over });
  await convert(source, path, { quant: 'q4' });
  const pack = openPack(path);
  pack.close();
  return { pack: describePack(pack), source: describeSource(source) };
}

describe('descriptions', () => {
  it('count parameters alike in source and pack', async () => {
    const { pack, source } = await described();
    const expected = 2 * 100 * 128 + 128 + 2 * (2 * 128 + (128 + 64 + 64 + 128) * 128 + 3 * 256 * 128);
    expect(pack.parameters).toBe(expected);
    expect(source.parameters).toBe(expected);
    expect(pack.parts.map((p) => p.parameters)).toEqual(source.parts.map((p) => p.parameters));
  });

  it('give bytes, formats and bits per weight of each part', async () => {
    const { pack } = await described();
    const gate = pack.parts.find((p) => p.part === 'gate')!;
    // 64 bytes of codes and one bf16 scale per row of 128, padded to 80.
    expect(gate).toEqual({
      part: 'gate',
      formats: ['q4'],
      parameters: 65536,
      bytes: 2 * 256 * 80,
      bitsPerWeight: 5,
    });
    expect(pack.parts.find((p) => p.part === 'embedding')!.formats).toEqual(['q8']);
    expect(pack.sparsity).toMatchObject({ sparse: true, gateRowBytes: 80, recordBytes: 160 });
  });

  it('count one embedding row per token, and the whole embedding when it is the head too', async () => {
    const untied = (await described()).pack;
    const all = untied.parts.reduce((sum, p) => sum + p.bytes, 0);
    expect(untied.bytesPerTokenDense).toBe(all - 100 * 144 + 144);
    const tied = (await described({ tiedEmbeddings: true })).pack;
    expect(tied.bytesPerTokenDense).toBe(untied.bytesPerTokenDense);
  });

  it('say that SiLU models run dense until profile --sparsify found cuts', async () => {
    const { pack } = await described({ activation: { kind: 'silu', threshold: 0 } });
    expect(pack.sparsity.ffnModes).toEqual(['dense']);
    expect(pack.sparsity.reason).toMatch(/^silu is never exactly zero.*profile --sparsify/);
  });
});
