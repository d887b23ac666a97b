// y = sum over the inputs that matter of x_i times row i of an input-major weight [inputs, outputs].
//
// Rows of inputs that do not matter are not read. Sums are held in float; a block of columns runs
// on one thread, so results do not depend on how many there are.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "clones.h"

namespace prunepass {

constexpr size_t kRows = 8;      // rows of the weight that are added at once
constexpr size_t kWidest = 4096;  // columns whose sums lie in the first cache meanwhile

// Blocks of columns for so many threads, each as wide as may be: a row is read in one piece, since
// short pieces here and there keep neither prefetching nor address translation going.
inline size_t blocks_of(size_t outputs, size_t threads) {
  const size_t least = std::max<size_t>(threads, (outputs + kWidest - 1) / kWidest);
  const size_t even = (least + threads - 1) / threads * threads;
  return std::max<size_t>(1, std::min(even, outputs / 256));
}

struct Bfloat16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }
inline float widen(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float value, float& to) { to = value; }
inline void narrow(float value, Bfloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  // To the nearest, ties to even; a NaN stays one.
  const bool number = value == value;
  to.bits = static_cast<uint16_t>(number ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : 0x7FC0);
}

// Indices of the inputs that are read, ascending: the `keep` of the largest score, lower indices
// first where scores are equal; or, for a threshold >= 0, all whose score lies above it.
inline void select(const float* score, size_t inputs, size_t keep, float threshold,
                   std::vector<int32_t>& kept) {
  kept.clear();
  if (threshold >= 0) {
    for (size_t i = 0; i < inputs; ++i)
      if (score[i] > threshold) kept.push_back(static_cast<int32_t>(i));
    return;
  }
  std::vector<float> order(score, score + inputs);
  std::nth_element(order.begin(), order.begin() + (keep - 1), order.end(),
                   [](float a, float b) { return a > b; });
  const float last = order[keep - 1];
  size_t larger = 0;
  for (size_t i = 0; i < inputs; ++i) larger += score[i] > last;
  size_t ties = keep - larger;
  for (size_t i = 0; i < inputs; ++i) {
    const bool tie = score[i] == last && ties > 0;
    ties -= tie;
    if (score[i] > last || tie) kept.push_back(static_cast<int32_t>(i));
  }
}

#define PRUNEPASS_ADD(Type)                                                                     \
  PRUNEPASS_CLONES inline void add(float* __restrict sums, size_t width,                        \
                                   const Type* const* row, const float* factor, size_t count) { \
    if (count == kRows) {                                                                       \
      const Type *a = row[0], *b = row[1], *c = row[2], *d = row[3];                            \
      const Type *e = row[4], *f = row[5], *g = row[6], *h = row[7];                            \
      const float p = factor[0], q = factor[1], r = factor[2], s = factor[3];                   \
      const float t = factor[4], u = factor[5], v = factor[6], w = factor[7];                   \
      for (size_t j = 0; j < width; ++j) {                                                      \
        sums[j] += ((p * widen(a[j]) + q * widen(b[j])) + (r * widen(c[j]) + s * widen(d[j]))) + \
                   ((t * widen(e[j]) + u * widen(f[j])) + (v * widen(g[j]) + w * widen(h[j])));  \
      }                                                                                         \
      return;                                                                                   \
    }                                                                                           \
    for (size_t k = 0; k < count; ++k)                                                          \
      for (size_t j = 0; j < width; ++j) sums[j] += factor[k] * widen(row[k][j]);               \
  }

PRUNEPASS_ADD(float)
PRUNEPASS_ADD(Bfloat16)
#undef PRUNEPASS_ADD

// Columns [begin, end) of y for one row of x.
template <typename Type>
void columns(const float* x, const Type* weight, Type* y, const std::vector<int32_t>& kept,
             size_t outputs, size_t begin, size_t end) {
  alignas(64) float sums[kWidest];
  for (size_t at = begin; at < end; at += kWidest) {
    const size_t width = std::min(kWidest, end - at);
    std::fill(sums, sums + width, 0.0f);
    const Type* row[kRows];
    float factor[kRows];
    for (size_t i = 0; i < kept.size(); i += kRows) {
      const size_t count = std::min(kRows, kept.size() - i);
      for (size_t k = 0; k < count; ++k) {
        row[k] = weight + static_cast<size_t>(kept[i + k]) * outputs + at;
        factor[k] = x[kept[i + k]];
      }
      add(sums, width, row, factor, count);
    }
    for (size_t j = 0; j < width; ++j) narrow(sums[j], y[at + j]);
  }
}

// Columns [begin, end) of y for several rows of x, with all inputs: each number of the weight is
// widened once and stays in the first cache meanwhile. For processors without products of bfloat16.
template <typename Type>
void dense_columns(const float* x, const Type* weight, Type* y, size_t rows, size_t inputs,
                   size_t outputs, size_t begin, size_t end) {
  constexpr size_t kWidth = 256, kTile = 64;
  std::vector<float> sums(kTile * kWidth);
  alignas(64) float wide[kRows * kWidth];
  const float* row[kRows];
  for (size_t k = 0; k < kRows; ++k) row[k] = wide + k * kWidth;
  for (size_t at = begin; at < end; at += kWidth) {
    const size_t width = std::min(kWidth, end - at);
    for (size_t first = 0; first < rows; first += kTile) {
      const size_t tile = std::min(kTile, rows - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (size_t i = 0; i < inputs; i += kRows) {
        const size_t count = std::min(kRows, inputs - i);
        for (size_t k = 0; k < count; ++k)
          for (size_t j = 0; j < width; ++j)
            wide[k * kWidth + j] = widen(weight[(i + k) * outputs + at + j]);
        for (size_t r = 0; r < tile; ++r)
          add(&sums[r * kWidth], width, row, x + (first + r) * inputs + i, count);
      }
      for (size_t r = 0; r < tile; ++r)
        for (size_t j = 0; j < width; ++j)
          narrow(sums[r * kWidth + j], y[(first + r) * outputs + at + j]);
    }
  }
}

}  // namespace prunepass
