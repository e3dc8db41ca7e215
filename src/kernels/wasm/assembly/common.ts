// Layout constants and small helpers that all kernels share. Formats are numbers here: their places in the lists of
// names in ../../layout.ts and ../../kernels.ts. Everything that runs in an inner loop is inlined.

export const F32: i32 = 0;
export const Q8: i32 = 1;
export const Q4: i32 = 2;

/** Columns per scale; rows are padded to a multiple of COLUMN_MULTIPLE and start at a multiple of 16. */
export const GROUP: u32 = 128;
export const COLUMN_MULTIPLE: u32 = 32;

/** Positions of a KV page. */
export const KV_PAGE: u32 = 32;

/** Groups and activation groups whose largest magnitude is below this are zeros (reference/rounding.ts). */
export const SMALLEST_GROUP_MAX: f32 = 1e-30;

// @ts-ignore: decorator
@inline
export function alignUp(n: u32, multiple: u32): u32 {
  return (n + multiple - 1) & ~(multiple - 1);
}

// @ts-ignore: decorator
@inline
export function padded(format: i32, cols: u32): u32 {
  return format == F32 ? cols : alignUp(cols, COLUMN_MULTIPLE);
}

// @ts-ignore: decorator
@inline
export function groups(cols: u32): u32 {
  return (alignUp(cols, COLUMN_MULTIPLE) + GROUP - 1) / GROUP;
}

/** Where the scales of a Q8A vector begin; its sums follow after q8aPart bytes. */
// @ts-ignore: decorator
@inline
export function q8aScales(cols: u32): u32 {
  return alignUp(cols, COLUMN_MULTIPLE);
}

// @ts-ignore: decorator
@inline
export function q8aPart(cols: u32): u32 {
  return alignUp(groups(cols) * 4, 16);
}

/** The bf16 scale at `ptr`. */
// @ts-ignore: decorator
@inline
export function bf16(ptr: u32): f32 {
  return reinterpret<f32>((<u32>load<u16>(ptr)) << 16);
}

/** a * b + c: fused where the relaxed build may. */
// @ts-ignore: decorator
@inline
export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** f32 lanes that hold integers within i32 (anything, where NaN or infinity came in) to i32. */
// @ts-ignore: decorator
@inline
export function truncate(v: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return i32x4.relaxed_trunc_f32x4_s(v);
  return i32x4.trunc_sat_f32x4_s(v);
}

/** Lanes (sum of a, sum of b, sum of c, sum of d); each sum is (l0 + l2) + (l1 + l3). */
// @ts-ignore: decorator
@inline
export function sums4(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
}

// @ts-ignore: decorator
@inline
export function sum1(a: v128): f32 {
  return (
    f32x4.extract_lane(a, 0) +
    f32x4.extract_lane(a, 2) +
    (f32x4.extract_lane(a, 1) + f32x4.extract_lane(a, 3))
  );
}

// @ts-ignore: decorator
@inline
export function sum1i(a: v128): i32 {
  return (
    i32x4.extract_lane(a, 0) + i32x4.extract_lane(a, 1) + i32x4.extract_lane(a, 2) + i32x4.extract_lane(a, 3)
  );
}

/** In all lanes: the sum of the four. */
// @ts-ignore: decorator
@inline
export function sumAll(a: v128): v128 {
  const b = i32x4.add(a, v128.shuffle<i32>(a, a, 2, 3, 0, 1));
  return i32x4.add(b, v128.shuffle<i32>(b, b, 1, 0, 3, 2));
}

/**
 * Larger of two magnitudes (sign bits clear), compared as integers, in which order NaN is above infinity:
 * one instruction, and NaN is kept.
 */
// @ts-ignore: decorator
@inline
export function maxMagnitude(a: v128, b: v128): v128 {
  return i32x4.max_s(a, b);
}

/** In all lanes: the largest of four magnitudes. */
// @ts-ignore: decorator
@inline
export function maxMagnitudeAll(a: v128): v128 {
  const b = maxMagnitude(a, v128.shuffle<i32>(a, a, 2, 3, 0, 1));
  return maxMagnitude(b, v128.shuffle<i32>(b, b, 1, 0, 3, 2));
}

// @ts-ignore: decorator
@inline
export function max1(a: v128): f32 {
  return max(
    max(f32x4.extract_lane(a, 0), f32x4.extract_lane(a, 1)),
    max(f32x4.extract_lane(a, 2), f32x4.extract_lane(a, 3)),
  );
}

/** Store the first `count` (1..4) lanes. */
// @ts-ignore: decorator
@inline
export function storeLanes(ptr: u32, v: v128, count: u32): void {
  if (count >= 4) {
    v128.store(ptr, v);
    return;
  }
  f32.store(ptr, f32x4.extract_lane(v, 0));
  if (count > 1) f32.store(ptr + 4, f32x4.extract_lane(v, 1));
  if (count > 2) f32.store(ptr + 8, f32x4.extract_lane(v, 2));
}

/** Four f32 at column c of a vector of n; columns past n are zero and not read. */
// @ts-ignore: decorator
@inline
export function load4(ptr: u32, c: u32, n: u32): v128 {
  if (c + 4 <= n) return v128.load(ptr + c * 4);
  return loadTail(ptr, c, n);
}

function loadTail(ptr: u32, c: u32, n: u32): v128 {
  let v = f32x4.splat(0);
  if (c < n) v = f32x4.replace_lane(v, 0, f32.load(ptr + c * 4));
  if (c + 1 < n) v = f32x4.replace_lane(v, 1, f32.load(ptr + c * 4 + 4));
  if (c + 2 < n) v = f32x4.replace_lane(v, 2, f32.load(ptr + c * 4 + 8));
  return v;
}
