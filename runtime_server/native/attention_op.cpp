// MantlerAttention (qkv [T, (heads + 2 kv_heads) D], cache bf16 as uint16, row_starts [B + 1] int32, past_tokens [B] int32,
//                   block_table [B, W] int32, cos [P, D/2], sin [P, D/2], q_norm [D]?, k_norm [D]?) -> [T, heads D]
// Attributes: heads, kv_heads, head_dim, layers, layer, window, scale, epsilon.
// It writes to the cache and rotates qkv in place, so nothing else may read either.
#include <algorithm>

#include "attention.h"
#include "kernel.h"
#include "ops.h"

namespace MANTLER_ISA {
namespace {

struct Attention final : Kernel {
  using Kernel::Kernel;

  Status* init(const ort::KernelInfo* info) override {
    Geometry& g = geometry;
    const std::pair<const char*, int64_t*> numbers[] = {{"heads", &g.heads},   {"kv_heads", &g.kv_heads},
                                                        {"head_dim", &g.head_dim}, {"layers", &g.layers},
                                                        {"layer", &g.layer},   {"window", &g.window}};
    for (const auto& [name, value] : numbers) MANTLER_TRY(calls.attribute(info, name, value));
    MANTLER_TRY(calls.attribute(info, "scale", &g.scale));
    MANTLER_TRY(calls.attribute(info, "epsilon", &g.epsilon));
    if (g.head_dim % kLanes || g.head_dim < 1 || g.head_dim > 256)
      return calls.error("head_dim must be a multiple of 16, at most 256");
    if (g.kv_heads < 1 || g.heads < 1 || g.heads % g.kv_heads) return calls.error("heads must be a multiple of kv_heads");
    return g.layer < 0 || g.layer >= g.layers || g.window < 0 ? calls.error("layer or window make no sense") : nullptr;
  }

  Status* compute(ort::KernelContext* context) override {
    Tensor qkv, cache, starts, past, table, cos, sin, q_norm, k_norm;
    Tensor* const inputs[] = {&qkv, &cache, &starts, &past, &table, &cos, &sin, &q_norm, &k_norm};
    for (size_t i = 0; i < 9; ++i) MANTLER_TRY(read(calls, context, i, inputs[i]));
    Geometry g = geometry;
    const int64_t sequences = past.dims[0], count = qkv.dims[0];
    g.table_width = table.dims[1];
    g.cache_blocks = cache.dims[0];
    g.rope_positions = cos.dims[0];
    if (const char* wrong = misfit(g, qkv, cache, starts, past, table, cos, sin)) return calls.error(wrong);
    if ((q_norm.data && !q_norm.is({g.head_dim})) || (k_norm.data && !k_norm.is({g.head_dim})))
      return calls.error("the norms do not fit the heads");
    float* result = nullptr;
    MANTLER_TRY(make_output(calls, context, count, g.heads * g.head_dim, &result));

    const int32_t *start = starts.as<int32_t>(), *before = past.as<int32_t>(), *blocks = table.as<int32_t>();
    const int64_t qkv_width = g.qkv_width(), result_width = g.heads * g.head_dim;
    static thread_local std::vector<Place> buffer;
    std::vector<Place>& places = buffer;
    places.resize(static_cast<size_t>(count));
    for (int64_t s = 0; s < sequences; ++s)
      for (int32_t row = start[s]; row < start[s + 1]; ++row)
        places[static_cast<size_t>(row)] = {blocks + s * g.table_width, before[s] + row - start[s]};
    auto append_row = [&](int64_t row) {
      append(g, qkv.as<float>() + row * qkv_width, places[static_cast<size_t>(row)], cos.as<float>(), sin.as<float>(),
             q_norm.as<float>(), k_norm.as<float>(), cache.as<uint16_t>());
    };
    MANTLER_TRY(for_rows(calls, context, count, append_row));
    return in_parallel(calls, context, tasks(g, start, sequences), [&](int64_t task) {
      const int64_t kv_head = tasks_[static_cast<size_t>(task)].kv_head;
      const int64_t row = tasks_[static_cast<size_t>(task)].row;
      attend(g, qkv.as<float>() + row * qkv_width, places[static_cast<size_t>(row)],
             tasks_[static_cast<size_t>(task)].rows, kv_head, cache.as<uint16_t>(), result + row * result_width);
    });
  }

  // Rows of a prompt are cut into tasks of this many; their keys stay in the cache of the core meanwhile.
  static constexpr int64_t kTaskRows = 16;

  struct Task {
    int64_t row, rows, kv_head;
  };

  // Lists the work, the longest prompts' last rows first among it.
  int64_t tasks(const Geometry& g, const int32_t* start, int64_t sequences) {
    tasks_.clear();
    for (int64_t s = sequences - 1; s >= 0; --s)
      for (int64_t end = start[s + 1]; end > start[s]; end -= kTaskRows) {
        const int64_t row = std::max<int64_t>(start[s], end - kTaskRows);
        for (int64_t kv_head = 0; kv_head < g.kv_heads; ++kv_head) tasks_.push_back({row, end - row, kv_head});
      }
    return static_cast<int64_t>(tasks_.size());
  }

  // Wrong places would read or write outside of the cache.
  static const char* misfit(const Geometry& g, const Tensor& qkv, const Tensor& cache, const Tensor& starts,
                            const Tensor& past, const Tensor& table, const Tensor& cos, const Tensor& sin) {
    const int64_t sequences = past.dims[0], count = qkv.dims[0];
    if (!qkv.is({count, g.qkv_width()})) return "qkv does not fit the heads";
    if (!cache.is({g.cache_blocks, g.layers, g.kv_heads, 2, kBlockTokens * g.head_dim}))
      return "the cache does not fit the heads";
    if (!past.is({sequences}) || !starts.is({sequences + 1}) || !table.is({sequences, g.table_width}))
      return "row_starts or block_table do not fit past_tokens";
    if (!cos.is({g.rope_positions, g.head_dim / 2}) || !sin.is({g.rope_positions, g.head_dim / 2}))
      return "cos and sin do not fit the heads";
    const int32_t *start = starts.as<int32_t>(), *before = past.as<int32_t>(), *blocks = table.as<int32_t>();
    if (start[0] != 0 || start[sequences] != count) return "row_starts must go from 0 to the number of rows";
    for (int64_t s = 0; s < sequences; ++s) {
      if (start[s + 1] <= start[s] || before[s] < 0) return "each sequence must have rows, and no fewer than 0 tokens before them";
      const int64_t end = int64_t{before[s]} + start[s + 1] - start[s];
      const int64_t used = (end + kBlockTokens - 1) / kBlockTokens;
      if (end > g.rope_positions || used > g.table_width) return "a sequence is longer than its block table or the context";
      for (int64_t i = 0; i < used; ++i)
        if (blocks[s * g.table_width + i] < 0 || blocks[s * g.table_width + i] >= g.cache_blocks) return "a block lies outside of the cache";
    }
    return nullptr;
  }

  Geometry geometry{};
  std::vector<Task> tasks_;
};

}  // namespace

const ort::CustomOp* attention_op() {
  using ort::kFloat, ort::kInt32, ort::kOptional, ort::kUint16;
  static const Op<Attention> op("MantlerAttention", {{kFloat}, {kUint16}, {kInt32}, {kInt32}, {kInt32}, {kFloat},
                                                     {kFloat}, {kFloat, kOptional}, {kFloat, kOptional}});
  return &op;
}

}  // namespace MANTLER_ISA
