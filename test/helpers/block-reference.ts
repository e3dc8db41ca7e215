/**
 * GGUF's block types once more, value by value: which bits of a block make value k. Written from the published
 * layouts, to compare the decoders with; slow, and shares nothing with them.
 */
import { halfToNumber } from '../../src/model/half.js';

type Bytes = Uint8Array;

const half = (b: Bytes, at: number): number => halfToNumber(b[at] | (b[at + 1] << 8));
const int8 = (b: Bytes, at: number): number => new DataView(b.buffer, b.byteOffset).getInt8(at);
/** `count` bits from bit `bit` of the bytes at `at`, which may lie in several bytes. */
function bits(b: Bytes, at: number, bit: number, count: number): number {
  let value = 0;
  for (let i = 0; i < count; i++) {
    const place = bit + i;
    value += ((b[at + Math.floor(place / 8)] >> (place % 8)) & 1) * 2 ** i;
  }
  return value;
}
/** Blocks of 32: the first 16 values are low halves of the bytes, the other 16 their high halves. */
const nibble = (b: Bytes, at: number, k: number): number => bits(b, at + (k % 16), k < 16 ? 0 : 4, 4);

/** Six bits each for scale and minimum i of 8, in 12 bytes: whole for i < 4, in two parts for the others. */
const sixBits = (b: Bytes, at: number, i: number, minimum: boolean): number => {
  if (i < 4) return bits(b, at + i + (minimum ? 4 : 0), 0, 6);
  return bits(b, at + 4 + i, minimum ? 4 : 0, 4) + 16 * bits(b, at + i - (minimum ? 0 : 4), 6, 2);
};

const STEPS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** Value k of the block. */
export const BLOCK_VALUES: Readonly<Record<string, (b: Bytes, k: number) => number>> = {
  Q4_0: (b, k) => half(b, 0) * (nibble(b, 2, k) - 8),
  Q4_1: (b, k) => half(b, 0) * nibble(b, 4, k) + half(b, 2),
  Q5_0: (b, k) => half(b, 0) * (nibble(b, 6, k) + 16 * bits(b, 2, k, 1) - 16),
  Q5_1: (b, k) => half(b, 0) * (nibble(b, 8, k) + 16 * bits(b, 4, k, 1)) + half(b, 2),
  Q8_0: (b, k) => half(b, 0) * int8(b, 2 + k),
  Q2_K: (b, k) => {
    const code = bits(b, 16 + 32 * Math.floor(k / 128) + (k % 32), 2 * (Math.floor(k / 32) % 4), 2);
    const sub = Math.floor(k / 16);
    return half(b, 80) * bits(b, sub, 0, 4) * code - half(b, 82) * bits(b, sub, 4, 4);
  },
  Q3_K: (b, k) => {
    const code = bits(b, 32 + 32 * Math.floor(k / 128) + (k % 32), 2 * (Math.floor(k / 32) % 4), 2);
    const third = bits(b, k % 32, Math.floor(k / 32), 1);
    const sub = Math.floor(k / 16);
    const low = bits(b, 96 + (sub % 8), sub < 8 ? 0 : 4, 4);
    const high = bits(b, 104 + (sub % 4), 2 * Math.floor(sub / 4), 2);
    return half(b, 108) * (low + 16 * high - 32) * (code + 4 * third - 4);
  },
  Q4_K: (b, k) => {
    const part = Math.floor(k / 32);
    const code = bits(b, 16 + 32 * Math.floor(k / 64) + (k % 32), 4 * (part % 2), 4);
    return half(b, 0) * sixBits(b, 4, part, false) * code - half(b, 2) * sixBits(b, 4, part, true);
  },
  Q5_K: (b, k) => {
    const part = Math.floor(k / 32);
    const low = bits(b, 48 + 32 * Math.floor(k / 64) + (k % 32), 4 * (part % 2), 4);
    const code = low + 16 * bits(b, 16 + (k % 32), part, 1);
    return half(b, 0) * sixBits(b, 4, part, false) * code - half(b, 2) * sixBits(b, 4, part, true);
  },
  Q6_K: (b, k) => {
    const second = Math.floor(k / 128);
    const quarter = Math.floor(k / 32) % 4;
    const low = bits(b, 64 * second + 32 * (quarter % 2) + (k % 32), quarter < 2 ? 0 : 4, 4);
    const high = bits(b, 128 + 32 * second + (k % 32), 2 * quarter, 2);
    return half(b, 208) * int8(b, 192 + Math.floor(k / 16)) * (low + 16 * high - 32);
  },
  IQ4_NL: (b, k) => half(b, 0) * STEPS[nibble(b, 2, k)],
  IQ4_XS: (b, k) => {
    const part = Math.floor(k / 32);
    const scale = bits(b, 4, 4 * part, 4) + 16 * bits(b, 2, 2 * part, 2) - 32;
    return half(b, 0) * scale * STEPS[nibble(b, 8 + 16 * part, k % 32)];
  },
};
