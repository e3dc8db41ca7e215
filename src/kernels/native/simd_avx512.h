// 512-bit vectors: AVX-512 F/BW/DQ/VL, with VNNI where the compiler was told so.
// F: W floats. I: W int32, which are also 4 W bytes or 2 W int16.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "unroll.h"

namespace hybrid_infer {
namespace {

constexpr size_t W = 16;
using F = __m512;
using I = __m512i;

// Tokens of a tile of four rows: 16 totals, 4 sums, 8 activations, 2 codes of 32 registers.
constexpr size_t kTokensTogether = 4;

inline __mmask16 firstLanes(size_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline F fload(const float* p) { return _mm512_loadu_ps(p); }
inline F floadn(const float* p, size_t n) { return _mm512_maskz_loadu_ps(firstLanes(n), p); }
inline void fstore(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void fstoren(float* p, F v, size_t n) { _mm512_mask_storeu_ps(p, firstLanes(n), v); }
inline F fset(float v) { return _mm512_set1_ps(v); }
inline F fzero() { return _mm512_setzero_ps(); }
inline F fadd(F a, F b) { return _mm512_add_ps(a, b); }
inline F fsub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F fmul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fdiv(F a, F b) { return _mm512_div_ps(a, b); }
inline F fmadd(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// a > b ? a : b, so that a NaN in b passes.
inline F fmax2(F a, F b) { return _mm512_max_ps(a, b); }
inline F fmin2(F a, F b) { return _mm512_min_ps(a, b); }
inline F fabsv(F a) { return _mm512_abs_ps(a); }
// The sum of a vector, in the order of fsum4.
inline float fsum(F v) {
  const F pairs = _mm512_add_ps(v, _mm512_shuffle_ps(v, v, 0x4E));
  const F lanes = _mm512_add_ps(pairs, _mm512_shuffle_ps(pairs, pairs, 0xB1));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
// The sums of four vectors; each is the same whatever the others are.
inline void fsum4(const F* v, float* out) {
  const F ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const F cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
  const F abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)), _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
inline float fmaxLane(F v) { return _mm512_reduce_max_ps(v); }
// a <= b ? 0 : c, lane by lane; NaN in a gives c.
inline F zeroWhereLessEqual(F a, F b, F c) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ), c); }
// Bit i: lane i is not zero (NaN is not zero); a >= b.
inline uint32_t maskNonZero(F v) { return _mm512_cmp_ps_mask(v, fzero(), _CMP_NEQ_UQ); }
inline uint32_t maskGreaterEqual(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

inline I iload(const void* p) { return _mm512_loadu_si512(p); }
// The first `bytes` (a multiple of 16) of a vector, zeros behind.
inline I iloadn(const void* p, size_t bytes) {
  return bytes >= 64 ? iload(p) : _mm512_maskz_loadu_epi8((1ull << bytes) - 1, p);
}
inline void istore(void* p, I v) { _mm512_storeu_si512(p, v); }
inline I izero() { return _mm512_setzero_si512(); }
inline I iset(int32_t v) { return _mm512_set1_epi32(v); }
inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
inline I iand(I a, I b) { return _mm512_and_si512(a, b); }
inline I ior(I a, I b) { return _mm512_or_si512(a, b); }
inline I ixor(I a, I b) { return _mm512_xor_si512(a, b); }
template <int N> inline I ishr(I a) { return _mm512_srli_epi32(a, N); }
template <int N> inline I ishl(I a) { return _mm512_slli_epi32(a, N); }
// Bits of a where mask is 1, bits of b elsewhere.
inline I iselect(I mask, I a, I b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xCA); }
inline F ifloat(I v) { return _mm512_cvtepi32_ps(v); }
inline I fround(F v) { return _mm512_cvtps_epi32(v); }  // to nearest, ties to even
inline F fbits(I v) { return _mm512_castsi512_ps(v); }
inline I ibits(F v) { return _mm512_castps_si512(v); }

// Whether idot4 is one instruction, which then takes any unsigned byte.
#ifdef __AVX512VNNI__
constexpr bool kDot4 = true;
#else
constexpr bool kDot4 = false;
#endif
// Whether it takes signed bytes instead.
constexpr bool kDot4Signed = false;
// The high nibble of each byte, times kHighScale.
constexpr int kHighScale = 16;
inline I scaledHighNibbles(I v) { return iand(v, iset(static_cast<int32_t>(0xF0F0F0F0))); }

// sum + four products of unsigned bytes below 128 (kDot4: any) with signed bytes, per lane.
// In assembly: GCC 12 keeps two copies of a sum that goes through the intrinsic, and spills half of a tile.
inline I idot4(I sum, I u, I s) {
#if defined(__AVX512VNNI__) && !defined(__clang__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "vm"(s));
  return sum;
#elif defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sum, u, s);
#else
  return iadd(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)));
#endif
}
// sum + two products of signed 16-bit numbers, per lane.
inline I idot2(I sum, I a, I b) {
#if defined(__AVX512VNNI__) && !defined(__clang__)
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
  return sum;
#elif defined(__AVX512VNNI__)
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return iadd(sum, _mm512_madd_epi16(a, b));
#endif
}

