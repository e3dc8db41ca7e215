// All kernels of one instruction set: included once by each isa_*.cc, after its simd_*.h. Everything is in
// an unnamed namespace, so that the linker never mixes code compiled for different CPUs.
#pragma once

#include "elementwise.h"
#include "quantize.h"
#include "row_dot.h"
#include "dot.h"
#include "row_sum.h"
#include "attention.h"

#define HYBRID_INFER_ENTRY(KERNEL) KERNEL,
#define HYBRID_INFER_TABLE(SYMBOL, NAME)                                       \
  namespace hybrid_infer {                                                     \
  extern const KernelTable SYMBOL;                                             \
  const KernelTable SYMBOL = {NAME, HYBRID_INFER_KERNELS(HYBRID_INFER_ENTRY)}; \
  }
