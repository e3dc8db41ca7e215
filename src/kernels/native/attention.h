// Attention of some query heads over one KV head. Included after elementwise.h and row_sum.h.
//
// f32 keys and values are multiplied as they are. Of q8 ones, the query becomes 16-bit integers for the keys'
// products, and the values are summed like weight rows (row_sum.h), the probabilities being the factors.
#pragma once

#include "elementwise.h"
#include "row_sum.h"

namespace hybrid_infer {
namespace {

// Positions taken together, so that their keys and values are in level 1 for all query heads that share them.
constexpr size_t kPositions = kSumRows;
// Keys and values are fetched this many bytes ahead, into level 2, the first ones before anything else is done: the
// hardware alone leaves a third of the bandwidth unused.
constexpr size_t kKvAhead = 8192;
// Vectors of a head's output held in registers.
constexpr size_t kHeadVectors = 8;

// ---- scores ----------------------------------------------------------------------------------------------

// Elements i.. of n as floats, zeros past the end.
inline F kvAt(const float* p, size_t i, size_t n) { return floadAt(p, i, n); }
inline F kvAt(const int8_t* p, size_t i, size_t n) {
  if (n - i >= W) return ifloat(widenI8(p + i));
  int8_t padded[W] = {};
  std::memcpy(padded, p + i, n - i);
  return ifloat(widenI8(padded));
}

// sums[t] = q . key t, for keys headDim apart
template <size_t T, typename Value>
HYBRID_INFER_INLINE inline void scoreTile(const float* q, const Value* keys, size_t headDim, F (&sums)[1][T]) {
  each<T>([&](auto t) HYBRID_INFER_INLINE { sums[0][t] = fzero(); });
  size_t c = 0;
  for (; c + W <= headDim; c += W) {
    const F part = fload(q + c);
    each<T>([&](auto t) HYBRID_INFER_INLINE { sums[0][t] = fmadd(part, kvAt(keys + t * headDim + c, 0, W), sums[0][t]); });
  }
  if (c < headDim) {
    for (size_t t = 0; t < T; t++) {
      sums[0][t] = fmadd(floadn(q + c, headDim - c), kvAt(keys + t * headDim, c, headDim), sums[0][t]);
    }
  }
}

// A query as integers: value = words * step.
struct Query {
  alignas(64) int16_t words[512];  // padded with zeros to whole vectors
  float step;
};
constexpr size_t kLargestHead = sizeof(Query::words) / sizeof(int16_t);

// False when a value is not finite.
inline bool quantizeQuery(const float* q, size_t headDim, Query& query) {
  const Range range = rangeOf(q, headDim);
  const float max = range.largest > -range.smallest ? range.largest : -range.smallest;
  if (!range.finite) return false;
  const float bounded = max > kSmallestGroupMax ? max : kSmallestGroupMax;
  const F inverse = fset(32767.0f / bounded);
  for (size_t c = 0; c < headDim; c += 2 * W) {
    const F first = fmul(floadAt(q, c, headDim), inverse);
    const F second = c + W < headDim ? fmul(floadAt(q, c + W, headDim), inverse) : fzero();
    narrowI16(query.words + c, fround(first), fround(second));
  }
  query.step = bounded / 32767.0f;
  return true;
}

template <size_t T>
HYBRID_INFER_INLINE inline void scoreTile(const Query& query, const int8_t* keys, size_t headDim, F (&sums)[1][T]) {
  I totals[T];
  each<T>([&](auto t) HYBRID_INFER_INLINE { totals[t] = izero(); });
  size_t c = 0;
  for (; c + 2 * W <= headDim; c += 2 * W) {
    const I part = iload(query.words + c);
    each<T>([&](auto t) HYBRID_INFER_INLINE {
      totals[t] = idot2(totals[t], widenI8Words(keys + t * headDim + c), part);
    });
  }
  if (c < headDim) {
    for (size_t t = 0; t < T; t++) {
      int8_t padded[2 * W] = {};
      std::memcpy(padded, keys + t * headDim + c, headDim - c);
      totals[t] = idot2(totals[t], widenI8Words(padded), iload(query.words + c));
    }
  }
  each<T>([&](auto t) HYBRID_INFER_INLINE { sums[0][t] = ifloat(totals[t]); });
}

// scores[p] = factor * keyScales[p] * (q . key p) for n keys side by side; `ahead`: what to fetch meanwhile.
template <typename Q, typename Key>
inline void scorePositions(const Q& q, const Key* keys, const Key* ahead, const float* keyScales, size_t n, size_t headDim,
                           float factor, float* scores) {
  size_t p = 0;
  auto tiles = [&](auto size) {
    constexpr size_t T = decltype(size)::value;
    for (; p + T <= n; p += T) {
      F sums[1][T];
      float products[1][T];
      const uint8_t* next = reinterpret_cast<const uint8_t*>(ahead + p * headDim);
      for (size_t b = 0; b < T * headDim * sizeof(Key); b += kLine) __builtin_prefetch(next + b, 0, 2);
      scoreTile<T>(q, keys + p * headDim, headDim, sums);
      sumTile<1, T>(sums, products);
      for (size_t t = 0; t < T; t++) scores[p + t] = products[0][t] * (keyScales ? factor * keyScales[p + t] : factor);
    }
  };
  tiles(Size<4>{});
  tiles(Size<1>{});
}

// ---- weighted sums of values -----------------------------------------------------------------------------

// out += sum of weights[p] * value p over n values side by side, in f32
template <typename Value>
inline void addValues(const float* weights, const Value* values, const float* scales, size_t n, size_t headDim, float* out) {
  auto weight = [&](size_t p) { return fset(scales ? weights[p] * scales[p] : weights[p]); };
  size_t c = 0;
  for (; c + kHeadVectors * W <= headDim; c += kHeadVectors * W) {
    F sums[kHeadVectors];
    each<kHeadVectors>([&](auto i) HYBRID_INFER_INLINE { sums[i] = fload(out + c + i * W); });
    for (size_t p = 0; p < n; p++) {
      const F factor = weight(p);
      const Value* row = values + p * headDim + c;
      each<kHeadVectors>([&](auto i) HYBRID_INFER_INLINE { sums[i] = fmadd(factor, kvAt(row + i * W, 0, W), sums[i]); });
    }
    each<kHeadVectors>([&](auto i) HYBRID_INFER_INLINE { fstore(out + c + i * W, sums[i]); });
  }
  for (; c < headDim; c += W) {
    F sum = floadAt(out, c, headDim);
    for (size_t p = 0; p < n; p++) sum = fmadd(weight(p), kvAt(values + p * headDim, c, headDim), sum);
    fstoreAt(out, c, headDim, sum);
  }
}

// The same with integer factors, for at most kSumRows values. False when a weight is not finite.
inline bool addValuesQ8(const float* weights, const int8_t* values, const int8_t* ahead, const float* scales, size_t n,
                        size_t headDim, float* out, SumBlock& block) {
  float factors[kSumRows];
  for (size_t i = 0; i < n; i++) factors[i] = weights[i] * scales[i];
  const Range range = rangeOf(factors, n);
  if (!range.finite) return false;
  float largest = range.largest > -range.smallest ? range.largest : -range.smallest;
  if (largest < kSmallestFactor) largest = kSmallestFactor;
  const float inverse = kLargestFactor / largest;
  block.count = alignUp(n, 4);
  const uint8_t* next[kSumRows];
  alignas(64) int32_t q[kSumRows] = {};
  int32_t total = 0;
  for (size_t i = 0; i < n; i += W) istore(q + i, fround(fmul(floadAt(factors, i, n), fset(inverse))));
  for (size_t i = 0; i < block.count; i++) {
    const size_t row = (i < n ? i : n - 1) * headDim;
    total += q[i];
    block.rows[i] = reinterpret_cast<const uint8_t*>(values + row);
    next[i] = reinterpret_cast<const uint8_t*>(ahead + row);
  }
  // The one group's factors, packed as packFactors does it for W groups.
  if constexpr (kDot4) {
    alignas(64) int8_t bytes[kSumRows / 4][2][4];
    for (size_t i = 0; i < kSumRows; i++) {
      bytes[i / 4][0][i % 4] = static_cast<int8_t>((q[i] + 128) >> 8);
      bytes[i / 4][1][i % 4] = static_cast<int8_t>(q[i]);
    }
    for (size_t i = 0; i < kSumRows / 2; i++) std::memcpy(block.factors[i], bytes[i / 2][i % 2], 4);
  } else {
    for (size_t i = 0; i < kSumRows; i += 2) {
      const int16_t words[2] = {static_cast<int16_t>(q[i]), static_cast<int16_t>(q[i + 1])};
      std::memcpy(block.factors[i / 2], words, 4);
    }
  }
  block.totals[0] = total;
  block.steps[0] = largest / kLargestFactor;
  sumGroup<I8Codes>(block, 0, 0, headDim, out, next);
  return true;
}

// ---- attention -------------------------------------------------------------------------------------------

// Query heads that go through the keys and values together.
constexpr size_t kHeadsTogether = 8;

// One attention call, but for the heads.
struct Cache {
  const uint8_t *keys, *values;
  const float *keyScales, *valueScales;
  const uint32_t* table;
  size_t begin, nPos, headDim;

