// dot and dotLists: rows times the vectors of tokens. Included after row_dot.h.
//
// Few tokens, f32 rows, lists: four rows at a time meet the tokens one or two at a time (row_dot.h). Many tokens:
// kBlockRows rows are repacked so that one vector holds four neighbouring columns of W rows, and each
// activation's four columns are broadcast against it:
//
//     weights  [k-step][2 vectors][W rows][4 columns] u8      k-step = four columns
//     sums     [2 vectors][kTileTokens] of W int32: lane = row
//
// so that nothing is added across lanes.
#pragma once

#include "row_dot.h"

namespace hybrid_infer {
namespace {

// ---- four rows at a time -----------------------------------------------------------------------------------

// Tokens that share a row's codes in registers; 512-bit builds have twice the registers.
template <Format FORMAT> constexpr size_t kRowTokens = FORMAT == Format::f32 ? (W == 8 ? 2 : 4) : (W == 16 ? 2 : 1);

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

// The first rows of a list that nothing has fetched yet.
template <Format FORMAT, typename Row> inline void fetchFirst(size_t n, Row row, size_t cols) {
  for (size_t i = 0; i < kRowsAhead && i < n; i++) {
    for (size_t at = 0; at < rowBytes(FORMAT, cols); at += kLine) __builtin_prefetch(row(i) + at, 0, 2);
  }
}

// out[t * outStride + i] = row(i) . X[t] for i < n. `known`: rows there are, of which those behind are fetched ahead.
template <Format FORMAT, typename Row>
inline void dotRows(size_t n, size_t known, Row row, const uint8_t* x, size_t xStride, size_t nTokens, float* out,
                    size_t outStride, size_t cols) {
  for (size_t i = 0; i < n; i += kRowsTogether) {
    const size_t rows = n - i < kRowsTogether ? n - i : kRowsTogether;
    const uint8_t* w[kRowsTogether];
    for (size_t r = 0; r < kRowsTogether; r++) w[r] = row(i + (r < rows ? r : rows - 1));
    Ahead<kRowsTogether> ahead;
    // Past the end there is nothing to fetch: the last row again costs nothing, it is here already.
    for (size_t r = 0; r < kRowsTogether; r++) {
      const size_t next = i + kRowsAhead + r;
      ahead.rows[r] = row(next < known ? next : known - 1);
    }
    ahead.bytes = rowBytes(FORMAT, cols);
    size_t t = 0;
    auto tile = [&](auto size, auto& fetch) {
      constexpr size_t T = decltype(size)::value;
      const uint8_t* vectors[T];
      float results[T][4];
      for (size_t j = 0; j < T; j++) vectors[j] = x + (t + j) * xStride;
      if (rows == 1) dotAny<FORMAT, 1, T>(w, vectors, cols, results, fetch);
      else dotAny<FORMAT, kRowsTogether, T>(w, vectors, cols, results, fetch);
      for (size_t j = 0; j < T; j++) {
        float* to = out + (t + j) * outStride + i;
        if (rows == kRowsTogether) f4store(to, f4load(results[j]));
        else for (size_t r = 0; r < rows; r++) to[r] = results[j][r];
      }
      t += T;
    };
    // The first tokens fetch, the others find the rows in a cache.
    NoAhead none;
    if (nTokens == 1) tile(Size<1>{}, ahead);
    else {
      constexpr size_t T = kRowTokens<FORMAT>;
      if (nTokens >= T) tile(Size<T>{}, ahead);
      while (t + T <= nTokens) tile(Size<T>{}, none);
      while (t < nTokens) tile(Size<1>{}, none);
    }
  }
}

// ---- many tokens -----------------------------------------------------------------------------------------

constexpr size_t kBlockRows = 2 * W;
// Groups repacked at a time: 4 * 128 columns * kBlockRows = 16 KB with 512-bit vectors, a third of level 1.
constexpr size_t kBlockGroups = 4;
// Below this many tokens repacking costs more than it saves.
constexpr size_t kRepackTokens = 6;

struct PackedBlock {
  alignas(64) I codes[kBlockGroups][kGroup / 4][2];
  alignas(64) float scales[kBlockGroups][kBlockRows];
  size_t steps[kBlockGroups];  // k-steps of each group
  size_t groups;
};

// W rows of one group -> codes[k][v] for its k-steps. Rows from `rows` on become zeros.
template <Format FORMAT>
inline void packGroup(Rows w, size_t rows, size_t at, size_t length, I (*codes)[2], size_t v) {
  if constexpr (isSketch(FORMAT)) {
    alignas(64) uint8_t columns[W][kGroup];
    for (size_t i = 0; i < W; i++) {
      if (i < rows) groupBytesOf<FORMAT>(w.base + i * w.stride + at, length, columns[i]);
      else std::memset(columns[i], 0, kGroup);
    }
    for (size_t b = 0; b < length; b += kVectorBytes) {
      I m[W];
      for (size_t i = 0; i < W; i++) m[i] = iload(columns[i] + b);
      transpose(m);
      for (size_t k = 0; k < W && b + 4 * k < length; k++) codes[b / 4 + k][v] = m[k];
    }
  } else {
    const size_t bytes = length * groupBytes(FORMAT) / kGroup;
    for (size_t b = 0; b < bytes; b += kVectorBytes) {
      I m[W];
      for (size_t i = 0; i < W; i++) m[i] = i < rows ? iloadn(w.base + i * w.stride + at + b, bytes - b) : izero();
      transpose(m);
      const size_t steps = (bytes - b) / 4 < W ? (bytes - b) / 4 : W;
      for (size_t k = 0; k < steps; k++) {
        if constexpr (FORMAT == Format::q4) {
          codes[b / 4 + k][v] = lowNibbles(m[k]);
          codes[length / 8 + b / 4 + k][v] = highNibbles(m[k]);
        } else {
          codes[b / 4 + k][v] = m[k];
        }
      }
    }
  }
}

// The first `rows` (at most kBlockRows) rows of w, groups g0.. of each. Missing rows become zeros.
template <Format FORMAT>
void packBlock(Rows w, size_t rows, size_t g0, size_t groups, size_t cols, PackedBlock& block) {
  const size_t padded = alignUp(cols, kColumnMultiple);
  block.groups = groups;
  for (size_t g = 0; g < groups; g++) {
    const size_t column = (g0 + g) * kGroup;
    const size_t length = padded - column < kGroup ? padded - column : kGroup;
    block.steps[g] = length / 4;
    for (size_t v = 0; v < 2; v++) {
      const size_t left = rows > v * W ? rows - v * W : 0;
      packGroup<FORMAT>({w.base + v * W * w.stride, w.stride}, left, (g0 + g) * groupBytes(FORMAT), length, block.codes[g], v);
    }
    for (size_t r = 0; r < kBlockRows; r++) {
      uint32_t bits = 0;
      if (r < rows) {
        bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(
                   w.base + r * w.stride + scaleOffset(FORMAT, cols))[g0 + g])
               << 16;
      }
      __builtin_memcpy(&block.scales[g][r], &bits, sizeof bits);
    }
  }
}

// One packed block times T tokens. `add`: to what is there already.
template <Format FORMAT, size_t T>
inline void multiplyTile(const PackedBlock& block, size_t rows, size_t g0, const uint8_t* x, size_t xStride, float* out,
                         size_t outStride, size_t cols, bool add) {
  const Q8A first = q8aAt(x, cols);
  auto ofToken = [&](auto* p, size_t t) {
    return *reinterpret_cast<decltype(p)>(reinterpret_cast<const uint8_t*>(p) + t * xStride);
  };
  for (size_t g = 0; g < block.groups; g++) {
    const int8_t* codes = first.codes + (g0 + g) * kGroup;
    I sums[2][T];
    auto offset = [&](size_t t) HYBRID_INFER_INLINE { return iset(-weightOffset(FORMAT) * ofToken(first.sums + g0 + g, t)); };
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      sums[0][t] = sums[1][t] = codeFactor(FORMAT) == 1 ? offset(t) : izero();
    });
    const I(*weights)[2] = block.codes[g];
    for (size_t k = 0; k < block.steps[g]; k++) {
      const I w0 = weights[k][0], w1 = weights[k][1];
      each<T>([&](auto t) HYBRID_INFER_INLINE {
        int32_t four;
        __builtin_memcpy(&four, codes + t * xStride + 4 * k, sizeof four);
        const I a = iset(four);
        sums[0][t] = idot4(sums[0][t], w0, a);
        sums[1][t] = idot4(sums[1][t], w1, a);
      });
    }
    const bool keep = add || g > 0;
    each<2>([&](auto v) HYBRID_INFER_INLINE {
      const size_t left = rows > v * W ? rows - v * W : 0;
      const F rowScales = fload(block.scales[g] + v * W);
      each<T>([&](auto t) HYBRID_INFER_INLINE {
        float* to = out + t * outStride + v * W;
        const I sum = codeFactor(FORMAT) == 1 ? sums[v][t] : iadd(ishl<1>(sums[v][t]), offset(t));
        const F value = ifloat(sum), factor = fmul(rowScales, fset(ofToken(first.scales + g0 + g, t)));
        if (left >= W) fstore(to, fmadd(value, factor, keep ? fload(to) : fzero()));
        else if (left > 0) fstoren(to, fmadd(value, factor, keep ? floadn(to, left) : fzero()), left);
      });
    });
  }
}

