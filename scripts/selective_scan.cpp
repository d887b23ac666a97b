// The selective scan and its gradients for training on CPUs, one image a thread at a time.
// The recurrence is that of prunepass/ops/selective_scan.py with one step for decay and input.
// Layouts: x, delta, y [B, T, C]; rates [S, C]; enter, read [B, T, S]; skip [C]; floats throughout.

#include <torch/extension.h>

#include <vector>

namespace {

constexpr int64_t BLOCK = 32;  // channels worked on together: their states stay in cache

struct Sizes {
  int64_t images, steps, channels, states;
};

// States [steps, states, BLOCK] of one block of channels of one image; `decays` likewise.
void states_of(const float* x, const float* delta, const float* rates, const float* enter,
               const Sizes& n, int64_t first, int64_t width, float* states, float* decays) {
  for (int64_t t = 0; t < n.steps; t++) {
    const float* xt = x + t * n.channels + first;
    const float* dt = delta + t * n.channels + first;
    for (int64_t s = 0; s < n.states; s++) {
      const float* rate = rates + s * n.channels + first;
      const float weight = enter[t * n.states + s];
      float* now = states + (t * n.states + s) * BLOCK;
      float* decay = decays + (t * n.states + s) * BLOCK;
      const float* before = now - n.states * BLOCK;
      for (int64_t c = 0; c < width; c++) decay[c] = std::exp(dt[c] * rate[c]);
      if (t == 0) {
        for (int64_t c = 0; c < width; c++) now[c] = weight * dt[c] * xt[c];
      } else {
        for (int64_t c = 0; c < width; c++) {
          now[c] = decay[c] * before[c] + weight * dt[c] * xt[c];
        }
      }
    }
  }
}

Sizes sizes_of(const at::Tensor& x, const at::Tensor& rates) {
  return {x.size(0), x.size(1), x.size(2), rates.size(0)};
}

}  // namespace

at::Tensor forward(at::Tensor x, at::Tensor delta, at::Tensor rates, at::Tensor enter,
                   at::Tensor read, at::Tensor skip) {
  const Sizes n = sizes_of(x, rates);
  at::Tensor y = at::empty_like(x);
  const float *xs = x.data_ptr<float>(), *ds = delta.data_ptr<float>(),
              *as = rates.data_ptr<float>(), *bs = enter.data_ptr<float>(),
              *cs = read.data_ptr<float>(), *skips = skip.data_ptr<float>();
  float* ys = y.data_ptr<float>();
  at::parallel_for(0, n.images, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> states(n.steps * n.states * BLOCK), decays(states.size());
    for (int64_t b = begin; b < end; b++) {
      const int64_t wide = b * n.steps * n.channels, narrow = b * n.steps * n.states;
      for (int64_t first = 0; first < n.channels; first += BLOCK) {
        const int64_t width = std::min(BLOCK, n.channels - first);
        states_of(xs + wide, ds + wide, as, bs + narrow, n, first, width, states.data(),
                  decays.data());
        for (int64_t t = 0; t < n.steps; t++) {
          const int64_t at = wide + t * n.channels + first;
          for (int64_t c = 0; c < width; c++) ys[at + c] = skips[first + c] * xs[at + c];
          for (int64_t s = 0; s < n.states; s++) {
            const float weight = cs[narrow + t * n.states + s];
            const float* state = states.data() + (t * n.states + s) * BLOCK;
            for (int64_t c = 0; c < width; c++) ys[at + c] += weight * state[c];
          }
        }
      }
    }
  });
  return y;
}

// Gradients of x, delta, rates (an image each), enter, read, given that of y.
std::vector<at::Tensor> backward(at::Tensor grad, at::Tensor x, at::Tensor delta, at::Tensor rates,
                                 at::Tensor enter, at::Tensor read, at::Tensor skip) {
  const Sizes n = sizes_of(x, rates);
  at::Tensor to_x = at::empty_like(x), to_delta = at::empty_like(x),
             to_rates = at::zeros({n.images, n.states, n.channels}, x.options()),
             to_enter = at::zeros_like(enter), to_read = at::zeros_like(read);
  const float *gs = grad.data_ptr<float>(), *xs = x.data_ptr<float>(),
              *ds = delta.data_ptr<float>(), *as = rates.data_ptr<float>(),
              *bs = enter.data_ptr<float>(), *cs = read.data_ptr<float>(),
              *skips = skip.data_ptr<float>();
  float *gx = to_x.data_ptr<float>(), *gd = to_delta.data_ptr<float>(),
        *ga = to_rates.data_ptr<float>(), *gb = to_enter.data_ptr<float>(),
        *gc = to_read.data_ptr<float>();
  at::parallel_for(0, n.images, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> states(n.steps * n.states * BLOCK), decays(states.size());
    std::vector<float> onto(n.states * BLOCK);
    float inputs[BLOCK], steps[BLOCK];
    for (int64_t b = begin; b < end; b++) {
      const int64_t wide = b * n.steps * n.channels, narrow = b * n.steps * n.states;
      for (int64_t first = 0; first < n.channels; first += BLOCK) {
        const int64_t width = std::min(BLOCK, n.channels - first);
        states_of(xs + wide, ds + wide, as, bs + narrow, n, first, width, states.data(),
                  decays.data());
        std::fill(onto.begin(), onto.end(), 0.f);
        for (int64_t t = n.steps - 1; t >= 0; t--) {
          const int64_t at = wide + t * n.channels + first;
          for (int64_t c = 0; c < width; c++) inputs[c] = steps[c] = 0;
          for (int64_t s = 0; s < n.states; s++) {
            const int64_t row = (t * n.states + s) * BLOCK;
            const float *state = states.data() + row, *decay = decays.data() + row;
            const float *before = state - n.states * BLOCK, *rate = as + s * n.channels + first;
            const float in = bs[narrow + t * n.states + s], out = cs[narrow + t * n.states + s];
            float* to_state = onto.data() + s * BLOCK;
            float* to_rate = ga + (b * n.states + s) * n.channels + first;
            float of_in = 0, of_out = 0;
            for (int64_t c = 0; c < width; c++) {
              to_state[c] += gs[at + c] * out;
              of_out += gs[at + c] * state[c];
              of_in += to_state[c] * ds[at + c] * xs[at + c];
              inputs[c] += to_state[c] * in;
              to_state[c] *= decay[c];
            }
            if (t > 0) {
              for (int64_t c = 0; c < width; c++) {
                const float turned = to_state[c] * before[c];
                steps[c] += turned * rate[c];
                to_rate[c] += turned * ds[at + c];
              }
            }
            gb[narrow + t * n.states + s] += of_in;
            gc[narrow + t * n.states + s] += of_out;
          }
          for (int64_t c = 0; c < width; c++) {
            gx[at + c] = inputs[c] * ds[at + c] + gs[at + c] * skips[first + c];
            gd[at + c] = inputs[c] * xs[at + c] + steps[c];
          }
        }
      }
    }
  });
  return {to_x, to_delta, to_rates, to_enter, to_read};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
}
