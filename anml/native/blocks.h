// A stack of conv blocks in the inner loop, for CPUs: the formulas of conv_blocks.py, fused, and 2.7 times fewer products.
//
// A 3x3 convolution is the trilinear form sum x w y over input x, kernel w and output gradient y. By Toom-Cook (Lavin &
// Gray 2015, arXiv 1509.09308; here F(3x3, 3x3)) every 5x5 tile of x and 3x3 tile of y give it in 25 products per pair of
// channels where 81 are due otherwise:
//
//     sum over tiles, channels, f of  X_f W_f Y_f,    X = B x B^T,   W = G w G^T,   Y = A y A^T
//
// where A = G evaluates a polynomial at the points 1/2, -1/2, 1, -1, infinity and B interpolates. Output, input gradient,
// weight gradient and all their tangents are derivatives of this one form: 25 small matrix products between the
// transforms, and a transposed transform of the result. In float32 the points' error is 1.6 times that of direct sums.
//
// Channels come in groups of W = two SIMD vectors, zero-padded; layouts are (sizes in brackets, innermost last)
//     weights of a layer [group out][group in][tap][W in][W out], then scale and shift [group out][W]
//     X [group in][f][row][W], Y [group out][f][row][W]    row = tile of an image of the batch
//     n, c-bar [group out][image][position][W]
// so that all a thread does to one group of channels between two products stays in its caches: one barrier per layer.
// The first layer has too few input channels for that: it is one matrix product (f = 1) with the rows of im2col.
#pragma once

#include "simd.h"

constexpr Matrix<5, 3> kG{{{1, .5, .25}, {1, -.5, .25}, {1, 1, 1}, {1, -1, 1}, {0, 0, 1}}};
constexpr double k3 = 1. / 3, k4 = 4. / 3, k8 = 8. / 3, k2 = 2. / 3, k6 = 1. / 6;
// The inverse transpose of the 5x5 Vandermonde matrix of the points.
constexpr Matrix<5, 5> kB{{{k2, k4, -k2, -k4, 0}, {k2, -k4, -k2, k4, 0}, {-k6, -k6, k2, k2, 0},
                           {-k6, k6, k2, -k2, 0}, {.25, 0, -1.25, 0, 1}}};
constexpr auto kGt = kG.transposed();
constexpr auto kBt = kB.transposed();

template <typename T>
class Stack {
  typedef typename Simd<T>::V V;
  typedef typename Simd<T>::Int Int;
  typedef typename Simd<T>::Mask Mask;
  static constexpr int L = Simd<T>::L, W = 2 * L, kRows = kRegisterRows < 8 || W < 8 ? 4 : 8;
  static_assert(W % kRows == 0);
  static constexpr int64_t kTap = (W + 1) * W;

  struct Layer {
    int64_t in, out, height, width, pad, edge;
    double eps;
    bool direct;
    int64_t taps, depth, f, groups_in, groups, oh, ow, ph, pw, tiles_wide, tiles;
    int64_t positions() const { return oh * ow; }
    int64_t pooled() const { return ph * pw; }
    int64_t rows() const { return direct ? positions() : tiles; }  // of an image
    int64_t block(int64_t n, int64_t k) const { return (n * groups_in + k) * taps * kTap; }
    int64_t kernel() const { return block(groups, 0); }
    int64_t size() const { return kernel() + 2 * groups * W; }
  };

  // What the forward pass of a batch leaves behind for one layer, and the reverse pass; of tangent passes, the tangents.
  struct Tape {
    Buffer<T> x, normed, inv_std;
    Buffer<Int> pick;  // place in the window, -1 where dead
  };
  struct Vjp {
    Buffer<T> y, outer, sparse, slope;
  };
  typedef std::vector<Tape> Tapes;
  typedef std::vector<Vjp> Vjps;
  typedef std::vector<Buffer<T>> Weights;

  // What a pass over the layers works on; the direction and the dots only in tangent passes.
  struct Pass {
    int64_t batch;
    const Weights &weights, &direction;
    Tapes &tapes, &tape_dots;
    Vjps &vjps, &vjp_dots;
  };

  struct Scratch {
    Buffer<T> panel, block, product, dense, small;
  };

  std::vector<Layer> layers_;
  double lr_;
  std::vector<Weights> weights_;  // before every step, and after the last
  std::vector<Tapes> tapes_, query_tapes_;  // one per step, one per chunk
  std::vector<Vjps> vjps_, query_vjps_;  // one per step, one per thread
  Tapes tape_dots_;
  Vjps vjp_dots_;
  std::vector<Weights> partial_;  // gradients of the query, one per thread; the first becomes the adjoint
  std::vector<Scratch> scratch_;
  int threads_ = 1;
  int64_t steps_ = 0, batch_ = 0, query_ = 0;
  static constexpr int64_t kChunk = 6;  // images a thread takes at a time in the query pass

  // Strides are odd multiples of W: powers of two would put all f, or all taps, into the same few cache lines.
  static int64_t odd(int64_t rows) { return rows | 1; }