template <Format FORMAT>
void dotPacked(Rows w, size_t rows, const uint8_t* x, size_t xStride, size_t nTokens, float* out, size_t outStride,
               size_t cols) {
  PackedBlock block;
  const size_t groups = groupCount(cols);
  for (size_t r = 0; r < rows; r += kBlockRows) {
    const size_t n = rows - r < kBlockRows ? rows - r : kBlockRows;
    for (size_t g0 = 0; g0 < groups; g0 += kBlockGroups) {
      const size_t nGroups = groups - g0 < kBlockGroups ? groups - g0 : kBlockGroups;
      packBlock<FORMAT>({w.base + r * w.stride, w.stride}, n, g0, nGroups, cols, block);
      size_t t = 0;
      auto tile = [&](auto size) {
        constexpr size_t T = decltype(size)::value;
        for (; t + T <= nTokens; t += T) {
          multiplyTile<FORMAT, T>(block, n, g0, x + t * xStride, xStride, out + t * outStride + r, outStride, cols, g0 > 0);
        }
      };
      tile(Size<kTileTokens>{});
      tile(Size<4>{});
      tile(Size<1>{});
    }
  }
}

// ---- the kernels -------------------------------------------------------------------------------------------

template <Format FORMAT>
void dotFormat(Rows w, size_t rows, const uint8_t* x, size_t xStride, size_t nTokens, float* out, size_t outStride,
               size_t cols) {
  if (rows == 0 || nTokens == 0) return;
  if constexpr (FORMAT != Format::f32) {
    if (nTokens >= kRepackTokens) return dotPacked<FORMAT>(w, rows, x, xStride, nTokens, out, outStride, cols);
  }
  const auto row = [&](size_t i) { return w.base + i * w.stride; };
  fetchFirst<FORMAT>(rows, row, cols);
  dotRows<FORMAT>(rows, rows, row, x, xStride, nTokens, out, outStride, cols);
}

// Many tokens go through the rows in ranges of this many bytes: what a token reads is in level 2 for the others.
constexpr size_t kListTileBytes = 256 << 10;

template <Format FORMAT>
void dotListsFormat(Rows w, Lists lists, const uint8_t* x, size_t xStride, float* out, size_t cols) {
  const size_t tileRows = kListTileBytes / rowBytes(FORMAT, cols) + 1;
  const auto dotPart = [&](size_t t, size_t first, size_t end) {
    const auto row = [&](size_t i) { return w.base + lists.ids[first + i] * w.stride; };
    const size_t known = lists.offsets[t + 1] - first;
    if (lists.nTokens == 1) fetchFirst<FORMAT>(known, row, cols);
    dotRows<FORMAT>(end - first, known, row, x + t * xStride, 0, 1, out + first, 0, cols);
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
