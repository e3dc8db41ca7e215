// What ../table.ts declares. Written by tools/declare-kernels.mjs: change the table, then run `npm run build`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybrid_infer {

enum class Kind { rowFormat, weightFormat, kvFormat, activation, count, real, pointer };
enum class Item { f32, u32, byte, q8a, row, storedRow, vector, sums, kvRow, kvScale };
enum class Measure { one, value, next, half, pages, aligned, last, reach, rows };

struct Argument {
  Kind kind;
  // The rest is about pointers.
  bool optional;  // offset 0 stands for "none"
  Item item;
  Measure size;
  size_t sizeOf;  // the argument that is measured
  Measure times;
  size_t timesOf;
  size_t stride;       // 1 + the argument that holds it; 0: items stand side by side
  size_t strideBytes;  // of one unit of that argument
};

namespace declared {

constexpr size_t kKernels = 21;
constexpr char kDigest[] = "bd0154a95936d656657169783fb262d7c1a9de10283838a530c1a3d0ece68d1a";

struct quantize {
  static constexpr char name[] = "quantize";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 2, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::q8a, Measure::value, 2, Measure::one, 0, 0, 1},  // dst
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct dot {
  static constexpr char name[] = "dot";
  static constexpr Argument arguments[] = {
      {Kind::rowFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::row, Measure::value, 9, Measure::value, 3, 3, 1},  // w
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // stride
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // rows
      {Kind::pointer, false, Item::vector, Measure::value, 9, Measure::value, 6, 6, 1},  // x
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // xStride
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // nTokens
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::value, 6, 9, 4},  // out
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // outStride
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // cols
  };
};

struct dotLists {
  static constexpr char name[] = "dotLists";
  static constexpr Argument arguments[] = {
      {Kind::rowFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::row, Measure::value, 9, Measure::reach, 4, 3, 1},  // w
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // stride
      {Kind::pointer, false, Item::u32, Measure::next, 5, Measure::one, 0, 0, 1},  // offsets
      {Kind::pointer, false, Item::u32, Measure::last, 3, Measure::one, 0, 0, 1},  // ids
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // nTokens
      {Kind::pointer, false, Item::vector, Measure::value, 9, Measure::value, 5, 8, 1},  // x
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // xStride
      {Kind::pointer, false, Item::f32, Measure::last, 3, Measure::one, 0, 0, 1},  // out
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // cols
  };
};

struct sumLists {
  static constexpr char name[] = "sumLists";
  static constexpr Argument arguments[] = {
      {Kind::weightFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::row, Measure::value, 9, Measure::reach, 4, 3, 1},  // w
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // stride
      {Kind::pointer, false, Item::u32, Measure::next, 5, Measure::one, 0, 0, 1},  // offsets
      {Kind::pointer, false, Item::u32, Measure::last, 3, Measure::one, 0, 0, 1},  // ids
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // nTokens
      {Kind::pointer, false, Item::f32, Measure::last, 3, Measure::one, 0, 0, 1},  // coef
      {Kind::pointer, false, Item::sums, Measure::value, 9, Measure::value, 5, 9, 4},  // out
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // outStride
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // cols
  };
};

