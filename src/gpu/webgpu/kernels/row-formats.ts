/**
 * The pack's row formats in WGSL (kernels/layout.ts describes their bytes). A row is read in chunks; each has V
 * four-column vectors of weights and one scale. Every format defines
 *
 *     const CHUNKS: u32                                 chunks of a row
 *     fn chunk_scale(row: u32, c: u32) -> f32           the scale of chunk c of the row that begins at `row`
 *     fn chunk_x(c: u32, i: u32) -> u32                 which vec4 of x belongs to vector i of chunk c
 *     fn load_chunk(row: u32, c: u32) -> Chunk          w0 .. w(V-1): vec4<f32>, before the scale
 *
 * over a binding `w`: array<vec4<u32>> for weights (rows are multiples of 16 bytes), array<u32> for sketches;
 * `row` counts its elements.
 *
 * Codes become floats without a conversion, which GPUs do at a quarter of their speed: a whole number below 2^23
 * in the low bits of 2^23 is that much more than 2^23.
 */
import {
  alignUp,
  COLUMN_MULTIPLE,
  GROUP,
  isSketch,
  Q4_OFFSET,
  Q8_OFFSET,
  scaleOffset,
  sketchBits,
  sketchScaleOffset,
  type RowFormat,
} from '../../../kernels/layout.js';

export interface FormatText {
  /** Vectors of four columns in a chunk. */
  vectors: number;
  /** Element type of the binding `w`, and its bytes. */
  element: 'vec4<u32>' | 'u32';
  elementBytes: number;
  code: string;
}

/** 2^23 as an f32's bits. */
const MAGIC_BITS = '0x4B000000u';
const MAGIC = 8_388_608;

/** Four codes of one word as floats: shifts of 0, 8, 16, 24 and a mask, less `offset`. */
const unpack = (word: string, shift: number, mask: number, offset: number): string => {
  const shifts = [0, 8, 16, 24].map((s) => `${s + shift}u`).join(', ');
  const bits = `((vec4<u32>(${word}) >> vec4<u32>(${shifts})) & vec4<u32>(${mask}u)) | vec4<u32>(${MAGIC_BITS})`;
  return `bitcast<vec4<f32>>(${bits}) - vec4<f32>(${MAGIC + offset}.0)`;
};

const chunkStruct = (vectors: number): string =>
  `struct Chunk { ${Array.from({ length: vectors }, (_, i) => `w${i}: vec4<f32>`).join(', ')} }`;

/** @param cols logical columns of a row */
export function rowFormatText(format: RowFormat, cols: number): FormatText {
  if (format === 'f32') return f32Text(cols);
  return isSketch(format) ? sketchText(sketchBits(format), cols) : weightText(format, cols);
}

function f32Text(cols: number): FormatText {
  return {
    vectors: 1,
    element: 'vec4<u32>',
    elementBytes: 16,
    code: `${chunkStruct(1)}
const CHUNKS = ${Math.ceil(cols / 4)}u;
fn chunk_scale(row: u32, c: u32) -> f32 { return 1.0; }
fn chunk_x(c: u32, i: u32) -> u32 { return c; }
fn load_chunk(row: u32, c: u32) -> Chunk { return Chunk(bitcast<vec4<f32>>(w[row + c])); }`,
  };
}

