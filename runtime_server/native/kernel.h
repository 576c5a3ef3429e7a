// What the operators share: reading tensors, sharing out work, and how ONNX Runtime wants an operator described.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "ort_abi.h"

namespace MANTLER_ISA {

using ort::Status;

#define MANTLER_TRY(expression)                        \
  do {                                                 \
    if (Status* failed = (expression)) return failed; \
  } while (0)

struct Tensor {
  void* data = nullptr;
  int64_t dims[8] = {};
  size_t rank = 0;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  bool is(std::initializer_list<int64_t> wanted) const {
    return rank == wanted.size() && std::equal(wanted.begin(), wanted.end(), dims);
  }
  int64_t size() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= dims[i];
    return product;
  }
};

// Absent optional inputs have null data.
inline Status* read(const ort::Calls& calls, const ort::KernelContext* context, size_t index, Tensor* tensor) {
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

inline Status* make_output(const ort::Calls& calls, ort::KernelContext* context, int64_t rows, int64_t columns, float** data) {
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

// Calls `task` for each row, some of them by one thread.
template <typename Task>
Status* for_rows(const ort::Calls& calls, const ort::KernelContext* context, int64_t rows, Task&& task) {
  constexpr int64_t kTogether = 4;  // for fewer, waking another thread costs more than it saves
  return in_parallel(calls, context, (rows + kTogether - 1) / kTogether, [&](int64_t part) {
    for (int64_t row = part * kTogether; row < std::min(rows, (part + 1) * kTogether); ++row) task(row);
  });
}

struct Kernel {
  explicit Kernel(const ort::Api* api) : calls(api) {}
  virtual ~Kernel() = default;
  virtual Status* init(const ort::KernelInfo* info) = 0;
  virtual Status* compute(ort::KernelContext* context) = 0;

  ort::Calls calls;
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

}  // namespace MANTLER_ISA
