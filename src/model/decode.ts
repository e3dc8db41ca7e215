/**
 * Stored tensor types -> f32. Each decoder also looks for NaN and infinity, which the exponent bits show, so
 * that the check costs no second pass. All multi-byte values are little-endian, as this program's hosts are.
 */
import { BLOCK_TYPES, type StoredType } from './decode-blocks.js';
import { halfValues } from './half.js';

/** The same values as bits: copying bits is faster than copying floats. */
const halfWords = new Uint32Array(halfValues.buffer);

// The 16- and 32-bit decoders OR `exponent + 1` of all values together: only an exponent of all ones carries
// into the bit above it. The search for the value that did it runs only then.

function decodeF16(bytes: Uint8Array, elements: number, out: Float32Array): number {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, elements);
  const words = new Uint32Array(out.buffer, out.byteOffset, elements);
  let carry = 0;
  for (let i = 0; i < elements; i++) {
    const bits = halves[i];
    carry |= (bits & 0x7c00) + 0x400;
    words[i] = halfWords[bits];
  }
  return carry & 0x8000 ? firstNotFinite(out, elements) : -1;
}

function decodeBf16(bytes: Uint8Array, elements: number, out: Float32Array): number {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, elements);
  const words = new Uint32Array(out.buffer, out.byteOffset, elements);
  let carry = 0;
  for (let i = 0; i < elements; i++) {
    const bits = halves[i];
    carry |= (bits & 0x7f80) + 0x80;
    words[i] = bits << 16;
  }
  return carry & 0x8000 ? firstNotFinite(out, elements) : -1;
}

function decodeF32(bytes: Uint8Array, elements: number, out: Float32Array): number {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, elements);
  const target = new Uint32Array(out.buffer, out.byteOffset, elements);
  let carry = 0;
  for (let i = 0; i < elements; i++) {
    const bits = words[i];
    carry |= (bits & 0x7f800000) + 0x800000;
    target[i] = bits;
  }
  return carry < 0 ? firstNotFinite(out, elements) : -1; // bit 31
}

function firstNotFinite(values: Float32Array, elements: number): number {
  for (let i = 0; i < elements; i++) if (!Number.isFinite(values[i])) return i;
  return -1;
}

export const STORED_TYPES: Readonly<Record<string, StoredType>> = {
  F32: { blockElements: 1, blockBytes: 4, decode: decodeF32 },
  F16: { blockElements: 1, blockBytes: 2, decode: decodeF16 },
  BF16: { blockElements: 1, blockBytes: 2, decode: decodeBf16 },
  ...BLOCK_TYPES,
};

/** Bits that a value of a stored type takes, its share of the scales included. */
export const bitsPerValue = ({ blockBytes, blockElements }: StoredType): number =>
  (8 * blockBytes) / blockElements;
