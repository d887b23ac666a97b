// The operator prunepass::GatedLinear of ONNX Runtime: y = W^T-rows(x) over the inputs that matter.
//
// It is compiled when a bundle is built and loaded with the bundle. ONNX Runtime's C interface is a
// table of functions whose order never changes, and a struct of callbacks; the few entries that are
// needed are named here, so that no header of it has to be there. Needs version 1.18 or later.

#include <cstdlib>

#include "gated_rows.h"

namespace {

constexpr uint32_t kApiVersion = 18;
constexpr int kFloat = 1;     // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT

constexpr size_t kThreads = 4;      // how many may share one product; it is not told

// Places in the table of functions.
enum Entry {
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

struct Shape {
  std::vector<int64_t> sizes;
  int64_t rows() const {
    int64_t count = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) count *= sizes[i];
    return count;
  }
};

struct Kernel {
  Api api;
  int64_t keep;
  int64_t rows;
  float threshold;
  void* product;  // ONNX Runtime's own MatMul
};

Status shape_of(Api api, const void* value, Shape& shape) {
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

struct Work {
  const float* x;
  const float* weight;
  float* y;
  const std::vector<int32_t>& kept;
  size_t outputs, blocks;
};

// One block of columns, in a thread of ONNX Runtime's own.
void block(void* data, size_t number) {
  const Work& work = *static_cast<const Work*>(data);
  prunepass::columns(work.x, work.weight, work.y, work.kept, work.outputs,
                     work.outputs * number / work.blocks,
                     work.outputs * (number + 1) / work.blocks);
}

Status compute(void* self, void* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(self);
  Api api = kernel.api;
  const void* input[3];
  for (size_t i = 0; i < 3; ++i)
    TRY(call(api, kKernelContextGetInput, static_cast<const void*>(context), i, &input[i]));
  Shape x, weight;
  TRY(shape_of(api, input[0], x));
  TRY(shape_of(api, input[2], weight));
  Shape y = x;
  y.sizes.back() = weight.sizes[1];
  void* output = nullptr;
  TRY(call(api, kKernelContextGetOutput, context, size_t{0},
           static_cast<const int64_t*>(y.sizes.data()), y.sizes.size(), &output));
  const int64_t rows = x.rows();
  if (rows > kernel.rows) {
    const void* factors[2] = {input[0], input[2]};
    void* results[1] = {output};
    return call(api, kInvokeOp, static_cast<const void*>(context),
                static_cast<const void*>(kernel.product),
                static_cast<const void* const*>(factors), 2, static_cast<void* const*>(results), 1);
  }
  void *xs, *scores, *weights, *ys;
  TRY(call(api, kGetTensorMutableData, const_cast<void*>(input[0]), &xs));
  TRY(call(api, kGetTensorMutableData, const_cast<void*>(input[1]), &scores));
  TRY(call(api, kGetTensorMutableData, const_cast<void*>(input[2]), &weights));
  TRY(call(api, kGetTensorMutableData, output, &ys));
  const size_t inputs = static_cast<size_t>(weight.sizes[0]);
  const size_t outputs = static_cast<size_t>(weight.sizes[1]);
  std::vector<int32_t> kept;
  kept.reserve(inputs);
  for (int64_t r = 0; r < rows; ++r) {
    prunepass::select(static_cast<const float*>(scores) + r * inputs, inputs,
                      static_cast<size_t>(kernel.keep), kernel.threshold, kept);
    Work work{static_cast<const float*>(xs) + r * inputs, static_cast<const float*>(weights),
              static_cast<float*>(ys) + r * outputs, kept, outputs,
              prunepass::blocks_of(outputs, kThreads)};
    TRY(call(api, kKernelContextParallelFor, static_cast<const void*>(context), &block,
             work.blocks, size_t{0}, static_cast<void*>(&work)));
  }
  return nullptr;
}

Status create(const void*, Api api, const void* info, void** made) {
  Kernel* kernel = new Kernel{api, 0, 0, -1.0f, nullptr};
  *made = kernel;
  TRY(call(api, kKernelInfoGetAttributeInt64, info, "keep", &kernel->keep));
  TRY(call(api, kKernelInfoGetAttributeInt64, info, "rows", &kernel->rows));
  TRY(call(api, kKernelInfoGetAttributeFloat, info, "threshold", &kernel->threshold));
  const char* names[1] = {"T"};
  const int types[1] = {kFloat};
  return call(api, kCreateOp, info, "MatMul", "", 13, static_cast<const char**>(names),
              static_cast<const int*>(types), 1, static_cast<const void* const*>(nullptr), 0, 2, 1,
              &kernel->product);
}

void destroy(void* self) {
  Kernel* kernel = static_cast<Kernel*>(self);
  if (kernel->product)
    reinterpret_cast<void (*)(void*)>(kernel->api[kReleaseOp])(kernel->product);
  delete kernel;
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

int zero(const void*, size_t) { return 0; }
int one_of_it(const void*) { return 1; }

const Operator kOperator = {
    kApiVersion,
    nullptr,
    [](const void*) { return "GatedLinear"; },
    [](const void*) { return "CPUExecutionProvider"; },
    [](const void*, size_t) { return kFloat; },
    [](const void*) { return size_t{3}; },
    [](const void*, size_t) { return kFloat; },
    [](const void*) { return size_t{1}; },
    nullptr,
    destroy,
    zero,
    zero,
    zero,
    one_of_it,
    one_of_it,
    one_of_it,
    one_of_it,
    create,
    compute,
    nullptr,
    one_of_it,
    [](const void*) { return INT32_MAX; },
    {nullptr, nullptr, nullptr, nullptr},
};

struct Base {
  Api (*get_api)(uint32_t version);
  const char* (*version)();
};

}  // namespace

extern "C" Status RegisterCustomOps(void* options, const Base* base) {
  Api api = base->get_api(kApiVersion);
  if (api == nullptr) std::abort();  // refused before: the version is checked where it is loaded
  void* domain = nullptr;
  TRY(call(api, kCreateCustomOpDomain, "prunepass", &domain));
  TRY(call(api, kCustomOpDomainAdd, domain, static_cast<const void*>(&kOperator)));
  return call(api, kAddCustomOpDomain, options, domain);
}
