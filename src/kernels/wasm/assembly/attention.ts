// Attention of the query heads that share one KV head. Keys go by fours of positions and values by tiles of
// sixteen; all query heads use a tile before the next one is read, so K and V cross the memory bus once.
// 8-bit rows are multiplied as integers: by the query in 16 bits, and by the probabilities of a tile in 16
// bits with one step. Odd head sizes, the last tile and numbers that are not finite go through f32.
import { alignUp, KV_PAGE, madd, max1, maxMagnitude, SMALLEST_GROUP_MAX, storeLanes, sums4, truncate } from './common';
import { quantizeKvRow } from './quantize';
import { softmax } from './layer';

/** KvFormat by number. */
const KV_F32: i32 = 0;

/** Positions of V that every query head uses before the next tile: 16 rows of 128 f32 are 8 KB. */
const TILE: u32 = 16;

export function storeKv(format: i32, x: u32, data: u32, scales: u32, row: u32, headDim: u32): void {
  if (format == KV_F32) {
    memory.copy(data + row * headDim * 4, x, headDim * 4);
  } else {
    f32.store(scales + row * 4, quantizeKvRow(x, data + row * headDim, headDim));
  }
}

/** The row of position p: pages of KV_PAGE positions stand where the table says. */
// @ts-ignore: decorator
@inline
function rowOf(table: u32, p: u32): u32 {
  return load<u32>(table + (p / KV_PAGE) * 4) * KV_PAGE + (p % KV_PAGE);
}

/** Elements c..c+3 of a KV row as f32 (before the row's scale). */
// @ts-ignore: decorator
@inline
function kv4(format: i32, row: u32, c: u32): v128 {
  if (format == KV_F32) return v128.load(row + c * 4);
  return f32x4.convert_i32x4_s(i32x4.extend_low_i16x8_s(i16x8.extend_low_i8x16_s(v128.load32_zero(row + c))));
}

// @ts-ignore: decorator
@inline
function kv1(format: i32, row: u32, c: u32): v128 {
  if (format == KV_F32) return v128.load32_zero(row + c * 4);
  return f32x4.replace_lane(f32x4.splat(0), 0, <f32>(<i32>load<i8>(row + c)));
}

/** q times four key rows. */
// @ts-ignore: decorator
@inline
function keys4(format: i32, q: u32, k0: u32, k1: u32, k2: u32, k3: u32, headDim: u32): v128 {
  let a0 = f32x4.splat(0);
  let a1 = a0;
  let a2 = a0;
  let a3 = a0;
  const wide = headDim & ~3;
  let c: u32 = 0;
  for (; c < wide; c += 4) {
    const v = v128.load(q + c * 4);
    a0 = madd(v, kv4(format, k0, c), a0);
    a1 = madd(v, kv4(format, k1, c), a1);
    a2 = madd(v, kv4(format, k2, c), a2);
    a3 = madd(v, kv4(format, k3, c), a3);
  }
  for (; c < headDim; c++) {
    const v = v128.load32_zero(q + c * 4);
    a0 = madd(v, kv1(format, k0, c), a0);
    a1 = madd(v, kv1(format, k1, c), a1);
    a2 = madd(v, kv1(format, k2, c), a2);
    a3 = madd(v, kv1(format, k3, c), a3);
  }
  return sums4(a0, a1, a2, a3);
}

// ---- 8-bit rows as integers --------------------------------------------------------------------------------

/** Largest 16-bit integer: of a query element, or of a factor. Sums stay below 2^31 up to heads of 2048. */
const LARGEST: f32 = 32767;

// @ts-ignore: decorator
@inline
function magnitude(v: v128): v128 {
  return v128.andnot(v, f32x4.splat(-0.0));
}

/** v * inverse as integers. */
// @ts-ignore: decorator
@inline
function rounded(v: v128, inverse: v128): v128 {
  return truncate(f32x4.nearest(f32x4.mul(v, inverse)));
}

/** The query as 16-bit integers in units of the result; NaN where an element is not finite. */
function quantizeQuery(q: u32, words: u32, headDim: u32): f32 {
  let m = f32x4.splat(SMALLEST_GROUP_MAX);
  for (let c: u32 = 0; c < headDim; c += 4) m = maxMagnitude(m, magnitude(v128.load(q + c * 4)));
  const largest = max1(m);
  if (!(largest < Infinity)) return NaN;
  const inverse = f32x4.splat(LARGEST / largest);
  for (let c: u32 = 0; c < headDim; c += 8) {
    const at = q + c * 4;
    const low = rounded(v128.load(at), inverse);
    v128.store(words + c * 2, i16x8.narrow_i32x4_s(low, rounded(v128.load(at, 16), inverse)));
  }
  return largest / LARGEST;
}

/** acc + key row [16] . query words [16] */
// @ts-ignore: decorator
@inline
function addKey(acc: v128, row: v128, low: v128, high: v128): v128 {
  acc = i32x4.add(acc, i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_s(row), low));
  return i32x4.add(acc, i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_s(row), high));
}

