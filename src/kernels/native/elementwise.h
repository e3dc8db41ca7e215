// Choosing neurons, norms, rotations, softmax. Included after the instruction set's simd_*.h.
#pragma once

#include <cmath>
#include <limits>

#include "table.h"

namespace hybrid_infer {
namespace {

// Lanes of the block at i of n.
inline size_t lanesAt(size_t i, size_t n) { return n - i < W ? n - i : W; }
inline F floadAt(const float* p, size_t i, size_t n) { return n - i < W ? floadn(p + i, n - i) : fload(p + i); }
inline void fstoreAt(float* p, size_t i, size_t n, F v) {
  if (n - i < W) fstoren(p + i, v, n - i);
  else fstore(p + i, v);
}

// e^x, relative error about 2e-7. 0 below -87, infinity above 88.8, NaN stays NaN.
inline F fexp(F x) {
  const F clamped = fmin2(fset(88.8f), fmax2(fset(-87.4f), x));  // the second operand wins when it is NaN
  // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, so that r is exact.
  const I n = fround(fmul(clamped, fset(1.44269504f)));
  F r = fmadd(ifloat(n), fset(-0.693359375f), clamped);
  r = fmadd(ifloat(n), fset(2.12194440e-4f), r);
  F p = fset(1.0f / 720);  // Taylor series: what is left out is below 1.2e-7 at |r| = 0.35
  p = fmadd(p, r, fset(1.0f / 120));
  p = fmadd(p, r, fset(1.0f / 24));
  p = fmadd(p, r, fset(1.0f / 6));
  p = fmadd(p, r, fset(0.5f));
  p = fmadd(p, r, fset(1.0f));
  p = fmadd(p, r, fset(1.0f));
  // 2^(n-1) and then 2: the exponent of 2^128 would not fit.
  return fmul(fmul(p, fbits(ishl<23>(iadd(n, iset(126))))), fset(2.0f));
}

// ---- choosing neurons ------------------------------------------------------------------------------------

// No zeros of their own: a threshold cuts |sigma(g)|.
inline bool isSmooth(Activation kind) { return kind >= Activation::silu; }

// g / (1 + e^-x)
inline F timesSigmoid(F g, F x) { return fdiv(g, fadd(fset(1.0f), fexp(fsub(fzero(), x)))); }

// g Phi(g) = max(g, 0) - |g| / 2 erfc(|g| / sqrt 2); erfc by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
inline F gelu(F g) {
  const F size = fabsv(g);
  const F t = fdiv(fset(1.0f), fmadd(size, fset(0.3275911f * 0.70710678f), fset(1.0f)));
  F p = fset(1.061405429f);
  p = fmadd(p, t, fset(-1.453152027f));
  p = fmadd(p, t, fset(1.421413741f));
  p = fmadd(p, t, fset(-0.284496736f));
  p = fmadd(p, t, fset(0.254829592f));
  const F erfc = fmul(fmul(p, t), fexp(fmul(fmul(g, g), fset(-0.5f))));
  return fsub(fmax2(fzero(), g), fmul(fmul(size, fset(0.5f)), erfc));
}

inline F sigma(Activation kind, F threshold, F g) {
  switch (kind) {
    case Activation::relu:
    case Activation::drelu: return zeroWhereLessEqual(g, fzero(), g);
    case Activation::fatrelu: return zeroWhereLessEqual(g, threshold, g);
    case Activation::relu2: return zeroWhereLessEqual(g, fzero(), fmul(g, g));
    case Activation::silu: return timesSigmoid(g, g);
    case Activation::gelu: return gelu(g);
    case Activation::geluTanh: {  // 2 sqrt(2/pi) = 1.5957691
      const F cubic = fmadd(fmul(g, g), fset(1.5957691f * 0.044715f), fset(1.5957691f));
      return timesSigmoid(g, fmul(g, cubic));
    }
    case Activation::geluQuick: return timesSigmoid(g, fmul(g, fset(1.702f)));
  }
  return g;
}

// Ids i .. i + W - 1 of n, zeros past the end.
inline I idsAt(const uint32_t* ids, size_t i, size_t n) {
  if (n - i >= W) return iload(ids + i);
  alignas(64) uint32_t last[W] = {};
  for (size_t k = 0; i + k < n; k++) last[k] = ids[i + k];
  return iload(last);
}

// Appends the lanes of a mask. In place: all lanes were read, and what is written lies at or before them.
inline size_t keepLanes(uint32_t mask, I ids, F values, uint32_t* outIds, float* outAct) {
#ifdef __AVX512F__
  const size_t count = static_cast<size_t>(__builtin_popcount(mask));
  const __mmask16 lanes = static_cast<__mmask16>(mask);
  // Compressed in registers: storing compressed is slow on some processors.
  _mm512_mask_storeu_epi32(outIds, firstLanes(count), _mm512_maskz_compress_epi32(lanes, ids));
  _mm512_mask_storeu_ps(outAct, firstLanes(count), _mm512_maskz_compress_ps(lanes, values));
  return count;
#else
  alignas(64) uint32_t id[W];
  alignas(64) float value[W];
  istore(id, ids);
  fstore(value, values);
  size_t count = 0;
  for (; mask != 0; mask &= mask - 1, count++) {
    outIds[count] = id[__builtin_ctz(mask)];
    outAct[count] = value[__builtin_ctz(mask)];
  }
  return count;
#endif
}

// 0, 1, 2, ...
inline I ilanes() {
  alignas(64) static const uint32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return iload(lanes);
}

size_t activate(Activation kind, float threshold, const float* gate, size_t n, const uint32_t* ids,
                uint32_t firstId, const float* weight, uint32_t* outIds, float* outAct) {
  size_t passed = 0;
  for (size_t i = 0; i < n; i += W) {
    const F value = sigma(kind, fset(threshold), floadAt(gate, i, n));
    F size = fabsv(value);
    if (weight != nullptr) size = fmul(size, floadAt(weight, i, n));
    const uint32_t mask = maskNonZero(isSmooth(kind) ? zeroWhereLessEqual(size, fset(threshold), fset(1.0f)) : value);
    const I from = ids == nullptr ? iadd(iset(static_cast<int32_t>(firstId + i)), ilanes()) : idsAt(ids, i, n);
    passed += keepLanes(mask & ((1u << lanesAt(i, n)) - 1), from, value, outIds + passed, outAct + passed);
  }
  return passed;
}

size_t gateUp(Activation kind, float* act, const float* up, size_t n) {
  size_t nonZero = 0;
  for (size_t i = 0; i < n; i += W) {
    F u = floadAt(up, i, n);
    if (kind == Activation::drelu) u = zeroWhereLessEqual(u, fzero(), u);
    const F product = fmul(floadAt(act, i, n), u);
    fstoreAt(act, i, n, product);
    nonZero += static_cast<size_t>(__builtin_popcount(maskNonZero(product)));
  }
  return nonZero;
}

void contribution(Activation kind, float* gate, const float* up, size_t n) {
  for (size_t i = 0; i < n; i += W) {
    F value = sigma(kind, fzero(), floadAt(gate, i, n));
    if (up != nullptr) value = fmul(value, floadAt(up, i, n));
    fstoreAt(gate, i, n, fabsv(value));
  }
}

size_t keepLarge(const float* act, const float* times, const uint32_t* ids, size_t n, const float* weight, float least,
                 uint32_t* outIds, float* outAct) {
  size_t kept = 0;
  for (size_t i = 0; i < n; i += W) {
    const size_t lanes = lanesAt(i, n);
    const F value = floadAt(act, i, n);
    alignas(64) float weights[W] = {};
    for (size_t k = 0; k < lanes; k++) weights[k] = weight[ids[i + k]];
    const F size = fmul(fabsv(times == nullptr ? value : fmul(value, floadAt(times, i, n))), fload(weights));
    const uint32_t large = maskGreaterEqual(size, fset(least)) |
                           maskNonZero(zeroWhereLessEqual(size, fset(least), fset(1.0f)));  // NaN passes
    kept += keepLanes(large & ((1u << lanes) - 1), idsAt(ids, i, n), value, outIds + kept, outAct + kept);
  }
  return kept;
}

size_t selectAbove(const float* score, const float* cut, size_t n, uint32_t firstId, uint32_t* outIds) {
  size_t selected = 0;
  for (size_t i = 0; i < n; i += W) {
    uint32_t mask = maskGreaterEqual(floadAt(score, i, n), floadAt(cut, i, n)) & ((1u << lanesAt(i, n)) - 1);
    for (; mask != 0; mask &= mask - 1) {
      outIds[selected++] = firstId + static_cast<uint32_t>(i) + static_cast<uint32_t>(__builtin_ctz(mask));
    }
  }
  return selected;
}

void biasRelu(float* x, const float* bias, size_t n) {
  for (size_t i = 0; i < n; i += W) {
    F v = floadAt(x, i, n);
    if (bias != nullptr) v = fadd(v, floadAt(bias, i, n));
    fstoreAt(x, i, n, zeroWhereLessEqual(v, fzero(), v));
  }
}

void addListed(float* x, const float* bias, const uint32_t* ids, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] += bias[ids[i]];
}

// ---- the rest of the layer -------------------------------------------------------------------------------

// The sum of term(x[i]) in float64, because squares of large activations overflow f32; eight sums, so that they run
// in parallel.
template <typename Term> inline double sumOf(const float* x, size_t n, Term term) {
  double sums[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; j++) sums[j] += term(static_cast<double>(x[i + j]));
  }
  for (; i < n; i++) sums[0] += term(static_cast<double>(x[i]));
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}
inline double meanSquare(const float* x, size_t n) {
  return sumOf(x, n, [](double v) { return v * v; }) / static_cast<double>(n);
}

