// The custom operators of the domain "mantler". Compiled once per instruction set; register.cpp picks one.
//
// MantlerLinear     (x [T, K] fp32, weight bytes, norm [K]?, bias [N]?, residual [T, N]?) -> [T, N], or [T, N/2] gated
//                   attributes: bits (4, 8 or 32), out_features, gated, epsilon
// MantlerAttention  (qkv [T, (heads + 2 kv_heads) D], cache fp16, row_starts [B + 1] int32, past_tokens [B] int32,
//                   block_table [B, W] int32, cos [P, D/2], sin [P, D/2], q_norm [D]?, k_norm [D]?) -> [T, heads D]
//                   attributes: heads, kv_heads, head_dim, layers, layer, window, scale, epsilon
//                   It writes to the cache and rotates qkv in place, so nothing else may read either.
// MantlerEmbedding  (ids [T] int64, weight bytes) -> [T, K]
//                   attributes: bits, in_features, out_features
#include <algorithm>
#include <new>
#include <string>

#include "attention.h"
#include "embedding.h"
#include "linear.h"
#include "ops.h"
#include "ort_abi.h"

namespace MANTLER_ISA {
namespace {

using ort::Status;

#define MANTLER_TRY(expression)                        \
  do {                                                 \
    if (Status* failed = (expression)) return failed; \
  } while (0)

// Rows below this number are made ready by the calling thread alone: waking another one costs more.
constexpr int64_t kAloneRows = 4;

struct Tensor {
  void* data = nullptr;
  int64_t dims[8] = {};
  size_t rank = 0;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t size() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
};

// Absent optional inputs have null data.
Status* read(const ort::Calls& calls, const ort::KernelContext* context, size_t index, Tensor* tensor) {
  const ort::Value* value = nullptr;
  MANTLER_TRY(calls.input(context, index, &value));
  if (!value) return nullptr;
  ort::ShapeInfo* info = nullptr;
  MANTLER_TRY(calls.shape(value, &info));
  Status* failed = calls.dimension_count(info, &tensor->rank);
  if (!failed && tensor->rank > 8) failed = calls.error("a tensor of more than 8 dimensions");
  if (!failed) failed = calls.dimensions(info, tensor->dims, tensor->rank);
  calls.release_shape(info);
  return failed ? failed : calls.data(value, &tensor->data);
}

Status* make_output(const ort::Calls& calls, ort::KernelContext* context, int64_t rows, int64_t columns, float** data) {
  const int64_t dims[2] = {rows, columns};
  ort::Value* value = nullptr;
  MANTLER_TRY(calls.output(context, 0, dims, 2, &value));
  void* raw = nullptr;
  MANTLER_TRY(calls.data(value, &raw));
  *data = static_cast<float*>(raw);
  return nullptr;
}

template <typename Task>
Status* in_parallel(const ort::Calls& calls, const ort::KernelContext* context, int64_t count, Task&& task) {
  if (count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return nullptr;
  }
  return calls.parallel_for(
      context, [](void* user, size_t i) { (*static_cast<std::remove_reference_t<Task>*>(user))(static_cast<int64_t>(i)); },
      static_cast<size_t>(count), 0, &task);
}

Status* read_attribute(const ort::Calls& calls, const ort::KernelInfo* info, const char* name, int64_t* value) {
  return calls.attribute(info, name, value);
}

Status* read_format(const ort::Calls& calls, const ort::KernelInfo* info, Format* format) {
  int64_t bits = 0;
  MANTLER_TRY(read_attribute(calls, info, "bits", &bits));
  if (bits != 4 && bits != 8 && bits != 32) return calls.error("bits must be 4, 8 or 32");
  *format = bits == 4 ? Format::kInt4 : bits == 8 ? Format::kInt8 : Format::kFloat;
  return nullptr;
}

// Bytes of a weight of `outputs` times `inputs`.
int64_t weight_bytes(Format format, int64_t outputs, int64_t inputs) {
  const int64_t panels = (outputs + kLanes - 1) / kLanes, blocks = (inputs + kBlock - 1) / kBlock;
  return panels * blocks * static_cast<int64_t>(record_bytes(format));
}

struct Kernel {
  explicit Kernel(const ort::Api* api) : calls(api) {}
  virtual ~Kernel() = default;
  virtual Status* init(const ort::KernelInfo* info) = 0;
  virtual Status* compute(ort::KernelContext* context) = 0;

