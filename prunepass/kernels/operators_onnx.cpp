// The operators prunepass::GatedLinear and prunepass::SelectiveScan of ONNX Runtime, for CPUs.
//
// They are compiled when a bundle is built and loaded with the bundle. A scan stands in a file as a
// function too, which ONNX Runtime takes where this library is not there; a sparse product does not.

#include <thread>

#include "gated_rows.h"
#include "huge_pages.h"
#include "onnx_interface.h"
#include "scan_rows.h"

namespace prunepass {
namespace {

// How many threads may share one product. A session does not tell how many it has; the processor
// does, and more blocks than threads cost little.
size_t most_threads() {
  static const size_t found = std::clamp<size_t>(std::thread::hardware_concurrency(), 2, 32);
  return found;
}

// y = sum over the inputs that matter of x_i times row i of the weight.
struct GatedLinear {
  static constexpr const char* kName = "GatedLinear";
  static constexpr size_t kInputs = 3;

  Api api;
  int64_t keep = 0;
  int64_t rows = 0;
  float threshold = -1.0f;
  void* product = nullptr;  // ONNX Runtime's own MatMul

  Status create(const void* info) {
    TRY(call(api, kKernelInfoGetAttributeInt64, info, "keep", &keep));
    TRY(call(api, kKernelInfoGetAttributeInt64, info, "rows", &rows));
    TRY(call(api, kKernelInfoGetAttributeFloat, info, "threshold", &threshold));
    const char* names[1] = {"T"};
    const int types[1] = {kFloat};
    return call(api, kCreateOp, info, "MatMul", "", 13, static_cast<const char**>(names),
                static_cast<const int*>(types), 1, static_cast<const void* const*>(nullptr), 0, 2, 1,
                &product);
  }

  Status compute(void* context) const {
    const void* input[kInputs];
    TRY(inputs_of(api, context, kInputs, input));
    Shape x, score, weight;
    TRY(shape_of(api, input[0], x));
    TRY(shape_of(api, input[1], score));
    TRY(shape_of(api, input[2], weight));
    if (weight.sizes.size() != 2 || x.sizes.empty() || x.sizes.back() != weight.sizes[0] ||
        score.sizes != x.sizes)
      return refusal(api, "x and score must be [..., n_in] of a weight [n_in, n_out]");
    if (!(threshold >= 0) && (keep < 1 || keep > weight.sizes[0]))
      return refusal(api, "keep must lie between 1 and n_in");
    Shape y = x;
    y.sizes.back() = weight.sizes[1];
    void* output = nullptr;
    float* ys = nullptr;
    TRY(output_of(api, context, y, &output, &ys));
    if (x.rows() > rows) {
      const void* factors[2] = {input[0], input[2]};
      void* results[1] = {output};
      return call(api, kInvokeOp, static_cast<const void*>(context),
                  static_cast<const void*>(product), static_cast<const void* const*>(factors), 2,
                  static_cast<void* const*>(results), 1);
    }
    const float *xs, *scores, *weights;
    TRY(numbers_of(api, input[0], &xs));
    TRY(numbers_of(api, input[1], &scores));
    TRY(numbers_of(api, input[2], &weights));
    const size_t inputs = static_cast<size_t>(weight.sizes[0]);
    const size_t outputs = static_cast<size_t>(weight.sizes[1]);
    settle(weights, inputs * outputs * sizeof(float));
    std::vector<int32_t> kept;
    kept.reserve(inputs);
    for (int64_t r = 0; r < x.rows(); ++r) {
      select(scores + r * inputs, inputs, static_cast<size_t>(keep), threshold, kept);
      const size_t blocks = blocks_of(outputs, most_threads());
      TRY(in_parallel(api, context, blocks, [&](size_t number) {
        columns(xs + r * inputs, weights, ys + r * outputs, kept, outputs,
                outputs * number / blocks, outputs * (number + 1) / blocks);
      }));
    }
    return nullptr;
  }

  ~GatedLinear() {
    if (product) reinterpret_cast<void (*)(void*)>(api[kReleaseOp])(product);
  }
};

// y of x, delta, decay [B, T, C], A [C, S], B and C [B, T, S] and D [C].
struct SelectiveScan {
  static constexpr const char* kName = "SelectiveScan";
  static constexpr size_t kInputs = 7;

  Api api;

  Status create(const void*) { return nullptr; }

  Status compute(void* context) const {
    const void* input[kInputs];
    TRY(inputs_of(api, context, kInputs, input));
    Shape x, rates;
    TRY(shape_of(api, input[0], x));
    TRY(shape_of(api, input[3], rates));
    const float* from[kInputs];
    for (size_t i = 0; i < kInputs; ++i) TRY(numbers_of(api, input[i], &from[i]));
    void* output = nullptr;
    float* y = nullptr;
    TRY(output_of(api, context, x, &output, &y));
    const size_t steps = x.sizes[1], channels = x.sizes[2], states = rates.sizes[1];
    const size_t blocks = (channels + kChannels - 1) / kChannels;
    return in_parallel(api, context, x.sizes[0] * blocks, [&](size_t number) {
      const size_t wide = number / blocks * steps * channels;
      const size_t narrow = number / blocks * steps * states;
      const size_t first = number % blocks * kChannels;
      std::vector<float> space(2 * states * kChannels);
      scan({from[0] + wide, from[1] + wide, from[2] + wide, from[3], from[4] + narrow,
            from[5] + narrow, from[6], y + wide, steps, channels, states},
           first, std::min(kChannels, channels - first), space.data());
    });
  }
};

}  // namespace
}  // namespace prunepass

extern "C" prunepass::Status RegisterCustomOps(void* options, const prunepass::Base* base) {
  using namespace prunepass;
  return add_operators(options, base, {&operator_of<GatedLinear>(), &operator_of<SelectiveScan>()});
}