  static V load(const T* p) { return Simd<T>::load(p); }
  static void store(T* p, V v) { Simd<T>::store(p, v); }

 public:
  // One layer: [in, out, height, width, pad, edge of the pooling window].
  Stack(const std::vector<std::vector<int64_t>>& layers, double eps, double lr) : lr_(lr) {
    for (const auto& spec : layers) {
      Layer l{spec[0], spec[1], spec[2], spec[3], spec[4], std::max<int64_t>(spec[5], 1), eps, layers_.empty()};
      l.taps = l.direct ? 1 : 9, l.f = l.direct ? 1 : 25;
      l.depth = l.direct ? 9 * l.in : l.in;
      l.groups_in = (l.depth + W - 1) / W, l.groups = (l.out + W - 1) / W;
      l.oh = l.height + 2 * l.pad - 2, l.ow = l.width + 2 * l.pad - 2;
      l.ph = l.oh / l.edge, l.pw = l.ow / l.edge;
      l.tiles_wide = (l.ow + 2) / 3, l.tiles = (l.oh + 2) / 3 * l.tiles_wide;
      layers_.push_back(l);
    }
  }

  void start(int64_t steps, const std::vector<torch::Tensor>& flat) {
    threads_ = at::get_num_threads();  // Scratch space and partial sums are made for this many.
    steps_ = steps;
    grow(weights_, steps + 1), grow(tapes_, steps), grow(vjps_, steps);
    grow(scratch_, threads_), grow(partial_, threads_), grow(query_vjps_, threads_);
    for (int64_t t = 0; t <= steps; ++t) fit(weights_[t]);
    for (auto& partial : partial_) fit(partial);
    for (size_t i = 0; i < layers_.size(); ++i) import(layers_[i], &flat[3 * i], weights_[0][i]);
  }

  torch::Tensor encode(int64_t step, const torch::Tensor& images) {
    batch_ = images.size(0);
    fit(tapes_[step], batch_), fit(vjps_[step], batch_);
    torch::Tensor features = torch::empty({batch_, width()}, images.options());
    parallel(threads_, [&](Team team) { forward<false>(team, pass(step), images.data_ptr<T>(), features.data_ptr<T>()); });
    return features;
  }

  void descend(int64_t step, const torch::Tensor& grad_out) {
    parallel(threads_, [&](Team team) {
      reverse<false>(team, pass(step), grad_out.data_ptr<T>(), weights_[step], weights_[step + 1], -lr_);
    });
  }

  torch::Tensor encode_query(const torch::Tensor& images) {
    query_ = images.size(0);
    torch::Tensor features = torch::empty({query_, width()}, images.options());
    grow(query_tapes_, chunks());
    for (int64_t c = 0; c < chunks(); ++c) fit(query_tapes_[c], chunk(c));
    for (auto& vjps : query_vjps_) fit(vjps, kChunk);
    const int64_t pixels = images[0].numel();
    parallel(threads_, [&](Team team) {
#pragma omp for schedule(dynamic)
      for (int64_t c = 0; c < chunks(); ++c)
        forward<false>({0, 1}, query_pass(c, team), images.data_ptr<T>() + c * kChunk * pixels,
                       features.data_ptr<T>() + c * kChunk * width());
    });
    return features;
  }

  void query_vjp(const torch::Tensor& grad_out) {
    parallel(threads_, [&](Team team) {
      Weights& sum = partial_[team.rank];
      for (size_t i = 0; i < layers_.size(); ++i) std::fill_n(static_cast<T*>(sum[i]), layers_[i].size(), T(0));
#pragma omp for schedule(static, 1)  // Not dynamic: which chunks a thread adds up must not depend on its speed.
      for (int64_t back = 0; back < chunks(); ++back) {
        const int64_t c = chunks() - 1 - back;  // The last ones may still be in a cache.
        reverse<false>({0, 1}, query_pass(c, team), grad_out.data_ptr<T>() + c * kChunk * width(), sum, sum, 1);
      }
      for (size_t i = 0; i < layers_.size(); ++i) {  // The loop above ends with a barrier.
        const int64_t size = layers_[i].size(), begin = size * team.rank / team.size;
        for (int64_t k = begin; k < size * (team.rank + 1) / team.size; ++k)
          for (int other = 1; other < team.size; ++other) partial_[0][i][k] += partial_[other][i][k];
      }
    });
  }

  void step_vjp(const torch::Tensor& grad_out) {
    for (size_t i = 0; i < layers_.size(); ++i) std::fill_n(static_cast<T*>(partial_[0][i]), layers_[i].size(), T(0));
    parallel(threads_, [&](Team team) {
      reverse<false>(team, pass(0), grad_out.data_ptr<T>(), partial_[0], partial_[0], 1);
    });
  }

  torch::Tensor jvp(int64_t step) {
    fit(tape_dots_, batch_), fit(vjp_dots_, batch_);
    torch::Tensor tangent = torch::empty({batch_, width()}, options());
    parallel(threads_, [&](Team team) { forward<true>(team, pass(step), nullptr, tangent.data_ptr<T>()); });
    return tangent.mul_(-lr_);
  }

