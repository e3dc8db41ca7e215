// S3 for q4 and q8 rows: sixteen active neurons a block, columns inside.
//
// Within a block and a group, each row's coefficient is activation * group scale. The sixteen are rounded
// to 16 bits against the largest of them (error below 2^-16 of it), so that rows can be added as integers:
// two rows' bytes interleaved as 16-bit lanes, one pmaddwd per four columns and two rows. The sums are
// exact: |sum| <= 16 * 127 * 32767 < 2^31.
import {
  GROUP,
  load4,
  maxMagnitude,
  maxMagnitudeAll,
  padded,
  Q4,
  Q8,
  SMALLEST_GROUP_MAX,
  sumAll,
  truncate,
} from './common';

/** Coefficients are rounded to -32767..32767. */
const I16_MAX: f32 = 32767;

/** Four bf16 scales as f32: each goes into the upper half of a lane. */
// @ts-ignore: decorator
@inline
function scales4(s0: u32, s1: u32, s2: u32, s3: u32): v128 {
  let v = i32x4.splat(0);
  v = v128.load_lane<u16>(s0, v, 1);
  v = v128.load_lane<u16>(s1, v, 3);
  v = v128.load_lane<u16>(s2, v, 5);
  return v128.load_lane<u16>(s3, v, 7);
}

/** Rounded to nearest even and narrowed: the eight 16-bit coefficients of a * inverse, b * inverse. */
// @ts-ignore: decorator
@inline
function narrow(a: v128, b: v128, inverse: v128): v128 {
  return i16x8.narrow_i32x4_s(
    truncate(f32x4.nearest(f32x4.mul(a, inverse))),
    truncate(f32x4.nearest(f32x4.mul(b, inverse))),
  );
}

/** out[c..c+3] += (sums - offset) * unit */
// @ts-ignore: decorator
@inline
function addOut(out: u32, sums: v128, offset: v128, unit: v128): void {
  const values = f32x4.convert_i32x4_s(i32x4.sub(sums, offset));
  v128.store(out, f32x4.add(v128.load(out), f32x4.mul(values, unit)));
}

/** 16-bit lanes of two rows, alternating: the first (last) eight bytes of each. */
// @ts-ignore: decorator
@inline
function low(a: u32, b: u32): v128 {
  return v128.shuffle<i16>(v128.load(a), v128.load(b), 0, 8, 1, 9, 2, 10, 3, 11);
}

// @ts-ignore: decorator
@inline
function high(a: u32, b: u32): v128 {
  return v128.shuffle<i16>(v128.load(a), v128.load(b), 4, 12, 5, 13, 6, 14, 7, 15);
}

/**
 * The masked bits of eight row pairs times their coefficients: four columns, in units of the lowest masked
 * bit. At most 16 rows * 15 * 2^8 * 32767, which is still below 2^31.
 */
// @ts-ignore: decorator
@inline
function weighMasked(
  mask: i16,
  l0: v128,
  l1: v128,
  l2: v128,
  l3: v128,
  l4: v128,
  l5: v128,
  l6: v128,
  l7: v128,
  c0: v128,
  c1: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
  c6: v128,
  c7: v128,
): v128 {
  const m = i16x8.splat(mask);
  let sum = i32x4.dot_i16x8_s(v128.and(l0, m), c0);
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l1, m), c1));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l2, m), c2));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l3, m), c3));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l4, m), c4));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l5, m), c5));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l6, m), c6));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(v128.and(l7, m), c7));
  return sum;
}

/** The same for the uppermost bits, from `shift` on. */
// @ts-ignore: decorator
@inline
function weighUpper(
  shift: i32,
  l0: v128,
  l1: v128,
  l2: v128,
  l3: v128,
  l4: v128,
  l5: v128,
  l6: v128,
  l7: v128,
  c0: v128,
  c1: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
  c6: v128,
  c7: v128,
): v128 {
  let sum = i32x4.dot_i16x8_s(i16x8.shr_u(l0, shift), c0);
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l1, shift), c1));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l2, shift), c2));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l3, shift), c3));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l4, shift), c4));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l5, shift), c5));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l6, shift), c6));
  sum = i32x4.add(sum, i32x4.dot_i16x8_s(i16x8.shr_u(l7, shift), c7));
  return sum;
}

/** Row k of the block, or its last one again: unused places have activation 0. */
// @ts-ignore: decorator
@inline
function row(w: u32, stride: u32, list: u32, k: u32, count: u32): u32 {
  return w + load<u32>(list + min(k, count - 1) * 4) * stride;
}

