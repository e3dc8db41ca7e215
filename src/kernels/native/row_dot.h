// S1/S2: at most four rows times some activation vectors. Included by each instruction set after its simd_*.h.
//
// The order of sums is the same for any number of rows and tokens, here and in dot.h, so that a product has the
// same bits whatever it is computed with. Quantised rows: a group's products are added as integers, and the
// groups one after the other:
//
//     total = fma(codeFactor sum(u x) - weightOffset sum(x), s_w s_x, total)
//
// The first factor is an integer below 2^24 and thus exact. f32 rows: column c is added to lane c mod W.
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

// One whole group: R x T sums of unsigned codes times activations, held in registers.
template <Format FORMAT, size_t R, size_t T>
HYBRID_INFER_INLINE inline void dotGroup(const uint8_t* const* w, size_t at, const Q8A* x, size_t column, I (&sums)[4][T]) {
  I vectors[T][kCodeVectors];
  each<T>([&](auto t) HYBRID_INFER_INLINE {
    each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { vectors[t][b] = iload(x[t].codes + column + b * kVectorBytes); });
  });
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    I codes[kCodeVectors];
    groupCodes<FORMAT>(w[r] + at, codes);
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      sums[r][t] = izero();
      each<kCodeVectors>([&](auto b) HYBRID_INFER_INLINE { sums[r][t] = idot4(sums[r][t], codes[b], vectors[t][b]); });
    });
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

// out[t] lane r = row w[r] . x[t]; lanes from R on are anything. `fetch.step()` is called once per cache line of codes.
template <Format FORMAT, size_t R, size_t T, typename Fetch>
inline void dotTile(const uint8_t* const* w, const Q8A* x, size_t cols, F4 (&out)[T], Fetch& fetch) {
  const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple);
  const size_t whole = padded / kGroup;
  constexpr size_t bytes = groupBytes(FORMAT);
  const size_t scales = scaleOffset(FORMAT, cols);
  each<T>([&](auto t) HYBRID_INFER_INLINE { out[t] = f4zero(); });

  for (size_t g0 = 0; g0 < groups; g0 += W) {
    alignas(64) float factors[T][4 * W];  // s_w s_x: [group][row]
    alignas(64) float offsets[T][W];      // weightOffset sum(x)
    F rowScales[4] = {fzero(), fzero(), fzero(), fzero()};
    each<R>([&](auto r) HYBRID_INFER_INLINE {
      rowScales[r] = rowScalesAt(reinterpret_cast<const uint16_t*>(w[r] + scales), g0, groups);
    });
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      const F xScales = scalesAt(x[t].scales, g0, groups);
      F f[4];
      each<4>([&](auto r) HYBRID_INFER_INLINE { f[r] = fmul(rowScales[r], xScales); });
      interleave4(f[0], f[1], f[2], f[3]);
      each<4>([&](auto r) HYBRID_INFER_INLINE { fstore(factors[t] + r * W, f[r]); });
      fstore(offsets[t], fmul(sumsAt(x[t].sums, g0, groups), fset(static_cast<float>(weightOffset(FORMAT)))));
    });
    auto add = [&](const I (&sums)[4][T], size_t g) HYBRID_INFER_INLINE {
      each<T>([&](auto t) HYBRID_INFER_INLINE {
        const I none = izero();
        F4 sum = isum4(sums[0][t], R > 1 ? sums[1][t] : none, R > 2 ? sums[2][t] : none, R > 3 ? sums[3][t] : none);
        if constexpr (codeFactor(FORMAT) == 2) sum = f4add(sum, sum);
        out[t] = f4fmadd(f4sub(sum, f4set(offsets[t][g - g0])), f4load(factors[t] + 4 * (g - g0)), out[t]);
      });
    };
    const size_t end = g0 + W < whole ? g0 + W : whole;
    for (size_t g = g0; g < end; g++) {
      I sums[4][T];
      dotGroup<FORMAT, R, T>(w, g * bytes, x, g * kGroup, sums);
      add(sums, g);
      for (size_t line = 0; line + kLine <= bytes; line += kLine) fetch.step();
    }
    if (whole < groups && whole >= g0 && whole - g0 < W) {
      I sums[4][T];
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        each<T>([&](auto t) HYBRID_INFER_INLINE {
          sums[r][t] = dotShortGroup<FORMAT>(w[r] + whole * bytes, x[t].codes + whole * kGroup, padded - whole * kGroup);
        });
      });
      add(sums, whole);
    }
  }
  fetch.finish();
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

// out[t][r] = row w[r] of any format . the activation vector at x[t]
template <Format FORMAT, size_t R, size_t T, typename Fetch>
inline void dotAny(const uint8_t* const* w, const uint8_t* const* x, size_t cols, float (&out)[T][4], Fetch& fetch) {
  if constexpr (FORMAT == Format::f32) {
    float results[R][T];
    dotTileF32<R, T>(w, x, cols, results, fetch);
    each<R>([&](auto r) HYBRID_INFER_INLINE {
      each<T>([&](auto t) HYBRID_INFER_INLINE { out[t][r] = results[r][t]; });
    });
  } else {
    Q8A vectors[T];
    F4 results[T];
    each<T>([&](auto t) HYBRID_INFER_INLINE { vectors[t] = q8aAt(x[t], cols); });
    dotTile<FORMAT, R, T>(w, vectors, cols, results, fetch);
    each<T>([&](auto t) HYBRID_INFER_INLINE { f4store(out[t], results[t]); });
  }
}

}  // namespace
}  // namespace hybrid_infer