inline F widenBf16(const uint16_t* p) {
  return fbits(ishl<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
}
inline F widenBf16n(const uint16_t* p, size_t n) {
  return fbits(ishl<16>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(firstLanes(n), p))));
}
inline I widenI8(const int8_t* p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline I widenU8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
// 2 W bytes -> 2 W int16.
inline I widenI8Words(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
// 2 W int32 within int16 -> 2 W int16.
inline void narrowI16(int16_t* p, I v0, I v1) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + W), _mm512_cvtepi32_epi16(v1));
}
// W int32 in -128..127 -> W bytes.
inline void narrowI8(int8_t* p, I v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }

// Sums of lanes, in three steps: the first two leave each 128-bit block to itself. ipairs of the vectors 0 1 and 2 3,
// ifours of both: lane k of a block is the sum of vector k's lanes in that block. isixteens of four such: lane k is
// the sum of all lanes of vector k of 16.
inline I ipairs(I a, I b) { return iadd(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)); }
inline I ifours(I ab, I cd) { return iadd(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd)); }
inline I isixteens(I a, I b, I c, I d) {
  const I ab = iadd(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
  const I cd = iadd(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xDD));
  return iadd(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD));
}

// v[0..3], one row each -> lane j of v[k] = column 16 (j / 4) + 4 k + j % 4 of the four rows.
HYBRID_INFER_INLINE inline void interleaveBytes(I* v) {
  const I ab0 = _mm512_unpacklo_epi8(v[0], v[1]), ab1 = _mm512_unpackhi_epi8(v[0], v[1]);
  const I cd0 = _mm512_unpacklo_epi8(v[2], v[3]), cd1 = _mm512_unpackhi_epi8(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi16(ab0, cd0);
  v[1] = _mm512_unpackhi_epi16(ab0, cd0);
  v[2] = _mm512_unpacklo_epi16(ab1, cd1);
  v[3] = _mm512_unpackhi_epi16(ab1, cd1);
}
// Results of vectors that interleaveBytes made -> columns in order.
HYBRID_INFER_INLINE inline void orderColumns(F* v) {
  const F a = _mm512_shuffle_f32x4(v[0], v[1], 0x44), b = _mm512_shuffle_f32x4(v[0], v[1], 0xEE);
  const F c = _mm512_shuffle_f32x4(v[2], v[3], 0x44), d = _mm512_shuffle_f32x4(v[2], v[3], 0xEE);
  v[0] = _mm512_shuffle_f32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_f32x4(a, c, 0xDD);
  v[2] = _mm512_shuffle_f32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_f32x4(b, d, 0xDD);
}

// Lane j of v0..v3 becomes elements 4j..4j+3 of the sequence v0 v1 v2 v3.
HYBRID_INFER_INLINE inline void interleave4(F& v0, F& v1, F& v2, F& v3) {
  const __m512d lo01 = _mm512_castps_pd(_mm512_unpacklo_ps(v0, v1));
  const __m512d hi01 = _mm512_castps_pd(_mm512_unpackhi_ps(v0, v1));
  const __m512d lo23 = _mm512_castps_pd(_mm512_unpacklo_ps(v2, v3));
  const __m512d hi23 = _mm512_castps_pd(_mm512_unpackhi_ps(v2, v3));
  const F u0 = _mm512_castpd_ps(_mm512_unpacklo_pd(lo01, lo23));  // per 128-bit lane l: elements of j = 4l
  const F u1 = _mm512_castpd_ps(_mm512_unpackhi_pd(lo01, lo23));
  const F u2 = _mm512_castpd_ps(_mm512_unpacklo_pd(hi01, hi23));
  const F u3 = _mm512_castpd_ps(_mm512_unpackhi_pd(hi01, hi23));
  F u[4] = {u0, u1, u2, u3};
  orderColumns(u);
  v0 = u[0], v1 = u[1], v2 = u[2], v3 = u[3];
}

}  // namespace
}  // namespace hybrid_infer
