// Draws the next token of a row from its logits.
//
// A token's weight is e^((logit - peak) * scale): its probability in units of the likeliest token's. A logit that is not a
// number counts as minus infinity, so that a damaged model harms its own row only.
#pragma once

#include <cstdint>

namespace sampling {

// What decides one row's token, besides its logits. Python writes it: runtime_server/native/sampling.py.
struct Row {
  const uint8_t* allowed;     // a bit per token, the lowest first; null where every token is
  uint64_t seed;
  double top_p, min_p;        // 1 and 0 leave all
  float scale;                // the inverse of the temperature; 0 takes the likeliest token
  int32_t top_k;              // 0 leaves all
  uint32_t choice, position;  // with the seed they are the place in the cumulative distribution that is drawn
};

// Each of `rows` logits [vocab_size] by itself. Ties go to the lowest id.
typedef void Sample(const float* logits, int64_t rows, int64_t vocab_size, const Row* row, int64_t* tokens);

}  // namespace sampling

#if defined(MANTLER_ISA)
namespace MANTLER_ISA {
sampling::Sample sample;
}
#endif
