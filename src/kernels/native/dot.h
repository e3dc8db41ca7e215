// dot and dotLists: rows times the vectors of tokens. Included after row_dot.h.
//
// Four rows at a time meet the tokens one, two or four at a time (row_dot.h). Many tokens take their turns on a
// block of rows that stays in level 1. Where one instruction multiplies four bytes in vectors of 16 lanes, groups have
// sums of their own (long_dot.h), and rows of few groups stand side by side (short_dot.h).
#pragma once

#include "row_dot.h"

#ifdef __AVX512VNNI__
#include "short_dot.h"
#endif

namespace hybrid_infer {
namespace {

// Which sums a product has: a row's lanes are its columns, or its groups (long_dot.h).
enum class Lanes { Columns, Groups };

// ---- four rows at a time -----------------------------------------------------------------------------------

// Rows are fetched this many rows or list entries ahead, into level 2: the hardware fetches poorly across pages and
// not at all across list entries. 4 ahead is 10 % slower, 16 as fast as 8.
constexpr size_t kRowsAhead = 8;

// Fetches R rows line by line in turns: entries of a list.
template <size_t R> struct RowsAhead {
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

// Fetches R rows that stand behind one another in the order of their bytes: memory gives up to a tenth more.
template <size_t R> struct BytesAhead {
  const uint8_t *next, *end;

  HYBRID_INFER_INLINE inline void step() {
    each<R>([&](auto r) HYBRID_INFER_INLINE { __builtin_prefetch(next + r * kLine, 0, 2); });
    next += R * kLine;
  }
  HYBRID_INFER_INLINE inline void finish() {
    for (; next < end; next += kLine) __builtin_prefetch(next, 0, 2);
  }
};

// The first rows of a call, which nothing has fetched yet.
template <Format FORMAT, typename Row> inline void fetchFirst(size_t n, const Row& row, size_t cols) {
  for (size_t i = 0; i < kRowsAhead && i < n; i++) {
    for (size_t at = 0; at < rowBytes(FORMAT, cols); at += kLine) __builtin_prefetch(row(i) + at, 0, 2);
  }
}

// Rows of a call: where row i stands, what to fetch as row i (past the end too), how R rows from i on are fetched, and
// how many are multiplied together.
//
// Behind one another. Past the end: what a lane multiplies next mostly stands there, and fetching never fails.
template <Format FORMAT> struct AllRows {
  // Eight bits are unpacked by nothing: rows together only read at four places, a twentieth slower.
  static constexpr size_t kTogether = FORMAT == Format::q8 ? 1 : kRowsTogether;
  const uint8_t* base;
  size_t stride;

  const uint8_t* operator()(size_t i) const { return base + i * stride; }
  const uint8_t* ahead(size_t i) const { return (*this)(i); }
  template <size_t R> BytesAhead<R> fetch(size_t i, size_t) const { return {(*this)(i), (*this)(i + R)}; }
};

// Those of a list, of which `known` entries can be fetched. Past them: the first rows again, which costs nothing, or
// what stands `behind` them.
template <Format FORMAT> struct ListedRows {
  static constexpr size_t kTogether = kRowsTogether;
  Rows w;
  const uint32_t* ids;
  size_t known, behind;

  const uint8_t* operator()(size_t i) const { return w.base + ids[i] * w.stride; }
  const uint8_t* ahead(size_t i) const { return i < known ? (*this)(i) : (*this)((i - known) % known) + behind; }
  template <size_t R> RowsAhead<R> fetch(size_t i, size_t cols) const {
    RowsAhead<R> rows;
    each<R>([&](auto r) HYBRID_INFER_INLINE { rows.rows[r] = ahead(i + r); });
    rows.bytes = rowBytes(FORMAT, cols);
    return rows;
  }
};

// out[r][t] = row w[r] of any format . the activation vector at x[t]
template <Format FORMAT, Lanes LANES, size_t R, size_t T, typename Fetch>
inline void dotAny(const uint8_t* const* w, const uint8_t* const* x, size_t cols, float (&out)[R][T], Fetch& fetch) {
  if constexpr (FORMAT == Format::f32) {
    dotTileF32<R, T>(w, x, cols, out, fetch);
  } else {
    Q8A vectors[T];
    each<T>([&](auto t) HYBRID_INFER_INLINE { vectors[t] = q8aAt(x[t], cols); });
#ifdef __AVX512VNNI__
    if constexpr (LANES == Lanes::Groups) return dotLongTile<FORMAT, R, T>(w, vectors, cols, out, fetch);
#endif
    dotTile<FORMAT, R, T>(w, vectors, cols, out, fetch);
  }
}

// R rows times T tokens from t on: out[(t + j) * outStride + r].
template <Format FORMAT, Lanes LANES, size_t R, size_t T, typename Fetch>
inline void dotTokens(const uint8_t* const* w, const uint8_t* x, size_t xStride, size_t t, float* out, size_t outStride,
                      size_t cols, Fetch& fetch) {
  const uint8_t* vectors[T];
  float results[R][T];
  each<T>([&](auto j) HYBRID_INFER_INLINE { vectors[j] = x + (t + j) * xStride; });
  dotAny<FORMAT, LANES, R, T>(w, vectors, cols, results, fetch);
  each<T>([&](auto j) HYBRID_INFER_INLINE {
    each<R>([&](auto r) HYBRID_INFER_INLINE { out[(t + j) * outStride + r] = results[r][j]; });
  });
}

// out[i] = row i . x for i < n. Meanwhile the rows behind are fetched.
template <Format FORMAT, Lanes LANES, typename Source>
inline void dotRows(size_t n, const Source& source, const uint8_t* x, float* out, size_t cols) {
#ifdef __AVX512VNNI__
  if constexpr (LANES == Lanes::Groups) {
    if (groupCount(cols) < kLongGroups) return dotFewGroups<FORMAT>(n, source, x, out, cols);
  }
#endif
  size_t i = 0;
  auto rows = [&](auto size) {
    constexpr size_t R = decltype(size)::value;
    for (; i + R <= n; i += R) {
      const uint8_t* w[R];
      each<R>([&](auto r) HYBRID_INFER_INLINE { w[r] = source(i + r); });
      auto ahead = source.template fetch<R>(i + kRowsAhead, cols);
      dotTokens<FORMAT, LANES, R, 1>(w, x, 0, 0, out + i, 0, cols, ahead);
    }
  };
  // Three bits take so many registers to unpack that rows together only get in each other's way.
  if constexpr (FORMAT != Format::q3) rows(Size<Source::kTogether>{});
  rows(Size<1>{});
}

// Rows that all tokens use before the next ones.
constexpr size_t kBlockBytes = 16 << 10;

template <Format FORMAT, Lanes LANES>
void dotBatch(Rows w, size_t rows, const uint8_t* x, size_t xStride, size_t nTokens, float* out, size_t outStride,
              size_t cols) {
  const size_t blockRows = kBlockBytes / rowBytes(FORMAT, cols) / kRowsTogether * kRowsTogether + kRowsTogether;
  for (size_t begin = 0; begin < rows; begin += blockRows) {
    const size_t end = rows - begin < blockRows ? rows : begin + blockRows;
    size_t t = 0;
    auto tokens = [&](auto size, auto together) {
      constexpr size_t T = decltype(size)::value;
      for (; t + T <= nTokens; t += T) {
        size_t i = begin;
        auto tiles = [&](auto count) {
          constexpr size_t R = decltype(count)::value;
          for (; i + R <= end; i += R) {
            const uint8_t* at[R];
            each<R>([&](auto r) HYBRID_INFER_INLINE { at[r] = w.base + (i + r) * w.stride; });
            // The first tokens fetch the next block, the others find this one in a cache.
            auto ahead = AllRows<FORMAT>{w.base, w.stride}.template fetch<R>(i + blockRows, cols);
            NoAhead none;
            if (t == 0) dotTokens<FORMAT, LANES, R, T>(at, x, xStride, t, out + i, outStride, cols, ahead);
            else dotTokens<FORMAT, LANES, R, T>(at, x, xStride, t, out + i, outStride, cols, none);
          }
        };
        tiles(together);
        tiles(Size<1>{});
      }
    };
    if constexpr (LANES == Lanes::Groups) {
      tokens(Size<2>{}, Size<2>{});
    } else {
      tokens(Size<kTokensTogether>{}, Size<kRowsTogether>{});
      tokens(Size<(kTokensTogether + 1) / 2>{}, Size<kRowsTogether>{});
    }
    tokens(Size<1>{}, Size<kRowsTogether>{});
  }
}

// ---- the kernels -------------------------------------------------------------------------------------------

#ifdef __AVX512VNNI__
constexpr Lanes lanesOf(Format format) { return format == Format::f32 ? Lanes::Columns : Lanes::Groups; }
#else
constexpr Lanes lanesOf(Format) { return Lanes::Columns; }
#endif

template <Format FORMAT>
void dotFormat(Rows w, size_t rows, const uint8_t* x, size_t xStride, size_t nTokens, float* out, size_t outStride,
               size_t cols) {
  if (rows == 0 || nTokens == 0) return;
  const AllRows<FORMAT> all = {w.base, w.stride};
  constexpr Lanes lanes = lanesOf(FORMAT);
  const auto one = [&](size_t t) { dotRows<FORMAT, lanes>(rows, all, x + t * xStride, out + t * outStride, cols); };
  fetchFirst<FORMAT>(rows, all, cols);
  if (nTokens == 1) return one(0);
  size_t done = 0;
#ifdef __AVX512VNNI__
  if constexpr (lanes == Lanes::Groups) {
    // Tokens that are not there cost as much as those that are.
    const auto sets = [&](auto tokens, size_t n) {
      dotSets<FORMAT, tokens>(w, rows, x + done * xStride, xStride, n, out + done * outStride, outStride, cols);
      done += n;
    };
    const size_t left = nTokens % 8, eights = left > 4 ? nTokens : nTokens - left;
    if (eights > 0) sets(Size<8>{}, eights);
    if (nTokens - eights > 2) sets(Size<4>{}, nTokens - eights);
    if (groupCount(cols) < kLongGroups) {
      for (; done < nTokens; done++) one(done);
    }
  }
#endif
  if (done < nTokens) {
    dotBatch<FORMAT, lanes>(w, rows, x + done * xStride, xStride, nTokens - done, out + done * outStride, outStride, cols);
  }
}

// Many tokens go through the rows in ranges of this many bytes: what a token reads is in level 2 for the others.
constexpr size_t kListTileBytes = 256 << 10;

template <Format FORMAT>
void dotListsFormat(Rows w, Lists lists, const uint8_t* x, size_t xStride, float* out, size_t cols) {
  const size_t tileRows = kListTileBytes / rowBytes(FORMAT, cols) + 1;
  const auto dotPart = [&](size_t t, size_t first, size_t end) {
    // In records of two rows what stands behind is added next.
    const size_t behind = w.stride >= 2 * rowBytes(FORMAT, cols) ? rowBytes(FORMAT, cols) : 0;
    const ListedRows<FORMAT> listed = {w, lists.ids + first, lists.offsets[t + 1] - first, behind};
    if (lists.nTokens == 1) fetchFirst<FORMAT>(listed.known, listed, cols);
    dotRows<FORMAT, lanesOf(FORMAT)>(end - first, listed, x + t * xStride, out + first, cols);
  };
  eachTile(lists, tileRows, dotPart);
}

#define HYBRID_INFER_EACH_FORMAT(RUN)              \
  switch (format) {                                \
    case Format::f32: return RUN(Format::f32);     \
    case Format::q8: return RUN(Format::q8);       \
    case Format::q4: return RUN(Format::q4);       \
    case Format::q1: return RUN(Format::q1);       \
    case Format::q2: return RUN(Format::q2);       \
    case Format::q3: return RUN(Format::q3);       \
  }

void dot(Format format, const uint8_t* w, size_t stride, size_t rows, const uint8_t* x, size_t xStride, size_t nTokens,
         float* out, size_t outStride, size_t cols) {
#define HYBRID_INFER_RUN(FORMAT) dotFormat<FORMAT>({w, stride}, rows, x, xStride, nTokens, out, outStride, cols)
  HYBRID_INFER_EACH_FORMAT(HYBRID_INFER_RUN)
#undef HYBRID_INFER_RUN
}

void dotLists(Format format, const uint8_t* w, size_t stride, const uint32_t* offsets, const uint32_t* ids,
              size_t nTokens, const uint8_t* x, size_t xStride, float* out, size_t cols) {
#define HYBRID_INFER_RUN(FORMAT) dotListsFormat<FORMAT>({w, stride}, {offsets, ids, nTokens}, x, xStride, out, cols)
  HYBRID_INFER_EACH_FORMAT(HYBRID_INFER_RUN)
#undef HYBRID_INFER_RUN
}

}  // namespace
}  // namespace hybrid_infer