/** Query words times four key rows. */
// @ts-ignore: decorator
@inline
function keyWords4(words: u32, k0: u32, k1: u32, k2: u32, k3: u32, headDim: u32): v128 {
  let a0 = i32x4.splat(0);
  let a1 = a0;
  let a2 = a0;
  let a3 = a0;
  for (let c: u32 = 0; c < headDim; c += 16) {
    const low = v128.load(words + c * 2);
    const high = v128.load(words + c * 2, 16);
    a0 = addKey(a0, v128.load(k0 + c), low, high);
    a1 = addKey(a1, v128.load(k1 + c), low, high);
    a2 = addKey(a2, v128.load(k2 + c), low, high);
    a3 = addKey(a3, v128.load(k3 + c), low, high);
  }
  return sums4(
    f32x4.convert_i32x4_s(a0),
    f32x4.convert_i32x4_s(a1),
    f32x4.convert_i32x4_s(a2),
    f32x4.convert_i32x4_s(a3),
  );
}

/**
 * Replaces a tile's probabilities by 16-bit factors, probability times row scale in units of the result; NaN,
 * and nothing replaced, where one is not finite.
 */
// @ts-ignore: decorator
@inline
function factorsOfTile(weights: u32, scales: u32): f32 {
  const f0 = f32x4.mul(v128.load(weights, 0), v128.load(scales, 0));
  const f1 = f32x4.mul(v128.load(weights, 16), v128.load(scales, 16));
  const f2 = f32x4.mul(v128.load(weights, 32), v128.load(scales, 32));
  const f3 = f32x4.mul(v128.load(weights, 48), v128.load(scales, 48));
  const m01 = maxMagnitude(magnitude(f0), magnitude(f1));
  const m23 = maxMagnitude(magnitude(f2), magnitude(f3));
  const largest = max(max1(maxMagnitude(m01, m23)), SMALLEST_GROUP_MAX);
  if (!(largest < Infinity)) return NaN;
  const inverse = f32x4.splat(LARGEST / largest);
  v128.store(weights, i16x8.narrow_i32x4_s(rounded(f0, inverse), rounded(f1, inverse)));
  v128.store(weights, i16x8.narrow_i32x4_s(rounded(f2, inverse), rounded(f3, inverse)), 16);
  return largest / LARGEST;
}

/** out [headDim] += step * sum over the tile's positions of factor * V row; the rows go in pairs. */
// @ts-ignore: decorator
@inline
function addTile(row: u32, factors: u32, step: f32, out: u32, headDim: u32): void {
  const steps = f32x4.splat(step);
  for (let c: u32 = 0; c < headDim; c += 16) {
    let a0 = i32x4.splat(0);
    let a1 = a0;
    let a2 = a0;
    let a3 = a0;
    let at = row + c;
    for (let j: u32 = 0; j < TILE * 2; j += 4) {
      const first = v128.load(at);
      const second = v128.load(at + headDim);
      at += 2 * headDim;
      const pair = v128.load32_splat(factors + j);
      const low = v128.shuffle<i8>(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const high = v128.shuffle<i8>(first, second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      a0 = i32x4.add(a0, i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_s(low), pair));
      a1 = i32x4.add(a1, i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_s(low), pair));
      a2 = i32x4.add(a2, i32x4.dot_i16x8_s(i16x8.extend_low_i8x16_s(high), pair));
      a3 = i32x4.add(a3, i32x4.dot_i16x8_s(i16x8.extend_high_i8x16_s(high), pair));
    }
    const to = out + c * 4;
    v128.store(to, madd(steps, f32x4.convert_i32x4_s(a0), v128.load(to)));
    v128.store(to, madd(steps, f32x4.convert_i32x4_s(a1), v128.load(to, 16)), 16);
    v128.store(to, madd(steps, f32x4.convert_i32x4_s(a2), v128.load(to, 32)), 32);
    v128.store(to, madd(steps, f32x4.convert_i32x4_s(a3), v128.load(to, 48)), 48);
  }
}

// ---- values in f32 -----------------------------------------------------------------------------------------

/** out [headDim] += sum of weight * V row over n rows side by side. */
// @ts-ignore: decorator
@inline
function addValues(
  format: i32,
  data: u32,
  scales: u32,
  weights: u32,
  n: u32,
  out: u32,
  headDim: u32,
  rowBytes: u32,
): void {
  const wide = headDim & ~15;
  let c: u32 = 0;
  for (; c < wide; c += 16) {
    const to = out + c * 4;
    let a0 = v128.load(to);
    let a1 = v128.load(to, 16);
    let a2 = v128.load(to, 32);
    let a3 = v128.load(to, 48);
    for (let p: u32 = 0; p < n; p++) {
      const row = data + p * rowBytes;
      const w = f32x4.splat(weightOf(format, weights, scales, p));
      a0 = madd(w, kv4(format, row, c), a0);
      a1 = madd(w, kv4(format, row, c + 4), a1);
      a2 = madd(w, kv4(format, row, c + 8), a2);
      a3 = madd(w, kv4(format, row, c + 12), a3);
    }
    v128.store(to, a0);
    v128.store(to, a1, 16);
    v128.store(to, a2, 32);
    v128.store(to, a3, 48);
  }
  for (; c < headDim; c++) {
    let a = v128.load32_zero(out + c * 4);
    for (let p: u32 = 0; p < n; p++) {
      const w = f32x4.splat(weightOf(format, weights, scales, p));
      a = madd(w, kv1(format, data + p * rowBytes, c), a);
    }
    f32.store(out + c * 4, f32x4.extract_lane(a, 0));
  }
}