double rmsNorm(const float* x, const float* weight, float* out, size_t n, double eps) {
  const double mean = meanSquare(x, n);
  const F factor = fset(static_cast<float>(1 / std::sqrt(mean + eps)));
  for (size_t i = 0; i < n; i += W) fstoreAt(out, i, n, fmul(fmul(floadAt(x, i, n), factor), floadAt(weight, i, n)));
  return mean;
}

double layerNorm(const float* x, const float* weight, const float* bias, float* out, size_t n, double eps) {
  const double square = meanSquare(x, n);
  const double mean = sumOf(x, n, [](double v) { return v; }) / static_cast<double>(n);
  const double variance = sumOf(x, n, [&](double v) { return (v - mean) * (v - mean); }) / static_cast<double>(n);
  const double factor = 1 / std::sqrt(variance + eps);
  // In float64 up to here: the mean may be much larger than what is left when it is taken off.
  for (size_t i = 0; i < n; i++) {
    const float normed = static_cast<float>((x[i] - mean) * factor);
    out[i] = bias == nullptr ? normed * weight[i] : normed * weight[i] + bias[i];
  }
  return square;
}

void rope(float* x, const float* cos, const float* sin, size_t headDim) {
  const size_t half = headDim / 2;
  for (size_t i = 0; i < half; i += W) {
    const F a = floadAt(x, i, half), b = floadAt(x + half, i, half);
    const F c = floadAt(cos, i, half), s = floadAt(sin, i, half);
    fstoreAt(x, i, half, fsub(fmul(a, c), fmul(b, s)));
    fstoreAt(x + half, i, half, fadd(fmul(b, c), fmul(a, s)));
  }
}

