// 128-bit vectors: NEON of 64-bit Arm, with the dot-product extension where the compiler was told so. See
// simd_avx512.h for the meaning of each function.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "unroll.h"

namespace hybrid_infer {
namespace {

constexpr size_t W = 4;
using F = float32x4_t;
using I = int32x4_t;

constexpr size_t kTokensTogether = 2;  // 8 totals, 2 sums, 16 activations, codes of 32 registers

inline F fload(const float* p) { return vld1q_f32(p); }
inline F floadn(const float* p, size_t n) {
  float padded[W] = {};
  std::memcpy(padded, p, n * sizeof(float));
  return fload(padded);
}
inline void fstore(float* p, F v) { vst1q_f32(p, v); }
inline void fstoren(float* p, F v, size_t n) { std::memcpy(p, &v, n * sizeof(float)); }
inline F fset(float v) { return vdupq_n_f32(v); }
inline F fzero() { return vdupq_n_f32(0); }
inline F fadd(F a, F b) { return vaddq_f32(a, b); }
inline F fsub(F a, F b) { return vsubq_f32(a, b); }
inline F fmul(F a, F b) { return vmulq_f32(a, b); }
inline F fdiv(F a, F b) { return vdivq_f32(a, b); }
inline F fmadd(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F fmax2(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F fmin2(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F fabsv(F a) { return vabsq_f32(a); }
inline float fsum(F v) { return vgetq_lane_f32(vpaddq_f32(vpaddq_f32(v, v), vpaddq_f32(v, v)), 0); }
inline void fsum4(const F* v, float* out) { fstore(out, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]))); }
inline float fmaxLane(F v) { return vmaxvq_f32(v); }
inline F zeroWhereLessEqual(F a, F b, F c) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(c), vcleq_f32(a, b)));
}
inline uint32_t laneMask(uint32x4_t lanes) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(lanes, bits));
}
inline uint32_t maskNonZero(F v) { return laneMask(vmvnq_u32(vceqq_f32(v, fzero()))); }
inline uint32_t maskGreaterEqual(F a, F b) { return laneMask(vcgeq_f32(a, b)); }

inline I iload(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
inline I iloadn(const void* p, size_t) { return iload(p); }  // a multiple of 16 bytes: always whole
inline void istore(void* p, I v) { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(v)); }
inline I izero() { return vdupq_n_s32(0); }
inline I iset(int32_t v) { return vdupq_n_s32(v); }
inline I iadd(I a, I b) { return vaddq_s32(a, b); }
inline I iand(I a, I b) { return vandq_s32(a, b); }
inline I ior(I a, I b) { return vorrq_s32(a, b); }
inline I ixor(I a, I b) { return veorq_s32(a, b); }
template <int N> inline I ishr(I a) { return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), N)); }
template <int N> inline I ishl(I a) { return vshlq_n_s32(a, N); }
inline I iselect(I mask, I a, I b) { return vbslq_s32(vreinterpretq_u32_s32(mask), a, b); }
inline F ifloat(I v) { return vcvtq_f32_s32(v); }
inline I fround(F v) { return vcvtnq_s32_f32(v); }
inline F fbits(I v) { return vreinterpretq_f32_s32(v); }
inline I ibits(F v) { return vreinterpretq_s32_f32(v); }

#ifdef __ARM_FEATURE_DOTPROD
constexpr bool kDot4 = true;
#else
constexpr bool kDot4 = false;
#endif
constexpr bool kDot4Signed = kDot4;
// Bytes are multiplied as signed ones: the nibble must move down.
constexpr int kHighScale = 1;
inline I scaledHighNibbles(I v) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(v), 4)); }
HYBRID_INFER_INLINE inline void interleaveBytes(I* v) {
  const uint8x16_t a = vreinterpretq_u8_s32(v[0]), b = vreinterpretq_u8_s32(v[1]);
  const uint8x16_t c = vreinterpretq_u8_s32(v[2]), d = vreinterpretq_u8_s32(v[3]);
  const uint16x8_t ab0 = vreinterpretq_u16_u8(vzip1q_u8(a, b)), ab1 = vreinterpretq_u16_u8(vzip2q_u8(a, b));
  const uint16x8_t cd0 = vreinterpretq_u16_u8(vzip1q_u8(c, d)), cd1 = vreinterpretq_u16_u8(vzip2q_u8(c, d));
  v[0] = vreinterpretq_s32_u16(vzip1q_u16(ab0, cd0));
  v[1] = vreinterpretq_s32_u16(vzip2q_u16(ab0, cd0));
  v[2] = vreinterpretq_s32_u16(vzip1q_u16(ab1, cd1));
  v[3] = vreinterpretq_s32_u16(vzip2q_u16(ab1, cd1));
}
HYBRID_INFER_INLINE inline void orderColumns(F*) {}  // one lane: in order already

// Unsigned bytes below 128 are also signed bytes.
inline I idot4(I sum, I u, I s) {
  const int8x16_t a = vreinterpretq_s8_s32(u), b = vreinterpretq_s8_s32(s);
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(sum, a, b);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
inline I idot2(I sum, I a, I b) {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
  return vaddq_s32(sum, vpaddq_s32(low, high));
}

inline F widenBf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline F widenBf16n(const uint16_t* p, size_t n) {
  uint16_t padded[W] = {};
  std::memcpy(padded, p, n * sizeof(uint16_t));
  return widenBf16(padded);
}
inline I widenI8(const int8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline I widenU8(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
inline I widenI8Words(const int8_t* p) { return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p))); }
inline void narrowI16(int16_t* p, I v0, I v1) { vst1q_s16(p, vcombine_s16(vmovn_s32(v0), vmovn_s32(v1))); }
inline void narrowI8(int8_t* p, I v) { for (size_t i = 0; i < W; i++) p[i] = (int8_t)v[i]; }

inline void transposeF(F& a, F& b, F& c, F& d) {
  const float32x4x2_t ab = vtrnq_f32(a, b), cd = vtrnq_f32(c, d);
  a = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
  b = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
  c = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
  d = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}
HYBRID_INFER_INLINE inline void interleave4(F& v0, F& v1, F& v2, F& v3) { transposeF(v0, v1, v2, v3); }

}  // namespace
}  // namespace hybrid_infer
