// S3: sums of scaled rows. Included after row_dot.h and quantize.h.
//
// Quantised rows are taken kSumRows at a time. Within such a block and one group of columns, the factors
// coef[i] * scale[i] become 16-bit integers with one common step, so that products can be added exactly in
// int32; a rounded factor is off by at most 2^-16 of the block's largest one. Two ways to multiply:
//
//   CPUs that multiply four bytes and add (kDot4): four rows at a time, factor = 256 h + l, both signed bytes
//
//     rows a b c d    [a0 b0 c0 d0] [a1 b1 c1 d1] ...   x   [ha hb hc hd] and [la lb lc ld]
//
//   others: two rows at a time
//
//     row a [a0 a1 a2 a3]    P = [a0 a1 b0 b1]    P & 0x000F000F = [a0 low  | b0 low ]       x  [qa | qb]
//     row b [b0 b1 b2 b3]    Q = [a2 a3 b2 b3]    P & 0x00F000F0 = [a0 high | b0 high] * 16      and so on
#pragma once

#include "quantize.h"
#include "row_dot.h"

namespace hybrid_infer {
namespace {

// Rows of a block: enough to share the cost of adding a block to `out`. The next block is fetched into level 2
// meanwhile; two blocks do not fit in every level 1, and those that were fetched into it and fell out again ran at
// half the speed on Zen 4. Sums fit in int32: 8 * 16 * 32767 * 16, 128 * 32767 * 16.
constexpr size_t kSumRows = 16;
// Groups of one pass, so that the block's factors fit in level 1.
constexpr size_t kSumGroups = 64;
constexpr float kLargestFactor = 32512.0f;  // 127 * 256 + 0: its high byte is 127
// Factors below this are as good as zero; a smaller one would make 1 / step infinite.
constexpr float kSmallestFactor = 1e-33f;

// How a row's bytes stand for numbers: unsigned after `flip`, minus `offset`.
struct Q4Codes {
  static constexpr bool nibbles = true;
  static constexpr int offset = kQ4Offset, flip = 0;
};
struct Q8Codes {
  static constexpr bool nibbles = false;
  static constexpr int offset = kQ8Offset, flip = 0;
};
struct I8Codes {  // signed bytes: cached values (attention.h)
  static constexpr bool nibbles = false;
  static constexpr int offset = kDot4Signed ? 0 : 128;
  static constexpr int flip = kDot4Signed ? 0 : static_cast<int>(0x80808080);
};

struct SumBlock {
  // 16-bit factors, packed as the kernels want them: kDot4: [four rows][h, l][group] of four bytes;
  // otherwise [two rows][group] of two int16.
  alignas(64) int32_t factors[kSumRows / 2][kSumGroups];
  alignas(64) int32_t totals[kSumGroups];  // sum of a group's factors
  alignas(64) float steps[kSumGroups];  // NaN where a factor is not finite
  const uint8_t* rows[kSumRows];
  size_t count;  // rows in use, rounded up to four: a missing row is a real one with factor 0
};

// ---- factors ---------------------------------------------------------------------------------------------

HYBRID_INFER_INLINE inline I packBytes(const I* b) {
  return ior(ior(b[0], ishl<8>(b[1])), ior(ishl<16>(b[2]), ishl<24>(b[3])));
}

// Packs the factors of rows i..i+3 for W groups, as integers in units of the groups' steps.
HYBRID_INFER_INLINE inline void packFactors(SumBlock& block, size_t i, size_t g, const I* q) {
  int32_t *first = block.factors[i / 2] + g, *second = block.factors[i / 2 + 1] + g;
  if constexpr (kDot4) {
    const I byte = iset(0xFF), half = iset(128);
    I high[4], low[4];
    each<4>([&](auto j) HYBRID_INFER_INLINE {
      low[j] = iand(q[j], byte);  // a signed byte; what it takes too much, the high byte gives back
      high[j] = iand(ishr<8>(iadd(q[j], half)), byte);
    });
    istore(first, packBytes(high));
    istore(second, packBytes(low));
  } else {
    istore(first, iselect(iset(0xFFFF), q[0], ishl<16>(q[1])));
    istore(second, iselect(iset(0xFFFF), q[2], ishl<16>(q[3])));
  }
}

// Fills everything but `rows`. Each group's factors depend on that group alone.
template <Format FORMAT>
inline void prepareSumBlock(SumBlock& block, const float* coef, size_t rows, size_t g0, size_t groups, size_t cols) {
  block.count = alignUp(rows, 4);
  const size_t scales = scaleOffset(FORMAT, cols);
  auto factors = [&](size_t i, size_t g) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(block.rows[i] + scales) + g0;
    return fmul(fset(coef[i]), rowScalesAt(p, g, groups));
  };
  for (size_t g = 0; g < groups; g += W) {
    F largest = fset(kSmallestFactor), zeros = fzero();
    for (size_t i = 0; i < rows; i++) {
      const F factor = factors(i, g);
      largest = fmax2(largest, fabsv(factor));
      zeros = fmadd(factor, fzero(), zeros);
    }
    const F inverse = fdiv(fset(kLargestFactor), largest);
    fstore(block.steps + g, fadd(fdiv(largest, fset(kLargestFactor)), zeros));
    I total = izero();
    for (size_t i = 0; i < block.count; i += 4) {
      I q[4];
      each<4>([&](auto j) HYBRID_INFER_INLINE {
        q[j] = i + j < rows ? fround(fmul(factors(i + j, g), inverse)) : izero();
        total = iadd(total, q[j]);
      });
      packFactors(block, i, g, q);
    }
    istore(block.totals + g, total);
  }
}

// ---- one group of all rows of a block --------------------------------------------------------------------

// out[0 .. 4 W) += step * v; only the first `columns` (a multiple of 16).
HYBRID_INFER_INLINE inline void addColumns(float* out, const F* v, F step, size_t columns) {
  each<4>([&](auto k) HYBRID_INFER_INLINE {
    if (k * W < columns) fstore(out + k * W, fmadd(v[k], step, fload(out + k * W)));
  });
}

template <typename Codes> inline I loadCodes(const uint8_t* p, size_t bytes) {
  const I codes = iloadn(p, bytes);
  return Codes::flip == 0 ? codes : ixor(codes, iset(Codes::flip));
}

// Four rows at a time. `next`: rows to fetch meanwhile.
template <typename Codes>
inline void sumGroupBytes(const SumBlock& block, size_t g, size_t at, size_t length, float* out, const uint8_t* const* next) {
  constexpr bool q4 = Codes::nibbles;
  const size_t bytes = q4 ? length / 2 : length;
  for (size_t b = 0; b < bytes; b += kVectorBytes) {
    const size_t n = bytes - b;
    I highs[2][4], lows[2][4];  // of low and high nibbles
    each<4>([&](auto k) HYBRID_INFER_INLINE {
      highs[0][k] = highs[1][k] = izero();
      lows[0][k] = iset(-Codes::offset * block.totals[g]);
      lows[1][k] = iset(-Codes::offset * kHighScale * block.totals[g]);
    });
    for (size_t i = 0; i < block.count; i += 4) {
      I v[4];
      each<4>([&](auto j) HYBRID_INFER_INLINE {
        v[j] = loadCodes<Codes>(block.rows[i + j] + at + b, n);
        if (kVectorBytes >= kLine || b % kLine == 0) __builtin_prefetch(next[i + j] + at + b, 0, 2);
      });
      interleaveBytes(v);
      const I high = iset(block.factors[i / 2][g]), low = iset(block.factors[i / 2 + 1][g]);
      each<4>([&](auto k) HYBRID_INFER_INLINE {
        const I first = q4 ? lowNibbles(v[k]) : v[k];
        highs[0][k] = idot4(highs[0][k], first, high);
        lows[0][k] = idot4(lows[0][k], first, low);
        if constexpr (q4) {
          const I second = scaledHighNibbles(v[k]);
          highs[1][k] = idot4(highs[1][k], second, high);
          lows[1][k] = idot4(lows[1][k], second, low);
        }
      });
    }
    each<(q4 ? 2 : 1)>([&](auto half) HYBRID_INFER_INLINE {
      F sums[4];
      each<4>([&](auto k) HYBRID_INFER_INLINE { sums[k] = ifloat(iadd(ishl<8>(highs[half][k]), lows[half][k])); });
      orderColumns(sums);
      const float step = half == 0 ? block.steps[g] : block.steps[g] / kHighScale;
      addColumns(out + (half == 0 ? 0 : length / 2) + b, sums, fset(step), n);
    });
  }
}

// Two rows at a time.
template <typename Codes>
inline void sumGroupWords(const SumBlock& block, size_t g, size_t at, size_t length, float* out, const uint8_t* const* next) {
  constexpr bool q4 = Codes::nibbles;
  const size_t bytes = q4 ? length / 2 : length;
  const I firstHalf = iset(0xFFFF), byteMask = iset(0x00FF00FF), lowMask = iset(0x000F000F), highMask = iset(0x00F000F0);
  for (size_t b = 0; b < bytes; b += kVectorBytes) {
    const size_t n = bytes - b;
    I low[4], high[4];
    each<4>([&](auto k) HYBRID_INFER_INLINE {
      low[k] = iset(-Codes::offset * block.totals[g]);
      high[k] = iset(-16 * Codes::offset * block.totals[g]);
    });
    for (size_t i = 0; i < block.count; i += 2) {
      const I a = loadCodes<Codes>(block.rows[i] + at + b, n), c = loadCodes<Codes>(block.rows[i + 1] + at + b, n);
      if (kVectorBytes >= kLine || b % kLine == 0) {
        __builtin_prefetch(next[i] + at + b, 0, 2);
        __builtin_prefetch(next[i + 1] + at + b, 0, 2);
      }
      const I factor = iset(block.factors[i / 2][g]);
      const I pairs[2] = {iselect(firstHalf, a, ishl<16>(c)), iselect(firstHalf, ishr<16>(a), c)};
      each<4>([&](auto k) HYBRID_INFER_INLINE {
        const I bytesOfBoth = k % 2 == 0 ? pairs[k / 2] : ishr<8>(pairs[k / 2]);
        low[k] = idot2(low[k], iand(bytesOfBoth, q4 ? lowMask : byteMask), factor);
        if constexpr (q4) high[k] = idot2(high[k], iand(bytesOfBoth, highMask), factor);
      });
    }
    each<(q4 ? 2 : 1)>([&](auto half) HYBRID_INFER_INLINE {
      F sums[4];
      each<4>([&](auto k) HYBRID_INFER_INLINE { sums[k] = ifloat(half == 0 ? low[k] : high[k]); });
      interleave4(sums[0], sums[1], sums[2], sums[3]);
      const float step = half == 0 ? block.steps[g] : block.steps[g] / 16;
      addColumns(out + (half == 0 ? 0 : length / 2) + b, sums, fset(step), n);
    });
  }
}

template <typename Codes>
inline void sumGroup(const SumBlock& block, size_t g, size_t at, size_t length, float* out, const uint8_t* const* next) {
  if constexpr (kDot4) sumGroupBytes<Codes>(block, g, at, length, out, next);
  else sumGroupWords<Codes>(block, g, at, length, out, next);
}

// The same in f32, one row at a time: for factors that are not finite, which must reach `out` as they are.
template <Format FORMAT>
void sumGroupF32(const SumBlock& block, const float* coef, size_t rows, size_t column, size_t length, size_t cols, float* out) {
  for (size_t i = 0; i < rows; i++) {
    alignas(64) float values[kGroup];
    dequantize(FORMAT, block.rows[i], cols, column, length, values);
    for (size_t j = 0; j < length; j += W) {
      fstore(out + j, fmadd(fset(coef[i]), fload(values + j), fload(out + j)));
    }
  }
}

// ---- lists -----------------------------------------------------------------------------------------------

// out += sum of coef[k] * row ids[k] for k in first..end, groups g0..g0+groups. What follows in the list up to
// `known` is fetched ahead.
template <Format FORMAT>
void sumPart(Rows w, const uint32_t* ids, const float* coef, size_t first, size_t end, size_t known, size_t g0,
             size_t groups, float* out, size_t cols) {
  const size_t padded = alignUp(cols, kColumnMultiple);
  using Codes = std::conditional_t<FORMAT == Format::q4, Q4Codes, Q8Codes>;
  SumBlock block;
  const uint8_t* next[kSumRows];
  for (size_t i0 = first; i0 < end; i0 += kSumRows) {
    const size_t rows = end - i0 < kSumRows ? end - i0 : kSumRows;
    for (size_t i = 0; i < kSumRows; i++) {
      // A missing row is the last one again, with factor 0.
      block.rows[i] = w.base + ids[i0 + (i < rows ? i : rows - 1)] * w.stride;
      const size_t after = i0 + kSumRows + i;
      next[i] = w.base + ids[after < known ? after : known - 1] * w.stride;
    }
    // The scales come first: a block begins with them.
    const size_t scales = scaleOffset(FORMAT, cols) + 2 * g0;
    for (size_t i = 0; i < kSumRows; i++) __builtin_prefetch(next[i] + scales, 0, 2);
    prepareSumBlock<FORMAT>(block, coef + i0, rows, g0, groups, cols);
    for (size_t g = 0; g < groups; g++) {
      const size_t column = (g0 + g) * kGroup;
      const size_t length = padded - column < kGroup ? padded - column : kGroup;
      if (block.steps[g] == block.steps[g]) {
        sumGroup<Codes>(block, g, (g0 + g) * groupBytes(FORMAT), length, out + column, next);
      } else {
        sumGroupF32<FORMAT>(block, coef + i0, rows, column, length, cols, out + column);
      }
    }
  }
}

// The f32 rows first..end of a list, columns c0..cEnd; four rows a pass.
void sumPartF32(Rows w, const uint32_t* ids, const float* coef, size_t first, size_t end, size_t c0, size_t cEnd, float* out) {
  constexpr size_t block = 4;
  for (size_t i = first; i < end; i += block) {
    const size_t n = end - i < block ? end - i : block;
    const float* rows[block];
    F factors[block];
    for (size_t j = 0; j < n; j++) {
      rows[j] = reinterpret_cast<const float*>(w.base + ids[i + j] * w.stride);
      factors[j] = fset(coef[i + j]);
    }
    for (size_t c = c0; c < cEnd; c += W) {
      F sum = floadAt(out, c, cEnd);
      for (size_t j = 0; j < n; j++) sum = fmadd(factors[j], floadAt(rows[j], c, cEnd), sum);
      fstoreAt(out, c, cEnd, sum);
    }
  }
}

// Many tokens: columns of a tile, and rows of it. With q4 rows its codes are 256 KB and those of 64 outputs 512 KB:
// both stay in level 2 while the tokens take their turns.
constexpr size_t kSumTileGroups = 16;
constexpr size_t kSumTileRows = 256;

// A group of columns of all tokens' lists after the other, `tileGroups` groups at a time.
template <Format FORMAT>
void sumListsFormat(Rows w, Lists lists, const float* coef, float* out, size_t outStride, size_t cols) {
  const size_t groups = groupCount(cols);
  const size_t tileGroups = lists.nTokens == 1 ? kSumGroups : kSumTileGroups;
  if (lists.nTokens == 1) {
    // Nothing has fetched the first block.
    for (size_t at = 0; at < rowBytes(FORMAT, cols); at += kLine) {
      for (size_t k = lists.offsets[0]; k < lists.offsets[1] && k < lists.offsets[0] + kSumRows; k++) {
        __builtin_prefetch(w.base + lists.ids[k] * w.stride + at, 0, 2);
      }
    }
  }
  for (size_t g0 = 0; g0 < groups; g0 += tileGroups) {
    const size_t n = groups - g0 < tileGroups ? groups - g0 : tileGroups;
    const auto part = [&](size_t t, size_t first, size_t end) {
      float* to = out + t * outStride;
      if constexpr (FORMAT == Format::f32) {
        const size_t c0 = g0 * kGroup, cEnd = cols - c0 < n * kGroup ? cols : c0 + n * kGroup;
        sumPartF32(w, lists.ids, coef, first, end, c0, cEnd, to);
      } else {
        sumPart<FORMAT>(w, lists.ids, coef, first, end, lists.offsets[t + 1], g0, n, to, cols);
      }
    };
    eachTile(lists, kSumTileRows, part, kSumRows);
  }
}

void sumLists(Format format, const uint8_t* w, size_t stride, const uint32_t* offsets, const uint32_t* ids,
              size_t nTokens, const float* coef, float* out, size_t outStride, size_t cols) {
  const Rows rows = {w, stride};
  const Lists lists = {offsets, ids, nTokens};
  switch (format) {
    case Format::f32: return sumListsFormat<Format::f32>(rows, lists, coef, out, outStride, cols);
    case Format::q8: return sumListsFormat<Format::q8>(rows, lists, coef, out, outStride, cols);
    case Format::q4: return sumListsFormat<Format::q4>(rows, lists, coef, out, outStride, cols);
    default: return;
  }
}

}  // namespace
}  // namespace hybrid_infer
