// What operators of ours need of ONNX Runtime's C interface.
//
// The interface is a table of functions whose order never changes, and a struct of callbacks; the
// few entries that are needed are named here, so that no header of ONNX Runtime has to be there.
// Needs version 1.18 or later.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <vector>

namespace prunepass {

constexpr uint32_t kApiVersion = 18;
constexpr int kFloat = 1;  // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT

// Places in the table of functions.
enum Entry {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseTensorTypeAndShapeInfo = 99,
  kCreateOp = 213,
  kInvokeOp = 214,
  kReleaseOp = 215,
  kKernelContextParallelFor = 274,
};

using Status = void*;
using Api = void* const*;

template <typename... Arguments>
Status call(Api api, Entry entry, Arguments... arguments) {
  return reinterpret_cast<Status (*)(Arguments...)>(api[entry])(arguments...);
}

#define TRY(expression)                     \
  if (Status failed = (expression)) return failed

constexpr int kInvalidArgument = 2;  // ORT_INVALID_ARGUMENT

// What ends a run with a sentence.
inline Status refusal(Api api, const char* why) {
  return call(api, kCreateStatus, kInvalidArgument, why);
}

struct Shape {
  std::vector<int64_t> sizes;
  int64_t rows() const {
    int64_t count = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) count *= sizes[i];
    return count;
  }
};

inline Status shape_of(Api api, const void* value, Shape& shape) {
  void* info = nullptr;
  size_t count = 0;
  TRY(call(api, kGetTensorTypeAndShape, value, &info));
  Status failed = call(api, kGetDimensionsCount, static_cast<const void*>(info), &count);
  if (!failed) {
    shape.sizes.resize(count);
    failed = call(api, kGetDimensions, static_cast<const void*>(info), shape.sizes.data(), count);
  }
  reinterpret_cast<void (*)(void*)>(api[kReleaseTensorTypeAndShapeInfo])(info);
  return failed;
}

inline Status inputs_of(Api api, void* context, size_t count, const void** inputs) {
  for (size_t i = 0; i < count; ++i)
    TRY(call(api, kKernelContextGetInput, static_cast<const void*>(context), i, &inputs[i]));
  return nullptr;
}

// The numbers of an input of a kernel.
inline Status numbers_of(Api api, const void* input, const float** numbers) {
  void* found = nullptr;
  TRY(call(api, kGetTensorMutableData, const_cast<void*>(input), &found));
  *numbers = static_cast<const float*>(found);
  return nullptr;
}

// An output of a kernel, and its numbers.
inline Status output_of(Api api, void* context, const Shape& shape, void** output,
                        float** numbers) {
  TRY(call(api, kKernelContextGetOutput, context, size_t{0},
           static_cast<const int64_t*>(shape.sizes.data()), shape.sizes.size(), output));
  void* found = nullptr;
  TRY(call(api, kGetTensorMutableData, *output, &found));
  *numbers = static_cast<float*>(found);
  return nullptr;
}

// Calls work(0) .. work(count - 1), in threads of ONNX Runtime's own.
template <typename Work>
Status in_parallel(Api api, void* context, size_t count, const Work& work) {
  void (*run)(void*, size_t) = [](void* data, size_t number) {
    (*static_cast<const Work*>(data))(number);
  };
  return call(api, kKernelContextParallelFor, static_cast<const void*>(context), run, count,
              size_t{0}, const_cast<void*>(static_cast<const void*>(&work)));
}

// The callbacks that describe an operator, in the order in which ONNX Runtime reads them.
struct Operator {
  uint32_t version;
  void* (*create_kernel)(const void*, Api, const void*);
  const char* (*name)(const void*);
  const char* (*provider)(const void*);
  int (*input_type)(const void*, size_t);
  size_t (*input_count)(const void*);
  int (*output_type)(const void*, size_t);
  size_t (*output_count)(const void*);
  void (*kernel_compute)(void*, void*);
  void (*kernel_destroy)(void*);
  int (*input_characteristic)(const void*, size_t);
  int (*output_characteristic)(const void*, size_t);
  int (*input_memory)(const void*, size_t);
  int (*variadic_input_arity)(const void*);
  int (*variadic_input_alike)(const void*);
  int (*variadic_output_arity)(const void*);
  int (*variadic_output_alike)(const void*);
  Status (*create_kernel_v2)(const void*, Api, const void*, void**);
  Status (*kernel_compute_v2)(void*, void*);
  Status (*infer_shape)(const void*, void*);
  int (*start_version)(const void*);
  int (*end_version)(const void*);
  void* may_inplace[4];  // and whether outputs alias inputs: neither
};

inline int zero(const void*, size_t) { return 0; }
inline int one_of_it(const void*) { return 1; }

// An operator of float tensors with one output, of a kernel with a name, a number of inputs, and
// `create`, `compute` and a destructor.
template <typename Kernel>
const Operator& operator_of() {
  static const Operator made = {
      kApiVersion,
      nullptr,
      [](const void*) { return Kernel::kName; },
      [](const void*) { return "CPUExecutionProvider"; },
      [](const void*, size_t) { return kFloat; },
      [](const void*) { return Kernel::kInputs; },
      [](const void*, size_t) { return kFloat; },
      [](const void*) { return size_t{1}; },
      nullptr,
      [](void* self) { delete static_cast<Kernel*>(self); },
      zero,
      zero,
      zero,
      one_of_it,
      one_of_it,
      one_of_it,
      one_of_it,
      [](const void*, Api api, const void* info, void** kernel) -> Status {
        Kernel* found = new Kernel{api};
        *kernel = found;
        return found->create(info);
      },
      [](void* self, void* context) -> Status {
        return static_cast<const Kernel*>(self)->compute(context);
      },
      nullptr,
      one_of_it,
      [](const void*) { return INT32_MAX; },
      {nullptr, nullptr, nullptr, nullptr},
  };
  return made;
}

struct Base {
  Api (*get_api)(uint32_t version);
  const char* (*version)();
};

// Makes a session know operators of the domain "prunepass".
inline Status add_operators(void* options, const Base* base,
                            std::initializer_list<const Operator*> operators) {
  Api api = base->get_api(kApiVersion);
  if (api == nullptr) std::abort();  // refused before: the version is checked where it is loaded
  void* domain = nullptr;
  TRY(call(api, kCreateCustomOpDomain, "prunepass", &domain));
  for (const Operator* made : operators)
    TRY(call(api, kCustomOpDomainAdd, domain, static_cast<const void*>(made)));
  return call(api, kAddCustomOpDomain, options, domain);
}

}  // namespace prunepass
