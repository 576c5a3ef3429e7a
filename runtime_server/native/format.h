// The formats of a weight, as an operator meets them: an attribute and a number of bytes.
#pragma once

#include "kernel.h"
#include "linear.h"

namespace MANTLER_ISA {

inline Status* read_format(const ort::Calls& calls, const ort::KernelInfo* info, Format* format) {
  int64_t bits = 0;
  MANTLER_TRY(calls.attribute(info, "bits", &bits));
  if (bits != 4 && bits != 8 && bits != 32) return calls.error("bits must be 4, 8 or 32");
  *format = bits == 4 ? Format::kInt4 : bits == 8 ? Format::kInt8 : Format::kFloat;
  return nullptr;
}

// Bytes of a weight of `outputs` times `inputs`.
inline int64_t weight_bytes(Format format, int64_t outputs, int64_t inputs) {
  const int64_t panels = (outputs + kLanes - 1) / kLanes, blocks = (inputs + kBlock - 1) / kBlock;
  return panels * blocks * static_cast<int64_t>(record_bytes(format));
}

}  // namespace MANTLER_ISA
