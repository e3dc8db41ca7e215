// Products of long quantised rows, where one instruction multiplies four bytes and vectors have 16 lanes. Included
// by dot.h after row_dot.h.
//
// The sum of a group is one exact integer, and the groups of a row are added to 16 sums in turn: group g to sum
// g mod 16, with fma(s_w s_x, group, sum). The 16 sums are added at the end in the order of fsum. Who computes a
// product, one token with groups side by side in the lanes or eight tokens side by side, gives it the same bits.
//
// row_dot.h turns the lanes of every group into floats: 16 conversions and 16 additions for 128 columns, half of
// all arithmetic when weights meet many tokens. Here it is one of each.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "row_dot.h"

namespace hybrid_infer {
namespace {

// Rows of fewer groups are not long: the 16 sums would be mostly empty.
constexpr size_t kLongGroups = 8;
static_assert(W == 16, "groups in lanes");

// ---- a few tokens: groups in lanes ---------------------------------------------------------------------------

// ifours of groups g .. g + 3 of one row and one vector, where fewer are there or the last one is short.
template <Format FORMAT>
__attribute__((noinline)) I lastGroups(const uint8_t* w, const Q8A& x, size_t g, size_t padded) {
  I sums[4];
  for (size_t k = 0; k < 4; k++) {
    const size_t column = (g + k) * kGroup, left = padded > column ? padded - column : 0;
    sums[k] = left == 0 ? izero()
                        : dotShortGroup<FORMAT>(w + (g + k) * groupBytes(FORMAT), x.codes + column, left < kGroup ? left : kGroup);
  }
  return ifours(ipairs(sums[0], sums[1]), ipairs(sums[2], sums[3]));
}

// fours[r][t] = ifours of groups g .. g + 3 of each row and vector.
template <Format FORMAT, size_t R, size_t T, typename Fetch>
HYBRID_INFER_INLINE inline void fourGroups(const uint8_t* const* w, const Q8A* x, size_t g, I (&fours)[R][T], Fetch& fetch) {
  constexpr size_t bytes = groupBytes(FORMAT);
  I pairs[R][T];
  each<2>([&](auto half) HYBRID_INFER_INLINE {
    I first[R][T];
    each<2>([&](auto k) HYBRID_INFER_INLINE {
      const size_t at = g + 2 * half + k;
      dotGroup<FORMAT, R, T>(w, at * bytes, x, at * kGroup, [&](auto r, auto t, I sum) HYBRID_INFER_INLINE {
        if (k == 0) first[r][t] = sum;
        else if (half == 0) pairs[r][t] = ipairs(first[r][t], sum);
        else fours[r][t] = ifours(pairs[r][t], ipairs(first[r][t], sum));
      });
    });
  });
  for (size_t line = 0; line + kLine <= 4 * bytes; line += kLine) fetch.step();
}

// out[r][t] = row w[r] . x[t], for long rows.
template <Format FORMAT, size_t R, size_t T, typename Fetch>
inline void dotLongTile(const uint8_t* const* w, const Q8A* x, size_t cols, float (&out)[R][T], Fetch& fetch) {
  const size_t padded = alignUp(cols, kColumnMultiple), groups = groupCount(cols), whole = padded / kGroup;
  const size_t scales = scaleOffset(FORMAT, cols);
  F totals[R][T];
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    each<T>([&](auto t) HYBRID_INFER_INLINE { totals[r][t] = fzero(); });
  });
  for (size_t g0 = 0; g0 < groups; g0 += W) {
    I fours[4][R][T];
    for (size_t b = 0; b < 4; b++) {
      const size_t g = g0 + 4 * b;
      if (g + 4 <= whole) {
        fourGroups<FORMAT, R, T>(w, x, g, fours[b], fetch);
      } else {
        each<R>([&](auto r) HYBRID_INFER_INLINE {
          each<T>([&](auto t) HYBRID_INFER_INLINE {
            fours[b][r][t] = g < groups ? lastGroups<FORMAT>(w[r], x[t], g, padded) : izero();
          });
        });
      }
    }
    const __mmask16 lanes = firstLanes(groups - g0 < W ? groups - g0 : W);
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      const F xScales = _mm512_maskz_loadu_ps(lanes, x[t].scales + g0);
      const I xSums = _mm512_maskz_loadu_epi32(lanes, x[t].sums + g0);
      const I offset = _mm512_mullo_epi32(xSums, iset(weightOffset(FORMAT)));
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        I sum = isixteens(fours[0][r][t], fours[1][r][t], fours[2][r][t], fours[3][r][t]);
        if (codeFactor(FORMAT) == 2) sum = iadd(sum, sum);
        const F factor = fmul(rowScalesAt(reinterpret_cast<const uint16_t*>(w[r] + scales), g0, groups), xScales);
        totals[r][t] = fmadd(ifloat(_mm512_sub_epi32(sum, offset)), factor, totals[r][t]);
      });
    });
  }
  fetch.finish();
  sumTile<R, T>(totals, out);
}

