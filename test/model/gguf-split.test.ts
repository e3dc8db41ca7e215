import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openModel } from '../../src/model/index.js';
import { rejection } from '../helpers/expect-reject.js';
import {
  ggufBytes,
  partName,
  tinyGgufMetadata,
  tinyGgufTensors,
  u16,
  writeGgufParts,
  writeTinyGguf,
  type GgufMeta,
} from '../helpers/tiny-gguf.js';
import { tempFolder } from '../helpers/tiny-models.js';

const PARTS = 3;

describe('a GGUF model in parts', () => {
  it('is the model in one file, whichever part is named', async () => {
    const whole = await openModel(writeTinyGguf());
    const folder = writeGgufParts();
    for (const i of [0, 2]) {
      const model = await openModel(join(folder, partName(i)));
      expect(model.name).toBe('tiny');
      expect([...model.tensors.keys()]).toEqual([...whole.tensors.keys()]);
      for (const [name, { shape }] of model.tensors) {
        const rows = shape.length === 1 ? 1 : shape[0];
        expect(await model.readRows(name, 0, rows)).toEqual(await whole.readRows(name, 0, rows));
      }
      expect(await model.fingerprint()).toBe(await whole.fingerprint());
      await model.close();
    }
    await whole.close();
  });

  it('is refused with the missing part by name', async () => {
    const folder = writeGgufParts();
    rmSync(join(folder, partName(1)));
    const error = await rejection(join(folder, partName(0)));
    expect(error.code).toBe('FILE_NOT_FOUND');
    expect(error.message).toContain('tiny-00002-of-00003.gguf: missing');
  });

  it.each<[string, (i: number, keys: Map<string, GgufMeta>) => void, RegExp]>([
    ['another number', (i, k) => i === 1 && k.set('split.no', u16(2)), /00002-of.*split.no is 2, expected 1/],
    ['another count', (i, k) => i === 2 && k.set('split.count', u16(4)), /split.count is 4, expected 3/],
    [
      'another model’s tensor count',
      (i, k) => i === 1 && k.set('split.tensors.count', { type: 'i32', value: 5 }),
      /00002-of.*split.tensors.count is 5, expected 21/,
    ],
    ['no split keys', (i, k) => i === 1 && k.delete('split.no'), /split.no is missing/],
    [
      'another architecture',
      (i, k) => i === 2 && k.set('general.architecture', { type: 'string', value: 'falcon' }),
      /architecture "falcon"/,
    ],
    [
      'fewer tensors than it says',
      (_, k) => k.set('split.tensors.count', { type: 'i32', value: 99 }),
      /hold 21 tensors, expected 99/,
    ],
  ])('is refused when a part has %s', async (_, bend, message) => {
    const error = await rejection(join(writeGgufParts(bend), partName(0)));
    expect(error.message).toMatch(message);
  });

  it('is refused when two parts hold the same tensor', async () => {
    const folder = writeGgufParts();
    const tensors = tinyGgufTensors();
    const keys = new Map<string, GgufMeta>([
      ['split.no', u16(2)],
      ['split.count', u16(PARTS)],
      ['split.tensors.count', { type: 'i32', value: tensors.length }],
    ]);
    const share = tensors.filter((_, t) => t % PARTS === 1);
    writeFileSync(join(folder, partName(2)), ggufBytes(keys, share));
    expect((await rejection(join(folder, partName(0)))).message).toMatch(
      /stands in tiny-00002-of-00003.gguf too/,
    );
  });

  it('is refused under a name without its number', async () => {
    const path = join(tempFolder(), 'renamed.gguf');
    const keys = tinyGgufMetadata();
    keys
      .set('split.count', u16(3))
      .set('split.no', u16(0))
      .set('split.tensors.count', { type: 'i32', value: 21 });
    writeFileSync(path, ggufBytes(keys, tinyGgufTensors()));
    expect((await rejection(path)).message).toMatch(/split.count is 3, expected 1/);
  });

  it.each(['tiny-00001-of-00000.gguf', 'tiny-00001-of-09999.gguf'])('is refused as %s', async (name) => {
    const path = writeTinyGguf({}, tempFolder(), name);
    expect((await rejection(path)).message).toMatch(/parts, expected 1 to 1024/);
  });
});
