import { describe, expect, it } from 'vitest';
import { STORED_TYPES } from '../../src/model/decode.js';
import { halfToNumber } from '../../src/model/half.js';
import { toBf16Bits, toHalfBits } from '../helpers/float-bits.js';
import { random } from '../helpers/tiny-models.js';

const decode = (type: string, bytes: Uint8Array, elements: number) => {
  const out = new Float32Array(elements);
  return { bad: STORED_TYPES[type].decode(bytes, elements, out), out };
};

describe('decoding', () => {
  it('gives back every finite half, subnormals and both zeros included', () => {
    for (let bits = 0; bits < 65536; bits++) {
      if ((bits & 0x7c00) !== 0x7c00) expect(toHalfBits(halfToNumber(bits))).toBe(bits);
    }
    expect(halfToNumber(0x3c00)).toBe(1);
    expect(halfToNumber(1)).toBe(2 ** -24);
    expect(halfToNumber(0x7bff)).toBe(65504);
  });

  it('gives back every finite bfloat16', () => {
    const bits = Uint16Array.from({ length: 65536 }, (_, i) => i).filter((b) => (b & 0x7f80) !== 0x7f80);
    const { bad, out } = decode('BF16', new Uint8Array(bits.buffer), bits.length);
    expect(bad).toBe(-1);
    expect(Uint16Array.from(out, toBf16Bits)).toEqual(bits);
  });

  it.each([
    ['F16', 2, [0x7c00, 0xfc00, 0x7e00, 0x7fff]],
    ['BF16', 2, [0x7f80, 0xff80, 0x7fc0, 0xffff]],
    ['F32', 4, [0x7f800000, 0xff800000, 0x7fc00000, 0xffffffff]],
  ] as const)('finds the first NaN or infinity of %s', (type, size, values) => {
    for (const value of values) {
      const bytes = new Uint8Array(40 * size);
      const view = new DataView(bytes.buffer);
      for (const i of [17, 30]) {
        if (size === 2) view.setUint16(i * 2, value, true);
        else view.setUint32(i * 4, value, true);
      }
      expect(decode(type, bytes, 40).bad).toBe(17);
      expect(decode(type, bytes.subarray(0, 17 * size), 17).bad).toBe(-1);
    }
  });

  it('takes the largest finite values for finite', () => {
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, 0x7f7fffff, true);
    view.setUint32(4, 0xff7fffff, true);
    expect(decode('F32', new Uint8Array(view.buffer), 2).bad).toBe(-1);
  });

  it('reads Q6_K as its definition says, value by value', () => {
    const next = random(3);
    const bytes = Uint8Array.from({ length: 210 }, () => Math.floor(next() * 256));
    new DataView(bytes.buffer).setUint16(208, toHalfBits(0.01), true);
    const scale = halfToNumber(toHalfBits(0.01));
    const expected = Float32Array.from({ length: 256 }, (_, k) => {
      const half = k >> 7;
      const inHalf = k & 127;
      const lane = inHalf & 31;
      const quarter = inHalf >> 5;
      const low = bytes[64 * half + lane + (quarter % 2 ? 32 : 0)];
      const nibble = quarter < 2 ? low % 16 : low >> 4;
      const high = (bytes[128 + 32 * half + lane] >> (2 * quarter)) % 4;
      const group = new Int8Array(bytes.buffer)[192 + Math.floor(k / 16)];
      return scale * group * (nibble + 16 * high - 32);
    });
    expect(decode('Q6_K', bytes, 256).out).toEqual(expected);
  });
});
