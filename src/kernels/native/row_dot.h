// S1/S2: at most four rows times some activation vectors. Included by each instruction set after its simd_*.h.
//
// The order of sums is the same for any number of rows and tokens, so that a product has the same bits whatever it
// is computed with. Quantised rows: each lane adds its columns of a group as integers, the groups one after the
// other (fma with s_w s_x); lanes are added at the end. f32 rows: column c is added to lane c mod W.
#pragma once

#include "codes.h"
#include "lists.h"

namespace hybrid_infer {
namespace {

constexpr size_t kLine = 64;  // cache line
// Rows multiplied together: they share the loads of the activations, and their cache misses overlap.
constexpr size_t kRowsTogether = 4;

// What to fetch from memory while rows are multiplied: nothing.
struct NoAhead {
  inline void step() {}
  inline void finish() {}
};

// ---- R quantised rows times T activation vectors -----------------------------------------------------------

// One whole group: add(r, t, sum of unsigned codes times activations). A row's sums are used up before the next row's
// are made, so that few registers are enough.
template <Format FORMAT, size_t R, size_t T, typename Add>
HYBRID_INFER_INLINE inline void dotGroup(const uint8_t* const* w, size_t at, const Q8A* x, size_t column, const Add& add) {
  I vectors[T][kCodeVectors];
  each<T>([&](auto t) HYBRID_INFER_INLINE {
    each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { vectors[t][b] = iload(x[t].codes + column + b * kVectorBytes); });
  });
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    I codes[kCodeVectors], sums[T];
    groupCodes<FORMAT>(w[r] + at, codes);
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      sums[t] = izero();
      each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { sums[t] = idot4(sums[t], codes[b], vectors[t][b]); });
    });
    each<T>([&](auto t) HYBRID_INFER_INLINE { add(r, t, sums[t]); });
  });
}

// The last group of a row, when it is shorter: `length` is 32, 64 or 96 columns.
template <Format FORMAT> inline I dotShortGroup(const uint8_t* w, const int8_t* x, size_t length) {
  alignas(64) uint8_t codes[kGroup] = {};
  groupBytesOf<FORMAT>(w, length, codes);
  I sum = izero();
  for (size_t b = 0; b < length; b += kVectorBytes) sum = idot4(sum, iload(codes + b), iloadn(x + b, length - b));
  return sum;
}

// W scales (bf16) or activation scales and sums from group g on, zeros past `groups`.
inline F rowScalesAt(const uint16_t* p, size_t g, size_t groups) {
  return groups - g >= W ? widenBf16(p + g) : widenBf16n(p + g, groups - g);
}
inline F scalesAt(const float* p, size_t g, size_t groups) { return groups - g >= W ? fload(p + g) : floadn(p + g, groups - g); }
inline F sumsAt(const int32_t* p, size_t g, size_t groups) {
  if (groups - g >= W) return ifloat(iload(p + g));
  alignas(64) int32_t padded[W] = {};
  __builtin_memcpy(padded, p + g, (groups - g) * sizeof(int32_t));
  return ifloat(iload(padded));
}

// The sum of each vector of a tile.
template <size_t R, size_t T> HYBRID_INFER_INLINE inline void sumTile(const F (&tile)[R][T], float (&out)[R][T]) {
  constexpr size_t fours = R * T / 4;
  each<fours>([&](auto f) HYBRID_INFER_INLINE {
    F v[4];
    float sums[4];
    each<4>([&](auto i) HYBRID_INFER_INLINE { v[i] = tile[(4 * f + i) / T][(4 * f + i) % T]; });
    fsum4(v, sums);
    each<4>([&](auto i) HYBRID_INFER_INLINE { out[(4 * f + i) / T][(4 * f + i) % T] = sums[i]; });
  });
  each<R * T - 4 * fours>([&](auto i) HYBRID_INFER_INLINE {
    out[(4 * fours + i) / T][(4 * fours + i) % T] = fsum(tile[(4 * fours + i) / T][(4 * fours + i) % T]);
  });
}

