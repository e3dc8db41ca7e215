// S1/S2: weight rows times activation vectors. Included by each instruction set after its simd_*.h.
#pragma once

#include "row_layout.h"
#include "unroll.h"

namespace hybrid_infer {
namespace {

constexpr size_t kVectorBytes = 4 * W;
constexpr size_t kLine = 64;  // cache line

inline I lowNibbles(I v) { return iand(v, iset(0x0F0F0F0F)); }
inline I highNibbles(I v) { return iand(ishr<4>(v), iset(0x0F0F0F0F)); }

// What to fetch from memory while rows are multiplied: nothing.
struct NoAhead {
  inline void step() {}
  inline void finish() {}
};

// ---- R quantised rows times T activation vectors -----------------------------------------------------------

// One whole group: R x T sums of unsigned codes times activations, held in registers.
template <Format FORMAT, size_t R, size_t T>
HYBRID_INFER_INLINE inline void dotGroup(const uint8_t* const* w, size_t at, const Q8A* x, size_t column, I (&sums)[R][T]) {
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    each<T>([&](auto t) HYBRID_INFER_INLINE { sums[r][t] = izero(); });
  });
  constexpr size_t bytes = FORMAT == Format::q4 ? kGroup / 2 : kGroup;
  each<bytes / kVectorBytes>([&](auto bIndex) HYBRID_INFER_INLINE {
    const size_t b = bIndex * kVectorBytes;
    I x0[T], x1[T];
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      x0[t] = iload(x[t].codes + column + b);
      if constexpr (FORMAT == Format::q4) x1[t] = iload(x[t].codes + column + kGroup / 2 + b);
    });
    each<R>([&](auto r) HYBRID_INFER_INLINE {
      const I codes = iload(w[r] + at + b);
      each<T>([&](auto t) HYBRID_INFER_INLINE {
        if constexpr (FORMAT == Format::q4) {
          sums[r][t] = idot4(sums[r][t], lowNibbles(codes), x0[t]);
          sums[r][t] = idot4(sums[r][t], highNibbles(codes), x1[t]);
        } else {
          sums[r][t] = idot4(sums[r][t], codes, x0[t]);
        }
      });
    });
  });
}

