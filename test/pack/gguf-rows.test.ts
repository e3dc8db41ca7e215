import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { STORED_TYPES } from '../../src/model/decode.js';
import { encodeGgufRows, ggufRowBytes, halfBits, type GgufRowFormat } from '../../src/pack/gguf-rows.js';
import { toHalfBits } from '../helpers/float-bits.js';

/** One row there and back. */
function roundTrip(format: GgufRowFormat, row: Float32Array): Float32Array {
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  new Float32Array(memory.buffer, 64, row.length).set(row);
  const at = 64 + 4 * row.length;
  encodeGgufRows(format, memory, 64, 4 * row.length, 1, at, row.length);
  const bytes = new Uint8Array(memory.buffer, at, ggufRowBytes(format, row.length)).slice();
  const out = new Float32Array(row.length);
  expect(STORED_TYPES[format.toUpperCase()].decode(bytes, row.length, out)).toBe(-1);
  return out;
}

/** Half of the smallest f16: what a block's step may be off by when it is that small. */
const HALF_STEP = 2 ** -25;
const weights = fc.array(fc.float({ min: -8, max: 8, noNaN: true }), { minLength: 64, maxLength: 64 });

describe('GGUF rows', () => {
  it('round halves to nearest even, and never to infinity', () => {
    fc.assert(
      fc.property(fc.float({ noNaN: true, noDefaultInfinity: true }), (x) => {
        const expected = toHalfBits(x);
        expect(halfBits(x)).toBe((expected & 0x7fff) === 0x7c00 ? expected - 1 : expected);
      }),
      { numRuns: 2000 },
    );
    for (const x of [0, -0, 2 ** -24, 2 ** -25, 3 * 2 ** -25, 2 ** -14, 65504, 65519, 65520, -1e30]) {
      const expected = toHalfBits(x);
      expect(halfBits(x)).toBe((expected & 0x7fff) === 0x7c00 ? expected - 1 : expected);
    }
  });

  it('keep q8_0 values within half a step of their block’s largest / 127', () => {
    fc.assert(
      fc.property(weights, (values) => {
        const row = Float32Array.from(values);
        const back = roundTrip('q8_0', row);
        for (let i = 0; i < row.length; i++) {
          const block = row.subarray(i - (i % 32), i - (i % 32) + 32);
          const max = Math.max(...block.map(Math.abs));
          expect(Math.abs(back[i] - row[i])).toBeLessThanOrEqual(
            max * (0.5 / 127 + 2 ** -10) + 127 * HALF_STEP,
          );
        }
      }),
    );
  });

  it('keep q4_0 values within one step of their block’s largest / 8', () => {
    fc.assert(
      fc.property(weights, (values) => {
        const row = Float32Array.from(values);
        const back = roundTrip('q4_0', row);
        for (let i = 0; i < row.length; i++) {
          const block = row.subarray(i - (i % 32), i - (i % 32) + 32);
          const max = Math.max(...block.map(Math.abs));
          expect(Math.abs(back[i] - row[i])).toBeLessThanOrEqual(max * (1 / 8 + 2 ** -9) + 8 * HALF_STEP);
        }
      }),
    );
  });

  it.each(['f16', 'q8_0', 'q4_0'] as const)('keep zeros (%s)', (format) => {
    expect([...roundTrip(format, new Float32Array(64))].every((v) => v === 0)).toBe(true);
  });
});