/** out += sum of act[k] * row list[k] for k < count, count 1..16, in the groups that begin within first..end. */
// @ts-ignore: decorator
@inline
function sumBlock(
  format: i32,
  w: u32,
  stride: u32,
  list: u32,
  count: u32,
  act: u32,
  out: u32,
  cols: u32,
  first: u32,
  end: u32,
): void {
  const w0 = row(w, stride, list, 0, count);
  const w1 = row(w, stride, list, 1, count);
  const w2 = row(w, stride, list, 2, count);
  const w3 = row(w, stride, list, 3, count);
  const w4 = row(w, stride, list, 4, count);
  const w5 = row(w, stride, list, 5, count);
  const w6 = row(w, stride, list, 6, count);
  const w7 = row(w, stride, list, 7, count);
  const w8 = row(w, stride, list, 8, count);
  const w9 = row(w, stride, list, 9, count);
  const w10 = row(w, stride, list, 10, count);
  const w11 = row(w, stride, list, 11, count);
  const w12 = row(w, stride, list, 12, count);
  const w13 = row(w, stride, list, 13, count);
  const w14 = row(w, stride, list, 14, count);
  const w15 = row(w, stride, list, 15, count);
  const act0 = load4(act, 0, count);
  const act1 = load4(act, 4, count);
  const act2 = load4(act, 8, count);
  const act3 = load4(act, 12, count);
  const n = padded(Q4, cols);
  let s: u32 = (format == Q4 ? n / 2 : n) + (first / GROUP) * 2; // this group's scale, from each row's begin
  for (let begin = first; begin < end; begin += GROUP) {
    const f0 = f32x4.mul(act0, scales4(w0 + s, w1 + s, w2 + s, w3 + s));
    const f1 = f32x4.mul(act1, scales4(w4 + s, w5 + s, w6 + s, w7 + s));
    const f2 = f32x4.mul(act2, scales4(w8 + s, w9 + s, w10 + s, w11 + s));
    const f3 = f32x4.mul(act3, scales4(w12 + s, w13 + s, w14 + s, w15 + s));
    s += 2;
    const largest = maxMagnitudeAll(
      maxMagnitude(maxMagnitude(f32x4.abs(f0), f32x4.abs(f1)), maxMagnitude(f32x4.abs(f2), f32x4.abs(f3))),
    );
    const enough = f32x4.ge(largest, f32x4.splat(SMALLEST_GROUP_MAX)); // false for NaN, which `unit` keeps
    const inverse = v128.and(f32x4.div(f32x4.splat(I16_MAX), largest), enough);
    const unit = f32x4.div(largest, f32x4.splat(I16_MAX));
    const lower = narrow(f0, f1, inverse);
    const upper = narrow(f2, f3, inverse);
    const ones = i16x8.splat(1);
    const total = sumAll(i32x4.add(i32x4.dot_i16x8_s(lower, ones), i32x4.dot_i16x8_s(upper, ones)));
    const c0 = v128.shuffle<i32>(lower, lower, 0, 0, 0, 0);
    const c1 = v128.shuffle<i32>(lower, lower, 1, 1, 1, 1);
    const c2 = v128.shuffle<i32>(lower, lower, 2, 2, 2, 2);
    const c3 = v128.shuffle<i32>(lower, lower, 3, 3, 3, 3);
    const c4 = v128.shuffle<i32>(upper, upper, 0, 0, 0, 0);
    const c5 = v128.shuffle<i32>(upper, upper, 1, 1, 1, 1);
    const c6 = v128.shuffle<i32>(upper, upper, 2, 2, 2, 2);
    const c7 = v128.shuffle<i32>(upper, upper, 3, 3, 3, 3);
    const columns = min(GROUP, n - begin);
    if (format == Q4) {
      const offset = i32x4.shl(total, 3);
      const half = columns / 2;
      for (let j: u32 = 0; j < half; j += 16) {
        const at = begin / 2 + j;
        let to = out + (begin + j) * 4;
        let l0: v128, l1: v128, l2: v128, l3: v128, l4: v128, l5: v128, l6: v128, l7: v128;
        l0 = low(w0 + at, w1 + at);
        l1 = low(w2 + at, w3 + at);
        l2 = low(w4 + at, w5 + at);
        l3 = low(w6 + at, w7 + at);
        l4 = low(w8 + at, w9 + at);
        l5 = low(w10 + at, w11 + at);
        l6 = low(w12 + at, w13 + at);
        l7 = low(w14 + at, w15 + at);
        addColumns4(
          to,
          half * 4,
          l0,
          l1,
          l2,
          l3,
          l4,
          l5,
          l6,
          l7,
          c0,
          c1,
          c2,
          c3,
          c4,
          c5,
          c6,
          c7,
          offset,
          unit,
        );
        to += 32;
        l0 = high(w0 + at, w1 + at);
        l1 = high(w2 + at, w3 + at);
        l2 = high(w4 + at, w5 + at);
        l3 = high(w6 + at, w7 + at);
        l4 = high(w8 + at, w9 + at);
        l5 = high(w10 + at, w11 + at);
        l6 = high(w12 + at, w13 + at);
        l7 = high(w14 + at, w15 + at);
        addColumns4(
          to,
          half * 4,
          l0,
          l1,
          l2,
          l3,
          l4,
          l5,
          l6,
          l7,
          c0,
          c1,
          c2,
          c3,
          c4,
          c5,
          c6,
          c7,
          offset,
          unit,
        );
      }
    } else {
      const offset = i32x4.shl(total, 6);
      for (let j: u32 = 0; j < columns; j += 16) {
        const at = begin + j;
        let to = out + at * 4;
        let l0: v128, l1: v128, l2: v128, l3: v128, l4: v128, l5: v128, l6: v128, l7: v128;
        l0 = low(w0 + at, w1 + at);
        l1 = low(w2 + at, w3 + at);
        l2 = low(w4 + at, w5 + at);
        l3 = low(w6 + at, w7 + at);
        l4 = low(w8 + at, w9 + at);
        l5 = low(w10 + at, w11 + at);
        l6 = low(w12 + at, w13 + at);
        l7 = low(w14 + at, w15 + at);
        addColumns8(to, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7, offset, unit);
        to += 32;
        l0 = high(w0 + at, w1 + at);
        l1 = high(w2 + at, w3 + at);
        l2 = high(w4 + at, w5 + at);
        l3 = high(w6 + at, w7 + at);
        l4 = high(w8 + at, w9 + at);
        l5 = high(w10 + at, w11 + at);
        l6 = high(w12 + at, w13 + at);
        l7 = high(w14 + at, w15 + at);
        addColumns8(to, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7, offset, unit);
      }
    }
  }
}

