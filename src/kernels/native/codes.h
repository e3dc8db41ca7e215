// The unsigned codes of one group of a row, unpacked in registers: kGroup columns in order, kCodeVectors vectors.
// Included after the instruction set's simd_*.h.
#pragma once

#include <cstring>

#include "row_layout.h"
#include "unroll.h"

namespace hybrid_infer {
namespace {

constexpr size_t kVectorBytes = 4 * W;
constexpr size_t kCodeVectors = kGroup / kVectorBytes;

inline I lowNibbles(I v) { return iand(v, iset(0x0F0F0F0F)); }
inline I highNibbles(I v) { return iand(ishr<4>(v), iset(0x0F0F0F0F)); }

// ---- sketch rows -------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)

template <int BITS> HYBRID_INFER_INLINE inline void sketchCodes(const uint8_t* w, I (&codes)[kCodeVectors]) {
  I lo = izero(), hi = izero();
  if (BITS > 1) {
    const I both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
    const I first = _mm512_set_epi64(0x0000000200000002, 0x0000000200000002, 0x0000000200000002, 0x0000000200000002, 0, 0, 0, 0);
    lo = iand(_mm512_srlv_epi32(both, first), iset(0x03030303));
    hi = iand(_mm512_srlv_epi32(both, iadd(first, iset(4))), iset(0x03030303));
  }
  if (BITS != 2) {
    const I high = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(BITS == 1 ? w : w + kGroup / 4)));
    const I first = _mm512_set_epi64(0x0808080808080808, 0x0808080808080808, 0x0404040404040404, 0x0404040404040404,
                                     0x0202020202020202, 0x0202020202020202, 0x0101010101010101, 0x0101010101010101);
    const I second = _mm512_slli_epi16(first, 4);
    const I one = _mm512_set1_epi8(BITS == 1 ? 1 : 4);
    lo = ior(lo, _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(high, first), one));
    hi = ior(hi, _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(high, second), one));
  }
  codes[0] = lo;
  codes[1] = hi;
}

#elif defined(__AVX2__)

template <int BITS> HYBRID_INFER_INLINE inline void sketchCodes(const uint8_t* w, I (&codes)[kCodeVectors]) {
  I low = izero(), high = izero();
  if (BITS > 1) low = iload(w);
  if (BITS != 2) {
    high = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(BITS == 1 ? w : w + kGroup / 4)));
  }
  each<kCodeVectors>([&](auto k) HYBRID_INFER_INLINE {
    I u = izero();
    if (BITS > 1) u = iand(_mm256_srli_epi16(low, 2 * k), iset(0x03030303));
    if (BITS != 2) {
      // Columns 32 k .. 32 k + 31: bits 2 k (first half) and 2 k + 1 (second half) of the same 16 bytes.
      const I bit = _mm256_set_m128i(_mm_set1_epi8(static_cast<char>(2 << (2 * k))),
                                     _mm_set1_epi8(static_cast<char>(1 << (2 * k))));
      const I set = _mm256_cmpeq_epi8(iand(high, bit), bit);
      u = ior(u, iand(set, _mm256_set1_epi8(BITS == 1 ? 1 : 4)));
    }
    codes[k] = u;
  });
}

#else

// 128-bit vectors: 16 columns, whose low bits are vector k % 2 shifted by 2 (k / 2), and whose high bit is bit k.
template <int BITS> HYBRID_INFER_INLINE inline void sketchCodes(const uint8_t* w, I (&codes)[kCodeVectors]) {
  each<kCodeVectors>([&](auto k) HYBRID_INFER_INLINE {
    I u = izero();
    if constexpr (BITS > 1) u = iand(ishr<2 * (k.value / 2)>(iload(w + 16 * (k.value % 2))), iset(0x03030303));
    if constexpr (BITS != 2) {
      const I bit = iand(ishr<k.value>(iload(BITS == 1 ? w : w + kGroup / 4)), iset(0x01010101));
      u = ior(u, BITS == 1 ? bit : ishl<2>(bit));
    }
    codes[k] = u;
  });
}

#endif

// The last group of a sketch row: L columns, 32, 64 or 96.
template <int BITS> inline void shortSketchCodes(const uint8_t* w, size_t L, uint8_t* u) {
  const size_t quarter = L / 4, eighth = L / 8;
  for (size_t c = 0; c < L; c++) {
    const int low = BITS > 1 ? (w[c % quarter] >> (2 * (c / quarter))) & 3 : 0;
    const uint8_t* highs = BITS == 1 ? w : w + quarter;
    const int high = BITS != 2 ? (highs[c % eighth] >> (c / eighth)) & 1 : 0;
    u[c] = static_cast<uint8_t>(BITS == 1 ? high : low + 4 * high);
  }
}

// ---- any quantised row -------------------------------------------------------------------------------------

template <Format FORMAT> HYBRID_INFER_INLINE inline void groupCodes(const uint8_t* w, I (&codes)[kCodeVectors]) {
  if constexpr (isSketch(FORMAT)) {
    sketchCodes<sketchBits(FORMAT)>(w, codes);
  } else if constexpr (FORMAT == Format::q4) {
    each<kCodeVectors / 2>([&](auto b) HYBRID_INFER_INLINE {
      const I v = iload(w + b * kVectorBytes);
      codes[b] = lowNibbles(v);
      codes[kCodeVectors / 2 + b] = highNibbles(v);
    });
  } else {
    each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { codes[b] = iload(w + b * kVectorBytes); });
  }
}

// The codes of a group of any length as bytes.
template <Format FORMAT> inline void groupBytesOf(const uint8_t* w, size_t L, uint8_t* u) {
  if (L == kGroup) {
    I codes[kCodeVectors];
    groupCodes<FORMAT>(w, codes);
    for (size_t b = 0; b < kCodeVectors; b++) istore(u + b * kVectorBytes, codes[b]);
  } else if constexpr (isSketch(FORMAT)) {
    shortSketchCodes<sketchBits(FORMAT)>(w, L, u);
  } else if constexpr (FORMAT == Format::q4) {
    for (size_t j = 0; j < L / 2; j++) u[j] = w[j] & 15, u[L / 2 + j] = w[j] >> 4;
  } else {
    std::memcpy(u, w, L);
  }
}

}  // namespace
}  // namespace hybrid_infer
