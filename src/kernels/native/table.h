// The kernel table: one function per kernel of ../table.ts, with pointers instead of arena offsets and arguments
// in the same order. Each instruction set compiles the same kernels into its own table; the addon picks one at
// run time, and compares these arguments with the declarations when it binds. All ranges were checked by the
// addon.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybrid_infer {

// The numbers of ROW_FORMATS, ACTIVATION_KINDS and KV_FORMATS in ../layout.ts and ../kernels.ts.
enum class Format : uint32_t { f32 = 0, q8 = 1, q4 = 2, q1 = 3, q2 = 4, q3 = 5 };
enum class Activation : uint32_t { relu = 0, fatrelu = 1, drelu = 2, relu2 = 3, silu = 4, gelu = 5, geluTanh = 6, geluQuick = 7 };
enum class KvFormat : uint32_t { f32 = 0, q8 = 1 };

// Positions of a KV page.
constexpr size_t kKvPage = 32;

// Every kernel: X(name).
#define HYBRID_INFER_KERNELS(X)                                                                              \
  X(quantize) X(dot) X(dotLists) X(sumLists) X(activate) X(gateUp) X(contribution) X(keepLarge)              \
  X(selectAbove) X(biasRelu) X(addListed) X(rmsNorm) X(layerNorm) X(rope) X(addScaled) X(softmax) X(storeKv) X(attention) X(quantizeRows)            \
  X(dequantizeRow) X(readProbe)

struct KernelTable {
  const char* name;

  void (*quantize)(const float* x, uint8_t* dst, size_t n);

  void (*dot)(Format format, const uint8_t* w, size_t stride, size_t rows, const uint8_t* x, size_t xStride,
              size_t nTokens, float* out, size_t outStride, size_t cols);
  void (*dotLists)(Format format, const uint8_t* w, size_t stride, const uint32_t* offsets, const uint32_t* ids,
                   size_t nTokens, const uint8_t* x, size_t xStride, float* out, size_t cols);
  void (*sumLists)(Format format, const uint8_t* w, size_t stride, const uint32_t* offsets, const uint32_t* ids,
                   size_t nTokens, const float* coef, float* out, size_t outStride, size_t cols);

  size_t (*activate)(Activation kind, float threshold, const float* gate, size_t n, const uint32_t* ids,
                     uint32_t firstId, const float* weight, uint32_t* outIds, float* outAct);
  size_t (*gateUp)(Activation kind, float* act, const float* up, size_t n);
  void (*contribution)(Activation kind, float* gate, const float* up, size_t n);
  size_t (*keepLarge)(const float* act, const float* times, const uint32_t* ids, size_t n, const float* weight, float least,
                      uint32_t* outIds, float* outAct);
  size_t (*selectAbove)(const float* score, const float* cut, size_t n, uint32_t firstId, uint32_t* outIds);
  void (*biasRelu)(float* x, const float* bias, size_t n);
  void (*addListed)(float* x, const float* bias, const uint32_t* ids, size_t n);

  double (*rmsNorm)(const float* x, const float* weight, float* out, size_t n, double eps);
  double (*layerNorm)(const float* x, const float* weight, const float* bias, float* out, size_t n, double eps);
  void (*rope)(float* x, const float* cos, const float* sin, size_t headDim);
  void (*addScaled)(float* x, const float* y, float scale, size_t n);
  void (*softmax)(float* x, size_t n);

  // scales: null for f32
  void (*storeKv)(KvFormat format, const float* x, uint8_t* data, float* scales, size_t row, size_t headDim);
  void (*attention)(KvFormat format, const float* q, const uint8_t* kData, const float* kScales, const uint8_t* vData,
                    const float* vScales, const uint32_t* table, float* out, float* scores, size_t group,
                    size_t begin, size_t nPos, size_t headDim, float scale);

  void (*quantizeRows)(Format format, const uint8_t* x, size_t xStride, size_t rows, uint8_t* dst,
                       size_t dstStride, size_t cols);
  void (*dequantizeRow)(Format format, const uint8_t* w, float* out, size_t cols);
  uint32_t (*readProbe)(const uint8_t* begin, size_t bytes);
};

// The tables this build has, best first, each with the test whether this CPU runs it. cpu.cc.
struct Variant {
  const KernelTable* table;
  bool (*supported)();
};
const Variant* variants(size_t* count);

}  // namespace hybrid_infer