// The last group of a row, when it is shorter: `length` is 32, 64 or 96 columns.
template <Format FORMAT> inline I dotShortGroup(const uint8_t* w, const int8_t* x, size_t length) {
  const size_t bytes = FORMAT == Format::q4 ? length / 2 : length;
  I sum = izero();
  for (size_t b = 0; b < bytes; b += kVectorBytes) {
    const I codes = iloadn(w + b, bytes - b), first = iloadn(x + b, bytes - b);
    if constexpr (FORMAT == Format::q4) {
      sum = idot4(sum, lowNibbles(codes), first);
      sum = idot4(sum, highNibbles(codes), iloadn(x + length / 2 + b, bytes - b));
    } else {
      sum = idot4(sum, codes, first);
    }
  }
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
// sums: s_w s_x (sum(u x) - offset sum(x)). `fetch.step()` is called once per cache line of codes.
template <Format FORMAT, size_t R, size_t T, typename Fetch>
inline void dotTile(const uint8_t* const* w, const Q8A* x, size_t cols, float (&out)[R][T], Fetch& fetch) {
  const size_t groups = groupCount(cols), padded = alignUp(cols, kColumnMultiple);
  const size_t whole = padded / kGroup;
  constexpr size_t groupBytes = FORMAT == Format::q4 ? kGroup / 2 : kGroup;
  const size_t scales = scaleOffset(FORMAT, cols);
  F totals[R][T], offsets[R][T];
  each<R>([&](auto r) HYBRID_INFER_INLINE {
    each<T>([&](auto t) HYBRID_INFER_INLINE { totals[r][t] = offsets[r][t] = fzero(); });
  });

  for (size_t g0 = 0; g0 < groups; g0 += W) {
    alignas(64) float factors[R][T][W];  // s_w s_x of each group
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      const F xScales = scalesAt(x[t].scales, g0, groups), xSums = sumsAt(x[t].sums, g0, groups);
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        const F factor = fmul(rowScalesAt(reinterpret_cast<const uint16_t*>(w[r] + scales), g0, groups), xScales);
        fstore(factors[r][t], factor);
        offsets[r][t] = fmadd(factor, xSums, offsets[r][t]);
      });
    });
    const size_t end = g0 + W < whole ? g0 + W : whole;
    for (size_t g = g0; g < end; g++) {
      I sums[R][T];
      dotGroup<FORMAT, R, T>(w, g * groupBytes, x, g * kGroup, sums);
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        each<T>([&](auto t) HYBRID_INFER_INLINE {
          totals[r][t] = fmadd(ifloat(sums[r][t]), fset(factors[r][t][g - g0]), totals[r][t]);
        });
      });
      for (size_t line = 0; line < groupBytes; line += kLine) fetch.step();
    }
    if (whole < groups && whole - g0 < W) {
      each<R>([&](auto r) HYBRID_INFER_INLINE {
        each<T>([&](auto t) HYBRID_INFER_INLINE {
          const I sum = dotShortGroup<FORMAT>(w[r] + whole * groupBytes, x[t].codes + whole * kGroup, padded - whole * kGroup);
          totals[r][t] = fmadd(ifloat(sum), fset(factors[r][t][whole - g0]), totals[r][t]);
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

// R rows of any format times the T activation vectors at x[t].
template <Format FORMAT, size_t R, size_t T, typename Fetch>
inline void dotAny(const uint8_t* const* w, const uint8_t* const* x, size_t cols, float (&out)[R][T], Fetch& fetch) {
  if constexpr (FORMAT == Format::f32) {
    dotTileF32<R, T>(w, x, cols, out, fetch);
  } else {
    Q8A vectors[T];
    each<T>([&](auto t) HYBRID_INFER_INLINE { vectors[t] = q8aAt(x[t], cols); });
    dotTile<FORMAT, R, T>(w, vectors, cols, out, fetch);
  }
}

// ---- dot, dotList ----------------------------------------------------------------------------------------

// Rows multiplied together: they share the loads of the activations, and their cache misses overlap.
constexpr size_t kRowsTogether = 4;

// Rows are fetched this many rows or list entries ahead, into level 2: the hardware fetches poorly across pages and
// not at all across list entries. 4 ahead is 10 % slower, 16 as fast as 8.
constexpr size_t kRowsAhead = 8;

// Fetches R rows line by line.
template <size_t R> struct Ahead {
  const uint8_t* rows[R];
  size_t bytes;
  size_t at = 0;

  HYBRID_INFER_INLINE inline void step() {
    each<R>([&](auto r) HYBRID_INFER_INLINE { __builtin_prefetch(rows[r] + at, 0, 2); });
    at += kLine;
  }
  HYBRID_INFER_INLINE inline void finish() {
    while (at < bytes) step();
  }
};

// out[i] = row(i) . x for i < n
template <Format FORMAT, typename Row>
inline void dotMany(size_t n, Row row, const uint8_t* x, float* out, size_t cols) {
  const size_t bytes = rowBytes(FORMAT, cols);
  auto ahead = [&](size_t i, auto size) {
    Ahead<decltype(size)::value> fetch;
    // Past the end there is nothing to fetch: the last row again costs nothing, it is here already.
    each<decltype(size)::value>([&](auto r) HYBRID_INFER_INLINE { fetch.rows[r] = row(i + r < n ? i + r : n - 1); });
    fetch.bytes = bytes;
    return fetch;
  };
  size_t i = 0;
  auto rows = [&](auto size) {
    constexpr size_t R = decltype(size)::value;
    for (; i + R <= n; i += R) {
      const uint8_t* w[R];
      float results[R][1];
      each<R>([&](auto r) HYBRID_INFER_INLINE { w[r] = row(i + r); });
      auto fetch = ahead(i + kRowsAhead, size);
      dotAny<FORMAT, R, 1>(w, &x, cols, results, fetch);
      each<R>([&](auto r) HYBRID_INFER_INLINE { out[i + r] = results[r][0]; });
    }
  };
  if (n == 0) return;
  auto first = ahead(0, Size<kRowsAhead>{});
  first.finish();
  rows(Size<kRowsTogether>{});
  rows(Size<1>{});
}

template <Format FORMAT>
void dotFormat(Rows w, size_t rows, const uint8_t* x, float* out, size_t cols) {
  dotMany<FORMAT>(rows, [&](size_t i) { return w.base + i * w.stride; }, x, out, cols);
}

void dot(Format format, Rows w, size_t rows, const uint8_t* x, float* out, size_t cols) {
  switch (format) {
    case Format::f32: return dotFormat<Format::f32>(w, rows, x, out, cols);
    case Format::q8: return dotFormat<Format::q8>(w, rows, x, out, cols);
    case Format::q4: return dotFormat<Format::q4>(w, rows, x, out, cols);
  }
}

template <Format FORMAT>
void dotListFormat(Rows w, const uint32_t* list, size_t count, const uint8_t* x, float* out, size_t cols) {
  dotMany<FORMAT>(count, [&](size_t i) { return w.base + list[i] * w.stride; }, x, out, cols);
}

void dotList(Format format, Rows w, const uint32_t* list, size_t count, const uint8_t* x, float* out, size_t cols) {
  switch (format) {
    case Format::f32: return dotListFormat<Format::f32>(w, list, count, x, out, cols);
    case Format::q8: return dotListFormat<Format::q8>(w, list, count, x, out, cols);
    case Format::q4: return dotListFormat<Format::q4>(w, list, count, x, out, cols);
  }
}

}  // namespace
}  // namespace hybrid_infer
