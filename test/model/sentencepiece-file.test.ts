import { copyFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HybridError } from '../../src/errors.js';
import { openModel } from '../../src/model/index.js';
import { readSentencePiece } from '../../src/model/sentencepiece-file.js';
import { createTokenizer } from '../../src/model/tokenizer.js';
import { corruptions } from '../helpers/corrupt.js';
import { rejection } from '../helpers/expect-reject.js';
import { writeTinyFolder } from '../helpers/tiny-models.js';

/** Vocabularies of 360 pieces, made by sentencepiece 0.2.2 with the identity normalization, and its encodings. */
const FIXTURES = new URL('./sentencepiece/', import.meta.url);
const model = (name: string): Buffer => readFileSync(new URL(`${name}.model`, FIXTURES));
const expected = JSON.parse(readFileSync(new URL('expected.json', FIXTURES), 'utf8')) as Record<
  string,
  [string, number[]][]
>;

const tokenizerOf = (bytes: Uint8Array) =>
  createTokenizer({
    tokenizerJson: JSON.stringify(readSentencePiece(bytes, 'tokenizer.model').json),
    tokenizerConfigJson: '{}',
    chatTemplate: null,
    generationConfigJson: null,
  });

// ---- writing protocol buffers ----------------------------------------------------------------------------

const varint = (value: number): number[] =>
  value < 128 ? [value] : [(value & 127) | 128, ...varint(Math.floor(value / 128))];
const bytesField = (number: number, bytes: Iterable<number>): number[] => {
  const list = [...bytes];
  return [...varint((number << 3) | 2), ...varint(list.length), ...list];
};
const piece = (text: string, type = 1): number[] =>
  bytesField(1, [...bytesField(1, Buffer.from(text)), 24, type]);
const minimal = (...more: number[]): Uint8Array =>
  Uint8Array.from([...piece('<unk>', 2), ...piece('a'), ...more]);

describe('tokenizer.model of SentencePiece', () => {
  it.each(Object.keys(expected))('gives the encodings of SentencePiece itself: %s', (name) => {
    const tokenizer = tokenizerOf(model(name));
    for (const [text, ids] of expected[name]) {
      expect(tokenizer.encode(text, { addSpecial: false }), JSON.stringify(text)).toEqual(ids);
    }
  });

  it.each(Object.keys(expected))('decodes to the text that was encoded: %s', (name) => {
    const tokenizer = tokenizerOf(model(name));
    for (const text of ['The king is dead.', 'naïve 🦉 café', 'a\n\nb'])
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  });

  it('stands in for a missing tokenizer.json, with begin and end from the file', async () => {
    const folder = writeTinyFolder({ vocabSize: 360 });
    for (const name of ['tokenizer.json', 'tokenizer_config.json']) rmSync(join(folder, name));
    copyFileSync(new URL('bpe.model', FIXTURES), join(folder, 'tokenizer.model'));
    const source = await openModel(folder);
    await source.close();
    const tokenizer = createTokenizer(source.tokenizer);
    const [[text, ids]] = expected['bpe'];
    expect(tokenizer.encode(text)).toEqual([1, ...ids]);
    expect([tokenizer.bosId, ...tokenizer.eosIds]).toEqual([1, 2]);
    expect(tokenizer.isSpecial(1)).toBe(true);
  });

  it('takes the tokens that tokenizer_config.json adds', async () => {
    const folder = writeTinyFolder({ vocabSize: 361 });
    rmSync(join(folder, 'tokenizer.json'));
    copyFileSync(new URL('bpe.model', FIXTURES), join(folder, 'tokenizer.model'));
    const added = { '360': { content: '<|turn|>', special: true } };
    const config = { added_tokens_decoder: added, add_bos_token: false, bos_token: null };
    writeFileSync(join(folder, 'tokenizer_config.json'), JSON.stringify(config));
    const source = await openModel(folder);
    await source.close();
    const tokenizer = createTokenizer(source.tokenizer);
    expect(tokenizer.encode('<|turn|>')).toEqual([360]);
  });

  it.each<[string, Uint8Array, RegExp]>([
    [
      'another normalization',
      minimal(...bytesField(3, [...bytesField(1, Buffer.from('nmt_nfkc')), ...bytesField(2, [1])])),
      /normalization "nmt_nfkc"/,
    ],
    ['a word model', minimal(...bytesField(2, [24, 3])), /model type 3/],
    ['spaces as suffixes', minimal(...bytesField(2, [...varint(24 << 3), 1])), /suffixes/],
    ['unmarked spaces', minimal(...bytesField(3, [40, 0])), /does not mark spaces/],
    ['no pieces', Uint8Array.from(bytesField(2, [24, 2])), /no pieces/],
    ['a piece twice', minimal(...piece('a')), /piece 2 is piece 1 too/],
    ['an empty piece', minimal(...piece('')), /piece 2 is empty/],
    ['a length beyond the file', Uint8Array.from([10, 255, 255, 255, 127, 1]), /bytes, 1 are left/],
    ['an endless number', Uint8Array.from([10, ...new Array<number>(11).fill(255)]), /more than ten bytes/],
    ['a text that is no UTF-8', minimal(...bytesField(1, bytesField(1, [255, 254]))), /expected UTF-8/],
    ['a number for a piece', minimal(8, 1), /expected a message/],
    ['another wire type', minimal(11), /wire type 3/],
  ])('is refused with %s', (_, bytes, message) => {
    expect(() => readSentencePiece(bytes, 'tokenizer.model')).toThrow(message);
  });

  it('is refused as a file that is empty or cut off', async () => {
    const folder = writeTinyFolder({ vocabSize: 360 });
    rmSync(join(folder, 'tokenizer.json'));
    const path = join(folder, 'tokenizer.model');
    writeFileSync(path, '');
    expect((await rejection(folder)).message).toMatch(/is empty/);
    writeFileSync(path, model('bpe').subarray(0, 1000));
    expect((await rejection(folder)).message).toMatch(/tokenizer.model: offset/);
  });

  it('survives random corruption with a typed error or a tokenizer', () => {
    const original = model('unigram');
    fc.assert(
      fc.property(corruptions(2000), (corrupt) => {
        try {
          tokenizerOf(corrupt(original)).encode('the king');
        } catch (error) {
          expect(error).toBeInstanceOf(HybridError);
        }
      }),
      { numRuns: 100 },
    );
  });
});
