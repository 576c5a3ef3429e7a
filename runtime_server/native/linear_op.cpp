// MantlerLinear (x [T, K] fp32, weight bytes, norm [K]?, bias [N]?, residual [T, N]?) -> [T, N], or [T, N/2] gated
// Attributes: bits (4, 8 or 32), out_features, gated, epsilon.
#include <algorithm>

#include "format.h"
#include "ops.h"

namespace MANTLER_ISA {
namespace {

struct Linear final : Kernel {
  using Kernel::Kernel;

  Status* init(const ort::KernelInfo* info) override {
    MANTLER_TRY(read_format(calls, info, &format));
    MANTLER_TRY(calls.attribute(info, "out_features", &outputs));
    MANTLER_TRY(calls.attribute(info, "gated", &gated));
    MANTLER_TRY(calls.attribute(info, "epsilon", &epsilon));
    if (outputs < 1) return calls.error("a linear layer needs out_features");
    return gated && outputs % (2 * kLanes) ? calls.error("a gated linear layer needs a multiple of 32 outputs") : nullptr;
  }

  Status* compute(ort::KernelContext* context) override {
    Tensor x, weight, norm, bias, residual;
    Tensor* const inputs[] = {&x, &weight, &norm, &bias, &residual};
    for (size_t i = 0; i < 5; ++i) MANTLER_TRY(read(calls, context, i, inputs[i]));
    if (x.rank != 2) return calls.error("a linear layer takes packed rows");
    const int64_t count = x.dims[0], width = x.dims[1], result_width = gated ? outputs / 2 : outputs;
    if (weight.size() != weight_bytes(format, outputs, width)) return calls.error("the weight does not fit its input");
    if ((norm.data && !norm.is({width})) || (bias.data && !bias.is({result_width})) ||
        (residual.data && !residual.is({count, result_width})))
      return calls.error("norm, bias or residual do not fit the linear layer");
    float* result = nullptr;
    MANTLER_TRY(make_output(calls, context, count, result_width, &result));

    // One buffer for the thread that calls: its operators run one after the other.
    static thread_local Rows buffer;
    Rows& rows = buffer;
    const int64_t blocks = (width + kBlock - 1) / kBlock;
    rows.resize(format, count, blocks);
    auto prepare = [&](int64_t row) {
      prepare_row(format, x.as<float>() + row * width, norm.as<float>(), epsilon, width, row, rows);
    };
    MANTLER_TRY(for_rows(calls, context, count, prepare));
    const Epilogue epilogue{bias.as<float>(), residual.as<float>(), gated != 0};
    const int64_t panels = (outputs + kLanes - 1) / kLanes, tiles = (count + kTile - 1) / kTile;
    const int64_t step = panels_per_task(panels);
    return in_parallel(calls, context, (panels + step - 1) / step, [&](int64_t task) {
      const int64_t first = task * step, last = std::min(panels, first + step);
      // Two panels stay in the nearest cache while all rows pass by.
      for (int64_t pair = first; pair < last; pair += 2)
        for (int64_t tile = 0; tile < tiles; ++tile)
          multiply(format, rows, tile, std::min<int64_t>(kTile, count - tile * kTile), weight.as<uint8_t>(), blocks,
                   pair, std::min(pair + 2, last), outputs, epilogue, result);
    });
  }

  // An even number of panels, so that pairs stay together, and some tasks for each thread.
  static int64_t panels_per_task(int64_t panels) { return std::max<int64_t>(2, panels / 16 / 2 * 2); }

  Format format = Format::kInt8;
  int64_t outputs = 0, gated = 0;
  float epsilon = 0;
};

}  // namespace

const ort::CustomOp* linear_op() {
  using ort::kFloat, ort::kOptional, ort::kUint8;
  static const Op<Linear> op("MantlerLinear",
                             {{kFloat}, {kUint8}, {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional}});
  return &op;
}

}  // namespace MANTLER_ISA
