// Rows of a weight in the layout of linear.h, for tied embeddings that are stored once.
#pragma once

#include "linear.h"

namespace MANTLER_ISA {

// Output `index` of `weight` as fp32: `width` numbers.
void embed(Format format, const uint8_t* weight, int64_t index, int64_t width, float* result);

}  // namespace MANTLER_ISA
