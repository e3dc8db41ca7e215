// The byte layouts of ../layout.ts in C++: weight rows and Q8A activation vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "table.h"

namespace hybrid_infer {
namespace {  // compiled once per instruction set: the linker must not merge the copies

// Columns that share one scale.
constexpr size_t kGroup = 128;
// Quantised rows are padded to a multiple of this many columns.
constexpr size_t kColumnMultiple = 32;
constexpr size_t kRowAlignment = 16;
// Added to a weight before it is stored unsigned.
constexpr int kQ4Offset = 8;
constexpr int kQ8Offset = 64;

constexpr size_t alignUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr bool isSketch(Format format) { return format >= Format::q1; }
constexpr int sketchBits(Format format) { return format == Format::q1 ? 1 : format == Format::q2 ? 2 : 3; }
// Bytes of a whole group's codes.
constexpr size_t groupBytes(Format format) {
  return isSketch(format) ? kGroup * sketchBits(format) / 8 : format == Format::q4 ? kGroup / 2 : kGroup;
}
constexpr size_t paddedCols(Format format, size_t cols) {
  return format == Format::f32 ? cols : alignUp(cols, kColumnMultiple);
}
constexpr size_t groupCount(size_t cols) { return (alignUp(cols, kColumnMultiple) + kGroup - 1) / kGroup; }
constexpr size_t scaleOffset(Format format, size_t cols) {
  return alignUp(cols, kColumnMultiple) * groupBytes(format) / kGroup;
}
constexpr size_t rowBytesUnpadded(Format format, size_t cols) {
  return format == Format::f32 ? cols * 4 : scaleOffset(format, cols) + 2 * groupCount(cols);
}
// Sketch rows are padded to 4 bytes only.
constexpr size_t rowBytes(Format format, size_t cols) {
  return alignUp(rowBytesUnpadded(format, cols), isSketch(format) ? 4 : kRowAlignment);
}
constexpr size_t q8aPart(size_t cols) { return alignUp(groupCount(cols) * 4, kRowAlignment); }
constexpr size_t q8aBytes(size_t cols) { return alignUp(cols, kColumnMultiple) + 2 * q8aPart(cols); }
constexpr size_t activationBytes(Format format, size_t cols) {
  return format == Format::f32 ? alignUp(cols * 4, kRowAlignment) : q8aBytes(cols);
}
// A group is worth s_w s_x (codeFactor sum(u x) - weightOffset sum(x)), u its unsigned codes.
constexpr int codeFactor(Format format) { return isSketch(format) ? 2 : 1; }
constexpr int weightOffset(Format format) {
  return format == Format::q8 ? kQ8Offset : format == Format::q4 ? kQ4Offset : (1 << sketchBits(format)) - 1;
}

// One Q8A vector, taken apart.
struct Q8A {
  const int8_t* codes;   // [padded cols]
  const float* scales;   // [groups]
  const int32_t* sums;   // [groups]
};

inline Q8A q8aAt(const uint8_t* x, size_t cols) {
  const size_t codes = alignUp(cols, kColumnMultiple);
  return {reinterpret_cast<const int8_t*>(x), reinterpret_cast<const float*>(x + codes),
          reinterpret_cast<const int32_t*>(x + codes + q8aPart(cols))};
}

}  // namespace
}  // namespace hybrid_infer
