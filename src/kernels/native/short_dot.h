// Products of quantised rows of few groups with one vector, where one instruction multiplies four bytes. Included by
// dot.h after long_dot.h.
//
// Sixteen rows stand side by side in the lanes: a group's sums of all of them are turned into floats, scaled and added
// by one instruction each. A row at a time (row_dot.h) spends as many on every row, four times what a row of 256
// columns takes to multiply. The sums are those of long_dot.h: group g is one exact integer and stands in sum g of
// 16, the others are zero.
#pragma once

#include <utility>

#include "long_dot.h"

namespace hybrid_infer {
namespace {

// The sums of one group of four rows, in the order that isixteens takes. Meanwhile that of `next` is fetched.
template <Format FORMAT>
HYBRID_INFER_INLINE inline I fourRows(const uint8_t* const* w, const uint8_t* const* next, size_t at,
                                      const I (&x)[kCodeVectors]) {
  I sums[4];
  each<4>([&](auto r) HYBRID_INFER_INLINE {
    each<(groupBytes(FORMAT) + kLine - 1) / kLine>([&](auto line) HYBRID_INFER_INLINE {
      __builtin_prefetch(next[r] + at + line * kLine, 0, 2);
    });
    I codes[kCodeVectors];
    groupCodes<FORMAT>(w[r] + at, codes);
    sums[r] = izero();
    each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { sums[r] = idot4(sums[r], codes[b], x[b]); });
  });
  return ifours(ipairs(sums[0], sums[1]), ipairs(sums[2], sums[3]));
}

// The same for a last group of `length` columns.
template <Format FORMAT>
__attribute__((noinline)) I fourShortRows(const uint8_t* const* w, size_t at, const int8_t* x, size_t length) {
  I sums[4];
  for (size_t r = 0; r < 4; r++) sums[r] = dotShortGroup<FORMAT>(w[r] + at, x, length);
  return ifours(ipairs(sums[0], sums[1]), ipairs(sums[2], sums[3]));
}

// 32 bits from each of 16 rows: the scales of groups g and g + 1. Behind an odd last one is padding.
HYBRID_INFER_INLINE inline I scalePairs(const uint8_t* const* w, size_t at) {
  const auto word = [&](size_t r) HYBRID_INFER_INLINE {
    int32_t bits;
    std::memcpy(&bits, w[r] + at, sizeof bits);
    return bits;
  };
  return _mm512_setr_epi32(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7), word(8), word(9),
                           word(10), word(11), word(12), word(13), word(14), word(15));
}

// out[r] = row w[r] . x for r < rows <= 16; w has 16 entries. Meanwhile the rows `next` are fetched.
template <Format FORMAT>
inline void dotSixteen(const uint8_t* const* w, size_t rows, const uint8_t* const* next, const Q8A& x, float* out,
                       size_t cols) {
  const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple), whole = padded / kGroup;
  const size_t scales = scaleOffset(FORMAT, cols), quads = (rows + 3) / 4;
  F products[kLongGroups];
  I pairs = izero();
  for (size_t g = 0; g < groups; g++) {
    I fours[4];
    if (g < whole) {
      I vectors[kCodeVectors];
      each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { vectors[b] = iload(x.codes + g * kGroup + b * kVectorBytes); });
      each<4>([&](auto q) HYBRID_INFER_INLINE {
        fours[q] = q < quads ? fourRows<FORMAT>(w + 4 * q, next + 4 * q, g * groupBytes(FORMAT), vectors) : izero();
      });
    } else {
      for (size_t q = 0; q < 4; q++) {
        fours[q] = q < quads ? fourShortRows<FORMAT>(w + 4 * q, g * groupBytes(FORMAT), x.codes + g * kGroup, padded - g * kGroup)
                             : izero();
      }
    }
    I sum = isixteens(fours[0], fours[1], fours[2], fours[3]);
    if (codeFactor(FORMAT) == 2) sum = iadd(sum, sum);
    if (g % 2 == 0) pairs = scalePairs(w, scales + 2 * g);
    const F scale = fbits(g % 2 == 0 ? ishl<16>(pairs) : iand(pairs, iset(static_cast<int32_t>(0xFFFF0000))));
    const I offset = iset(weightOffset(FORMAT) * x.sums[g]);
    products[g] = fmul(ifloat(_mm512_sub_epi32(sum, offset)), fmul(scale, fset(x.scales[g])));
  }
  // In the order of fsum over lanes of which those behind `groups` are zero.
  for (size_t g = groups; g < kLongGroups; g++) products[g] = fzero();
  const auto four = [&](size_t g) HYBRID_INFER_INLINE {
    return fadd(fadd(products[g], products[g + 2]), fadd(products[g + 1], products[g + 3]));
  };
  const F total = groups > 4 ? fadd(four(0), four(4)) : four(0);
  _mm512_mask_storeu_ps(out, firstLanes(rows), total);
}

// out[i] = row i . x for i < n; see dotRows.
template <Format FORMAT, typename Source>
inline void dotFewGroups(size_t n, const Source& row, const uint8_t* x, float* out, size_t cols) {
  const Q8A vector = q8aAt(x, cols);
  const uint8_t *tiles[2][W], **w = tiles[0], **next = tiles[1];
  for (size_t r = 0; r < W; r++) w[r] = row(r < n ? r : n - 1);
  for (size_t i = 0; i < n; i += W, std::swap(w, next)) {
    // What follows is this call's next rows, or what is wanted after those.
    for (size_t r = 0; r < W; r++) next[r] = i + W + r < n ? row(i + W + r) : row.ahead(i + W + r);
    dotSixteen<FORMAT>(w, n - i < W ? n - i : W, next, vector, out + i, cols);
  }
}

}  // namespace
}  // namespace hybrid_infer
