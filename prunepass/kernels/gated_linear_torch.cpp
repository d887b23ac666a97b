// The sparse product for PyTorch on a CPU, behind a plain C interface; OpenMP as PyTorch uses it.

#include "gated_rows.h"
#include "huge_pages.h"

namespace {

template <typename Type>
void run(const Type* x, const Type* score, const Type* weight, Type* y, int64_t rows,
         int64_t inputs, int64_t outputs, int64_t keep, double threshold, int threads) {
  prunepass::settle(weight, inputs * outputs * sizeof(Type));
  std::vector<int32_t> kept;
  std::vector<float> wide(inputs), scores(inputs);
  kept.reserve(inputs);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < inputs; ++i) {
      wide[i] = prunepass::widen(x[r * inputs + i]);
      scores[i] = prunepass::widen(score[r * inputs + i]);
    }
    prunepass::select(scores.data(), inputs, keep, static_cast<float>(threshold), kept);
    const int64_t blocks = prunepass::blocks_of(outputs, std::max(1, threads));
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; ++b) {
      prunepass::columns(wide.data(), weight, y + r * outputs, kept, outputs,
                         outputs * b / blocks, outputs * (b + 1) / blocks);
    }
  }
}

}  // namespace

// y [rows, outputs] of all inputs, in bfloat16.
extern "C" void prunepass_dense_bfloat16(const void* x, const void* weight, void* y, int64_t rows,
                                         int64_t inputs, int64_t outputs, int threads) {
  using prunepass::Bfloat16;
  std::vector<float> wide(rows * inputs);
  for (int64_t i = 0; i < rows * inputs; ++i)
    wide[i] = prunepass::widen(static_cast<const Bfloat16*>(x)[i]);
  const int64_t blocks = std::max<int64_t>(1, outputs / 256);
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    prunepass::dense_columns(wide.data(), static_cast<const Bfloat16*>(weight),
                             static_cast<Bfloat16*>(y), rows, inputs, outputs,
                             outputs * b / blocks, outputs * (b + 1) / blocks);
  }
}

extern "C" void prunepass_gated_linear_float(const void* x, const void* score, const void* weight,
                                             void* y, int64_t rows, int64_t inputs,
                                             int64_t outputs, int64_t keep, double threshold,
                                             int threads) {
  run(static_cast<const float*>(x), static_cast<const float*>(score),
      static_cast<const float*>(weight), static_cast<float*>(y), rows, inputs, outputs, keep,
      threshold, threads);
}

extern "C" void prunepass_gated_linear_bfloat16(const void* x, const void* score,
                                                const void* weight, void* y, int64_t rows,
                                                int64_t inputs, int64_t outputs, int64_t keep,
                                                double threshold, int threads) {
  using prunepass::Bfloat16;
  run(static_cast<const Bfloat16*>(x), static_cast<const Bfloat16*>(score),
      static_cast<const Bfloat16*>(weight), static_cast<Bfloat16*>(y), rows, inputs, outputs, keep,
      threshold, threads);
}
