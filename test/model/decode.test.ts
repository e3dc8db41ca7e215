import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { STORED_TYPES } from '../../src/model/decode.js';
import { halfToNumber } from '../../src/model/half.js';
import { toBf16Bits, toHalfBits } from '../helpers/float-bits.js';

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

  /** By the definitions: sign, exponent and fraction of a half; a bfloat16 is the upper half of a float32. */
  const naive: Record<string, { size: number; at(view: DataView, i: number): number }> = {
    F32: { size: 4, at: (view, i) => view.getFloat32(4 * i, true) },
    BF16: {
      size: 2,
      at(view, i) {
        const wide = new DataView(new ArrayBuffer(4));
        wide.setUint16(2, view.getUint16(2 * i, true), true);
        return wide.getFloat32(0, true);
      },
    },
    F16: {
      size: 2,
      at(view, i) {
        const bits = view.getUint16(2 * i, true);
        const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
        const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
        return (bits >> 15 ? -1 : 1) * (exponent === 31 ? (fraction ? NaN : Infinity) : size);
      },
    },
  };

  it.each(Object.keys(naive))(
    'reads any bytes as %s by its definition, up to the first that is no number',
    (type) => {
      const { size, at } = naive[type];
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 400 }), (random) => {
          const count = Math.floor(random.length / size);
          const bytes = random.slice(0, count * size);
          const view = new DataView(bytes.buffer);
          const values = Array.from({ length: count }, (_, i) => at(view, i));
          const bad = values.findIndex((v) => !Number.isFinite(v));
          const got = decode(type, bytes, count);
          expect(got.bad).toBe(bad);
          const end = bad < 0 ? count : bad;
          expect([...got.out.subarray(0, end)]).toEqual(values.slice(0, end));
        }),
      );
    },
  );
});
