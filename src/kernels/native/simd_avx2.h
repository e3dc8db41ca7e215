// 256-bit vectors: AVX2 + FMA, with AVX-VNNI where the compiler was told so. See simd_avx512.h for the meaning
// of each function.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace hybrid_infer {
namespace {

constexpr size_t W = 8;
using F = __m256;
using I = __m256i;

// A tile of four rows needs all 16 registers for one token: 4 totals, 1 sum, 4 activations, 4 codes, temporaries.
constexpr size_t kTokensTogether = 1;

alignas(32) const int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
inline I firstLanes(size_t n) { return _mm256_loadu_si256(reinterpret_cast<const I*>(kLaneMasks + 8 - n)); }

inline F fload(const float* p) { return _mm256_loadu_ps(p); }
inline F floadn(const float* p, size_t n) { return _mm256_maskload_ps(p, firstLanes(n)); }
inline void fstore(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void fstoren(float* p, F v, size_t n) { _mm256_maskstore_ps(p, firstLanes(n), v); }
inline F fset(float v) { return _mm256_set1_ps(v); }
inline F fzero() { return _mm256_setzero_ps(); }
inline F fadd(F a, F b) { return _mm256_add_ps(a, b); }
inline F fsub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F fmul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F fdiv(F a, F b) { return _mm256_div_ps(a, b); }
inline F fmadd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F fmax2(F a, F b) { return _mm256_max_ps(a, b); }
inline F fmin2(F a, F b) { return _mm256_min_ps(a, b); }
inline F fabsv(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline float fsum(F v) {
  const F pairs = _mm256_hadd_ps(v, v), lanes = _mm256_hadd_ps(pairs, pairs);
  return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1)));
}
inline void fsum4(const F* v, float* out) {
  const F abcd = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}
inline float fmaxLane(F v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline F zeroWhereLessEqual(F a, F b, F c) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ), c); }
inline uint32_t maskNonZero(F v) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, fzero(), _CMP_NEQ_UQ)));
}
inline uint32_t maskGreaterEqual(F a, F b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}

inline I iload(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
inline I iloadn(const void* p, size_t bytes) {
  return bytes >= 32 ? iload(p) : _mm256_zextsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
inline void istore(void* p, I v) { _mm256_storeu_si256(static_cast<I*>(p), v); }
inline I izero() { return _mm256_setzero_si256(); }
inline I iset(int32_t v) { return _mm256_set1_epi32(v); }
inline I iadd(I a, I b) { return _mm256_add_epi32(a, b); }
inline I iand(I a, I b) { return _mm256_and_si256(a, b); }
inline I ior(I a, I b) { return _mm256_or_si256(a, b); }
inline I ixor(I a, I b) { return _mm256_xor_si256(a, b); }
template <int N> inline I ishr(I a) { return _mm256_srli_epi32(a, N); }
template <int N> inline I ishl(I a) { return _mm256_slli_epi32(a, N); }
inline I iselect(I mask, I a, I b) { return _mm256_or_si256(iand(mask, a), _mm256_andnot_si256(mask, b)); }
inline F ifloat(I v) { return _mm256_cvtepi32_ps(v); }
inline I fround(F v) { return _mm256_cvtps_epi32(v); }
inline F fbits(I v) { return _mm256_castsi256_ps(v); }
inline I ibits(F v) { return _mm256_castps_si256(v); }

#ifdef __AVXVNNI__
constexpr bool kDot4 = true;
#else
constexpr bool kDot4 = false;
#endif
constexpr bool kDot4Signed = false;
constexpr int kHighScale = 16;
inline I scaledHighNibbles(I v) { return iand(v, iset(static_cast<int32_t>(0xF0F0F0F0))); }

inline I idot4(I sum, I u, I s) {
#if defined(__AVXVNNI__) && !defined(__clang__)
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u), "xm"(s));
  return sum;
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, u, s);
#else
  return iadd(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
#endif
}
inline I idot2(I sum, I a, I b) {
#if defined(__AVXVNNI__) && !defined(__clang__)
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "xm"(b));
  return sum;
#elif defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
  return iadd(sum, _mm256_madd_epi16(a, b));
#endif
}

inline F widenBf16(const uint16_t* p) {
  return fbits(ishl<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
}
inline F widenBf16n(const uint16_t* p, size_t n) {
  uint16_t padded[W] = {};
  std::memcpy(padded, p, n * sizeof(uint16_t));
  return widenBf16(padded);
}
inline I widenI8(const int8_t* p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline I widenU8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline I widenI8Words(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void narrowI16(int16_t* p, I v0, I v1) { istore(p, _mm256_permute4x64_epi64(_mm256_packs_epi32(v0, v1), 0xD8)); }
inline void narrowI8(int8_t* p, I v) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

HYBRID_INFER_INLINE inline void interleaveBytes(I* v) {
  const I ab0 = _mm256_unpacklo_epi8(v[0], v[1]), ab1 = _mm256_unpackhi_epi8(v[0], v[1]);
  const I cd0 = _mm256_unpacklo_epi8(v[2], v[3]), cd1 = _mm256_unpackhi_epi8(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi16(ab0, cd0);
  v[1] = _mm256_unpackhi_epi16(ab0, cd0);
  v[2] = _mm256_unpacklo_epi16(ab1, cd1);
  v[3] = _mm256_unpackhi_epi16(ab1, cd1);
}
HYBRID_INFER_INLINE inline void orderColumns(F* v) {
  const F a = v[0], b = v[1], c = v[2], d = v[3];
  v[0] = _mm256_permute2f128_ps(a, b, 0x20);
  v[1] = _mm256_permute2f128_ps(c, d, 0x20);
  v[2] = _mm256_permute2f128_ps(a, b, 0x31);
  v[3] = _mm256_permute2f128_ps(c, d, 0x31);
}
HYBRID_INFER_INLINE inline void interleave4(F& v0, F& v1, F& v2, F& v3) {
  const __m256d lo01 = _mm256_castps_pd(_mm256_unpacklo_ps(v0, v1));
  const __m256d hi01 = _mm256_castps_pd(_mm256_unpackhi_ps(v0, v1));
  const __m256d lo23 = _mm256_castps_pd(_mm256_unpacklo_ps(v2, v3));
  const __m256d hi23 = _mm256_castps_pd(_mm256_unpackhi_ps(v2, v3));
  const F u0 = _mm256_castpd_ps(_mm256_unpacklo_pd(lo01, lo23));
  const F u1 = _mm256_castpd_ps(_mm256_unpackhi_pd(lo01, lo23));
  const F u2 = _mm256_castpd_ps(_mm256_unpacklo_pd(hi01, hi23));
  const F u3 = _mm256_castpd_ps(_mm256_unpackhi_pd(hi01, hi23));
  F u[4] = {u0, u1, u2, u3};
  orderColumns(u);
  v0 = u[0], v1 = u[1], v2 = u[2], v3 = u[3];
}

}  // namespace
}  // namespace hybrid_infer
