// MantlerEmbedding (ids [T] int64, weight bytes) -> [T, K]
// Attributes: bits, in_features, out_features.
#include "embedding.h"
#include "format.h"
#include "ops.h"

namespace MANTLER_ISA {
namespace {

struct Embedding final : Kernel {
  using Kernel::Kernel;

  Status* init(const ort::KernelInfo* info) override {
    MANTLER_TRY(read_format(calls, info, &format));
    MANTLER_TRY(calls.attribute(info, "in_features", &width));
    MANTLER_TRY(calls.attribute(info, "out_features", &outputs));
    return width < 1 || outputs < 1 ? calls.error("an embedding needs in_features and out_features") : nullptr;
  }

  Status* compute(ort::KernelContext* context) override {
    Tensor ids, weight;
    MANTLER_TRY(read(calls, context, 0, &ids));
    MANTLER_TRY(read(calls, context, 1, &weight));
    if (ids.rank != 1) return calls.error("an embedding takes packed rows");
    if (weight.size() != weight_bytes(format, outputs, width)) return calls.error("the weight does not fit the embedding");
    float* result = nullptr;
    MANTLER_TRY(make_output(calls, context, ids.dims[0], width, &result));
    for (int64_t row = 0; row < ids.dims[0]; ++row) {
      const int64_t id = ids.as<int64_t>()[row];
      if (id < 0 || id >= outputs) return calls.error("a token id lies outside of the vocabulary");
      embed(format, weight.as<uint8_t>(), id, width, result + row * width);
    }
    return nullptr;
  }

  Format format = Format::kInt8;
  int64_t width = 0, outputs = 0;
};

}  // namespace

const ort::CustomOp* embedding_op() {
  static const Op<Embedding> op("MantlerEmbedding", {{ort::kInt64}, {ort::kUint8}});
  return &op;
}

}  // namespace MANTLER_ISA
