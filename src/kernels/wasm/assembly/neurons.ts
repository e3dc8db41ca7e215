// Choosing neurons: sigma, compaction, gate times up, thresholds. Four at a time; where none of four
// passes (the usual case: 9 in 10 neurons are inactive), nothing is written.
import { load4, madd, storeLanes } from './common';
import { exp4 } from './exp';

/** ActivationKind by number, in the order of ACTIVATION_KINDS. */
const RELU: i32 = 0;
const FATRELU: i32 = 1;
const DRELU: i32 = 2;
const RELU2: i32 = 3;
const SILU: i32 = 4;
const GELU: i32 = 5;
const GELU_TANH: i32 = 6;

/** g where !(g <= threshold), else 0: NaN passes. */
// @ts-ignore: decorator
@inline
function above(g: v128, threshold: v128): v128 {
  return v128.andnot(g, f32x4.le(g, threshold));
}

// @ts-ignore: decorator
@inline
function sigma(kind: i32, g: v128, threshold: v128): v128 {
  if (kind == RELU || kind == DRELU) return above(g, f32x4.splat(0));
  if (kind == FATRELU) return above(g, threshold);
  if (kind == RELU2) {
    const positive = above(g, f32x4.splat(0));
    return f32x4.mul(positive, positive);
  }
  if (kind == SILU) return timesSigmoid(g, g);
  if (kind == GELU) return gelu(g);
  if (kind == GELU_TANH) {
    // 2 sqrt(2 / pi) = 1.5957691
    const cubic = madd(f32x4.mul(g, g), f32x4.splat(1.5957691 * 0.044715), f32x4.splat(1.5957691));
    return timesSigmoid(g, f32x4.mul(g, cubic));
  }
  return timesSigmoid(g, f32x4.mul(g, f32x4.splat(1.702))); // gelu_quick
}

/** g / (1 + e^-x) */
// @ts-ignore: decorator
@inline
function timesSigmoid(g: v128, x: v128): v128 {
  return f32x4.div(g, f32x4.add(f32x4.splat(1), exp4(f32x4.neg(x))));
}

/** g Phi(g) = max(g, 0) - |g| / 2 erfc(|g| / sqrt 2); erfc by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. */
function gelu(g: v128): v128 {
  const size = f32x4.abs(g);
  const one = f32x4.splat(1);
  const t = f32x4.div(one, madd(size, f32x4.splat(0.3275911 * 0.70710678), one));
  let p = f32x4.splat(1.061405429);
  p = madd(p, t, f32x4.splat(-1.453152027));
  p = madd(p, t, f32x4.splat(1.421413741));
  p = madd(p, t, f32x4.splat(-0.284496736));
  p = madd(p, t, f32x4.splat(0.254829592));
  const erfc = f32x4.mul(f32x4.mul(p, t), exp4(f32x4.mul(f32x4.mul(g, g), f32x4.splat(-0.5))));
  return f32x4.sub(above(g, f32x4.splat(0)), f32x4.mul(f32x4.mul(size, f32x4.splat(0.5)), erfc));
}

// @ts-ignore: decorator
@inline
function lane(v: v128, k: u32): f32 {
  return k == 0
    ? f32x4.extract_lane(v, 0)
    : k == 1
      ? f32x4.extract_lane(v, 1)
      : k == 2
        ? f32x4.extract_lane(v, 2)
        : f32x4.extract_lane(v, 3);
}

/** Bits of the lanes below n - i. */
// @ts-ignore: decorator
@inline
function valid(i: u32, n: u32): u32 {
  return n - i >= 4 ? 15 : (1 << (n - i)) - 1;
}

export function activate(
  kind: i32,
  threshold: f32,
  gate: u32,
  n: u32,
  ids: u32,
  firstId: u32,
  weight: u32,
  outIds: u32,
  outAct: u32,
): u32 {
  const cut = f32x4.splat(threshold);
  let passed: u32 = 0;
  for (let i: u32 = 0; i < n; i += 4) {
    const values = sigma(kind, load4(gate, i, n), cut);
    let sizes = f32x4.abs(values);
    if (weight != 0) sizes = f32x4.mul(sizes, load4(weight, i, n));
    let mask: u32 = i32x4.bitmask(
      kind > RELU2 ? v128.not(f32x4.le(sizes, cut)) : f32x4.ne(values, f32x4.splat(0)),
    );
    mask &= valid(i, n);
    while (mask != 0) {
      const k = ctz(mask);
      mask &= mask - 1;
      const id = ids == 0 ? firstId + i + k : load<u32>(ids + (i + k) * 4);
      store<u32>(outIds + passed * 4, id);
      f32.store(outAct + passed * 4, lane(values, k));
      passed++;
    }
  }
  return passed;
}

export function gateUp(kind: i32, act: u32, up: u32, n: u32): u32 {
  let nonZero: u32 = 0;
  for (let i: u32 = 0; i < n; i += 4) {
    let u = load4(up, i, n);
    if (kind == DRELU) u = above(u, f32x4.splat(0));
    const products = f32x4.mul(load4(act, i, n), u);
    storeLanes(act + i * 4, products, n - i);
    nonZero += popcnt(i32x4.bitmask(f32x4.ne(products, f32x4.splat(0))) & valid(i, n));
  }
  return nonZero;
}

export function contribution(kind: i32, gate: u32, up: u32, n: u32): void {
  for (let i: u32 = 0; i < n; i += 4) {
    let values = sigma(kind, load4(gate, i, n), f32x4.splat(0));
    if (up != 0) values = f32x4.mul(values, load4(up, i, n));
    storeLanes(gate + i * 4, f32x4.abs(values), n - i);
  }
}

export function keepLarge(
  act: u32,
  times: u32,
  ids: u32,
  n: u32,
  weight: u32,
  least: f32,
  outIds: u32,
  outAct: u32,
): u32 {
  let kept: u32 = 0;
  for (let i: u32 = 0; i < n; i++) {
    const id = load<u32>(ids + i * 4);
    const value = f32.load(act + i * 4);
    const size = Mathf.abs(times ? value * f32.load(times + i * 4) : value);
    if (size * f32.load(weight + id * 4) < least) continue;
    store<u32>(outIds + kept * 4, id);
    f32.store(outAct + kept * 4, value);
    kept++;
  }
  return kept;
}

export function selectAbove(score: u32, cut: u32, n: u32, firstId: u32, outIds: u32): u32 {
  let selected: u32 = 0;
  for (let i: u32 = 0; i < n; i += 4) {
    let mask: u32 = i32x4.bitmask(f32x4.ge(load4(score, i, n), load4(cut, i, n))) & valid(i, n);
    while (mask != 0) {
      store<u32>(outIds + selected * 4, firstId + i + ctz(mask));
      mask &= mask - 1;
      selected++;
    }
  }
  return selected;
}

export function biasRelu(x: u32, bias: u32, n: u32): void {
  const zero = f32x4.splat(0);
  for (let i: u32 = 0; i < n; i += 4) {
    const b = bias == 0 ? zero : load4(bias, i, n);
    storeLanes(x + i * 4, f32x4.max(zero, f32x4.add(load4(x, i, n), b)), n - i);
  }
}

export function addListed(x: u32, bias: u32, ids: u32, n: u32): void {
  for (let i: u32 = 0; i < n; i++) {
    const at = x + i * 4;
    f32.store(at, f32.load(at) + f32.load(bias + load<u32>(ids + i * 4) * 4));
  }
}
