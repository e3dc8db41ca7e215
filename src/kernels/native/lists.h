// Tokens' lists of rows, compressed by token, and going through them in ranges of rows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybrid_infer {
namespace {

// Rows: row i begins at base + i * stride.
struct Rows {
  const uint8_t* base;
  size_t stride;
};

// Token t's rows are ids[k] for k in offsets[t] .. offsets[t + 1] - 1, ascending.
struct Lists {
  const uint32_t* offsets;
  const uint32_t* ids;
  size_t nTokens;
};

// The first k in begin..end whose id is at least `id`.
inline size_t lowerBound(const uint32_t* ids, size_t begin, size_t end, size_t id) {
  while (begin < end) {
    const size_t middle = begin + (end - begin) / 2;
    if (ids[middle] < id) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

// work(t, first, end) for the entries of each token in one range of `tileRows` rows after the other; a token's
// entries come in order. One token: all at once.
//
// `block`: entries that must stay together, counted from the beginning of a token's list. They belong to the range
// of their first row.
template <typename Work> inline void eachTile(Lists lists, size_t tileRows, Work work, size_t block = 1) {
  const uint32_t *offsets = lists.offsets, *ids = lists.ids;
  if (lists.nTokens == 1) {
    if (offsets[0] < offsets[1]) work(0, offsets[0], offsets[1]);
    return;
  }
  size_t row = SIZE_MAX, endRow = 0;
  for (size_t t = 0; t < lists.nTokens; t++) {
    if (offsets[t] == offsets[t + 1]) continue;
    row = ids[offsets[t]] < row ? ids[offsets[t]] : row;
    endRow = ids[offsets[t + 1] - 1] + size_t{1} > endRow ? ids[offsets[t + 1] - 1] + size_t{1} : endRow;
  }
  for (; row < endRow; row += tileRows) {
    for (size_t t = 0; t < lists.nTokens; t++) {
      const size_t begin = offsets[t], end = offsets[t + 1];
      // The first block that begins at or behind `id`.
      auto blockAt = [&](size_t id) {
        const size_t k = lowerBound(ids, begin, end, id) - begin;
        const size_t at = (k + block - 1) / block * block;
        return begin + (at < end - begin ? at : end - begin);
      };
      const size_t first = blockAt(row), last = blockAt(row + tileRows);
      if (first < last) work(t, first, last);
    }
  }
}

}  // namespace
}  // namespace hybrid_infer
