// 128-bit vectors in the compilers' own vector extension: any CPU. See simd_avx512.h for the meaning of each
// function.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace hybrid_infer {
namespace {

constexpr size_t W = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));

constexpr size_t kTokensTogether = 1;

inline F fload(const float* p) { F v; std::memcpy(&v, p, sizeof v); return v; }
inline F floadn(const float* p, size_t n) { F v = {}; std::memcpy(&v, p, n * sizeof(float)); return v; }
inline void fstore(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline void fstoren(float* p, F v, size_t n) { std::memcpy(p, &v, n * sizeof(float)); }
inline F fset(float v) { return F{v, v, v, v}; }
inline F fzero() { return F{}; }
inline F fadd(F a, F b) { return a + b; }
inline F fsub(F a, F b) { return a - b; }
inline F fmul(F a, F b) { return a * b; }
inline F fdiv(F a, F b) { return a / b; }
inline F fmadd(F a, F b, F c) { return a * b + c; }
inline F fmax2(F a, F b) { F r; for (size_t i = 0; i < W; i++) r[i] = a[i] > b[i] ? a[i] : b[i]; return r; }
inline F fmin2(F a, F b) { F r; for (size_t i = 0; i < W; i++) r[i] = a[i] < b[i] ? a[i] : b[i]; return r; }
inline F fabsv(F a) { F r; for (size_t i = 0; i < W; i++) r[i] = std::fabs(a[i]); return r; }
inline float fsum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline void fsum4(const F* v, float* out) {
  for (size_t i = 0; i < 4; i++) out[i] = fsum(v[i]);
}
inline float fmaxLane(F v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
inline F zeroWhereLessEqual(F a, F b, F c) {
  F r;
  for (size_t i = 0; i < W; i++) r[i] = a[i] <= b[i] ? 0.0f : c[i];
  return r;
}
inline uint32_t maskNonZero(F v) {
  uint32_t mask = 0;
  for (size_t i = 0; i < W; i++) mask |= static_cast<uint32_t>(v[i] != 0.0f) << i;
  return mask;
}
inline uint32_t maskGreaterEqual(F a, F b) {
  uint32_t mask = 0;
  for (size_t i = 0; i < W; i++) mask |= static_cast<uint32_t>(a[i] >= b[i]) << i;
  return mask;
}

inline I iload(const void* p) { I v; std::memcpy(&v, p, sizeof v); return v; }
inline I iloadn(const void* p, size_t) { return iload(p); }  // a multiple of 16 bytes: always whole
inline void istore(void* p, I v) { std::memcpy(p, &v, sizeof v); }
inline I izero() { return I{}; }
inline I iset(int32_t v) { return I{v, v, v, v}; }
inline I iadd(I a, I b) { return a + b; }
inline I iand(I a, I b) { return a & b; }
inline I ior(I a, I b) { return a | b; }
inline I ixor(I a, I b) { return a ^ b; }
template <int N> inline I ishr(I a) { return (I)((U)a >> N); }
template <int N> inline I ishl(I a) { return (I)((U)a << N); }
inline I iselect(I mask, I a, I b) { return (mask & a) | (~mask & b); }
inline F ifloat(I v) { return F{(float)v[0], (float)v[1], (float)v[2], (float)v[3]}; }
inline I fround(F v) {
  I r;
  // nearbyint: to nearest, ties to even. NaN and what does not fit give INT32_MIN, as SSE does.
  for (size_t i = 0; i < W; i++) r[i] = std::fabs(v[i]) < 2147483520.0f ? (int32_t)std::nearbyint(v[i]) : INT32_MIN;
  return r;
}
inline F fbits(I v) { return (F)v; }
inline I ibits(F v) { return (I)v; }

constexpr bool kDot4 = false;
constexpr bool kDot4Signed = false;
constexpr int kHighScale = 16;
inline I scaledHighNibbles(I v) { return v; }  // this and the next two: only where kDot4
HYBRID_INFER_INLINE inline void interleaveBytes(I*) {}
HYBRID_INFER_INLINE inline void orderColumns(F*) {}

inline I idot4(I sum, I u, I s) {
  uint8_t a[16];
  int8_t b[16];
  std::memcpy(a, &u, 16);
  std::memcpy(b, &s, 16);
  for (size_t i = 0; i < W; i++) {
    sum[i] += a[4 * i] * b[4 * i] + a[4 * i + 1] * b[4 * i + 1] + a[4 * i + 2] * b[4 * i + 2] +
              a[4 * i + 3] * b[4 * i + 3];
  }
  return sum;
}
// The signed 16-bit halves of each lane, multiplied and added.
inline I idot2(I sum, I a, I b) {
  const I aLow = ((I)((U)a << 16)) >> 16, bLow = ((I)((U)b << 16)) >> 16;
  return sum + aLow * bLow + (a >> 16) * (b >> 16);
}

inline F widenBf16n(const uint16_t* p, size_t n) {
  U v = {};
  for (size_t i = 0; i < n; i++) v[i] = (uint32_t)p[i] << 16;
  return (F)v;
}
inline F widenBf16(const uint16_t* p) { return widenBf16n(p, W); }
inline I widenI8(const int8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline I widenU8(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline I widenI8Words(const int8_t* p) {
  int16_t words[2 * W];
  for (size_t i = 0; i < 2 * W; i++) words[i] = p[i];
  return iload(words);
}
inline void narrowI16(int16_t* p, I v0, I v1) {
  for (size_t i = 0; i < W; i++) p[i] = (int16_t)v0[i], p[W + i] = (int16_t)v1[i];
}
inline void narrowI8(int8_t* p, I v) { for (size_t i = 0; i < W; i++) p[i] = (int8_t)v[i]; }

HYBRID_INFER_INLINE inline void interleave4(F& v0, F& v1, F& v2, F& v3) {
  const F a = v0, b = v1, c = v2, d = v3;
  v0 = F{a[0], b[0], c[0], d[0]};
  v1 = F{a[1], b[1], c[1], d[1]};
  v2 = F{a[2], b[2], c[2], d[2]};
  v3 = F{a[3], b[3], c[3], d[3]};
}

}  // namespace
}  // namespace hybrid_infer
