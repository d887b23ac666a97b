// The selective scan of a block of channels of one example, and an exponential that vectorises.
//
// h_t = exp(decay_t A) h_(t-1) + delta_t B_t x_t and y_t = C_t . h_t + D x_t, from h = 0. The states
// of a block stay in the first cache; a block runs on one thread, so results do not depend on how
// many there are.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "clones.h"

namespace prunepass {

constexpr size_t kChannels = 64;  // of a block

// exp(v) to 2e-7 of its value; what would be under 1e-37 is 1e-37. Range reduction and polynomial
// as in Cephes' expf (Moshier, 1989).
__attribute__((always_inline)) inline float exponential(float v) {
  v = v > -86.0f ? v : -86.0f;
  v = v < 88.0f ? v : 88.0f;
  const float shifted = v * 1.44269504088896341f + 12582912.0f;  // the nearest whole number, low bits
  const float whole = shifted - 12582912.0f;
  const float rest = (v - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float sum = 1.9875691500e-4f;
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  uint32_t bits, power;
  std::memcpy(&bits, &sum, sizeof bits);
  std::memcpy(&power, &shifted, sizeof power);
  bits += power << 23;
  std::memcpy(&sum, &bits, sizeof sum);
  return sum;
}

// One example: x, delta, decay and y are [steps, channels], enter and read [steps, states].
struct Scan {
  const float *x, *delta, *decay, *rates, *enter, *read, *skip;
  float* y;
  size_t steps, channels, states;
};

// Channels [first, first + width) of an example; `space` holds 2 * states * kChannels floats.
PRUNEPASS_CLONES inline void scan(const Scan& of, size_t first, size_t width, float* space) {
  float *state = space, *rates = space + of.states * kChannels;
  std::fill(space, rates + of.states * kChannels, 0.0f);
  for (size_t c = 0; c < width; ++c)
    for (size_t s = 0; s < of.states; ++s)
      rates[s * kChannels + c] = of.rates[(first + c) * of.states + s];
  // Lanes beyond the width stay zero, so that every loop is as long as a block.
  alignas(64) float decay[kChannels] = {}, entering[kChannels] = {}, sums[kChannels];
  for (size_t t = 0; t < of.steps; ++t) {
    const size_t at = t * of.channels + first;
    for (size_t c = 0; c < width; ++c) {
      decay[c] = of.decay[at + c];
      entering[c] = of.delta[at + c] * of.x[at + c];
    }
    std::fill(sums, sums + kChannels, 0.0f);
    for (size_t s = 0; s < of.states; ++s) {
      float *__restrict now = state + s * kChannels, *__restrict rate = rates + s * kChannels;
      const float in = of.enter[t * of.states + s], out = of.read[t * of.states + s];
      for (size_t c = 0; c < kChannels; ++c) {
        now[c] = exponential(decay[c] * rate[c]) * now[c] + in * entering[c];
        sums[c] += out * now[c];
      }
    }
    for (size_t c = 0; c < width; ++c) of.y[at + c] = sums[c] + of.skip[first + c] * of.x[at + c];
  }
}

}  // namespace prunepass
