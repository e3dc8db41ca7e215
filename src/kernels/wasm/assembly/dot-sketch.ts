// Sketch rows (1 to 3 bits a weight) times Q8A vectors. A code is at most 7, so a whole group of 128 fits
// 16-bit sums: 16 products of at most 7 * 127 in each lane.
import { bf16, GROUP, padded, Q4, Q8, q8aPart, q8aScales, sum1i } from './common';

/** 16 codes against 16 activations, added to 16-bit lanes. */
// @ts-ignore: decorator
@inline
function addBlock(acc: v128, u: v128, x: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i16x8.add(acc, i16x8.relaxed_dot_i8x16_i7x16_s(x, u));
  acc = i16x8.add(acc, i16x8.extmul_low_i8x16_s(x, u));
  return i16x8.add(acc, i16x8.extmul_high_i8x16_s(x, u));
}

/** Codes of 16 columns whose bits 2k, 2k+1 stand in `low`, and whose high bit is bit `m` of `high`. */
// @ts-ignore: decorator
@inline
function codes(bits: i32, low: v128, shift: i32, high: v128, m: i32): v128 {
  if (bits == 1) return v128.and(i8x16.shr_u(high, m), i8x16.splat(1));
  const two = v128.and(i8x16.shr_u(low, shift), i8x16.splat(3));
  if (bits == 2) return two;
  return v128.or(two, i8x16.shl(v128.and(i8x16.shr_u(high, m), i8x16.splat(1)), 2));
}

/** sum(u x) of a full group: block m of 16 columns is vector m & 1 of the low bits at shift 2 (m >> 1). */
// @ts-ignore: decorator
@inline
function group128(bits: i32, w: u32, x: u32): i32 {
  let l0 = i8x16.splat(0);
  let l1 = l0;
  let high = l0;
  if (bits > 1) {
    l0 = v128.load(w, 0);
    l1 = v128.load(w, 16);
  }
  if (bits == 1) high = v128.load(w, 0);
  if (bits == 3) high = v128.load(w, 32);
  let a = addBlock(i16x8.splat(0), codes(bits, l0, 0, high, 0), v128.load(x, 0));
  let b = addBlock(i16x8.splat(0), codes(bits, l1, 0, high, 1), v128.load(x, 16));
  a = addBlock(a, codes(bits, l0, 2, high, 2), v128.load(x, 32));
  b = addBlock(b, codes(bits, l1, 2, high, 3), v128.load(x, 48));
  a = addBlock(a, codes(bits, l0, 4, high, 4), v128.load(x, 64));
  b = addBlock(b, codes(bits, l1, 4, high, 5), v128.load(x, 80));
  a = addBlock(a, codes(bits, l0, 6, high, 6), v128.load(x, 96));
  b = addBlock(b, codes(bits, l1, 6, high, 7), v128.load(x, 112));
  return sum1i(sums32(a, b));
}

// @ts-ignore: decorator
@inline
function sums32(a: v128, b: v128): v128 {
  return i32x4.add(i32x4.extadd_pairwise_i16x8_s(a), i32x4.extadd_pairwise_i16x8_s(b));
}

