// Adam (Kingma & Ba 2015, algorithm 1, as torch.optim.Adam computes it) on gradients that are outer products.
//
// One example's gradient of a Linear layer is delta x^T: it is never written down. A step reads and writes weights and
// both moments once, and that is what it costs: they are larger than a core's own caches. So the pass that updates a row
// also takes its product with the next example, which would otherwise read the weights a second time.
#pragma once

#include "simd.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// While it lives, this thread rounds denormal numbers to zero: moments that decay for some hundred steps become denormal,
// which is a hundred times slower, and nothing below 1e-38 moves a weight.
class FlushDenormals {
#if defined(__SSE__)
  const unsigned before = _mm_getcsr();

 public:
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#else
 public:
  FlushDenormals() {}
#endif
};

template <typename T>
struct Moments {
  T *value, *first, *second;  // The parameters and their moments.
  Moments at(int64_t offset) const { return {value + offset, first + offset, second + offset}; }
};

template <typename T>
struct Adam {
  double rate, beta1, beta2, epsilon;

  // Update number `step` (from 1) of one row with gradient delta * x [width]; returns the new row's product with `next`.
  T row(Moments<T> own, int64_t width, int64_t step, T delta, const T* x, const T* next) const {
    const T size = rate / (1 - std::pow(beta1, step)), root = 1 / std::sqrt(1 - std::pow(beta2, step));
    const T keep = beta2, add1 = 1 - beta1, add2 = 1 - beta2, eps = epsilon;
    T* w = own.value;
    T* m = own.first;
    T* v = own.second;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; ++j) {
      const T g = delta * x[j];
      m[j] += add1 * (g - m[j]);
      v[j] = keep * v[j] + add2 * (g * g);
      w[j] -= size * m[j] / (std::sqrt(v[j]) * root + eps);
      sum += w[j] * next[j];
    }
    return sum;
  }
};

// A Linear layer that learns examples one after the other, by cross-entropy over all its outputs.
template <typename T>
class HeadAdam {
 public:
  Moments<T> weight, bias;  // [classes, width], [classes]
  int64_t classes, width;
  Adam<T> adam;

  // Learns examples x [count, width] with these labels; `done` steps were taken before.
  void learn(const T* x, const int64_t* labels, int64_t count, int64_t done) {
    const int threads = std::max<int>(1, std::min<int64_t>(at::get_num_threads(), classes / 16));
    std::vector<T> logits(classes), tops(2 * threads), totals(2 * threads);
    parallel(threads, [&](Team team) {
      const FlushDenormals flush;
      const int64_t begin = classes * team.rank / team.size, end = classes * (team.rank + 1) / team.size;
      for (int64_t c = begin; c < end; ++c) logits[c] = bias.value[c] + dot(weight.value + c * width, x);
      for (int64_t s = 0; s < count; ++s) {
        // Two sets of sums in turn: a thread may be a step ahead of one that still reads.
        T *top = &tops[(s & 1) * threads], *total = &totals[(s & 1) * threads];
        top[team.rank] = highest(&logits[begin], end - begin);
        total[team.rank] = 0;
        for (int64_t c = begin; c < end; ++c) total[team.rank] += std::exp(logits[c] - top[team.rank]);
        team.wait();
        const T peak = highest(top, team.size);
        T all = 0;
        for (int r = 0; r < team.size; ++r) all += total[r] * std::exp(top[r] - peak);
        const T *own = x + s * width, *next = s + 1 < count ? own + width : own;
        for (int64_t c = begin; c < end; ++c) {
          const T delta = std::exp(logits[c] - peak) / all - (c == labels[s]), one = 1;
          adam.row(bias.at(c), 1, done + s + 1, delta, &one, &one);
          logits[c] = bias.value[c] + adam.row(weight.at(c * width), width, done + s + 1, delta, own, next);
        }
      }
    });
  }

 private:
  // The largest, or NaN if there is one.
  static T highest(const T* values, int64_t count) {
    T top = values[0];
    for (int64_t i = 1; i < count; ++i) top = values[i] > top || std::isnan(values[i]) ? values[i] : top;
    return top;
  }

  T dot(const T* a, const T* b) const {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; ++j) sum += a[j] * b[j];
    return sum;
  }
};
