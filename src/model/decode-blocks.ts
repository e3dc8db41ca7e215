/**
 * GGUF's block-quantised types -> f32, from the format's published layouts. A block is 32 values, or 256 in
 * the K types, which give each part of 16 or 32 values a scale of its own in a few bits. All of them share:
 *
 *     value = scale * code          scale = d * sub-scale
 *     value = scale * code - least  least = dmin * sub-minimum (types with a minimum)
 *
 * d and dmin are halves; only they can be NaN or infinite, so their exponents are all there is to check.
 */
import { halfValues } from './half.js';

/** A stored type whose values this runtime can read. */
export interface StoredType {
  /** Elements that are stored together; rows are a multiple of it. */
  blockElements: number;
  blockBytes: number;
  /**
   * Decode `elements` values (a multiple of blockElements).
   * @returns index of the first NaN or infinite value (in blocks: of the block), or -1
   */
  decode(bytes: Uint8Array, elements: number, out: Float32Array): number;
}

/** Decodes the block at `at` of `bytes` into `out[to...]`. `d` and `m` are the values of its halves. */
type DecodeBlock = (
  bytes: Uint8Array,
  at: number,
  out: Float32Array,
  to: number,
  d: number,
  m: number,
) => void;

/** @param halves where a block's scale, and its minimum's scale, stand */
function blockType(
  blockElements: number,
  blockBytes: number,
  halves: readonly [number, number?],
  block: DecodeBlock,
): StoredType {
  const [dAt, mAt = dAt] = halves;
  return {
    blockElements,
    blockBytes,
    decode(bytes, elements, out) {
      let bad = -1;
      for (let to = 0, at = 0; to < elements; to += blockElements, at += blockBytes) {
        const d = bytes[at + dAt] | (bytes[at + dAt + 1] << 8);
        const m = bytes[at + mAt] | (bytes[at + mAt + 1] << 8);
        if (bad < 0 && ((d & 0x7c00) === 0x7c00 || (m & 0x7c00) === 0x7c00)) bad = to;
        block(bytes, at, out, to, halfValues[d], halfValues[m]);
      }
      return bad;
    },
  };
}

const signed = (byte: number): number => (byte << 24) >> 24;

// ---- blocks of 32: byte j of the codes holds value j in its low half and value j + 16 in its high one ----

function q4_0(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  for (let j = 0; j < 16; j++) {
    const byte = bytes[at + 2 + j];
    out[to + j] = ((byte & 15) - 8) * d;
    out[to + 16 + j] = ((byte >>> 4) - 8) * d;
  }
}

/** The half after the scale is the least value itself. */
function q4_1(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number, m: number): void {
  for (let j = 0; j < 16; j++) {
    const byte = bytes[at + 4 + j];
    out[to + j] = (byte & 15) * d + m;
    out[to + 16 + j] = (byte >>> 4) * d + m;
  }
}

/** Bit i of the 32-bit word at `at` is the fifth bit of value i's code. */
const wordAt = (bytes: Uint8Array, at: number): number =>
  bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);

function q5_0(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  const fifth = wordAt(bytes, at + 2);
  for (let j = 0; j < 16; j++) {
    const byte = bytes[at + 6 + j];
    out[to + j] = (((byte & 15) | (((fifth >>> j) & 1) << 4)) - 16) * d;
    out[to + 16 + j] = (((byte >>> 4) | (((fifth >>> (j + 16)) & 1) << 4)) - 16) * d;
  }
}

function q5_1(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number, m: number): void {
  const fifth = wordAt(bytes, at + 4);
  for (let j = 0; j < 16; j++) {
    const byte = bytes[at + 8 + j];
    out[to + j] = ((byte & 15) | (((fifth >>> j) & 1) << 4)) * d + m;
    out[to + 16 + j] = ((byte >>> 4) | (((fifth >>> (j + 16)) & 1) << 4)) * d + m;
  }
}

function q8_0(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  for (let j = 0; j < 32; j++) out[to + j] = signed(bytes[at + 2 + j]) * d;
}

// ---- blocks of 256 -------------------------------------------------------------------------------------

/**
 * 16 bytes (sub-scale low, sub-minimum high) for 16 values each | 64 bytes of codes | d | dmin. In both K
 * types of 2 and 3 bits, 32 bytes of codes hold 128 values: bits 2q, 2q + 1 of byte j are value 32 q + j.
 */
function q2_K(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number, m: number): void {
  for (let part = 0; part < 16; part++) {
    const sub = bytes[at + part];
    const scale = d * (sub & 15);
    const least = m * (sub >>> 4);
    const codes = at + 16 + 32 * (part >>> 3) + 16 * (part & 1);
    const shift = 2 * ((part >>> 1) & 3);
    for (let j = 0; j < 16; j++) out[to + 16 * part + j] = scale * ((bytes[codes + j] >>> shift) & 3) - least;
  }
}

/**
 * 32 bytes of third bits (bit q of byte j: value 32 q + j; 0 means minus 4) | 64 bytes of codes | 12 bytes of
 * sub-scales + 32 in 6 bits (low halves of 16, then high pairs) | d.
 */
function q3_K(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  const subs = at + 96;
  for (let part = 0; part < 16; part++) {
    const low = part < 8 ? bytes[subs + part] & 15 : bytes[subs + part - 8] >>> 4;
    const high = (bytes[subs + 8 + (part & 3)] >>> (2 * (part >>> 2))) & 3;
    const scale = d * ((low | (high << 4)) - 32);
    const half = 16 * (part & 1);
    const codes = at + 32 + 32 * (part >>> 3) + half;
    const shift = 2 * ((part >>> 1) & 3);
    const third = part >>> 1;
    for (let j = 0; j < 16; j++) {
      const code = (bytes[codes + j] >>> shift) & 3;
      out[to + 16 * part + j] = scale * (code - ((bytes[at + half + j] >>> third) & 1 ? 0 : 4));
    }
  }
}