/** Probability of a position; for q8 rows with the row's scale, as its codes are added unscaled. */
// @ts-ignore: decorator
@inline
function weightOf(format: i32, weights: u32, scales: u32, p: u32): f32 {
  const weight = f32.load(weights + p * 4);
  return format == KV_F32 ? weight : weight * f32.load(scales + p * 4);
}

// ---- attention ---------------------------------------------------------------------------------------------

/** Where the tile of position p ends; tiles begin at multiples of TILE, so that none leaves its page. */
// @ts-ignore: decorator
@inline
function tileEnd(p: u32, nPos: u32): u32 {
  return min((p / TILE + 1) * TILE, nPos);
}

// @ts-ignore: decorator
@inline
function attend(
  format: i32,
  q: u32,
  kData: u32,
  kScales: u32,
  vData: u32,
  vScales: u32,
  table: u32,
  out: u32,
  scores: u32,
  group: u32,
  begin: u32,
  nPos: u32,
  headDim: u32,
  scale: f32,
): void {
  const rowBytes = format == KV_F32 ? headDim * 4 : headDim;
  const headBytes = headDim * 4;
  const scoreBytes = alignUp(nPos, 16) * 4;
  const integers = format != KV_F32 && headDim % 16 == 0;

  // A head's query words stand in its part of `out` until that is needed, with their step behind them.
  if (integers) {
    for (let h: u32 = 0; h < group; h++) {
      const words = out + h * headBytes;
      f32.store(words + headDim * 2, quantizeQuery(q + h * headBytes, words, headDim));
    }
  }
  for (let first = begin; first < nPos; first = tileEnd(first, nPos)) {
    const n = tileEnd(first, nPos) - first;
    const row = rowOf(table, first);
    for (let p: u32 = 0; p < n; p += 4) {
      const last = n - 1 - p;
      const k0 = kData + (row + p) * rowBytes;
      const k1 = k0 + min(1, last) * rowBytes;
      const k2 = k0 + min(2, last) * rowBytes;
      const k3 = k0 + min(3, last) * rowBytes;
      for (let h: u32 = 0; h < group; h++) {
        const words = out + h * headBytes;
        const step: f32 = integers ? f32.load(words + headDim * 2) : NaN;
        const products =
          step == step
            ? f32x4.mul(keyWords4(words, k0, k1, k2, k3, headDim), f32x4.splat(step))
            : keys4(format, q + h * headBytes, k0, k1, k2, k3, headDim);
        let s = f32x4.mul(products, f32x4.splat(scale));
        if (format != KV_F32) {
          const at = kScales + (row + p) * 4;
          let rowScales = f32x4.splat(f32.load(at));
          rowScales = f32x4.replace_lane(rowScales, 1, f32.load(at + min(1, last) * 4));
          rowScales = f32x4.replace_lane(rowScales, 2, f32.load(at + min(2, last) * 4));
          rowScales = f32x4.replace_lane(rowScales, 3, f32.load(at + min(3, last) * 4));
          s = f32x4.mul(s, rowScales);
        }
        storeLanes(scores + h * scoreBytes + (first + p) * 4, s, n - p);
      }
    }
  }

  if (begin < nPos) {
    for (let h: u32 = 0; h < group; h++) softmax(scores + h * scoreBytes + begin * 4, nPos - begin);
  }
  memory.fill(out, 0, group * headBytes);
  for (let first = begin; first < nPos; first = tileEnd(first, nPos)) {
    const n = tileEnd(first, nPos) - first;
    const row = rowOf(table, first);
    for (let h: u32 = 0; h < group; h++) {
      const weights = scores + h * scoreBytes + first * 4;
      const to = out + h * headBytes;
      if (integers && n == TILE) {
        const step = factorsOfTile(weights, vScales + row * 4);
        if (step == step) {
          addTile(vData + row * rowBytes, weights, step, to, headDim);
          continue;
        }
      }
      addValues(format, vData + row * rowBytes, vScales + row * 4, weights, n, to, headDim, rowBytes);
    }
  }
}

/** The two formats apart, so that the inner loops hold no choice. */
export function attention(
  format: i32,
  q: u32,
  kData: u32,
  kScales: u32,
  vData: u32,
  vScales: u32,
  table: u32,
  out: u32,
  scores: u32,
  group: u32,
  begin: u32,
  nPos: u32,
  headDim: u32,
  scale: f32,
): void {
  if (format == KV_F32) {
    attend(0, q, kData, 0, vData, 0, table, out, scores, group, begin, nPos, headDim, scale);
  } else {
    attend(1, q, kData, kScales, vData, vScales, table, out, scores, group, begin, nPos, headDim, scale);
  }
}