/** q4: 8 bytes of each row = columns 0..7 (low nibbles) and 0..7 of the group's second half (high nibbles). */
// @ts-ignore: decorator
@inline
function addColumns4(
  to: u32,
  halfBytes: u32,
  l0: v128,
  l1: v128,
  l2: v128,
  l3: v128,
  l4: v128,
  l5: v128,
  l6: v128,
  l7: v128,
  c0: v128,
  c1: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
  c6: v128,
  c7: v128,
  offset: v128,
  unit: v128,
): void {
  let even = weighMasked(0x000f, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7);
  let odd = i32x4.shr_s(
    weighMasked(0x0f00, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7),
    8,
  );
  addOut(to, v128.shuffle<i32>(even, odd, 0, 4, 1, 5), offset, unit);
  addOut(to + 16, v128.shuffle<i32>(even, odd, 2, 6, 3, 7), offset, unit);
  even = i32x4.shr_s(weighMasked(0x00f0, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7), 4);
  odd = weighUpper(12, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7);
  addOut(to + halfBytes, v128.shuffle<i32>(even, odd, 0, 4, 1, 5), offset, unit);
  addOut(to + halfBytes + 16, v128.shuffle<i32>(even, odd, 2, 6, 3, 7), offset, unit);
}

/** q8: 8 bytes of each row = columns 0..7. */
// @ts-ignore: decorator
@inline
function addColumns8(
  to: u32,
  l0: v128,
  l1: v128,
  l2: v128,
  l3: v128,
  l4: v128,
  l5: v128,
  l6: v128,
  l7: v128,
  c0: v128,
  c1: v128,
  c2: v128,
  c3: v128,
  c4: v128,
  c5: v128,
  c6: v128,
  c7: v128,
  offset: v128,
  unit: v128,
): void {
  const even = weighMasked(255, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7);
  const odd = weighUpper(8, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, c4, c5, c6, c7);
  addOut(to, v128.shuffle<i32>(even, odd, 0, 4, 1, 5), offset, unit);
  addOut(to + 16, v128.shuffle<i32>(even, odd, 2, 6, 3, 7), offset, unit);
}

/** The two formats apart, so that the inner loops hold no choice. */
export function q4SumBlock(
  w: u32,
  stride: u32,
  list: u32,
  count: u32,
  act: u32,
  out: u32,
  cols: u32,
  first: u32,
  end: u32,
): void {
  sumBlock(Q4, w, stride, list, count, act, out, cols, first, end);
}

export function q8SumBlock(
  w: u32,
  stride: u32,
  list: u32,
  count: u32,
  act: u32,
  out: u32,
  cols: u32,
  first: u32,
  end: u32,
): void {
  sumBlock(Q8, w, stride, list, count, act, out, cols, first, end);
}