// ---- four or eight tokens: tokens in lanes -------------------------------------------------------------------

inline int64_t eight(const uint8_t* p) {
  int64_t v;
  std::memcpy(&v, p, 8);
  return v;
}

// Lanes 2 j and 2 j + 1 of a vector are token j: eight tokens to 512 bits, four to 256.
template <size_t TOKENS> struct Side;
template <> struct Side<8> {
  using Ints = __m512i;
  using Floats = __m512;
  static Ints load(const void* p) { return _mm512_load_si512(p); }
  static Floats loadFloats(const float* p) { return _mm512_load_ps(p); }
  static void store(float* p, Floats v) { _mm512_store_ps(p, v); }
  static Floats zero() { return _mm512_setzero_ps(); }
  static Ints zeroInts() { return _mm512_setzero_si512(); }
  static Ints eightBytes(const uint8_t* p) { return _mm512_set1_epi64(eight(p)); }
  static Ints dot(Ints sum, Ints u, Ints s) { return idot4(sum, u, s); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints swapLanes(Ints v) { return _mm512_shuffle_epi32(v, static_cast<_MM_PERM_ENUM>(0xB1)); }
  // Even lanes of a, odd lanes of b.
  static Ints blend(Ints a, Ints b) { return _mm512_mask_blend_epi32(0xAAAA, a, b); }
  static Floats floats(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats mulAdd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats asFloats(Ints v) { return _mm512_castsi512_ps(v); }
};
template <> struct Side<4> {
  using Ints = __m256i;
  using Floats = __m256;
  static Ints load(const void* p) { return _mm256_load_si256(static_cast<const Ints*>(p)); }
  static Floats loadFloats(const float* p) { return _mm256_load_ps(p); }
  static void store(float* p, Floats v) { _mm256_store_ps(p, v); }
  static Floats zero() { return _mm256_setzero_ps(); }
  static Ints zeroInts() { return _mm256_setzero_si256(); }
  static Ints eightBytes(const uint8_t* p) { return _mm256_set1_epi64x(eight(p)); }
  static Ints dot(Ints sum, Ints u, Ints s) {
#ifdef __clang__
    return _mm256_dpbusd_epi32(sum, u, s);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "vm"(s));
    return sum;
#endif
  }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints swapLanes(Ints v) { return _mm256_shuffle_epi32(v, 0xB1); }
  static Ints blend(Ints a, Ints b) { return _mm256_blend_epi32(a, b, 0xAA); }
  static Floats floats(Ints v) { return _mm256_cvtepi32_ps(v); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats mulAdd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats asFloats(Ints v) { return _mm256_castsi256_ps(v); }
};

// TOKENS activation vectors side by side.
struct Beside {
  int8_t* codes;   // [groups][16][TOKENS][8 columns]
  float* scales;   // [groups][TOKENS][2]
  int32_t* start;  // [groups][TOKENS][2]: minus what the weights' offset adds, once a token
};

// Sets of TOKENS tokens of a product; the memory grows with the largest product of a thread.
template <size_t TOKENS> class Sets {
 public:
  Sets(const uint8_t* x, size_t xStride, size_t nTokens, size_t cols, int offset)
      : tokens_(nTokens), groups_(groupCount(cols)) {
    const size_t needed = count() * bytes() + kLine;
    if (needed > size) {
      memory.reset(new uint8_t[needed]);
      size = needed;
    }
    for (size_t i = 0; i < count(); i++) fill((*this)[i], x + i * TOKENS * xStride, xStride, tokens(i), cols, offset);
  }
  size_t count() const { return (tokens_ + TOKENS - 1) / TOKENS; }
  // Tokens of set i: the last one may have fewer.
  size_t tokens(size_t i) const { return tokens_ - i * TOKENS < TOKENS ? tokens_ - i * TOKENS : TOKENS; }
  Beside operator[](size_t i) const {
    const size_t past = reinterpret_cast<uintptr_t>(memory.get()) % kLine;
    uint8_t* codes = memory.get() + (kLine - past) % kLine + i * bytes();
    uint8_t* scales = codes + groups_ * kGroup * TOKENS;
    return {reinterpret_cast<int8_t*>(codes), reinterpret_cast<float*>(scales),
            reinterpret_cast<int32_t*>(scales + groups_ * TOKENS * 8)};
  }

 private:
  size_t bytes() const { return alignUp(groups_ * TOKENS * (kGroup + 16), kLine); }

  // Tokens past nTokens are zero, and columns past the row's end.
  static void fill(const Beside& to, const uint8_t* x, size_t xStride, size_t nTokens, size_t cols, int offset) {
    const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple);
    Q8A from[TOKENS] = {};
    for (size_t j = 0; j < nTokens; j++) from[j] = q8aAt(x + j * xStride, cols);
    for (size_t c = 0; c < groups * kGroup; c += 8) {
      uint64_t eights[TOKENS] = {};
      for (size_t j = 0; j < nTokens && c < padded; j++) std::memcpy(&eights[j], from[j].codes + c, 8);
      std::memcpy(to.codes + c * TOKENS, eights, sizeof eights);
    }
    for (size_t g = 0; g < groups; g++) {
      for (size_t j = 0; j < TOKENS; j++) {
        const size_t lane = (g * TOKENS + j) * 2;
        to.scales[lane] = to.scales[lane + 1] = j < nTokens ? from[j].scales[g] : 0;
        to.start[lane] = j < nTokens ? -offset * from[j].sums[g] : 0;
        to.start[lane + 1] = 0;
      }
    }
  }

  size_t tokens_, groups_;
  static inline thread_local std::unique_ptr<uint8_t[]> memory;
  static inline thread_local size_t size = 0;
};

// The codes of a short last group, zeros behind them.
template <Format FORMAT> __attribute__((noinline)) void lastCodes(const uint8_t* w, size_t length, uint8_t* codes) {
  std::memset(codes, 0, kGroup);
  groupBytesOf<FORMAT>(w, length, codes);
  for (size_t c = 0; codeFactor(FORMAT) == 2 && c < length; c++) codes[c] *= 2;
}

// Rows that meet a group of activations while it is in registers. Even: two rows share the lanes of their sums.
constexpr size_t kRowsBeside = 16;

// out[t * outStride + r] = row r of w . token t, for r < rows <= kRowsBeside and t < nTokens <= TOKENS. Meanwhile as
// many rows from `next` on are fetched.
template <Format FORMAT, size_t TOKENS>
inline void dotBeside(Rows w, size_t rows, const uint8_t* next, const Beside& x, size_t nTokens, float* out,
                      size_t outStride, size_t cols) {
  using S = Side<TOKENS>;
  constexpr size_t bytes = groupBytes(FORMAT), lanes = 2 * TOKENS;
  const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple), whole = padded / kGroup;
  const size_t scales = scaleOffset(FORMAT, cols);
  alignas(64) float totals[kRowsBeside / 2][W][lanes];
  const size_t used = groups < W ? groups : W, even = rows + rows % 2;
  for (size_t p = 0; p < even / 2; p++) {
    for (size_t k = 0; k < used; k++) S::store(totals[p][k], S::zero());
  }
  // Codes and scales of this group and the next, which is unpacked while this one is multiplied.
  alignas(64) uint8_t codes[2][kRowsBeside][kGroup];
  alignas(64) uint32_t rowScales[2][kRowsBeside];
  const auto unpack = [&](size_t r, size_t g) HYBRID_INFER_INLINE {
    const uint8_t* row = w.base + (r < rows ? r : r - 1) * w.stride;
    uint8_t* to = codes[g % 2][r];
    if (g < whole) {
      I v[kCodeVectors];
      groupCodes<FORMAT>(row + g * bytes, v);
      each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE {
        istore(to + b * kVectorBytes, codeFactor(FORMAT) == 2 ? iadd(v[b], v[b]) : v[b]);
      });
    } else {
      lastCodes<FORMAT>(row + g * bytes, padded - g * kGroup, to);
    }
    rowScales[g % 2][r] = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row + scales)[g]) << 16;
  };
  for (size_t r = 0; r < even; r++) unpack(r, 0);
  for (size_t g = 0; g < groups; g++) {
    typename S::Ints vectors[16];
    each<16>([&](auto v) HYBRID_INFER_INLINE { vectors[v] = S::load(x.codes + (g * 16 + v) * TOKENS * 8); });
    const auto xScales = S::loadFloats(x.scales + g * lanes);
    const auto start = S::load(x.start + g * lanes);
    for (size_t r = 0; r < even; r += 2) {
      // Two sums a row, so that an addition need not wait for the one before it.
      typename S::Ints sums[2][2];
      each<2>([&](auto i) HYBRID_INFER_INLINE { sums[i][0] = start, sums[i][1] = S::zeroInts(); });
      each<16>([&](auto v) HYBRID_INFER_INLINE {
        each<2>([&](auto i) HYBRID_INFER_INLINE {
          sums[i][v % 2] = S::dot(sums[i][v % 2], S::eightBytes(codes[g % 2][r + i] + 8 * v), vectors[v]);
        });
      });
      each<2>([&](auto i) HYBRID_INFER_INLINE {
        if (g + 1 < groups) unpack(r + i, g + 1);
        for (size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(next + (r + i) * w.stride + g * bytes + at, 0, 2);
      });
      const auto one = S::add(sums[0][0], sums[0][1]), two = S::add(sums[1][0], sums[1][1]);
      // Even lanes: the first row's sums, odd ones: the second's.
      const auto both = S::add(S::blend(one, two), S::swapLanes(S::blend(two, one)));
      const auto factor = S::mul(S::asFloats(S::eightBytes(reinterpret_cast<const uint8_t*>(&rowScales[g % 2][r]))), xScales);
      float* total = totals[r / 2][g % W];
      S::store(total, S::mulAdd(S::floats(both), factor, S::loadFloats(total)));
    }
  }
  for (size_t r = 0; r < even; r += 2) {
    for (size_t at = groups * bytes; at < rowBytes(FORMAT, cols); at += kLine) {
      __builtin_prefetch(next + r * w.stride + at, 0, 2);
      __builtin_prefetch(next + (r + 1) * w.stride + at, 0, 2);
    }
    const auto at = [&](size_t k) { return k < used ? S::loadFloats(totals[r / 2][k]) : S::zero(); };
    const auto four = [&](size_t k) { return S::add(S::add(at(k), at(k + 2)), S::add(at(k + 1), at(k + 3))); };
    alignas(64) float sums[lanes];
    S::store(sums, S::add(S::add(four(0), four(8)), S::add(four(4), four(12))));
    for (size_t t = 0; t < nTokens; t++) {
      out[t * outStride + r] = sums[2 * t];
      if (r + 1 < rows) out[t * outStride + r + 1] = sums[2 * t + 1];
    }
  }
}

