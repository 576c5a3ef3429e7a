// Registers the operators that were compiled for the best instruction set of this processor, and names its sampler.
#include <cstdlib>
#include <cstring>

#include "ort_abi.h"
#include "processor.h"
#include "sampling.h"

static_assert(offsetof(ort::CustomOp, create_kernel_v2) == 17 * sizeof(void*), "the layout of onnxruntime_c_api.h");

#define MANTLER_DECLARE(isa)            \
  namespace isa {                       \
  const ort::CustomOp* linear_op();     \
  const ort::CustomOp* attention_op();  \
  const ort::CustomOp* embedding_op();  \
  sampling::Sample sample;              \
  }
#define MANTLER_OPS(isa) {isa::linear_op, isa::attention_op, isa::embedding_op}, isa::sample

MANTLER_DECLARE(baseline)
#if defined(__x86_64__)
MANTLER_DECLARE(avx2)
MANTLER_DECLARE(avx512)
MANTLER_DECLARE(avx512_bf16)
#endif

namespace {

struct Isa {
  const char* name;
  bool there;
  const ort::CustomOp* (*ops[3])();
  sampling::Sample* sample;
};

// The first that this processor has, or the one that MANTLER_INSTRUCTION_SET names if it has that.
const Isa& chosen() {
#if defined(__x86_64__)
  static const Isa all[] = {{"avx512_bf16", processor::has_avx512_bf16(), MANTLER_OPS(avx512_bf16)},
                            {"avx512_vnni", processor::has_avx512_vnni(), MANTLER_OPS(avx512)},
                            {"avx2", processor::has_avx2(), MANTLER_OPS(avx2)},
                            {"baseline", true, MANTLER_OPS(baseline)}};
#else
  static const Isa all[] = {{"baseline", true, MANTLER_OPS(baseline)}};
#endif
  const char* wish = std::getenv("MANTLER_INSTRUCTION_SET");
  const Isa* best = nullptr;
  for (const Isa& isa : all) {
    if (!isa.there) continue;
    if (wish && std::strcmp(wish, isa.name) == 0) return isa;
    if (!best) best = &isa;
  }
  return *best;
}

}  // namespace

MANTLER_EXPORT const char* mantler_instruction_set() { return chosen().name; }

MANTLER_EXPORT void mantler_sample(const float* logits, int64_t rows, int64_t vocab_size, const sampling::Row* row,
                                   int64_t* tokens) {
  chosen().sample(logits, rows, vocab_size, row, tokens);
}

MANTLER_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  const ort::Calls calls(base->get_api(ort::kVersion));
  // ONNX Runtime reads the domain as long as a session that has it lives, so it is made once and kept.
  static ort::CustomOpDomain* domain = nullptr;
  if (!domain) {
    if (ort::Status* failed = calls.create_domain("mantler", &domain)) return failed;
    for (const auto op : chosen().ops)
      if (ort::Status* failed = calls.add_op(domain, op())) return failed;
  }
  return calls.add_domain(options, domain);
}