/**
 * Sub-scale and sub-minimum i of 8, in 6 bits each, from the 12 bytes at `at`: the first four stand whole in
 * bytes 0..3 and 4..7, whose upper pairs carry the high bits of the last four; bytes 8..11 their low halves.
 */
const subScale = (bytes: Uint8Array, at: number, i: number): number =>
  i < 4 ? bytes[at + i] & 63 : (bytes[at + 4 + i] & 15) | ((bytes[at + i - 4] >>> 6) << 4);
const subMinimum = (bytes: Uint8Array, at: number, i: number): number =>
  i < 4 ? bytes[at + 4 + i] & 63 : (bytes[at + 4 + i] >>> 4) | ((bytes[at + i] >>> 6) << 4);

/** d | dmin | 12 bytes of sub-scales | 128 bytes of codes: 32 bytes hold 32 values low, then 32 high. */
function q4_K(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number, m: number): void {
  for (let part = 0; part < 8; part++) {
    const scale = d * subScale(bytes, at + 4, part);
    const least = m * subMinimum(bytes, at + 4, part);
    const codes = at + 16 + 32 * (part >>> 1);
    const shift = 4 * (part & 1);
    for (let j = 0; j < 32; j++)
      out[to + 32 * part + j] = scale * ((bytes[codes + j] >>> shift) & 15) - least;
  }
}

/** As q4_K with 32 bytes of fifth bits (bit `part` of byte j) before the codes. */
function q5_K(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number, m: number): void {
  for (let part = 0; part < 8; part++) {
    const scale = d * subScale(bytes, at + 4, part);
    const least = m * subMinimum(bytes, at + 4, part);
    const codes = at + 48 + 32 * (part >>> 1);
    const shift = 4 * (part & 1);
    for (let j = 0; j < 32; j++) {
      const fifth = (bytes[at + 16 + j] >>> part) & 1;
      out[to + 32 * part + j] = scale * (((bytes[codes + j] >>> shift) & 15) | (fifth << 4)) - least;
    }
  }
}

/**
 * 128 bytes of low halves, 64 bytes of high pairs, 16 signed sub-scales of 16 values each, d. Each half of 128
 * values takes four quarters of 32 from the same bytes.
 */
function q6_K(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  for (let half = 0; half < 2; half++) {
    const low = at + 64 * half;
    const high = at + 128 + 32 * half;
    const subs = at + 192 + 8 * half;
    for (let quarter = 0; quarter < 4; quarter++) {
      const lowAt = low + 32 * (quarter & 1);
      const lowShift = quarter < 2 ? 0 : 4;
      for (let j = 0; j < 32; j++) {
        const code =
          ((bytes[lowAt + j] >>> lowShift) & 15) | (((bytes[high + j] >>> (2 * quarter)) & 3) << 4);
        const scale = d * signed(bytes[subs + 2 * quarter + (j >>> 4)]);
        out[to + 128 * half + 32 * quarter + j] = scale * (code - 32);
      }
    }
  }
}

/** The 16 steps of the "non-linear" types, chosen by the format's authors for normally distributed weights. */
const STEPS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

function iq4_NL(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  for (let j = 0; j < 16; j++) {
    out[to + j] = STEPS[bytes[at + 2 + j] & 15] * d;
    out[to + 16 + j] = STEPS[bytes[at + 2 + j] >>> 4] * d;
  }
}

/** d | high pairs of 8 sub-scales + 32 (16 bits) | their low halves (4 bytes) | 8 parts as in iq4_NL. */
function iq4_XS(bytes: Uint8Array, at: number, out: Float32Array, to: number, d: number): void {
  const pairs = bytes[at + 2] | (bytes[at + 3] << 8);
  for (let part = 0; part < 8; part++) {
    const low = (bytes[at + 4 + (part >>> 1)] >>> (4 * (part & 1))) & 15;
    const scale = d * ((low | (((pairs >>> (2 * part)) & 3) << 4)) - 32);
    const codes = at + 8 + 16 * part;
    for (let j = 0; j < 16; j++) {
      out[to + 32 * part + j] = STEPS[bytes[codes + j] & 15] * scale;
      out[to + 32 * part + 16 + j] = STEPS[bytes[codes + j] >>> 4] * scale;
    }
  }
}

export const BLOCK_TYPES: Readonly<Record<string, StoredType>> = {
  Q4_0: blockType(32, 18, [0], q4_0),
  Q4_1: blockType(32, 20, [0, 2], q4_1),
  Q5_0: blockType(32, 22, [0], q5_0),
  Q5_1: blockType(32, 24, [0, 2], q5_1),
  Q8_0: blockType(32, 34, [0], q8_0),
  Q2_K: blockType(256, 84, [80, 82], q2_K),
  Q3_K: blockType(256, 110, [108], q3_K),
  Q4_K: blockType(256, 144, [0, 2], q4_K),
  Q5_K: blockType(256, 176, [0, 2], q5_K),
  Q6_K: blockType(256, 210, [208], q6_K),
  IQ4_NL: blockType(32, 18, [0], iq4_NL),
  IQ4_XS: blockType(256, 136, [0], iq4_XS),
};