/** The same of one group and four vectors: lane t is that of vector t. The codes are unpacked once. */
// @ts-ignore: decorator
@inline
function group128Tokens(bits: i32, w: u32, x0: u32, x1: u32, x2: u32, x3: u32): v128 {
  let l0 = i8x16.splat(0);
  let l1 = l0;
  let high = l0;
  if (bits > 1) {
    l0 = v128.load(w, 0);
    l1 = v128.load(w, 16);
  }
  if (bits == 1) high = v128.load(w, 0);
  if (bits == 3) high = v128.load(w, 32);
  let a = i16x8.splat(0);
  let b = a;
  let c = a;
  let d = a;
  for (let m: u32 = 0; m < 8; m++) {
    const u = codes(bits, (m & 1) == 0 ? l0 : l1, (m >> 1) * 2, high, m);
    const at = 16 * m;
    a = addBlock(a, u, v128.load(x0 + at));
    b = addBlock(b, u, v128.load(x1 + at));
    c = addBlock(c, u, v128.load(x2 + at));
    d = addBlock(d, u, v128.load(x3 + at));
  }
  const a4 = i32x4.extadd_pairwise_i16x8_s(a);
  const b4 = i32x4.extadd_pairwise_i16x8_s(b);
  const c4 = i32x4.extadd_pairwise_i16x8_s(c);
  const d4 = i32x4.extadd_pairwise_i16x8_s(d);
  const ab = i32x4.add(v128.shuffle<i32>(a4, b4, 0, 4, 1, 5), v128.shuffle<i32>(a4, b4, 2, 6, 3, 7));
  const cd = i32x4.add(v128.shuffle<i32>(c4, d4, 0, 4, 1, 5), v128.shuffle<i32>(c4, d4, 2, 6, 3, 7));
  return i32x4.add(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
}

/** sum(u x) of the last, shorter group of L columns, code by code. */
function groupTail(bits: i32, w: u32, x: u32, L: u32): i32 {
  const quarter = L / 4;
  const eighth = L / 8;
  const highAt = bits == 1 ? w : w + quarter;
  let sum = 0;
  for (let c: u32 = 0; c < L; c++) {
    let u = 0;
    if (bits > 1) u = (<i32>load<u8>(w + (c % quarter)) >> <i32>(2 * (c / quarter))) & 3;
    if (bits != 2) {
      const high = (<i32>load<u8>(highAt + (c % eighth)) >> <i32>(c / eighth)) & 1;
      u += bits == 1 ? high : 4 * high;
    }
    sum += u * <i32>load<i8>(x + c);
  }
  return sum;
}

// @ts-ignore: decorator
@inline
function row(bits: i32, w: u32, x: u32, cols: u32): f32 {
  const n = padded(Q8, cols);
  let scale = w + (n * bits) / 8;
  let xScale = x + q8aScales(cols);
  const sumsAt = q8aPart(cols);
  const offset: i32 = (1 << bits) - 1;
  let total: f32 = 0;
  for (let left = n; left > 0; left -= min(GROUP, left)) {
    const sum = left >= GROUP ? group128(bits, w, x) : groupTail(bits, w, x, left);
    total += bf16(scale) * load<f32>(xScale) * <f32>(<i32>(2 * sum - offset * load<i32>(xScale + sumsAt)));
    w += (GROUP * bits) / 8;
    x += GROUP;
    scale += 2;
    xScale += 4;
  }
  return total;
}

/** One row times four vectors; each lane adds as `row` does. */
// @ts-ignore: decorator
@inline
function tokens(bits: i32, w: u32, x0: u32, x1: u32, x2: u32, x3: u32, cols: u32): v128 {
  const n = padded(Q8, cols);
  let scale = w + (n * bits) / 8;
  const xScale = q8aScales(cols);
  const sumsAt = xScale + q8aPart(cols);
  const offset = i32x4.splat((1 << bits) - 1);
  let total = f32x4.splat(0);
  let column: u32 = 0; // of the group
  let g: u32 = 0; // 4 times the group
  for (let left = n; left > 0; left -= min(GROUP, left)) {
    let sums: v128;
    if (left >= GROUP) {
      sums = group128Tokens(bits, w, x0 + column, x1 + column, x2 + column, x3 + column);
    } else {
      sums = i32x4.splat(groupTail(bits, w, x0 + column, left));
      sums = i32x4.replace_lane(sums, 1, groupTail(bits, w, x1 + column, left));
      sums = i32x4.replace_lane(sums, 2, groupTail(bits, w, x2 + column, left));
      sums = i32x4.replace_lane(sums, 3, groupTail(bits, w, x3 + column, left));
    }
    const xSums = lanes(x0 + sumsAt + g, x1 + sumsAt + g, x2 + sumsAt + g, x3 + sumsAt + g);
    const xScales = lanes(x0 + xScale + g, x1 + xScale + g, x2 + xScale + g, x3 + xScale + g);
    const value = f32x4.convert_i32x4_s(i32x4.sub(i32x4.shl(sums, 1), i32x4.mul(offset, xSums)));
    total = f32x4.add(total, f32x4.mul(f32x4.mul(f32x4.splat(bf16(scale)), xScales), value));
    w += (GROUP * bits) / 8;
    column += GROUP;
    scale += 2;
    g += 4;
  }
  return total;
}

/** One lane from each place. */
// @ts-ignore: decorator
@inline
function lanes(p0: u32, p1: u32, p2: u32, p3: u32): v128 {
  let v = v128.load32_zero(p0);
  v = v128.load_lane<u32>(p1, v, 1);
  v = v128.load_lane<u32>(p2, v, 2);
  return v128.load_lane<u32>(p3, v, 3);
}

/** Bits of a sketch format: q1, q2, q3 follow q4. */
// @ts-ignore: decorator
@inline
export function sketchBits(format: i32): i32 {
  return format - Q4;
}

/** The widths apart, so that the inner loops hold no choice. */
export function sketchRow(bits: i32, w: u32, x: u32, cols: u32): f32 {
  if (bits == 1) return row(1, w, x, cols);
  if (bits == 2) return row(2, w, x, cols);
  return row(3, w, x, cols);
}

export function sketchTokens4(bits: i32, w: u32, x0: u32, x1: u32, x2: u32, x3: u32, cols: u32): v128 {
  if (bits == 1) return tokens(1, w, x0, x1, x2, x3, cols);
  if (bits == 2) return tokens(2, w, x0, x1, x2, x3, cols);
  return tokens(3, w, x0, x1, x2, x3, cols);
}
