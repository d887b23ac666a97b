// y = sum over the inputs that matter of x_i times row i of an input-major weight [inputs, outputs].
//
// Rows of inputs that do not matter are not read. Sums are held in float; a block of columns runs
// on one thread, so results do not depend on how many there are.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "clones.h"

namespace prunepass {

constexpr size_t kRows = 8;      // rows of the weight that are added at once
constexpr size_t kWidest = 6144;  // columns whose sums lie in the first cache meanwhile

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

// A number of the same order as a score; a NaN stands above all.
inline uint32_t rank_of(float score) {
  if (score != score) return ~0u;  // of either sign: x86 gives inf * 0 a negative one
  score += 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Indices of the inputs that are read, ascending: the `keep` of the largest score, lower indices
// first where scores are equal; or, for a threshold >= 0, all whose score lies above it. What is no
// number is read, so that it is not lost.
inline void select(const float* score, size_t inputs, size_t keep, float threshold,
                   std::vector<int32_t>& kept) {
  kept.resize(inputs);
  size_t count = 0;
  if (threshold >= 0) {
    for (size_t i = 0; i < inputs; ++i) {
      kept[count] = static_cast<int32_t>(i);  // without a jump: which are kept is not foreseeable
      count += !(score[i] <= threshold);
    }
    kept.resize(count);
    return;
  }
  // Ranks are counted by their upper bits; the last that stays is looked for in one drawer alone.
  constexpr int kShift = 20;
  std::vector<uint32_t> ranks(inputs), drawer, counts(size_t{1} << (32 - kShift));
  for (size_t i = 0; i < inputs; ++i) ranks[i] = rank_of(score[i]);
  for (uint32_t rank : ranks) ++counts[rank >> kShift];
  size_t number = counts.size(), larger = 0;
  while (larger + counts[--number] < keep) larger += counts[number];
  for (uint32_t rank : ranks)
    if (rank >> kShift == number) drawer.push_back(rank);
  const auto place = drawer.begin() + (keep - larger - 1);
  std::nth_element(drawer.begin(), place, drawer.end(), std::greater<uint32_t>());
  const uint32_t last = *place;
  for (uint32_t rank : drawer) larger += rank > last;
  size_t ties = keep - larger;
  for (size_t i = 0; i < inputs; ++i) {
    const bool tie = (ranks[i] == last) & (ties > 0);
    kept[count] = static_cast<int32_t>(i);
    count += (ranks[i] > last) | tie;
    ties -= tie;
  }
  kept.resize(count);
}

// Rows of a weight that are added at once, each times its factor.
template <typename Type>
struct Rows {
  size_t count = 0;
  const Type* row[kRows];
  float factor[kRows];
};

// Fetches the first lines of a row that comes next: rows lie anywhere, so the processor does not
// foresee where one begins. How it goes on it does foresee; fetching all of it line by line instead
// kept the processor from reading as fast as memory can be read.
template <typename Type>
inline void fetch_head(const Type* row) {
  constexpr size_t kLine = 64 / sizeof(Type);
  __builtin_prefetch(row);
  __builtin_prefetch(row + kLine);
}

PRUNEPASS_CLONES inline void add(float* __restrict sums, size_t width, const Rows<float>& rows) {
  if (rows.count < kRows) {
    for (size_t k = 0; k < rows.count; ++k)
      for (size_t j = 0; j < width; ++j) sums[j] += rows.factor[k] * rows.row[k][j];
    return;
  }
  const float *a = rows.row[0], *b = rows.row[1], *c = rows.row[2], *d = rows.row[3];
  const float *e = rows.row[4], *f = rows.row[5], *g = rows.row[6], *h = rows.row[7];
  const float p = rows.factor[0], q = rows.factor[1], r = rows.factor[2], s = rows.factor[3];
  const float t = rows.factor[4], u = rows.factor[5], v = rows.factor[6], w = rows.factor[7];
  for (size_t j = 0; j < width; ++j) {
    sums[j] = (((sums[j] + p * a[j]) + q * b[j]) + r * c[j]) + s * d[j] +
              (((t * e[j] + u * f[j]) + v * g[j]) + w * h[j]);
  }
}

// Two numbers of a row of bfloat16, which may begin anywhere: widened by a shift and by a mask.
typedef uint32_t Pair __attribute__((aligned(2), may_alias));

template <bool second>
inline float part_of(Pair pair) {
  const uint32_t bits = second ? pair & 0xFFFF0000u : pair << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <bool second>
__attribute__((always_inline)) inline void add_parts(float* __restrict sums, size_t pairs,
                                                     const Pair* const* row, const float* factor) {
  const Pair *a = row[0], *b = row[1], *c = row[2], *d = row[3];
  const Pair *e = row[4], *f = row[5], *g = row[6], *h = row[7];
  const float p = factor[0], q = factor[1], r = factor[2], s = factor[3];
  const float t = factor[4], u = factor[5], v = factor[6], w = factor[7];
  for (size_t j = 0; j < pairs; ++j) {
    sums[j] = (((sums[j] + p * part_of<second>(a[j])) + q * part_of<second>(b[j])) +
               r * part_of<second>(c[j])) +
              s * part_of<second>(d[j]) +
              (((t * part_of<second>(e[j]) + u * part_of<second>(f[j])) +
                v * part_of<second>(g[j])) +
               w * part_of<second>(h[j]));
  }
}

// The same for bfloat16: sums of the first of each pair of columns, and of the second.
PRUNEPASS_CLONES inline void add(float* __restrict first, float* __restrict second, size_t pairs,
                                 const Rows<Bfloat16>& rows) {
  const Pair* row[kRows];
  for (size_t k = 0; k < rows.count; ++k) row[k] = reinterpret_cast<const Pair*>(rows.row[k]);
  if (rows.count < kRows) {
    for (size_t k = 0; k < rows.count; ++k) {
      for (size_t j = 0; j < pairs; ++j) {
        first[j] += rows.factor[k] * part_of<false>(row[k][j]);
        second[j] += rows.factor[k] * part_of<true>(row[k][j]);
      }
    }
    return;
  }
  add_parts<false>(first, pairs, row, rows.factor);
  add_parts<true>(second, pairs, row, rows.factor);
}

// Sums of at most kWidest columns; those of bfloat16 are held apart, first and second of each pair.
struct Sums {
  alignas(64) float all[kWidest];
  float* const second = all + kWidest / 2;

  void clear() { std::fill(all, all + kWidest, 0.0f); }

  void add(size_t width, const Rows<float>& rows) { prunepass::add(all, width, rows); }

  void add(size_t width, const Rows<Bfloat16>& rows) {
    prunepass::add(all, second, width / 2, rows);
    if (width % 2)  // The last column has no other; its place before `second` is free then.
      for (size_t k = 0; k < rows.count; ++k)
        second[-1] += rows.factor[k] * widen(rows.row[k][width - 1]);
  }

  void write(size_t width, float* y) const { std::copy(all, all + width, y); }

  void write(size_t width, Bfloat16* y) const {
    for (size_t j = 0; j < width / 2; ++j) {
      narrow(all[j], y[2 * j]);
      narrow(second[j], y[2 * j + 1]);
    }
    if (width % 2) narrow(second[-1], y[width - 1]);
  }
};

// Columns [begin, end) of y for one row of x.
template <typename Type>
void columns(const float* x, const Type* weight, Type* y, const std::vector<int32_t>& kept,
             size_t outputs, size_t begin, size_t end) {
  Sums sums;
  Rows<Type> rows;
  for (size_t at = begin; at < end; at += kWidest) {
    const size_t width = std::min(kWidest, end - at);
    const auto place = [&](size_t i) {
      return weight + static_cast<size_t>(kept[i]) * outputs + at;
    };
    sums.clear();
    for (size_t i = 0; i < kept.size(); i += kRows) {
      rows.count = std::min(kRows, kept.size() - i);
      for (size_t k = 0; k < rows.count; ++k) {
        rows.row[k] = place(i + k);
        rows.factor[k] = x[kept[i + k]];
      }
      const size_t after = std::min(kept.size(), i + 2 * kRows);
      for (size_t k = i + kRows; k < after; ++k) fetch_head(place(k));
      sums.add(width, rows);
    }
    sums.write(width, y + at);
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
  Rows<float> added;
  for (size_t k = 0; k < kRows; ++k) added.row[k] = wide + k * kWidth;
  for (size_t at = begin; at < end; at += kWidth) {
    const size_t width = std::min(kWidth, end - at);
    for (size_t first = 0; first < rows; first += kTile) {
      const size_t tile = std::min(kTile, rows - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (size_t i = 0; i < inputs; i += kRows) {
        added.count = std::min(kRows, inputs - i);
        for (size_t k = 0; k < added.count; ++k)
          for (size_t j = 0; j < width; ++j)
            wide[k * kWidth + j] = widen(weight[(i + k) * outputs + at + j]);
        for (size_t r = 0; r < tile; ++r) {
          std::copy_n(x + (first + r) * inputs + i, added.count, added.factor);
          add(&sums[r * kWidth], width, added);
        }
      }
      for (size_t r = 0; r < tile; ++r)
        for (size_t j = 0; j < width; ++j)
          narrow(sums[r * kWidth + j], y[(first + r) * outputs + at + j]);
    }
  }
}

}  // namespace prunepass
