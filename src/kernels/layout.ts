/**
 * Byte layouts shared by the pack, the kernels and the engine. One weight row (or one down column, which
 * the pack stores as a row) in each format, little-endian:
 *
 *     f32   value[cols] f32
 *     q8    code[cols] u8 = w + 64, w in -63..63      | scale[groups] bf16 | padding
 *     q4    code: groups of 128 columns, 64 bytes each | scale[groups] bf16 | padding
 *           byte j of a group of L columns = (w[j] + 8) | (w[L/2 + j] + 8) << 4, w in -8..7
 *
 * A group is 128 columns; the last one may be shorter (a multiple of 32). `cols` is padded with zeros to a
 * multiple of 32 first. Value = w * scale. Rows are padded to ROW_ALIGNMENT.
 *
 * Why 7 bits in q8: the relaxed-SIMD dot product multiplies signed 8-bit by unsigned 7-bit; 127 levels let
 * the same bytes serve plain SIMD, relaxed SIMD and VNNI. Why bf16 scales: a 16-bit shift turns them into
 * f32 in every instruction set; codes are chosen after the scale was rounded, so nothing is lost.
 *
 * An activation vector for q8 and q4 rows ("Q8A"):
 *
 *     code[cols] i8, -127..127 | scale[groups] f32 | sum[groups] i32 = sum of the group's codes
 *
 * (each part begins at a multiple of 16). With it, a q4 group contributes
 * s_w s_x (sum(u x) - 8 sum(x)), u the unsigned nibble; a q8 group the same with 64.
 */

export type WeightFormat = 'f32' | 'q8' | 'q4';
export const WEIGHT_FORMATS: readonly WeightFormat[] = ['f32', 'q8', 'q4'];

/**
 * Rows of a sketch: a weight matrix in 1 to 3 bits, for predictors. Value = (2 u - (2^b - 1)) * scale, u the
 * code. Per group of L columns b L / 8 bytes, then after all groups their scales in bf16, then padding:
 *
 *     q1    bit k of byte j < L/8 = code of column j + k L/8
 *     q2    bits 2k, 2k+1 of byte j < L/4 = code of column j + k L/4
 *     q3    the low two bits as in q2, then the high bits as in q1
 *
 * A group contributes s_w s_x (2 sum(u x) - (2^b - 1) sum(x)). Rows are padded to SKETCH_ALIGNMENT only: at
 * these sizes 16 would cost a tenth of the row.
 */
export type SketchFormat = 'q1' | 'q2' | 'q3';
export const SKETCH_ALIGNMENT = 4;
export const sketchBits = (format: SketchFormat): 1 | 2 | 3 =>
  format === 'q1' ? 1 : format === 'q2' ? 2 : 3;
/** Any row that is multiplied with a vector: weights, and what a predictor may use. */
export type RowFormat = WeightFormat | SketchFormat;
export const ROW_FORMATS: readonly RowFormat[] = ['f32', 'q8', 'q4', 'q1', 'q2', 'q3'];
export const isSketch = (format: RowFormat): format is SketchFormat =>
  format === 'q1' || format === 'q2' || format === 'q3';

/** Byte offset of the scales inside a sketch row. */
export const sketchScaleOffset = (bits: 1 | 2 | 3, cols: number): number =>
  (alignUp(cols, COLUMN_MULTIPLE) * bits) / 8;

/** Bytes from one sketch row to the next. */
export const sketchRowBytes = (bits: 1 | 2 | 3, cols: number): number =>
  alignUp(sketchScaleOffset(bits, cols) + 2 * groupCount(cols), SKETCH_ALIGNMENT);

/**
 * Positions of a KV cache page. A page's keys (or values) of one head are KV_PAGE rows one after the other, so
 * that a block of positions is read in one piece. A multiple of the 16 positions that kernels take together.
 */
export const KV_PAGE = 32;

/** Columns that share one scale. */
export const GROUP = 128;
/** Columns of a quantised row are padded to a multiple of this: the shortest group all kernels take. */
export const COLUMN_MULTIPLE = 32;
/** Rows start at multiples of this: one 128-bit vector. Rows of 7B-class models are multiples of 64 anyway. */
export const ROW_ALIGNMENT = 16;
/** Added to a q4 weight before it is stored as a nibble. */
export const Q4_OFFSET = 8;
/** Added to a q8 weight before it is stored as an unsigned byte. */
export const Q8_OFFSET = 64;
export const Q8_MAX = 63;

export const alignUp = (n: number, multiple: number): number => Math.ceil(n / multiple) * multiple;

/** Columns as stored: f32 rows keep them, quantised rows pad to a multiple of 32. */
export const paddedCols = (format: WeightFormat, cols: number): number =>
  format === 'f32' ? cols : alignUp(cols, COLUMN_MULTIPLE);

export const groupCount = (cols: number): number => Math.ceil(alignUp(cols, COLUMN_MULTIPLE) / GROUP);

/** Byte offset of the scales inside a quantised row. */
export function scaleOffset(format: 'q8' | 'q4', cols: number): number {
  const n = alignUp(cols, COLUMN_MULTIPLE);
  return format === 'q8' ? n : n / 2;
}

/** Bytes from one row to the next. */
export function rowBytes(format: WeightFormat, cols: number): number {
  if (format === 'f32') return alignUp(cols * 4, ROW_ALIGNMENT);
  return alignUp(scaleOffset(format, cols) + 2 * groupCount(cols), ROW_ALIGNMENT);
}

/** Byte offsets inside a Q8A activation vector of `cols` columns, and its size (a multiple of 16). */
export function q8aLayout(cols: number): { scales: number; sums: number; bytes: number } {
  const codes = alignUp(alignUp(cols, COLUMN_MULTIPLE), ROW_ALIGNMENT);
  const part = alignUp(groupCount(cols) * 4, ROW_ALIGNMENT);
  return { scales: codes, sums: codes + part, bytes: codes + 2 * part };
}

/** Bytes of an activation vector in the form that `format` rows are multiplied with. */
export const activationBytes = (format: RowFormat, cols: number): number =>
  format === 'f32' ? alignUp(cols * 4, ROW_ALIGNMENT) : q8aLayout(cols).bytes;

/** The bf16 next to an f32, away from zero: codes chosen against it never clip. Scales may be negative. */
export function bf16RoundUp(value: number): number {
  f32[0] = value;
  return ((u32[0] + 0xffff) >>> 16) & 0xffff;
}

export function bf16ToNumber(bits: number): number {
  u32[0] = bits << 16;
  return f32[0];
}

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);
