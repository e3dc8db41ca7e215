// The rest of a layer: RMSNorm, RoPE, residual sums, softmax. Whole vectors first, the last 1..3 values apart.
import { load4, madd, max1, storeLanes, sum1 } from './common';
import { exp4 } from './exp';

export function rmsNorm(x: u32, weight: u32, out: u32, n: u32, eps: f32): f32 {
  const wide = n & ~7;
  let a = f32x4.splat(0);
  let b = a;
  for (let i: u32 = 0; i < wide; i += 8) {
    const v = v128.load(x + i * 4);
    const w = v128.load(x + i * 4, 16);
    a = madd(v, v, a);
    b = madd(w, w, b);
  }
  for (let i = wide; i < n; i += 4) {
    const v = load4(x, i, n);
    a = madd(v, v, a);
  }
  const mean = sum1(f32x4.add(a, b)) / <f32>n;
  const factor = f32x4.splat(<f32>1 / sqrt<f32>(mean + eps));
  for (let i: u32 = 0; i < wide; i += 8) {
    const at = i * 4;
    const v = f32x4.mul(f32x4.mul(v128.load(x + at), factor), v128.load(weight + at));
    const w = f32x4.mul(f32x4.mul(v128.load(x + at, 16), factor), v128.load(weight + at, 16));
    v128.store(out + at, v);
    v128.store(out + at, w, 16);
  }
  for (let i = wide; i < n; i += 4) {
    const v = f32x4.mul(f32x4.mul(load4(x, i, n), factor), load4(weight, i, n));
    storeLanes(out + i * 4, v, n - i);
  }
  return mean;
}

/** In float64: the mean may be much larger than what is left when it is taken off. */
export function layerNorm(x: u32, weight: u32, bias: u32, out: u32, n: u32, eps: f64): f64 {
  let sum: f64 = 0;
  let squares: f64 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const v = <f64>f32.load(x + i * 4);
    sum += v;
    squares += v * v;
  }
  const mean = sum / <f64>n;
  let distances: f64 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const v = <f64>f32.load(x + i * 4) - mean;
    distances += v * v;
  }
  const factor = 1 / sqrt<f64>(distances / <f64>n + eps);
  for (let i: u32 = 0; i < n; i++) {
    const at = i * 4;
    const normed = <f32>((<f64>f32.load(x + at) - mean) * factor);
    const shift: f32 = bias == 0 ? 0 : f32.load(bias + at);
    f32.store(out + at, normed * f32.load(weight + at) + shift);
  }
  return squares / <f64>n;
}

export function rope(x: u32, cos: u32, sin: u32, headDim: u32): void {
  const half = headDim / 2;
  const upper = x + half * 4;
  for (let i: u32 = 0; i < half; i += 4) {
    const a = load4(x, i, half);
    const b = load4(upper, i, half);
    const c = load4(cos, i, half);
    const s = load4(sin, i, half);
    storeLanes(x + i * 4, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)), half - i);
    storeLanes(upper + i * 4, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)), half - i);
  }
}

export function addScaled(x: u32, y: u32, scale: f32, n: u32): void {
  const s = f32x4.splat(scale);
  const wide = n & ~3;
  for (let i: u32 = 0; i < wide; i += 4) {
    const at = x + i * 4;
    v128.store(at, madd(s, v128.load(y + i * 4), v128.load(at)));
  }
  if (wide < n) storeLanes(x + wide * 4, madd(s, load4(y, wide, n), load4(x, wide, n)), n - wide);
}

export function softmax(x: u32, n: u32): void {
  const wide = n & ~3;
  // pmax may lose a NaN here; the sum of exponentials does not.
  let m = f32x4.splat(-Infinity);
  for (let i: u32 = 0; i < wide; i += 4) m = f32x4.pmax(m, v128.load(x + i * 4));
  let top = max1(m);
  for (let i = wide; i < n; i++) top = max(top, f32.load(x + i * 4));

  const shift = f32x4.splat(top);
  let sums = f32x4.splat(0);
  for (let i: u32 = 0; i < wide; i += 4) {
    const e = exp4(f32x4.sub(v128.load(x + i * 4), shift));
    v128.store(x + i * 4, e);
    sums = f32x4.add(sums, e);
  }
  let sum = sum1(sums);
  for (let i = wide; i < n; i++) {
    const e = f32x4.extract_lane(exp4(f32x4.splat(f32.load(x + i * 4) - top)), 0);
    f32.store(x + i * 4, e);
    sum += e;
  }

  const factor = f32x4.splat(<f32>1 / sum);
  for (let i: u32 = 0; i < wide; i += 4) v128.store(x + i * 4, f32x4.mul(v128.load(x + i * 4), factor));
  if (wide < n) storeLanes(x + wide * 4, f32x4.mul(load4(x, wide, n), factor), n - wide);
}