// out[r][t] = row w[r] . x[t]. Unsigned codes are multiplied; what the offset added is taken off with the groups'
// sums: s_w s_x (codeFactor sum(u x) - weightOffset sum(x)). `fetch.step()` is called once per cache line of codes.
template <Format FORMAT, size_t R, size_t T, typename Fetch>
inline void dotTile(const uint8_t* const* w, const Q8A* x, size_t cols, float (&out)[R][T], Fetch& fetch) {
  const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple);
  const size_t whole = padded / kGroup;
  constexpr size_t bytes = groupBytes(FORMAT);
  const size_t scales = scaleOffset(FORMAT, cols);
  F totals[R][T], offsets[R][T];
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    each<T>([&](auto t) HYBRID_INFER_INLINE { totals[r][t] = offsets[r][t] = fzero(); });
  });

  for (size_t g0 = 0; g0 < groups; g0 += W) {
    alignas(64) float factors[R][T][W];  // codeFactor s_w s_x of each group
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      const F xScales = scalesAt(x[t].scales, g0, groups), xSums = sumsAt(x[t].sums, g0, groups);
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        const F factor = fmul(rowScalesAt(reinterpret_cast<const uint16_t*>(w[r] + scales), g0, groups), xScales);
        fstore(factors[r][t], codeFactor(FORMAT) == 1 ? factor : fadd(factor, factor));
        offsets[r][t] = fmadd(factor, xSums, offsets[r][t]);
      });
    });
    auto addTo = [&](size_t g) {
      return [&, g](auto r, auto t, I sum) HYBRID_INFER_INLINE {
        totals[r][t] = fmadd(ifloat(sum), fset(factors[r][t][g - g0]), totals[r][t]);
      };
    };
    const size_t end = g0 + W < whole ? g0 + W : whole;
    for (size_t g = g0; g < end; g++) {
      dotGroup<FORMAT, R, T>(w, g * bytes, x, g * kGroup, addTo(g));
      for (size_t line = 0; line + kLine <= bytes; line += kLine) fetch.step();
    }
    if (whole < groups && whole >= g0 && whole - g0 < W) {
      const auto add = addTo(whole);
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        each<T>([&](auto t) HYBRID_INFER_INLINE {
          add(r, t, dotShortGroup<FORMAT>(w[r] + whole * bytes, x[t].codes + whole * kGroup, padded - whole * kGroup));
        });
      });
    }
  }
  fetch.finish();
  const F offset = fset(static_cast<float>(-weightOffset(FORMAT)));
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    each<T>([&](auto t) HYBRID_INFER_INLINE { totals[r][t] = fmadd(offsets[r][t], offset, totals[r][t]); });
  });
  sumTile<R, T>(totals, out);
}

// ---- R f32 rows times T activation vectors -----------------------------------------------------------------

template <size_t R, size_t T, typename Fetch>
inline void dotTileF32(const uint8_t* const* w, const uint8_t* const* x, size_t cols, float (&out)[R][T], Fetch& fetch) {
  auto row = [&](size_t r) { return reinterpret_cast<const float*>(w[r]); };
  auto vector = [&](size_t t) { return reinterpret_cast<const float*>(x[t]); };
  F sums[R][T];
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    each<T>([&](auto t) HYBRID_INFER_INLINE { sums[r][t] = fzero(); });
  });
  size_t c = 0;
  for (; c + W <= cols; c += W) {
    F parts[T];
    each<T>([&](auto t) HYBRID_INFER_INLINE { parts[t] = fload(vector(t) + c); });
    each<R>([&](auto r) HYBRID_INFER_INLINE {
      const F weights = fload(row(r) + c);
      each<T>([&](auto t) HYBRID_INFER_INLINE { sums[r][t] = fmadd(weights, parts[t], sums[r][t]); });
    });
    if (c % (kLine / sizeof(float)) == 0) fetch.step();
  }
  if (c < cols) {
    for (size_t r = 0; r < R; r++) {
      for (size_t t = 0; t < T; t++) {
        sums[r][t] = fmadd(floadn(row(r) + c, cols - c), floadn(vector(t) + c, cols - c), sums[r][t]);
      }
    }
  }
  fetch.finish();
  sumTile<R, T>(sums, out);
}

}  // namespace
}  // namespace hybrid_infer