  ort::Calls calls;
};

struct Linear final : Kernel {
  using Kernel::Kernel;

  Status* init(const ort::KernelInfo* info) override {
    MANTLER_TRY(read_format(calls, info, &format));
    MANTLER_TRY(read_attribute(calls, info, "out_features", &outputs));
    MANTLER_TRY(read_attribute(calls, info, "gated", &gated));
    MANTLER_TRY(calls.attribute(info, "epsilon", &epsilon));
    return gated && outputs % (2 * kLanes) ? calls.error("a gated linear layer needs a multiple of 32 outputs") : nullptr;
  }

  Status* compute(ort::KernelContext* context) override {
    Tensor x, weight, norm, bias, residual;
    Tensor* const inputs[] = {&x, &weight, &norm, &bias, &residual};
    for (size_t i = 0; i < 5; ++i) MANTLER_TRY(read(calls, context, i, inputs[i]));
    const int64_t count = x.dims[0], width = x.dims[1], result_width = gated ? outputs / 2 : outputs;
    if (weight.size() != weight_bytes(format, outputs, width)) return calls.error("the weight does not fit its input");
    if ((norm.data && norm.size() != width) || (bias.data && bias.size() != result_width) ||
        (residual.data && residual.size() != count * result_width))
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
    if (count <= kAloneRows) {
      for (int64_t row = 0; row < count; ++row) prepare(row);
    } else {
      MANTLER_TRY(in_parallel(calls, context, (count + kAloneRows - 1) / kAloneRows, [&](int64_t part) {
        for (int64_t row = part * kAloneRows; row < std::min(count, (part + 1) * kAloneRows); ++row) prepare(row);
      }));
    }
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

struct Attention final : Kernel {
  using Kernel::Kernel;

  Status* init(const ort::KernelInfo* info) override {
    Geometry& g = geometry;
    const std::pair<const char*, int64_t*> numbers[] = {{"heads", &g.heads},   {"kv_heads", &g.kv_heads},
                                                        {"head_dim", &g.head_dim}, {"layers", &g.layers},
                                                        {"layer", &g.layer},   {"window", &g.window}};
    for (const auto& [name, value] : numbers) MANTLER_TRY(read_attribute(calls, info, name, value));
    MANTLER_TRY(calls.attribute(info, "scale", &g.scale));
    MANTLER_TRY(calls.attribute(info, "epsilon", &g.epsilon));
    if (g.head_dim % kLanes || g.head_dim < 1 || g.head_dim > 256)
      return calls.error("head_dim must be a multiple of 16, at most 256");
    return g.kv_heads < 1 || g.heads % g.kv_heads ? calls.error("heads must be a multiple of kv_heads") : nullptr;
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
    if (count <= kAloneRows) {
      for (int64_t row = 0; row < count; ++row) append_row(row);
    } else {
      MANTLER_TRY(in_parallel(calls, context, (count + kAloneRows - 1) / kAloneRows, [&](int64_t part) {
        for (int64_t row = part * kAloneRows; row < std::min(count, (part + 1) * kAloneRows); ++row) append_row(row);
      }));
    }
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
    if (qkv.dims[1] != g.qkv_width()) return "qkv does not fit the heads";
    if (cache.size() != g.cache_blocks * g.layers * g.kv_heads * 2 * kBlockTokens * g.head_dim) return "the cache does not fit the heads";
    if (starts.dims[0] != sequences + 1 || table.dims[0] != sequences) return "row_starts or block_table do not fit past_tokens";
    if (cos.dims[1] != g.head_dim / 2 || sin.size() != cos.size()) return "cos and sin do not fit the heads";
    const int32_t *start = starts.as<int32_t>(), *before = past.as<int32_t>(), *blocks = table.as<int32_t>();
    if (start[0] != 0 || start[sequences] != count) return "row_starts must go from 0 to the number of rows";
    for (int64_t s = 0; s < sequences; ++s) {
      if (start[s + 1] <= start[s] || before[s] < 0) return "each sequence must have rows, and no fewer than 0 tokens before them";
      const int64_t end = before[s] + start[s + 1] - start[s];
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

struct Embedding final : Kernel {
  using Kernel::Kernel;

  Status* init(const ort::KernelInfo* info) override {
    MANTLER_TRY(read_format(calls, info, &format));
    MANTLER_TRY(read_attribute(calls, info, "in_features", &width));
    return read_attribute(calls, info, "out_features", &outputs);
  }

  Status* compute(ort::KernelContext* context) override {
    Tensor ids, weight;
    MANTLER_TRY(read(calls, context, 0, &ids));
    MANTLER_TRY(read(calls, context, 1, &weight));
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

struct Input {
  ort::ElementType type;
  ort::Characteristic characteristic = ort::kRequired;
};

// An operator as ONNX Runtime wants it described. `K` computes it.
template <typename K>
struct Op : ort::CustomOp {
  Op(const char* op_name, std::vector<Input> op_inputs) : ort::CustomOp{}, name(op_name), inputs(std::move(op_inputs)) {
    version = ort::kVersion;
    get_name = [](const CustomOp* op) { return self(op).name; };
    get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
    get_input_type = [](const CustomOp* op, size_t i) { return self(op).inputs[i].type; };
    get_input_count = [](const CustomOp* op) { return self(op).inputs.size(); };
    get_output_type = [](const CustomOp*, size_t) { return ort::kFloat; };
    get_output_count = [](const CustomOp*) -> size_t { return 1; };
    get_input_characteristic = [](const CustomOp* op, size_t i) { return self(op).inputs[i].characteristic; };
    get_output_characteristic = [](const CustomOp*, size_t) { return ort::kRequired; };
    get_input_memory_type = [](const CustomOp*, size_t) { return 0; };
    create_kernel_v2 = [](const CustomOp*, const ort::Api* api, const ort::KernelInfo* info, void** kernel) -> Status* {
      auto* made = new (std::nothrow) K(api);
      if (!made) return ort::Calls(api).error("out of memory");
      if (Status* failed = made->init(info)) {
        delete made;
        return failed;
      }
      *kernel = made;
      return nullptr;
    };
    compute_v2 = [](void* kernel, ort::KernelContext* context) -> Status* {
      auto* made = static_cast<K*>(kernel);
      try {
        return made->compute(context);
      } catch (const std::bad_alloc&) {
        return made->calls.error("out of memory");
      }
    };
    destroy_kernel = [](void* kernel) { delete static_cast<K*>(kernel); };
  }

  static const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

  const char* name;
  std::vector<Input> inputs;
};

}  // namespace

std::vector<const ort::CustomOp*> ops() {
  using ort::kFloat, ort::kFloat16, ort::kInt32, ort::kInt64, ort::kOptional, ort::kUint8;
  static const Op<Linear> linear(
      "MantlerLinear", {{kFloat}, {kUint8}, {kFloat, kOptional}, {kFloat, kOptional}, {kFloat, kOptional}});
  static const Op<Attention> attention("MantlerAttention",
                                       {{kFloat}, {kFloat16}, {kInt32}, {kInt32}, {kInt32}, {kFloat}, {kFloat},
                                        {kFloat, kOptional}, {kFloat, kOptional}});
  static const Op<Embedding> embedding("MantlerEmbedding", {{kInt64}, {kUint8}});
  return {&linear, &attention, &embedding};
}

}  // namespace MANTLER_ISA