struct activate {
  static constexpr char name[] = "activate";
  static constexpr Argument arguments[] = {
      {Kind::activation, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // kind
      {Kind::real, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // threshold
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // gate
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
      {Kind::pointer, true, Item::u32, Measure::value, 3, Measure::one, 0, 0, 1},  // ids
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // firstId
      {Kind::pointer, true, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // weight
      {Kind::pointer, false, Item::u32, Measure::value, 3, Measure::one, 0, 0, 1},  // outIds
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // outAct
  };
};

struct gateUp {
  static constexpr char name[] = "gateUp";
  static constexpr Argument arguments[] = {
      {Kind::activation, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // kind
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // act
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // up
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct contribution {
  static constexpr char name[] = "contribution";
  static constexpr Argument arguments[] = {
      {Kind::activation, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // kind
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // gate
      {Kind::pointer, true, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // up
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct keepLarge {
  static constexpr char name[] = "keepLarge";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // act
      {Kind::pointer, true, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // times
      {Kind::pointer, false, Item::u32, Measure::value, 3, Measure::one, 0, 0, 1},  // ids
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
      {Kind::pointer, false, Item::f32, Measure::reach, 2, Measure::one, 0, 0, 1},  // weight
      {Kind::real, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // least
      {Kind::pointer, false, Item::u32, Measure::value, 3, Measure::one, 0, 0, 1},  // outIds
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // outAct
  };
};

struct selectAbove {
  static constexpr char name[] = "selectAbove";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 2, Measure::one, 0, 0, 1},  // score
      {Kind::pointer, false, Item::f32, Measure::value, 2, Measure::one, 0, 0, 1},  // cut
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // firstId
      {Kind::pointer, false, Item::u32, Measure::value, 2, Measure::one, 0, 0, 1},  // outIds
  };
};

struct biasRelu {
  static constexpr char name[] = "biasRelu";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 2, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, true, Item::f32, Measure::value, 2, Measure::one, 0, 0, 1},  // bias
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct addListed {
  static constexpr char name[] = "addListed";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::f32, Measure::reach, 2, Measure::one, 0, 0, 1},  // bias
      {Kind::pointer, false, Item::u32, Measure::value, 3, Measure::one, 0, 0, 1},  // ids
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct rmsNorm {
  static constexpr char name[] = "rmsNorm";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // weight
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // out
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
      {Kind::real, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // eps
  };
};

struct layerNorm {
  static constexpr char name[] = "layerNorm";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 4, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::f32, Measure::value, 4, Measure::one, 0, 0, 1},  // weight
      {Kind::pointer, true, Item::f32, Measure::value, 4, Measure::one, 0, 0, 1},  // bias
      {Kind::pointer, false, Item::f32, Measure::value, 4, Measure::one, 0, 0, 1},  // out
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
      {Kind::real, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // eps
  };
};

struct rope {
  static constexpr char name[] = "rope";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::f32, Measure::half, 3, Measure::one, 0, 0, 1},  // cos
      {Kind::pointer, false, Item::f32, Measure::half, 3, Measure::one, 0, 0, 1},  // sin
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // headDim
  };
};

struct addScaled {
  static constexpr char name[] = "addScaled";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // y
      {Kind::real, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // scale
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct softmax {
  static constexpr char name[] = "softmax";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::f32, Measure::value, 1, Measure::one, 0, 0, 1},  // x
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // n
  };
};

struct storeKv {
  static constexpr char name[] = "storeKv";
  static constexpr Argument arguments[] = {
      {Kind::kvFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::f32, Measure::value, 5, Measure::one, 0, 0, 1},  // x
      {Kind::pointer, false, Item::kvRow, Measure::value, 5, Measure::next, 4, 0, 1},  // data
      {Kind::pointer, false, Item::kvScale, Measure::one, 0, Measure::next, 4, 0, 1},  // scales
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // row
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // headDim
  };
};

struct attention {
  static constexpr char name[] = "attention";
  static constexpr Argument arguments[] = {
      {Kind::kvFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::f32, Measure::value, 12, Measure::value, 9, 0, 1},  // q
      {Kind::pointer, false, Item::kvRow, Measure::value, 12, Measure::rows, 6, 0, 1},  // kData
      {Kind::pointer, false, Item::kvScale, Measure::one, 0, Measure::rows, 6, 0, 1},  // kScales
      {Kind::pointer, false, Item::kvRow, Measure::value, 12, Measure::rows, 6, 0, 1},  // vData
      {Kind::pointer, false, Item::kvScale, Measure::one, 0, Measure::rows, 6, 0, 1},  // vScales
      {Kind::pointer, false, Item::u32, Measure::pages, 11, Measure::one, 0, 0, 1},  // table
      {Kind::pointer, false, Item::f32, Measure::value, 12, Measure::value, 9, 0, 1},  // out
      {Kind::pointer, false, Item::f32, Measure::aligned, 11, Measure::value, 9, 0, 1},  // scores
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // group
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // begin
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // nPos
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // headDim
      {Kind::real, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // scale
  };
};

struct quantizeRows {
  static constexpr char name[] = "quantizeRows";
  static constexpr Argument arguments[] = {
      {Kind::weightFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::f32, Measure::value, 6, Measure::value, 3, 3, 1},  // x
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // xStride
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // rows
      {Kind::pointer, false, Item::storedRow, Measure::value, 6, Measure::value, 3, 6, 1},  // dst
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // dstStride
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // cols
  };
};

struct dequantizeRow {
  static constexpr char name[] = "dequantizeRow";
  static constexpr Argument arguments[] = {
      {Kind::weightFormat, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // format
      {Kind::pointer, false, Item::storedRow, Measure::value, 3, Measure::one, 0, 0, 1},  // w
      {Kind::pointer, false, Item::f32, Measure::value, 3, Measure::one, 0, 0, 1},  // out
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // cols
  };
};

struct readProbe {
  static constexpr char name[] = "readProbe";
  static constexpr Argument arguments[] = {
      {Kind::pointer, false, Item::byte, Measure::value, 1, Measure::one, 0, 0, 1},  // begin
      {Kind::count, false, Item::byte, Measure::one, 0, Measure::one, 0, 0, 1},  // bytes
  };
};

}  // namespace declared
}  // namespace hybrid_infer
