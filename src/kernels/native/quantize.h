// Making codes: activations, cached keys and values, weight rows. Bit for bit what ../reference/rounding.ts and
// ../reference/weight-rows.ts define (all in f32, no fused multiply-add), so that every backend writes the same
// pack. Included after elementwise.h.
#pragma once

#include <cmath>
#include <cstring>

#include "row_layout.h"

namespace hybrid_infer {
namespace {

// A group whose largest magnitude is below this is stored as zeros.
constexpr float kSmallestGroupMax = 1e-30f;
// 1.5 * 2^23: adding and subtracting it rounds to the nearest integer, ties to even.
constexpr float kRoundingMagic = 12582912.0f;

inline F nearestEven(F v) { return fsub(fadd(v, fset(kRoundingMagic)), fset(kRoundingMagic)); }

// Largest and smallest value of x[0..n), and whether all are finite.
struct Range {
  float largest, smallest;
  bool finite;
};
inline Range rangeOf(const float* x, size_t n) {
  if (n == 0) return {0, 0, true};
  F largest = fset(x[0]), smallest = fset(-x[0]), zeros = fzero();
  size_t i = 0;
  for (; i + W <= n; i += W) {
    const F v = fload(x + i);
    largest = fmax2(largest, v);
    smallest = fmax2(smallest, fsub(fzero(), v));
    zeros = fadd(zeros, fmul(v, fzero()));  // NaN if v is NaN or infinite
  }
  Range range = {fmaxLane(largest), -fmaxLane(smallest), true};
  float zero = fsum(zeros);
  for (; i < n; i++) {
    range.largest = x[i] > range.largest ? x[i] : range.largest;
    range.smallest = x[i] < range.smallest ? x[i] : range.smallest;
    zero += x[i] * 0.0f;
  }
  range.finite = zero == 0.0f;
  return range;
}
inline bool hasNaN(const float* x, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (std::isnan(x[i])) return true;
  }
  return false;
}

// ---- activations, keys and values ------------------------------------------------------------------------

// x[0..n) -> codes -127..127; returns the scale, which is not finite if some x is not.
inline float quantizeI8(const float* x, size_t n, int8_t* codes) {
  const Range range = rangeOf(x, n);
  const float max = range.largest > -range.smallest ? range.largest : -range.smallest;
  if (!range.finite || max < kSmallestGroupMax) {
    std::memset(codes, 0, n);
    if (range.finite) return 0;
    return hasNaN(x, n) ? NAN : INFINITY;
  }
  const float inverse = 127.0f / max;
  size_t i = 0;
  for (; i + W <= n; i += W) narrowI8(codes + i, fround(fmul(fload(x + i), fset(inverse))));
  for (; i < n; i++) codes[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return max / 127.0f;
}

void quantize(const float* x, uint8_t* dst, size_t n) {
  const size_t padded = alignUp(n, kColumnMultiple);
  int8_t* codes = reinterpret_cast<int8_t*>(dst);
  float* scales = reinterpret_cast<float*>(dst + padded);
  int32_t* sums = reinterpret_cast<int32_t*>(dst + padded + q8aPart(n));
  for (size_t begin = 0, g = 0; begin < padded; begin += kGroup, g++) {
    const size_t length = padded - begin < kGroup ? padded - begin : kGroup;
    const size_t given = n - begin < length ? n - begin : length;
    scales[g] = quantizeI8(x + begin, given, codes + begin);
    std::memset(codes + begin + given, 0, length - given);
    int32_t sum = 0;
    for (size_t j = 0; j < length; j++) sum += codes[begin + j];
    sums[g] = sum;
  }
}

void storeKv(KvFormat format, const float* x, uint8_t* data, float* scales, size_t row, size_t headDim) {
  if (format == KvFormat::f32) std::memcpy(data + row * headDim * sizeof(float), x, headDim * sizeof(float));
  else scales[row] = quantizeI8(x, headDim, reinterpret_cast<int8_t*>(data + row * headDim));
}

// ---- weight rows -----------------------------------------------------------------------------------------

inline uint16_t bf16RoundUp(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0xFFFF) >> 16);
}
inline float bf16Value(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Sum of squared rounding errors of a padded group for one scale, in units of the scale: 16 partial sums
// (column j in sum j mod 16), folded by adding the upper half to the lower.
inline float squaredErrors(const float* group, size_t length, float inverse, float min, float max) {
  constexpr size_t vectors = 16 / W;
  F partial[vectors];
  for (size_t v = 0; v < vectors; v++) partial[v] = fzero();
  for (size_t j = 0; j < length; j += 16) {
    for (size_t v = 0; v < vectors; v++) {
      const F ratio = fmul(fload(group + j + v * W), fset(inverse));
      const F code = fmin2(fset(max), fmax2(fset(min), nearestEven(ratio)));
      const F error = fsub(ratio, code);
      partial[v] = fadd(partial[v], fmul(error, error));
    }
  }
  alignas(64) float sums[16];
  for (size_t v = 0; v < vectors; v++) fstore(sums + v * W, partial[v]);
  for (size_t width = 8; width >= 1; width /= 2) {
    for (size_t j = 0; j < width; j++) sums[j] += sums[j + width];
  }
  return sums[0];
}

inline void roundGroup(const float* group, size_t length, float inverse, float min, float max, int8_t* codes) {
  for (size_t j = 0; j < length; j += W) {
    const F ratio = fmul(fload(group + j), fset(inverse));
    narrowI8(codes + j, fround(fmin2(fset(max), fmax2(fset(min), nearestEven(ratio)))));
  }
}

// The bf16 scale of a group, and its codes.
inline uint16_t encodeQ8(const float* group, size_t length, int8_t* codes) {
  const Range range = rangeOf(group, length);
  const float max = range.largest > -range.smallest ? range.largest : -range.smallest;
  if (!range.finite || max < kSmallestGroupMax) {
    std::memset(codes, 0, length);
    return range.finite ? 0 : bf16RoundUp(hasNaN(group, length) ? NAN : INFINITY);
  }
  const uint16_t scale = bf16RoundUp(max / 63.0f);
  roundGroup(group, length, 1.0f / bf16Value(scale), -63.0f, 63.0f, codes);
  return scale;
}

// Tried in this order; the reason for each is in weight-rows.ts.
constexpr float kQ4Divisors[] = {-8, -8.5f, -9, -7.5f, -9.5f, -7, -10, -10.5f};

inline uint16_t encodeQ4(const float* group, size_t length, int8_t* codes) {
  const Range range = rangeOf(group, length);
  const float peak = range.largest >= -range.smallest ? range.largest : range.smallest;
  if (!range.finite || std::fabs(peak) < kSmallestGroupMax) {
    std::memset(codes, 0, length);
    return range.finite ? 0 : bf16RoundUp(hasNaN(group, length) ? NAN : peak / kQ4Divisors[0]);
  }
  uint16_t best = 0;
  float bestError = INFINITY;
  for (const float divisor : kQ4Divisors) {
    const uint16_t scale = bf16RoundUp(peak / divisor);
    const float squares = squaredErrors(group, length, 1.0f / bf16Value(scale), -8.0f, 7.0f);
    const float relative = bf16Value(scale) / peak;
    const float error = squares * relative * relative;
    if (error < bestError) best = scale, bestError = error;
  }
  roundGroup(group, length, 1.0f / bf16Value(best), -8.0f, 7.0f, codes);
  return best;
}

void encodeRow(Format format, const float* x, uint8_t* dst, size_t cols) {
  const size_t padded = alignUp(cols, kColumnMultiple), end = rowBytes(format, cols);
  uint16_t* scales = reinterpret_cast<uint16_t*>(dst + scaleOffset(format, cols));
  alignas(64) float group[kGroup];
  int8_t codes[kGroup];
  for (size_t begin = 0, g = 0; begin < padded; begin += kGroup, g++) {
    const size_t length = padded - begin < kGroup ? padded - begin : kGroup;
    const size_t given = cols - begin < length ? cols - begin : length;
    std::memcpy(group, x + begin, given * sizeof(float));
    std::memset(group + given, 0, (length - given) * sizeof(float));
    if (format == Format::q8) {
      scales[g] = encodeQ8(group, length, codes);
      for (size_t j = 0; j < length; j++) dst[begin + j] = static_cast<uint8_t>(codes[j] + kQ8Offset);
    } else {
      scales[g] = encodeQ4(group, length, codes);
      const size_t half = length / 2;
      for (size_t j = 0; j < half; j++) {
        dst[begin / 2 + j] = static_cast<uint8_t>((codes[j] + kQ4Offset) | (codes[half + j] + kQ4Offset) << 4);
      }
    }
  }
  const size_t used = scaleOffset(format, cols) + 2 * groupCount(cols);
  std::memset(dst + used, 0, end - used);
}

void quantizeRows(Format format, const uint8_t* x, size_t xStride, size_t rows, uint8_t* dst, size_t dstStride,
                  size_t cols) {
  for (size_t r = 0; r < rows; r++) {
    const float* row = reinterpret_cast<const float*>(x + r * xStride);
    uint8_t* to = dst + r * dstStride;
    if (format == Format::f32) {
      std::memcpy(to, row, cols * sizeof(float));
      std::memset(to + cols * sizeof(float), 0, rowBytes(format, cols) - cols * sizeof(float));
    } else {
      encodeRow(format, row, to, cols);
    }
  }
}

// Columns begin..begin+n of a quantised row as f32. begin is a multiple of 128; n of 32, or ends the row.
inline void dequantize(Format format, const uint8_t* w, size_t cols, size_t begin, size_t n, float* out) {
  const size_t padded = alignUp(cols, kColumnMultiple);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(w + scaleOffset(format, cols));
  for (size_t c = begin; c < begin + n; c += kGroup) {
    const size_t length = padded - c < kGroup ? padded - c : kGroup;
    const F scale = fset(bf16Value(scales[c / kGroup]));
    float* to = out + (c - begin);
    if (format == Format::q8) {
      const I offset = iset(-kQ8Offset);
      for (size_t j = 0; j < length; j += W) fstore(to + j, fmul(ifloat(iadd(widenU8(w + c + j), offset)), scale));
    } else {
      const I offset = iset(-kQ4Offset), low = iset(15);
      for (size_t j = 0; j < length / 2; j += W) {
        const I bytes = widenU8(w + c / 2 + j);
        fstore(to + j, fmul(ifloat(iadd(iand(bytes, low), offset)), scale));
        fstore(to + length / 2 + j, fmul(ifloat(iadd(ishr<4>(bytes), offset)), scale));
      }
    }
  }
}

void dequantizeRow(Format format, const uint8_t* w, float* out, size_t cols) {
  if (format == Format::f32) {
    std::memcpy(out, w, cols * sizeof(float));
    return;
  }
  const size_t padded = alignUp(cols, kColumnMultiple);
  for (size_t c = 0; c < padded; c += kGroup) {
    alignas(64) float group[kGroup];
    dequantize(format, w, cols, c, padded - c < kGroup ? padded - c : kGroup, group);
    std::memcpy(out + c, group, (cols - c < kGroup ? cols - c : kGroup) * sizeof(float));
  }
}

}  // namespace
}  // namespace hybrid_infer