function weightText(format: 'q8' | 'q4', cols: number): FormatText {
  const padded = alignUp(cols, COLUMN_MULTIPLE);
  // A group of 128 columns has four chunks of 16 bytes in q4, eight in q8.
  const [perGroup, vectors] = format === 'q4' ? [4, 8] : [8, 4];
  const scales = scaleOffset(format, cols) / 16;
  const words = ['x', 'y', 'z', 'w'].map((component) => `v.${component}`);
  const values =
    format === 'q4'
      ? [0, 4].flatMap((shift) => words.map((word) => unpack(word, shift, 15, Q4_OFFSET)))
      : words.map((word) => unpack(word, 0, 255, Q8_OFFSET));
  const column =
    format === 'q4'
      ? `(i & 3u) + select(0u, group_length(g) / 8u, i >= 4u) + (c % 4u) * 4u`
      : `i + (c % 8u) * 4u`;
  return {
    vectors,
    element: 'vec4<u32>',
    elementBytes: 16,
    code: `${chunkStruct(vectors)}
${groupLength(padded)}
const CHUNKS = ${format === 'q4' ? padded / 32 : padded / 16}u;
fn chunk_scale(row: u32, c: u32) -> f32 {
  let g = c / ${perGroup}u;
  let pair = w[row + ${scales}u + g / 8u][(g / 2u) % 4u];
  return bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, g % 2u == 1u));
}
fn chunk_x(c: u32, i: u32) -> u32 { let g = c / ${perGroup}u; return g * 32u + ${column}; }
fn load_chunk(row: u32, c: u32) -> Chunk {
  let v = w[row + c];
  return Chunk(${values.join(',\n    ')});
}`,
  };
}

/** Columns of group g: the last one may be shorter. */
const groupLength = (padded: number): string => {
  const groups = Math.ceil(padded / GROUP);
  const last = padded - (groups - 1) * GROUP;
  return last === GROUP
    ? `fn group_length(g: u32) -> u32 { return ${GROUP}u; }`
    : `fn group_length(g: u32) -> u32 { return select(${GROUP}u, ${last}u, g == ${groups - 1}u); }`;
};

/**
 * Sketches: value = 2 u - (2^b - 1). One word of 1-bit codes is a chunk: 32 columns, four at a distance of an
 * eighth of the group each; q3 has two words of low bits beside it. q2: one word, 16 columns.
 */
function sketchText(bits: 1 | 2 | 3, cols: number): FormatText {
  const padded = alignUp(cols, COLUMN_MULTIPLE);
  const scales = sketchScaleOffset(bits, cols) / 4;
  const top = 2 ** bits - 1;
  const [perGroup, vectors] = bits === 2 ? [8, 4] : [4, 8];
  const plain = (u: string): string => `2.0 * (${u}) - vec4<f32>(${top}.0)`;
  const each = (value: (k: number) => string): string =>
    Array.from({ length: vectors }, (_, k) => value(k)).join(',\n    ');
  const loads = {
    1: `let v = w[row + g * 4u + j];
  return Chunk(${each((k) => plain(unpack('v', k, 1, 0)))});`,
    2: `let v = w[row + g * 8u + j];
  return Chunk(${each((k) => plain(unpack('v', 2 * k, 3, 0)))});`,
    3: `let eighth = group_length(g) / 32u;
  let begin = row + g * 12u;
  let even = w[begin + j];
  let odd = w[begin + eighth + j];
  let high = w[begin + 2u * eighth + j];
  return Chunk(${each((k) => plain(`${unpack(k % 2 ? 'odd' : 'even', k & ~1, 3, 0)} + 4.0 * (${unpack('high', k, 1, 0)})`))});`,
  }[bits];
  return {
    vectors,
    element: 'u32',
    elementBytes: 4,
    code: `${chunkStruct(vectors)}
${groupLength(padded)}
const CHUNKS = ${padded / (bits === 2 ? 16 : 32)}u;
fn chunk_scale(row: u32, c: u32) -> f32 {
  let g = c / ${perGroup}u;
  let pair = w[row + ${scales}u + g / 2u];
  return bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, g % 2u == 1u));
}
fn chunk_x(c: u32, i: u32) -> u32 {
  let g = c / ${perGroup}u;
  return g * 32u + (c % ${perGroup}u) + i * (group_length(g) / ${4 * vectors}u);
}
fn load_chunk(row: u32, c: u32) -> Chunk {
  let g = c / ${perGroup}u;
  let j = c % ${perGroup}u;
  ${loads}
}`,
  };
}