  void carry_adjoint(int64_t step, const torch::Tensor& features_adjoint) {
    const torch::Tensor scaled = features_adjoint / -lr_;
    parallel(threads_, [&](Team team) {
      reverse<true>(team, pass(step), scaled.data_ptr<T>(), partial_[0], partial_[0], -lr_);
    });
  }

  std::vector<torch::Tensor> gradients() {
    std::vector<torch::Tensor> flat;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      flat.push_back(torch::empty({l.out, l.in, 3, 3}, options()));
      flat.push_back(torch::empty({l.out}, options()));
      flat.push_back(torch::empty({l.out}, options()));
      exported(l, partial_[0][i], &flat[3 * i]);
    }
    return flat;
  }

 private:
  torch::TensorOptions options() const { return torch::TensorOptions().dtype(sizeof(T) == 4 ? torch::kFloat : torch::kDouble); }
  int64_t width() const { return layers_.back().out * layers_.back().pooled(); }
  int64_t chunks() const { return (query_ + kChunk - 1) / kChunk; }
  int64_t chunk(int64_t c) const { return std::min(kChunk, query_ - c * kChunk); }

  Pass pass(int64_t step) {
    return {batch_, weights_[step], partial_[0], tapes_[step], tape_dots_, vjps_[step], vjp_dots_};
  }
  Pass query_pass(int64_t c, Team team) {
    Vjps& vjps = query_vjps_[team.rank];
    return {chunk(c), weights_[steps_], weights_[steps_], query_tapes_[c], query_tapes_[c], vjps, vjps};
  }

  template <typename Item>
  static void grow(std::vector<Item>& items, size_t count) {
    if (items.size() < count) items.resize(count);
  }

  Scratch& scratch() { return scratch_[omp_get_thread_num()]; }

  void fit(Weights& weights) {
    weights.resize(layers_.size());
    for (size_t i = 0; i < layers_.size(); ++i) weights[i].fit(layers_[i].size());
  }

  void fit(Tapes& tapes, int64_t batch) {
    tapes.resize(layers_.size());
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      tapes[i].x.fit(l.groups_in * l.f * odd(batch * l.rows()) * W);
      tapes[i].normed.fit(l.groups * batch * l.positions() * W);
      tapes[i].inv_std.fit(l.groups * batch * W);
      tapes[i].pick.fit(l.groups * batch * l.pooled() * W);
    }
  }

  void fit(Vjps& vjps, int64_t batch) {
    vjps.resize(layers_.size());
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      if (!l.direct) vjps[i].y.fit(l.groups * l.f * odd(batch * l.rows()) * W);
      vjps[i].outer.fit(l.groups * batch * l.positions() * W);
      vjps[i].sparse.fit(l.groups * batch * l.pooled() * W);
      vjps[i].slope.fit(l.groups * batch * W);
    }
  }

  template <typename Visit>  // visit(offset in our layout, offset in PyTorch's)
  static void each_weight(const Layer& l, const Visit& visit) {
#pragma omp parallel for num_threads(at::get_num_threads())
    for (int64_t n = 0; n < l.groups; ++n)
      for (int64_t tap = 0; tap < l.taps; ++tap)
        for (int64_t k = 0; k < l.depth; ++k)
          for (int64_t lane = 0; lane < std::min<int64_t>(W, l.out - n * W); ++lane)
            visit(l.block(n, k / W) + tap * kTap + k % W * W + lane,
                  (n * W + lane) * l.in * 9 + (l.direct ? k : k * 9 + tap));
  }

  static void import(const Layer& l, const torch::Tensor* from, T* to) {
    const T* kernel = from[0].data_ptr<T>();
    each_weight(l, [&](int64_t ours, int64_t theirs) { to[ours] = kernel[theirs]; });
    for (int part : {0, 1})
      std::copy_n(from[1 + part].data_ptr<T>(), l.out, to + l.kernel() + part * l.groups * W);
  }

  static void exported(const Layer& l, const T* from, torch::Tensor* to) {
    T* kernel = to[0].data_ptr<T>();
    each_weight(l, [&](int64_t ours, int64_t theirs) { kernel[theirs] = from[ours]; });
    for (int part : {0, 1})
      std::copy_n(from + l.kernel() + part * l.groups * W, l.out, to[1 + part].data_ptr<T>());
  }

  // ---- the passes ---------------------------------------------------------------------------------------------------

  // Features [batch, width] of images under the weights; Dot: their tangent along the direction.
  template <bool Dot>
  void forward(Team team, const Pass& at, const T* images, T* features) {
    if (!Dot) {
      if (team.rank == 0) im2col(layers_[0], at.batch, images, at.tapes[0].x);
      team.wait();
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      Scratch& s = scratch();
      const int64_t rows = at.batch * l.rows();
      s.dense.fit(l.positions() * W), s.small.fit(l.pooled() * W);
      for (int64_t n = team.rank; n < l.groups; n += team.size) {
        if (!l.direct) convolve<Dot>(at, i, n, 0, rows);
        for (int64_t b = 0; b < at.batch; ++b) {
          if (l.direct) convolve<Dot>(at, i, n, b * l.rows(), l.rows());
          const T* dense = l.direct ? s.product : outputs(l, s.product, rows, b * l.rows(), s.dense);
          const int64_t where = n * at.batch + b;
          if (Dot)
            norm_tangent(l, n, where, dense, at.weights[i], at.direction[i], at.tapes[i], at.tape_dots[i], s.small);
          else
            norm(l, n, where, dense, at.weights[i], at.tapes[i], s.small);
          if (i + 1 < layers_.size())
            spread(layers_[i + 1], s.small, (Dot ? at.tape_dots : at.tapes)[i + 1].x, n, at.batch, b);
          else
            transpose_features(l, n, s.small, features + b * width());
        }
      }
      team.wait();
    }
  }

  // to = from + factor * gradient of the weights; Dot: of the gradient's tangent, given that of grad_out.
  template <bool Dot>
  void reverse(Team team, const Pass& at, const T* grad_out, const Weights& from, const Weights& to, double factor) {
    Vjps& written = Dot ? at.vjp_dots : at.vjps;
    for (size_t i = layers_.size(); i-- > 0;) {
      const Layer& l = layers_[i];
      Scratch& s = scratch();
      s.small.fit(l.pooled() * W);
      for (int64_t n = team.rank; n < l.groups; n += team.size) {
        const Layer* above = i + 1 < layers_.size() ? &layers_[i + 1] : nullptr;
        const int64_t rows = above ? at.batch * above->rows() : 0;
        if (above) {
          multiply_transposed(*above, n, written[i + 1].y, at.weights[i + 1], rows, false);
          if (Dot) multiply_transposed(*above, n, at.vjps[i + 1].y, at.direction[i + 1], rows, true);
        }
        V sums[4] = {};
        for (int64_t b = 0; b < at.batch; ++b) {
          if (above)
            inputs(*above, s.product, rows, b * above->rows(), s.small);
          else
            gather_features(l, n, grad_out + b * width(), s.small);
          const int64_t where = n * at.batch + b;
          if (Dot)
            norm_reverse_tangent(at, i, n, where, s.small, sums);
          else
            norm_reverse(l, n, where, s.small, at.weights[i], at.tapes[i], at.vjps[i], sums);
          if (!l.direct) spread_outputs(l, written[i].outer + where * l.positions() * W, written[i].y, n, at.batch, b);
        }
        for (int part = 0; part < 4; ++part) {
          const int64_t own = l.kernel() + (part / 2 * l.groups + n) * W + part % 2 * L;
          store(to[i] + own, load(from[i] + own) + T(factor) * sums[part]);
        }
      }
      team.wait();
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      const T *x = at.tapes[i].x, *y = l.direct ? at.vjps[i].outer : at.vjps[i].y;
      const T *x_dot = at.tape_dots[i].x, *y_dot = l.direct ? at.vjp_dots[i].outer : at.vjp_dots[i].y;
      for (int64_t n = team.rank; n < l.groups; n += team.size)
        for (int64_t k = 0; k < l.groups_in; ++k)
          if (Dot)
            kernel_gradient(l, n, k, at.batch, x, y_dot, l.direct ? nullptr : x_dot, y, from[i], to[i], factor);
          else
            kernel_gradient(l, n, k, at.batch, x, y, nullptr, nullptr, from[i], to[i], factor);
    }
  }

  // ---- products between transforms ----------------------------------------------------------------------------------

  template <bool Dot>
  void convolve(const Pass& at, size_t i, int64_t n, int64_t row, int64_t rows) {
    const int64_t all = at.batch * layers_[i].rows();
    multiply(layers_[i], n, at.tapes[i].x, (Dot ? at.direction : at.weights)[i], all, row, rows, false);
    if (Dot && i > 0) multiply(layers_[i], n, at.tape_dots[i].x, at.weights[i], all, row, rows, true);
  }

  // product [f][rows][W] = sum over input channels of X W, for one group of output channels and some of all rows.
  void multiply(const Layer& l, int64_t n, const T* x, const T* weights, int64_t all, int64_t row, int64_t rows, bool add) {
    Scratch& s = scratch();
    s.product.fit(l.f * odd(rows) * W);
    for (int64_t k = 0; k < l.groups_in; ++k) {
      const T* kernel = weights + l.block(n, k);
      const int64_t count = std::min<int64_t>(W, l.depth - k * W);
      const T* panel = l.direct ? kernel : transform_kernel(kernel, count);
      for (int64_t f = 0; f < l.f; ++f)
        multiply_rows(x + ((k * l.f + f) * odd(all) + row) * W, count, panel + f * kTap, s.product + f * odd(rows) * W, rows,
                      add || k > 0);
    }
  }

  // product [f][rows][W] = sum over output channels of Y W, for one group of input channels.
  void multiply_transposed(const Layer& l, int64_t k, const T* y, const T* weights, int64_t rows, bool add) {
    Scratch& s = scratch();
    s.product.fit(l.f * odd(rows) * W), s.block.fit(9 * kTap);
    for (int64_t n = 0; n < l.groups; ++n) {
      const T* kernel = weights + l.block(n, k);
      for (int tap = 0; tap < 9; ++tap) transpose(kernel + tap * kTap, s.block + tap * kTap);
      const int64_t count = std::min<int64_t>(W, l.out - n * W);
      const T* panel = transform_kernel(s.block, count);
      for (int64_t f = 0; f < l.f; ++f)
        multiply_rows(y + (n * l.f + f) * odd(rows) * W, count, panel + f * kTap, s.product + f * odd(rows) * W, rows, add || n > 0);
    }
  }

  // panel [f][count][W] = G w G^T for `count` rows of the kernel's taps.
  const T* transform_kernel(const T* kernel, int64_t count) {
    Buffer<T>& panel = scratch().panel;
    panel.fit(25 * kTap);
    for (int64_t at = 0; at < count * W; at += L) {
      V in[9], out[25];
      for (int tap = 0; tap < 9; ++tap) in[tap] = load(kernel + tap * kTap + at);
      sandwich<5, 3, kG>(in, out);
      #pragma GCC unroll 25
      for (int f = 0; f < 25; ++f) store(panel + f * kTap + at, out[f]);
    }
    return panel;
  }

  static void transpose(const T* from, T* to) {
    for (int x = 0; x < W; x += L)
      for (int y = 0; y < W; y += L) {
        V v[L];
        for (int r = 0; r < L; ++r) v[r] = load(from + (x + r) * W + y);
#pragma GCC unroll 4
        for (int stage = 1; stage < L; stage *= 2) {
          Mask low, high;
          for (int i = 0; i < L; ++i) {
            low[i] = i & stage ? L + i - stage : i;
            high[i] = i & stage ? L + i : i + stage;
          }
#pragma GCC unroll 16
          for (int r = 0; r < L; ++r)
            if (!(r & stage)) {
              const V a = v[r], b = v[r + stage];
              v[r] = __builtin_shuffle(a, b, low), v[r + stage] = __builtin_shuffle(a, b, high);
            }
        }
        for (int r = 0; r < L; ++r) store(to + (y + r) * W + x, v[r]);
      }
  }

  // c [rows][W] (+)= a [rows][W: `depth` of it] b [depth][W].
  static void multiply_rows(const T* a, int64_t depth, const T* b, T* c, int64_t rows, bool add) {
    constexpr int R = kRegisterRows;
    for (; rows >= R; rows -= R, a += R * W, c += R * W) multiply_few<R, 1>(a, depth, b, c, add);
    switch (rows) {
      case 7: return multiply_few<7, 1>(a, depth, b, c, add);
      case 6: return multiply_few<6, 1>(a, depth, b, c, add);
      case 5: return multiply_few<5, 1>(a, depth, b, c, add);
      case 4: return multiply_few<4, 1>(a, depth, b, c, add);
      case 3: return multiply_few<3, 2>(a, depth, b, c, add);
      case 2: return multiply_few<2, 2>(a, depth, b, c, add);
      case 1: return multiply_few<1, 4>(a, depth, b, c, add);
    }
  }

  template <int R, int S>  // S sums side by side, where few rows would wait for the adder.
  static void multiply_few(const T* a, int64_t depth, const T* b, T* c, bool add) {
    V sum[S][R][2] = {};
    int64_t k = 0;
    const auto one = [&](int s) __attribute__((always_inline)) {
      const V low = load(b + k * W), high = load(b + k * W + L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const T factor = a[r * W + k];
        sum[s][r][0] += factor * low, sum[s][r][1] += factor * high;
      }
      ++k;
    };
    while (k + S <= depth) {
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) one(s);
    }
    while (k < depth) one(0);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        V total = sum[0][r][h];
