import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BLOCK_TYPES } from '../../src/model/decode-blocks.js';
import { BLOCK_VALUES } from '../helpers/block-reference.js';
import { TENSOR_TYPES } from '../../src/model/gguf-types.js';

/** Where a block's halves stand. */
const HALVES: Record<string, number[]> = {
  Q4_1: [0, 2],
  Q5_1: [0, 2],
  Q2_K: [80, 82],
  Q3_K: [108],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
};
const halvesOf = (name: string): number[] => HALVES[name] ?? [0];
const names = Object.keys(BLOCK_TYPES);

function decode(name: string, bytes: Uint8Array): { bad: number; out: Float32Array } {
  const type = BLOCK_TYPES[name];
  const out = new Float32Array((bytes.length / type.blockBytes) * type.blockElements);
  return { bad: type.decode(bytes, out.length, out), out };
}

/** Whole blocks of random bytes whose halves are finite. */
const blocks = (name: string): fc.Arbitrary<Uint8Array> =>
  fc.integer({ min: 1, max: 3 }).chain((count) =>
    fc
      .uint8Array({
        minLength: count * BLOCK_TYPES[name].blockBytes,
        maxLength: count * BLOCK_TYPES[name].blockBytes,
      })
      .map((bytes) => {
        for (let at = 0; at < bytes.length; at += BLOCK_TYPES[name].blockBytes)
          for (const half of halvesOf(name)) bytes[at + half + 1] &= 0xbb;
        return bytes;
      }),
  );

/**
 * One block of bytes (7 i² + 37 i + 11) mod 256 with the halves 0.0625 and 0.125, as the Python package `gguf`
 * 0.17 dequantises it: the sum, the sum weighted by 1..n, and values 0, 1, n/2 and n-1.
 */
const KNOWN: [string, number, number, number[]][] = [
  ['Q4_0', -0.0625, 3.3125, [-0.4375, 0.0625, -0.0625, -0.125]],
  ['Q4_1', 19.9375, 329.375, [1.0625, 0.3125, 0.125, 0.75]],
  ['Q5_0', 2.4375, 41.6875, [0.3125, -0.6875, 0.875, -0.875]],
  ['Q5_1', 38.4375, 624.25, [1.3125, 2.0625, 2.0625, 0.9375]],
  ['Q8_0', -2, -408, [7.0625, -4.4375, -7.9375, -6.5625]],
  ['Q2_K', -24.3125, -5094, [2.0625, 2.0625, -1.3125, -0.625]],
  ['Q3_K', 116, 1941.5, [5.0625, 5.0625, 0.125, 0]],
  ['Q4_K', 2954, 406709, [3.9375, 0.1875, -2.5625, 16.9375]],
  ['Q5_K', 7382, 978559, [18.9375, 15.1875, 4.4375, 13.3125]],
  ['Q6_K', -1167.5, -161194, [-89.4375, -76.1875, -129.9375, 160.875]],
  ['IQ4_NL', 5.1875, 160, [-6.5, 0.8125, -0.625, -1.375]],
  ['IQ4_XS', 1095.6875, 205997.75, [4.0625, -7.0625, 44.6875, 33.375]],
];

describe('block-quantised types', () => {
  it.each(KNOWN)('%s decodes to the published values', (name, sum, weighted, picked) => {
    const bytes = Uint8Array.from(
      { length: BLOCK_TYPES[name].blockBytes },
      (_, i) => i * i * 7 + i * 37 + 11,
    );
    for (const [k, half] of halvesOf(name).entries()) bytes.set([0, k === 0 ? 0x2c : 0x30], half);
    const { bad, out } = decode(name, bytes);
    const n = out.length;
    expect(bad).toBe(-1);
    // Every value is a small multiple of 1/16: sums are exact.
    expect(out.reduce((a, v) => a + v, 0)).toBe(sum);
    expect([...out].reduce((a, v, i) => a + v * (i + 1), 0)).toBe(weighted);
    expect([out[0], out[1], out[n / 2], out[n - 1]].map((v) => v + 0)).toEqual(picked);
  });

  it.each(names)('%s has the size that the file format says', (name) => {
    const listed = [...TENSOR_TYPES.values()].find((t) => t.name === name)!;
    const { blockElements, blockBytes } = BLOCK_TYPES[name];
    expect({ blockElements, blockBytes }).toEqual({
      blockElements: listed.blockElements,
      blockBytes: listed.blockBytes,
    });
  });

  it.each(names)('%s decodes any bytes as its layout says, and writes nothing else', (name) => {
    const { blockBytes, blockElements, decode: decodeBlocks } = BLOCK_TYPES[name];
    fc.assert(
      fc.property(blocks(name), (bytes) => {
        const elements = (bytes.length / blockBytes) * blockElements;
        const out = new Float32Array(elements + 9).fill(-77);
        expect(decodeBlocks(bytes, elements, out)).toBe(-1);
        const expected = Float32Array.from({ length: elements }, (_, i) => {
          const at = Math.floor(i / blockElements) * blockBytes;
          return BLOCK_VALUES[name](bytes.slice(at, at + blockBytes), i % blockElements);
        });
        // Zeros are equal whatever their sign.
        expect([...out.subarray(0, elements)].map((v) => v + 0)).toEqual([...expected].map((v) => v + 0));
        expect([...out.subarray(elements)]).toEqual(new Array(9).fill(-77));
      }),
      { numRuns: 40 },
    );
  });

  it.each(names)(
    '%s decodes any bytes at all without an exception, and notes a scale that is no number',
    (name) => {
      const { blockBytes: size, blockElements } = BLOCK_TYPES[name];
      fc.assert(
        fc.property(
          fc.uint8Array({ minLength: 3 * size, maxLength: 3 * size }),
          fc.nat(2),
          (bytes, spoiled) => {
            bytes[spoiled * size + halvesOf(name)[0] + 1] |= 0x7c;
            const first = [0, 1, 2].findIndex((block) =>
              halvesOf(name).some((half) => (bytes[block * size + half + 1] & 0x7c) === 0x7c),
            );
            expect(decode(name, bytes).bad).toBe(first * blockElements);
          },
        ),
        { numRuns: 40 },
      );
    },
  );

  it.each(names)('%s names the first block whose scale is NaN or infinite', (name) => {
    const { blockBytes: size, blockElements } = BLOCK_TYPES[name];
    for (const half of halvesOf(name)) {
      for (const bits of [0x7c00, 0xfc00, 0x7e01]) {
        const bytes = new Uint8Array(4 * size);
        for (const block of [2, 3]) bytes.set([bits & 255, bits >>> 8], block * size + half);
        expect(decode(name, bytes).bad).toBe(2 * blockElements);
        expect(decode(name, bytes.subarray(0, 2 * size)).bad).toBe(-1);
      }
    }
  });

  it.each(names)('%s scales with its halves', (name) => {
    fc.assert(
      fc.property(blocks(name), (bytes) => {
        const doubled = bytes.slice();
        const size = BLOCK_TYPES[name].blockBytes;
        for (let at = 0; at < bytes.length; at += size) {
          for (const half of halvesOf(name)) {
            const exponent = (doubled[at + half + 1] >>> 2) & 31;
            fc.pre(exponent > 0 && exponent < 29);
            doubled[at + half + 1] += 4;
          }
        }
        const before = decode(name, bytes).out;
        expect([...decode(name, doubled).out]).toEqual([...before].map((v) => 2 * v));
      }),
      { numRuns: 20 },
    );
  });
});
