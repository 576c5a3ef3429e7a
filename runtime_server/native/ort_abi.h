// The part of ONNX Runtime's C interface that custom operators need.
//
// ONNX Runtime does not ship its header with its Python package. Its interface is a table of functions that only ever
// grows at its end, so the few entries used here are named by their place in `struct OrtApi` of
// onnxruntime_c_api.h; `tests/runtime_server/native` would fail at once if one were wrong.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define MANTLER_EXPORT extern "C" __declspec(dllexport)
#else
#define MANTLER_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ort {

struct Status;
struct Value;
struct KernelInfo;
struct KernelContext;
struct ShapeInfo;
struct SessionOptions;
struct CustomOpDomain;

struct Api {
  const void* functions[275];
};

struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

// The version of the interface that the places and the layout of CustomOp below come from.
constexpr uint32_t kVersion = 17;
constexpr int kInvalidArgument = 2;

enum ElementType : int { kFloat = 1, kUint8 = 2, kUint16 = 4, kInt32 = 6, kInt64 = 7 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_execution_provider)(const CustomOp*);
  ElementType (*get_input_type)(const CustomOp*, size_t);
  size_t (*get_input_count)(const CustomOp*);
  ElementType (*get_output_type)(const CustomOp*, size_t);
  size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy_kernel)(void*);
  Characteristic (*get_input_characteristic)(const CustomOp*, size_t);
  Characteristic (*get_output_characteristic)(const CustomOp*, size_t);
  int (*get_input_memory_type)(const CustomOp*, size_t);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  // Entries of version 17 and later stay zero, which ONNX Runtime takes for "not there".
  void* later[8];
};

// Calls through the table.
class Calls {
 public:
  explicit Calls(const Api* api) : api_(api) {}

  Status* error(const char* message) const { return at<Status*(int, const char*)>(0)(kInvalidArgument, message); }
  Status* create_domain(const char* name, CustomOpDomain** domain) const {
    return at<Status*(const char*, CustomOpDomain**)>(26)(name, domain);
  }
  Status* add_op(CustomOpDomain* domain, const CustomOp* op) const {
    return at<Status*(CustomOpDomain*, const CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status*(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status* data(const Value* value, void** data) const {
    return at<Status*(const Value*, void**)>(51)(value, data);
  }
  Status* dimension_count(const ShapeInfo* info, size_t* count) const {
    return at<Status*(const ShapeInfo*, size_t*)>(61)(info, count);
  }
  Status* dimensions(const ShapeInfo* info, int64_t* values, size_t count) const {
    return at<Status*(const ShapeInfo*, int64_t*, size_t)>(62)(info, values, count);
  }
  Status* shape(const Value* value, ShapeInfo** info) const {
    return at<Status*(const Value*, ShapeInfo**)>(65)(value, info);
  }
  Status* attribute(const KernelInfo* info, const char* name, float* value) const {
    return at<Status*(const KernelInfo*, const char*, float*)>(85)(info, name, value);
  }
  Status* attribute(const KernelInfo* info, const char* name, int64_t* value) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  Status* input(const KernelContext* context, size_t index, const Value** value) const {
    return at<Status*(const KernelContext*, size_t, const Value**)>(90)(context, index, value);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* dims, size_t count, Value** value) const {
    return at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, dims, count, value);
  }
  void release_status(Status* status) const { at<void(Status*)>(93)(status); }
  void release_shape(ShapeInfo* info) const { at<void(ShapeInfo*)>(99)(info); }
  Status* parallel_for(const KernelContext* context, void (*task)(void*, size_t), size_t total, size_t batches,
                       void* user) const {
    return at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(context, task, total,
                                                                                                  batches, user);
  }

 private:
  template <typename Function>
  Function* at(size_t place) const {
    return reinterpret_cast<Function*>(const_cast<void*>(api_->functions[place]));
  }
  const Api* api_;
};

}  // namespace ort
