// The head's step as attention: one pass over the weights where two matrix-vector products would take two.
//
// scores s = rows weight^T + extra;  w = softmax(s), or probability * s;  out = w weight. The weights do not fit the inner
// caches, so the time is that of reading them: every block of their rows is used for both products while it is there. The
// softmax is the running one of Milakov & Gimelshein 2018 (arXiv 1805.02867): sums so far are rescaled to a new maximum.
#pragma once

#include "simd.h"

template <typename T>
class Attention {
  // Rows of the weights start anywhere.
  typedef T V __attribute__((vector_size(kBytes), aligned(alignof(T))));
  static constexpr int L = Simd<T>::L, kBlock = 8;

 public:
  const T *weight, *rows, *extra, *probability;  // [classes, width], [batch, width], [batch, classes] twice
  int64_t batch, classes, width;
  T *scores, *weights;  // [batch, classes] twice

  // One thread's share of the classes, for one row: into its own sum [width]; returns its maximum and total.
  std::pair<T, T> share(int64_t b, int64_t begin, int64_t end, T* sum) const {
    T top = -INFINITY;
    double total = 0;  // In float32, the small ones of a thousand would be lost beside a class that is nearly certain.
    std::fill_n(sum, width, T(0));
    for (int64_t c = begin; c < end; c += kBlock) {
      const int count = std::min<int64_t>(kBlock, end - c);
      T factor[kBlock] = {};
      dots(weight + c * width, count, rows + b * width, factor);
      T *score = scores + b * classes + c, *chosen = weights + b * classes + c, rescale = 1, highest = top;
      for (int r = 0; r < count; ++r) score[r] = factor[r] + extra[b * classes + c + r];
      if (probability) {
        for (int r = 0; r < count; ++r) factor[r] = chosen[r] = probability[b * classes + c + r] * score[r];
      } else {
        for (int r = 0; r < count; ++r) highest = score[r] > highest || std::isnan(score[r]) ? score[r] : highest;
        if (highest != top) rescale = std::exp(top - highest), top = highest;
        for (int r = 0; r < count; ++r) factor[r] = std::exp(score[r] - top);
        total *= rescale;
        for (int r = 0; r < count; ++r) total += factor[r];
      }
      add(weight + c * width, count, factor, rescale, sum);
    }
    return {top, T(total)};
  }

 private:
  void dots(const T* w, int count, const T* x, T* result) const {
    if (count < kBlock) {
      for (int r = 0; r < count; ++r) dot<1>(w + r * width, x, result + r);
    } else {
      dot<kBlock>(w, x, result);
    }
  }

  template <int R>
  void dot(const T* w, const T* x, T* result) const {
    V sum[R] = {};
    int64_t j = 0;
    for (; j + L <= width; j += L) {
      const V own = *reinterpret_cast<const V*>(x + j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] += *reinterpret_cast<const V*>(w + r * width + j) * own;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      T total = 0;
      for (int i = 0; i < L; ++i) total += sum[r][i];
      for (int64_t rest = j; rest < width; ++rest) total += w[r * width + rest] * x[rest];
      result[r] = total;
    }
  }

  void add(const T* w, int count, const T* factor, T rescale, T* sum) const {
    int64_t j = 0;
    if (count == kBlock)
      for (; j + L <= width; j += L) {
        V total = *reinterpret_cast<const V*>(sum + j) * rescale;
#pragma GCC unroll 8
        for (int r = 0; r < kBlock; ++r) total += factor[r] * *reinterpret_cast<const V*>(w + r * width + j);
        *reinterpret_cast<V*>(sum + j) = total;
      }
    for (; j < width; ++j) {
      sum[j] *= rescale;
      for (int r = 0; r < count; ++r) sum[j] += factor[r] * w[r * width + j];
    }
  }
};

template <typename T>
std::vector<torch::Tensor> attend(const torch::Tensor& weight, const torch::Tensor& rows, const torch::Tensor& extra,
                                  const std::optional<torch::Tensor>& probability) {
  const int64_t batch = rows.size(0), classes = weight.size(0), width = weight.size(1);
  const int threads = at::get_num_threads();
  torch::Tensor scores = torch::empty({batch, classes}, rows.options()), weights = torch::empty_like(scores);
  torch::Tensor partial = torch::empty({threads, batch, width}, rows.options());
  torch::Tensor tops = torch::full({threads, batch}, -INFINITY, rows.options()), totals = torch::zeros_like(tops);
  const Attention<T> attention{weight.data_ptr<T>(), rows.data_ptr<T>(), extra.data_ptr<T>(),
                               probability ? probability->data_ptr<T>() : nullptr, batch, classes, width,
                               scores.data_ptr<T>(), weights.data_ptr<T>()};
  T *sums = partial.data_ptr<T>(), *top = tops.data_ptr<T>(), *total = totals.data_ptr<T>();
  int used = 1;
  parallel(threads, [&](Team team) {
    if (team.rank == 0) used = team.size;
    for (int64_t b = 0; b < batch; ++b)
      std::tie(top[team.rank * batch + b], total[team.rank * batch + b]) =
          attention.share(b, classes * team.rank / team.size, classes * (team.rank + 1) / team.size,
                          sums + (team.rank * batch + b) * width);
  });
  partial = partial.narrow(0, 0, used), tops = tops.narrow(0, 0, used), totals = totals.narrow(0, 0, used);
  if (probability) return {scores, weights, partial.sum(0)};
  const torch::Tensor highest = tops.amax(0), share = (tops - highest).exp();
  const torch::Tensor all = (totals * share).sum(0).unsqueeze(1);
  return {scores, (scores - highest.unsqueeze(1)).exp_().div_(all), (partial * share.unsqueeze(2)).sum(0) / all};
}
