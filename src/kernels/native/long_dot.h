// Products of quantised rows, where one instruction multiplies four bytes and vectors have 16 lanes: long ones with
// few tokens, any with more. Included by dot.h after row_dot.h.
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

// Rows of fewer groups meet one token in short_dot.h: the 16 sums of a tile would be mostly empty.
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

// Lanes of one token: they take as many columns of a row times four, and their sums then go to as many rows.
template <size_t TOKENS> constexpr size_t kShare = W / TOKENS;

// 4 * kShare bytes, for each token.
template <size_t TOKENS> inline I forEach(const void* p) {
  if constexpr (TOKENS == 8) {
    int64_t eight;
    std::memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
  } else {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
}

// Lane r of each token: the sum of the token's lanes of rows[r].
inline I shareLanes(const I (&rows)[2]) {
  const __mmask16 odd = 0xAAAA;
  const I swapped = _mm512_mask_blend_epi32(odd, rows[1], rows[0]);
  return iadd(_mm512_mask_blend_epi32(odd, rows[0], rows[1]),
              _mm512_shuffle_epi32(swapped, static_cast<_MM_PERM_ENUM>(0xB1)));
}
inline I shareLanes(const I (&rows)[4]) { return ifours(ipairs(rows[0], rows[1]), ipairs(rows[2], rows[3])); }

// 64 columns of each token -> in turn 4 * kShare columns of all tokens.
HYBRID_INFER_INLINE inline void standBeside(I (&v)[4]) {
  F columns[4] = {fbits(v[0]), fbits(v[1]), fbits(v[2]), fbits(v[3])};
  orderColumns(columns);
  each<4>([&](auto k) HYBRID_INFER_INLINE { v[k] = ibits(columns[k]); });
}
HYBRID_INFER_INLINE inline void standBeside(I (&v)[8]) {
  I even[4], odd[4];
  each<4>([&](auto k) HYBRID_INFER_INLINE {
    even[k] = _mm512_unpacklo_epi64(v[2 * k], v[2 * k + 1]);
    odd[k] = _mm512_unpackhi_epi64(v[2 * k], v[2 * k + 1]);
  });
  standBeside(even);
  standBeside(odd);
  each<4>([&](auto k) HYBRID_INFER_INLINE { v[2 * k] = even[k], v[2 * k + 1] = odd[k]; });
}

// TOKENS activation vectors side by side.
struct Beside {
  int8_t* codes;   // [groups][vectors][TOKENS][4 kShare columns]
  float* scales;   // [groups][TOKENS][kShare]
  int32_t* start;  // [groups][TOKENS][kShare]: minus what the weights' offset adds, in the first lane
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
            reinterpret_cast<int32_t*>(scales + groups_ * kLine)};
  }

 private:
  size_t bytes() const { return groups_ * (TOKENS * kGroup + 2 * kLine); }

  // Tokens past nTokens are zero, and columns past the row's end.
  static void fill(const Beside& to, const uint8_t* x, size_t xStride, size_t nTokens, size_t cols, int offset) {
    const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple);
    Q8A from[TOKENS] = {};
    for (size_t j = 0; j < nTokens; j++) from[j] = q8aAt(x + j * xStride, cols);
    constexpr size_t share = kShare<TOKENS>;
    for (size_t c = 0; c < groups * kGroup; c += kVectorBytes) {
      I v[TOKENS];
      each<TOKENS>([&](auto j) HYBRID_INFER_INLINE {
        v[j] = j < nTokens && c < padded ? iloadn(from[j].codes + c, padded - c) : izero();
      });
      standBeside(v);
      each<TOKENS>([&](auto j) HYBRID_INFER_INLINE { istore(to.codes + c * TOKENS + j * kLine, v[j]); });
    }
    for (size_t g = 0; g < groups; g++) {
      for (size_t lane = 0; lane < W; lane++) {
        const size_t j = lane / share;
        to.scales[g * W + lane] = j < nTokens ? from[j].scales[g] : 0;
        to.start[g * W + lane] = j < nTokens && lane % share == 0 ? -offset * from[j].sums[g] : 0;
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

// Rows that meet a group of activations while it is in registers.
constexpr size_t kRowsBeside = 16;

// out[t * outStride + r] = row r of w . token t, for r < rows <= kRowsBeside and t < nTokens <= TOKENS. Meanwhile as
// many rows from `next` on are fetched.
template <Format FORMAT, size_t TOKENS>
inline void dotBeside(Rows w, size_t rows, const uint8_t* next, const Beside& x, size_t nTokens, float* out,
                      size_t outStride, size_t cols) {
  constexpr size_t bytes = groupBytes(FORMAT), share = kShare<TOKENS>, kVectors = kGroup / (4 * share);
  // Sums of a row, so that an addition need not wait for the one before it: four are under way.
  constexpr size_t kChains = 4 / share;
  const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple), whole = padded / kGroup;
  const size_t scales = scaleOffset(FORMAT, cols);
  const size_t shared = alignUp(rows, share);  // past `rows` the last row again
  alignas(64) float totals[kRowsBeside / share][W][W];
  const size_t used = groups < W ? groups : W;
  for (size_t r = 0; r < shared; r += share) {
    for (size_t k = 0; k < used; k++) fstore(totals[r / share][k], fzero());
  }
  // Codes and scales of this group and the next, which is unpacked while this one is multiplied.
  alignas(64) uint8_t codes[2][kRowsBeside][kGroup];
  alignas(64) uint32_t rowScales[2][kRowsBeside];
  const auto unpack = [&](size_t r, size_t g) HYBRID_INFER_INLINE {
    const uint8_t* row = w.base + (r < rows ? r : rows - 1) * w.stride;
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
  for (size_t r = 0; r < shared; r++) unpack(r, 0);
  for (size_t g = 0; g < groups; g++) {
    I vectors[kVectors];
    each<kVectors>([&](auto v) HYBRID_INFER_INLINE { vectors[v] = iload(x.codes + (g * kVectors + v) * kLine); });
    const F xScales = fload(x.scales + g * W);
    const I start = iload(x.start + g * W);
    for (size_t r = 0; r < shared; r += share) {
      I chains[share][kChains];
      each<share>([&](auto i) HYBRID_INFER_INLINE {
        each<kChains>([&](auto c) HYBRID_INFER_INLINE { chains[i][c] = c == 0 ? start : izero(); });
      });
      each<kVectors>([&](auto v) HYBRID_INFER_INLINE {
        each<share>([&](auto i) HYBRID_INFER_INLINE {
          I& sum = chains[i][v % kChains];
          sum = idot4(sum, forEach<TOKENS>(codes[g % 2][r + i] + 4 * share * v), vectors[v]);
        });
      });
      I sums[share];
      each<share>([&](auto i) HYBRID_INFER_INLINE {
        sums[i] = chains[i][0];
        if constexpr (kChains == 2) sums[i] = iadd(sums[i], chains[i][1]);
        if (g + 1 < groups) unpack(r + i, g + 1);
        for (size_t at = 0; at < bytes; at += kLine) __builtin_prefetch(next + (r + i) * w.stride + g * bytes + at, 0, 2);
      });
      const F factor = fmul(fbits(forEach<TOKENS>(&rowScales[g % 2][r])), xScales);
      float* total = totals[r / share][g % W];
      fstore(total, fmadd(ifloat(shareLanes(sums)), factor, fload(total)));
    }
  }
  for (size_t r = 0; r < shared; r += share) {
    const auto at = [&](size_t k) { return k < used ? fload(totals[r / share][k]) : fzero(); };
    const auto four = [&](size_t k) { return fadd(fadd(at(k), at(k + 2)), fadd(at(k + 1), at(k + 3))); };
    alignas(64) float sums[TOKENS][share];
    fstore(sums[0], fadd(fadd(four(0), four(8)), fadd(four(4), four(12))));
    for (size_t i = 0; i < share && r + i < rows; i++) {
      for (size_t t = 0; t < nTokens; t++) out[t * outStride + r + i] = sums[t][i];
      for (size_t b = groups * bytes; b < rowBytes(FORMAT, cols); b += kLine) {
        __builtin_prefetch(next + (r + i) * w.stride + b, 0, 2);
      }
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