  // Where position p stands.
  size_t row(size_t p) const { return table[p / kKvPage] * kKvPage + p % kKvPage; }
};

template <typename Value>
void attentionHeads(const Cache& cache, const float* q, float* out, float* scores, size_t heads, float scale) {
  constexpr bool q8 = std::is_same_v<Value, int8_t>;
  const size_t headDim = cache.headDim, nPos = cache.nPos, stride = alignUp(nPos, 16);
  const Value* keys = reinterpret_cast<const Value*>(cache.keys);
  const Value* values = reinterpret_cast<const Value*>(cache.values);
  // Positions fetched ahead, in whole blocks.
  const size_t far = alignUp((kKvAhead + headDim * sizeof(Value) - 1) / (headDim * sizeof(Value)), kPositions);
  // work(p, n, row, ahead, h): n positions from p on, which stand side by side from `row` on.
  auto eachBlock = [&](auto work) {
    for (size_t p = cache.begin; p < nPos;) {
      const size_t whole = (p / kPositions + 1) * kPositions, end = whole < nPos ? whole : nPos;
      const size_t row = cache.row(p);
      const size_t ahead = p + far < nPos ? cache.row(p + far) : row;
      for (size_t h = 0; h < heads; h++) work(p, end - p, row, ahead, h);
      p = end;
    }
  };

  for (const Value* part : {keys, values}) {
    for (size_t p = cache.begin; p < nPos && p < cache.begin + far; p++) {
      const uint8_t* row = reinterpret_cast<const uint8_t*>(part + cache.row(p) * headDim);
      for (size_t b = 0; b < headDim * sizeof(Value); b += kLine) __builtin_prefetch(row + b, 0, 2);
    }
  }

  Query queries[q8 ? kHeadsTogether : 1];
  bool inIntegers[kHeadsTogether] = {};
  if constexpr (q8) {
    for (size_t h = 0; h < heads && headDim <= kLargestHead; h++) {
      inIntegers[h] = quantizeQuery(q + h * headDim, headDim, queries[h]);
    }
  }
  eachBlock([&](size_t p, size_t n, size_t row, size_t ahead, size_t h) {
    float* to = scores + h * stride + p;
    const Value *from = keys + row * headDim, *next = keys + ahead * headDim;
    if constexpr (q8) {
      if (inIntegers[h]) {
        return scorePositions(queries[h], from, next, cache.keyScales + row, n, headDim, scale * queries[h].step, to);
      }
    }
    scorePositions(q + h * headDim, from, next, q8 ? cache.keyScales + row : nullptr, n, headDim, scale, to);
  });
  for (size_t h = 0; h < heads; h++) softmax(scores + h * stride + cache.begin, nPos - cache.begin);

  std::memset(out, 0, heads * headDim * sizeof(float));
  [[maybe_unused]] SumBlock block;
  eachBlock([&](size_t p, size_t n, size_t row, size_t ahead, size_t h) {
    const float* weights = scores + h * stride + p;
    const Value* from = values + row * headDim;
    if constexpr (q8) {
      // Sums come in vectors of 16 columns.
      if (headDim % 16 == 0 && addValuesQ8(weights, from, values + ahead * headDim, cache.valueScales + row, n, headDim,
                                           out + h * headDim, block)) {
        return;
      }
    }
    addValues(weights, from, q8 ? cache.valueScales + row : nullptr, n, headDim, out + h * headDim);
  });
}

void attention(KvFormat format, const float* q, const uint8_t* kData, const float* kScales, const uint8_t* vData,
               const float* vScales, const uint32_t* table, float* out, float* scores, size_t group, size_t begin,
               size_t nPos, size_t headDim, float scale) {
  const size_t stride = alignUp(nPos, 16);
  const Cache cache = {kData, vData, kScales, vScales, table, begin, nPos, headDim};
  const auto run = format == KvFormat::f32 ? attentionHeads<float> : attentionHeads<int8_t>;
  if (begin >= nPos) {
    std::memset(out, 0, group * headDim * sizeof(float));
    return;
  }
  for (size_t h = 0; h < group; h += kHeadsTogether) {
    const size_t heads = group - h < kHeadsTogether ? group - h : kHeadsTogether;
    run(cache, q + h * headDim, out + h * headDim, scores + h * stride, heads, scale);
  }
}

}  // namespace
}  // namespace hybrid_infer