#pragma GCC unroll 4
        for (int s = 1; s < S; ++s) total += sum[s][r][h];
        T* at = c + r * W + h * L;
        store(at, add ? total + load(at) : total);
      }
  }

  // to = from + factor * (X^T Y + X2^T Y2, transformed back), for one group of inputs and one of outputs.
  void kernel_gradient(const Layer& l, int64_t n, int64_t k, int64_t batch, const T* x, const T* y, const T* x2,
                       const T* y2, const T* from, T* to, double factor) {
    const int64_t rows = batch * l.rows();
    Buffer<T>& sums = scratch().panel;  // [f][W][W]
    sums.fit(25 * kTap);
    const int64_t count = std::min<int64_t>(W, l.depth - k * W);
    for (int64_t f = 0; f < l.f; ++f) {
      const int64_t in = (k * l.f + f) * odd(rows) * W, out = (n * l.f + f) * (l.direct ? rows : odd(rows)) * W;
      for (int64_t r = 0; r < count; r += kRows)
        outer_products(x + in + r, y + out, x2 ? x2 + in + r : nullptr, y2 + (x2 ? out : 0), rows, sums + f * kTap + r * W);
    }
    const T* base = from + l.block(n, k);
    T* result = to + l.block(n, k);
    for (int64_t at = 0; at < count * W; at += L) {
      V in[25], taps[9];
#pragma GCC unroll 25
      for (int f = 0; f < 25; ++f) in[f] = load(sums + f * kTap + at);
      if (l.direct)
        taps[0] = in[0];
      else
        sandwich<3, 5, kGt>(in, taps);
      for (int64_t tap = 0; tap < l.taps * kTap; tap += kTap)
        store(result + tap + at, load(base + tap + at) + T(factor) * taps[tap / kTap]);
    }
  }

  static void outer_products(const T* x, const T* y, const T* x2, const T* y2, int64_t rows, T* out) {
    V sum[kRows][2] = {};
    for (int term = 0; term < (x2 ? 2 : 1); ++term) {
      const T *a = term ? x2 : x, *b = term ? y2 : y;
      for (int64_t p = 0; p < rows; ++p, a += W, b += W) {
        const V low = load(b), high = load(b + L);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r][0] += a[r] * low, sum[r][1] += a[r] * high;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) store(out + r * W, sum[r][0]), store(out + r * W + L, sum[r][1]);
  }

  // ---- transforms: all on one group of channels of one image ---------------------------------------------------------

  // x [group][1][image, position][W] = the 9 * channels pixels under the kernel, zero-padded.
  static void im2col(const Layer& l, int64_t batch, const T* images, T* x) {
    const int64_t rows = batch * l.positions();
    for (int64_t k = 0; k < l.groups_in * W; ++k) {
      const int64_t channel = k / 9, dy = k % 9 / 3 - l.pad, dx = k % 3 - l.pad;
      T* to = x + k / W * odd(rows) * W + k % W;
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = 0; i < l.oh; ++i)
          for (int64_t j = 0; j < l.ow; ++j, to += W) {
            const int64_t row = i + dy, column = j + dx;
            const bool inside = k < l.depth && row >= 0 && row < l.height && column >= 0 && column < l.width;
            *to = inside ? images[((b * l.in + channel) * l.height + row) * l.width + column] : T(0);
          }
    }
  }

  // Visit(tile, offset of its (i, j) in a [height][width] field, inside) for every (i, j) of an Edge x Edge window.
  template <int Edge, typename Each>
  static void each_tile(const Layer& l, int64_t height, int64_t width, int64_t pad, const Each& each) {
    for (int64_t tile = 0; tile < l.tiles; ++tile) {
      int64_t at[Edge * Edge];
      for (int i = 0; i < Edge; ++i)
        for (int j = 0; j < Edge; ++j) {
          const int64_t row = tile / l.tiles_wide * 3 + i - pad, column = tile % l.tiles_wide * 3 + j - pad;
          const bool inside = row >= 0 && row < height && column >= 0 && column < width;
          at[i * Edge + j] = inside ? (row * width + column) * W : -1;
        }
      each(tile, at);
    }
  }

  // X = B x B^T.
  static void spread(const Layer& l, const T* dense, T* x, int64_t k, int64_t batch, int64_t b) {
    const int64_t stride = odd(batch * l.tiles) * W;
    each_tile<5>(l, l.height, l.width, l.pad, [&](int64_t tile, const int64_t* at) {
      for (int h = 0; h < W; h += L) {
        V in[25], out[25];
        for (int i = 0; i < 25; ++i) in[i] = at[i] < 0 ? V{} : load(dense + at[i] + h);
        sandwich<5, 5, kB>(in, out);
        for (int f = 0; f < 25; ++f) store(x + (k * 25 + f) * stride + (b * l.tiles + tile) * W + h, out[f]);
      }
    });
  }

  // The transpose of that: x-bar = sum over tiles of B^T X-bar B.
  static void inputs(const Layer& l, const T* product, int64_t rows, int64_t row, T* dense) {
    std::fill_n(dense, l.height * l.width * W, T(0));
    each_tile<5>(l, l.height, l.width, l.pad, [&](int64_t tile, const int64_t* at) {
      for (int h = 0; h < W; h += L) {
        V in[25], out[25];
        for (int f = 0; f < 25; ++f) in[f] = load(product + (f * odd(rows) + row + tile) * W + h);
        sandwich<5, 5, kBt>(in, out);
        for (int i = 0; i < 25; ++i)
          if (at[i] >= 0) store(dense + at[i] + h, load(dense + at[i] + h) + out[i]);
      }
    });
  }

  // c = A^T product A.
  static const T* outputs(const Layer& l, const T* product, int64_t rows, int64_t row, T* dense) {
    each_tile<3>(l, l.oh, l.ow, 0, [&](int64_t tile, const int64_t* at) {
      for (int h = 0; h < W; h += L) {
        V in[25], out[9];
        for (int f = 0; f < 25; ++f) in[f] = load(product + (f * odd(rows) + row + tile) * W + h);
        sandwich<3, 5, kGt>(in, out);
        for (int i = 0; i < 9; ++i)
          if (at[i] >= 0) store(dense + at[i] + h, out[i]);
      }
    });
    return dense;
  }

  // The transpose of that: Y = A c-bar A^T.
  static void spread_outputs(const Layer& l, const T* outer, T* y, int64_t n, int64_t batch, int64_t b) {
    const int64_t stride = odd(batch * l.tiles) * W;
    each_tile<3>(l, l.oh, l.ow, 0, [&](int64_t tile, const int64_t* at) {
      for (int h = 0; h < W; h += L) {
        V in[9], out[25];
        for (int i = 0; i < 9; ++i) in[i] = at[i] < 0 ? V{} : load(outer + at[i] + h);
        sandwich<5, 3, kG>(in, out);
        for (int f = 0; f < 25; ++f) store(y + (n * 25 + f) * stride + (b * l.tiles + tile) * W + h, out[f]);
      }
    });
  }

  void transpose_features(const Layer& l, int64_t n, const T* small, T* features) const {
    for (int64_t c = 0; c < std::min<int64_t>(W, l.out - n * W); ++c)
      for (int64_t p = 0; p < l.pooled(); ++p) features[(n * W + c) * l.pooled() + p] = small[p * W + c];
  }

  void gather_features(const Layer& l, int64_t n, const T* features, T* small) const {
    for (int64_t c = 0; c < W; ++c)
      for (int64_t p = 0; p < l.pooled(); ++p)
        small[p * W + c] = n * W + c < l.out ? features[(n * W + c) * l.pooled() + p] : T(0);
  }

  // ---- norm, ReLU and pooling of one group of channels of one image (at = group * batch + image) ----------------------

  // visit(pooled position, offset of the window's first position)
  template <typename Visit>
  static void each_window(const Layer& l, const Visit& visit) {
    for (int64_t i = 0; i < l.ph; ++i)
      for (int64_t j = 0; j < l.pw; ++j) visit((i * l.pw + j) * W, (i * l.edge * l.ow + j * l.edge) * W);
  }
  static int64_t in_window(const Layer& l, int w) { return (w / l.edge * l.ow + w % l.edge) * W; }

  // What lies at the position that the pooling picked.
  static V picked(const Layer& l, const T* dense, Mask pick) {
    V value = load(dense);
    for (int w = 1; w < l.edge * l.edge; ++w) value = pick == w ? load(dense + in_window(l, w)) : value;
    return value;
  }

  // dense += sparse, placed.
  static void place(const Layer& l, T* dense, Mask pick, V sparse) {
    for (int w = 0; w < l.edge * l.edge; ++w) {
      T* to = dense + in_window(l, w);
      store(to, load(to) + (pick == w ? sparse : V{}));
    }
  }

  static void norm(const Layer& l, int64_t n, int64_t at, const T* c, const T* weights, Tape& tape, T* small) {
    const int64_t count = l.positions();
    for (int h = 0; h < W; h += L) {
      T* normed = tape.normed + at * count * W + h;
      V sum{}, squares{}, inv_std;
      for (int64_t p = 0; p < count; ++p) sum += load(c + p * W + h);
      const V mean = sum / T(count);
      for (int64_t p = 0; p < count; ++p) {
        const V centred = load(c + p * W + h) - mean;
        squares += centred * centred;
      }
      for (int i = 0; i < L; ++i) inv_std[i] = 1 / std::sqrt(squares[i] / T(count) + T(l.eps));
      for (int64_t p = 0; p < count; ++p) store(normed + p * W, (load(c + p * W + h) - mean) * inv_std);
      store(tape.inv_std + at * W + h, inv_std);
      const V scale = load(weights + l.kernel() + n * W + h), shift = load(weights + l.kernel() + (l.groups + n) * W + h);
      each_window(l, [&](int64_t p, int64_t q) {
        V best = scale * load(normed + q) + shift;
        Mask pick{};
        for (int w = 1; w < l.edge * l.edge; ++w) {
          const V value = scale * load(normed + q + in_window(l, w)) + shift;
          pick = value > best ? pick - pick + w : pick;  // The first of equals, as in PyTorch.
          best = value > best ? value : best;
        }
        const Mask dead = best <= 0;  // False for NaN, which thereby stays visible.
        store(small + p + h, dead ? V{} : best);
        reinterpret_cast<Mask*>(tape.pick + at * l.pooled() * W + p + h)[0] = dead ? pick - pick - 1 : pick;
      });
    }
  }

  static void norm_reverse(const Layer& l, int64_t n, int64_t at, const T* small, const T* weights, const Tape& tape,
                           Vjp& vjp, V* sums) {
    const int64_t count = l.positions();
    for (int h = 0; h < W; h += L) {
      const T* normed = tape.normed + at * count * W + h;
      T *outer = vjp.outer + at * count * W + h, *sparse = vjp.sparse + at * l.pooled() * W + h;
      const auto* picks = tape.pick + at * l.pooled() * W + h;
      V total{}, slope{};
      each_window(l, [&](int64_t p, int64_t q) {
        const Mask pick = *reinterpret_cast<const Mask*>(picks + p);
        const V value = pick < 0 ? V{} : load(small + p + h);
        store(sparse + p, value);
        total += value, slope += value * picked(l, normed + q, pick);
      });
      sums[h / L] += slope, sums[2 + h / L] += total;
      const V scale = load(weights + l.kernel() + n * W + h), inv_std = load(tape.inv_std + at * W + h);
      const V base = -scale * inv_std * total / T(count), mean = scale * slope / T(count);
      store(vjp.slope + at * W + h, mean);
      for (int64_t p = 0; p < count; ++p) store(outer + p * W, base - inv_std * mean * load(normed + p * W));
      each_window(l, [&](int64_t p, int64_t q) {
        place(l, outer + q, *reinterpret_cast<const Mask*>(picks + p), scale * inv_std * load(sparse + p));
      });
    }
  }

  static void norm_tangent(const Layer& l, int64_t n, int64_t at, const T* c, const T* weights, const T* direction,
                           const Tape& tape, Tape& dot, T* small) {
    const int64_t count = l.positions();
    for (int h = 0; h < W; h += L) {
      const T* normed = tape.normed + at * count * W + h;
      T* normed_dot = dot.normed + at * count * W + h;
      const auto* picks = tape.pick + at * l.pooled() * W + h;
      V sum{}, along{};
      for (int64_t p = 0; p < count; ++p) {
        const V value = load(c + p * W + h);
        sum += value, along += value * load(normed + p * W);
      }
      const V inv_std = load(tape.inv_std + at * W + h), mean = sum / T(count), slope = along / T(count);
      store(dot.inv_std + at * W + h, inv_std * slope);
      for (int64_t p = 0; p < count; ++p)
        store(normed_dot + p * W, inv_std * (load(c + p * W + h) - mean - slope * load(normed + p * W)));
      const int64_t own = l.kernel() + n * W + h;
      const V scale = load(weights + own), scale_dot = load(direction + own), shift_dot = load(direction + own + l.groups * W);
      each_window(l, [&](int64_t p, int64_t q) {
        const Mask pick = *reinterpret_cast<const Mask*>(picks + p);
        const V value = scale_dot * picked(l, normed + q, pick) + scale * picked(l, normed_dot + q, pick) + shift_dot;
        store(small + p + h, pick < 0 ? V{} : value);
      });
    }
  }

  void norm_reverse_tangent(const Pass& pass, size_t i, int64_t n, int64_t at, const T* small, V* sums) const {
    const Layer& l = layers_[i];
    const Tape &tape = pass.tapes[i], &dot = pass.tape_dots[i];
    const T *weights = pass.weights[i], *direction = pass.direction[i];
    const Vjp& vjp = pass.vjps[i];
    Vjp& pull_dot = pass.vjp_dots[i];
    const int64_t count = l.positions();
    for (int h = 0; h < W; h += L) {
      const T *normed = tape.normed + at * count * W + h, *normed_dot = dot.normed + at * count * W + h;
      const T *outer = vjp.outer + at * count * W + h, *sparse = vjp.sparse + at * l.pooled() * W + h;
      T *outer_dot = pull_dot.outer + at * count * W + h, *forces = pull_dot.sparse + at * l.pooled() * W + h;
      const auto* picks = tape.pick + at * l.pooled() * W + h;
      const V scale = load(weights + l.kernel() + n * W + h), scale_dot = load(direction + l.kernel() + n * W + h);
      V total{}, turn{}, forces_sum{}, slope{};
      each_window(l, [&](int64_t p, int64_t q) {
        const Mask pick = *reinterpret_cast<const Mask*>(picks + p);
        const V value = load(sparse + p), value_dot = pick < 0 ? V{} : load(small + p + h);
        const V here = picked(l, normed + q, pick), here_dot = picked(l, normed_dot + q, pick);
        const V force = scale_dot * value + scale * value_dot;
        store(forces + p, force);
        total += value_dot, turn += value_dot * here + value * here_dot;
        forces_sum += force, slope += force * here + scale * value * here_dot;
      });
      sums[h / L] += turn, sums[2 + h / L] += total;
      const V inv_std = load(tape.inv_std + at * W + h), relative = load(dot.inv_std + at * W + h);
      const V base = -inv_std * forces_sum / T(count), on = inv_std * slope / T(count);
      const V on_dot = inv_std * load(vjp.slope + at * W + h);
      for (int64_t p = 0; p < count; ++p)
        store(outer_dot + p * W, base - on_dot * load(normed_dot + p * W) - on * load(normed + p * W) -
                                     relative * load(outer + p * W));
      each_window(l, [&](int64_t p, int64_t q) {
        place(l, outer_dot + q, *reinterpret_cast<const Mask*>(picks + p), inv_std * load(forces + p));
      });
    }
  }
};