// Rows that all sets of tokens use before the next ones, and the tokens that they are used for.
constexpr size_t kBesideBytes = 16 << 10;
constexpr size_t kTokensBeside = 64;

// out[t * outStride + r] = row r of w . token t.
template <Format FORMAT, size_t TOKENS>
inline void dotSets(Rows w, size_t rows, const uint8_t* x, size_t xStride, size_t nTokens, float* out,
                    size_t outStride, size_t cols) {
  const size_t blockRows = kBesideBytes / rowBytes(FORMAT, cols) / kRowsBeside * kRowsBeside + kRowsBeside;
  for (size_t t = 0; t < nTokens; t += kTokensBeside) {
    const size_t tokens = nTokens - t < kTokensBeside ? nTokens - t : kTokensBeside;
    const Sets<TOKENS> sets(x + t * xStride, xStride, tokens, cols, weightOffset(FORMAT));
    for (size_t begin = 0; begin < rows; begin += blockRows) {
      const size_t end = rows - begin < blockRows ? rows : begin + blockRows;
      for (size_t i = 0; i < sets.count(); i++) {
        for (size_t r = begin; r < end; r += kRowsBeside) {
          const size_t n = end - r < kRowsBeside ? end - r : kRowsBeside;
          // The first tokens fetch the next block; where there is none, these rows again, which costs nothing.
          const uint8_t* next = w.base + (i == 0 && r + blockRows + kRowsBeside <= rows ? r + blockRows : r) * w.stride;
          dotBeside<FORMAT, TOKENS>({w.base + r * w.stride, w.stride}, n, next, sets[i], sets.tokens(i),
                                    out + (t + i * TOKENS) * outStride + r, outStride, cols);
        }
      }
    }
  }
}

}  // namespace
}  // namespace hybrid_infer