void addScaled(float* x, const float* y, float scale, size_t n) {
  for (size_t i = 0; i < n; i += W) {
    fstoreAt(x, i, n, fmadd(fset(scale), floadAt(y, i, n), floadAt(x, i, n)));
  }
}

void softmax(float* x, size_t n) {
  const F lowest = fset(-std::numeric_limits<float>::infinity());
  F largest = lowest;
  size_t i = 0;
  for (; i + W <= n; i += W) largest = fmax2(largest, fload(x + i));
  float max = fmaxLane(largest);
  for (; i < n; i++) max = x[i] > max ? x[i] : max;

  // A NaN may be missed by the maximum, but not by the sum.
  F sums = fzero();
  for (i = 0; i + W <= n; i += W) {
    const F e = fexp(fsub(fload(x + i), fset(max)));
    sums = fadd(sums, e);
    fstore(x + i, e);
  }
  float sum = fsum(sums);
  if (i < n) {
    alignas(64) float rest[W];
    fstore(rest, fexp(fsub(floadn(x + i, n - i), fset(max))));
    for (size_t j = 0; i + j < n; j++) sum += x[i + j] = rest[j];
  }
  const F inverse = fset(1.0f / sum);
  for (i = 0; i < n; i += W) fstoreAt(x, i, n, fmul(floadAt(x, i, n), inverse));
}

// Sum of all 32-bit words: what a sequential read can reach.
uint32_t readProbe(const uint8_t* begin, size_t bytes) {
  constexpr size_t unroll = 64 / sizeof(I) * 4;
  I sums[4] = {izero(), izero(), izero(), izero()};
  size_t i = 0;
  for (; i + unroll * sizeof(I) <= bytes; i += unroll * sizeof(I)) {
    for (size_t j = 0; j < unroll; j++) sums[j % 4] = iadd(sums[j % 4], iload(begin + i + j * sizeof(I)));
  }
  for (; i + sizeof(I) <= bytes; i += sizeof(I)) sums[0] = iadd(sums[0], iload(begin + i));
  alignas(64) uint32_t lanes[W];
  istore(lanes, iadd(iadd(sums[0], sums[1]), iadd(sums[2], sums[3])));
  uint32_t sum = 0;
  for (size_t j = 0; j < W; j++) sum += lanes[j];
  return sum;
}

}  // namespace
}  // namespace hybrid_infer
