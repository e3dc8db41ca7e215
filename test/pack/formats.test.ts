import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openModel } from '../../src/model/index.js';
import type { WeightSource } from '../../src/model/types.js';
import { convert } from '../../src/pack/convert.js';
import { chooseFormats, formatsFor, formatsKey } from '../../src/pack/formats.js';
import { describePack, describeSource } from '../../src/pack/inspect.js';
import { openPack } from '../../src/pack/reader.js';
import { tempFolder } from '../helpers/tiny-models.js';
import { writeTinyGguf } from '../helpers/tiny-gguf.js';
import { memorySource } from './memory-source.js';

/** A source whose tensors claim stored types by role. */
function stored(types: Record<string, string>): WeightSource {
  const source = memorySource();
  const tensors = new Map(
    [...source.tensors].map(([name, t]) => {
      const role = name.slice(name.lastIndexOf('.') + 1);
      return [name, { ...t, dtype: types[name] ?? types[role] ?? 'F32' }] as const;
    }),
  );
  return { ...source, tensors };
}

const Q4_K_M = { q: 'Q4_K', k: 'Q4_K', v: 'Q4_K', o: 'Q4_K', gate: 'Q4_K', up: 'Q4_K', down: 'Q4_K' };

describe('the formats of a pack', () => {
  it('are the one that was asked for', () => {
    for (const quant of ['f32', 'q8', 'q4'] as const) {
      expect(chooseFormats(stored(Q4_K_M), quant, 'q8')).toEqual({ quant, formats: formatsFor(quant, 2) });
    }
  });

  it('are the default of the caller for a model that is not quantised', () => {
    expect(chooseFormats(stored({}), null, 'q8')).toEqual({ quant: 'q8', formats: formatsFor('q8', 2) });
    expect(chooseFormats(stored({ q: 'F16' }), null, 'q4').quant).toBe('q4');
  });

  it('follow the tensors of a mixed file: four bits and less q4, more q8, the best of a section decides', () => {
    const mixed = { ...Q4_K_M, v: 'Q6_K', 'layers.1.down': 'Q6_K' };
    const { quant, formats } = chooseFormats(stored(mixed), null, 'q4');
    expect(quant).toBe('q4');
    expect(formats).toEqual({
      embed: 'q8',
      lmHead: 'q8',
      layers: [
        { qkv: 'q8', o: 'q4', gate: 'q4', ffn: 'q4' },
        { qkv: 'q8', o: 'q4', gate: 'q4', ffn: 'q8' },
      ],
    });
  });

  it.each([
    ['Q2_K', 'q4'],
    ['Q3_K', 'q4'],
    ['Q4_0', 'q4'],
    ['Q4_1', 'q4'],
    ['IQ4_XS', 'q4'],
    ['IQ4_NL', 'q4'],
    ['Q5_0', 'q8'],
    ['Q5_1', 'q8'],
    ['Q5_K', 'q8'],
    ['Q6_K', 'q8'],
    ['Q8_0', 'q8'],
  ])('make %s %s', (dtype, format) => {
    const all = Object.fromEntries(Object.keys(Q4_K_M).map((role) => [role, dtype]));
    expect(chooseFormats(stored(all), null, 'f32').quant).toBe(format);
  });

  it('have a name each, for cached files', () => {
    const mixed = chooseFormats(stored({ ...Q4_K_M, v: 'Q6_K' }), null, 'q4').formats;
    expect(formatsKey(formatsFor('q8', 2))).toBe('q8');
    expect(formatsKey(mixed)).toMatch(/^mixed-[0-9a-f]{8}$/);
    expect(formatsKey(mixed)).not.toBe(formatsKey(chooseFormats(stored(Q4_K_M), null, 'q4').formats));
  });
});

describe('a converted GGUF file', () => {
  it('says what became of what, before and after', async () => {
    const source = await openModel(writeTinyGguf({ ggufType: 'Q8_0' }));
    const path = join(tempFolder(), 'tiny.pack');
    await convert(source, path, { quant: null });
    const before = describeSource(source).converted;
    await source.close();
    const pack = openPack(path);
    pack.close();
    expect(pack.header.quant).toBe('q8');
    expect(describePack(pack).converted).toEqual(before);
    expect(before).toContainEqual({ role: 'gate', from: 'Q8_0', to: 'q8', tensors: 2 });
  });

  it('has the same bytes as with the format named', async () => {
    const [a, b] = [join(tempFolder(), 'a'), join(tempFolder(), 'b')];
    const source = await openModel(writeTinyGguf({ ggufType: 'Q4_0' }));
    await convert(source, a, { quant: null });
    await convert(source, b, { quant: 'q4' });
    await source.close();
    expect(readFileSync(a).equals(readFileSync(b))).toBe(true);
  });
});
