// What blocks.h and head.h are written in: SIMD vectors of any width, their transforms, and memory that stays.
#pragma once

#include <ATen/Parallel.h>
#include <omp.h>
#include <sys/mman.h>
#include <torch/extension.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

// Rows of a product that the registers hold, two vectors each: 8 rows where there are 32 registers, 6 where 16
// (AVX2: with 7 they would spill).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisterRows = 8;
#else
constexpr int kRegisterRows = 6;
#endif

// A SIMD vector V of L elements, and what comparisons of V give.
template <typename T>
struct Simd {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Int;
  typedef T V __attribute__((vector_size(kBytes)));
  typedef Int Mask __attribute__((vector_size(kBytes)));
  static constexpr int L = kBytes / sizeof(T);
  static V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
};

template <int R, int C>
struct Matrix {
  double m[R][C];
  constexpr Matrix<C, R> transposed() const {
    Matrix<C, R> t{};
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < C; ++j) t.m[j][i] = m[i][j];
    return t;
  }
};
// out [R][R] = m in [C][C] m^T, every element a SIMD vector.
template <int R, int C, const Matrix<R, C>& M, typename V>
inline __attribute__((always_inline)) void sandwich(const V* in, V* out) {
  V half[R][C];
#pragma GCC unroll 5
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
    for (int j = 0; j < C; ++j) {
      V sum{};
#pragma GCC unroll 5
      for (int c = 0; c < C; ++c)
        if (M.m[i][c] != 0) sum += static_cast<decltype(sum[0] + 0)>(M.m[i][c]) * in[c * C + j];
      half[i][j] = sum;
    }
#pragma GCC unroll 5
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 5
    for (int j = 0; j < R; ++j) {
      V sum{};
#pragma GCC unroll 5
      for (int c = 0; c < C; ++c)
        if (M.m[j][c] != 0) sum += static_cast<decltype(sum[0] + 0)>(M.m[j][c]) * half[i][c];
      out[i * R + j] = sum;
    }
}

constexpr size_t kHugePage = 2 << 20;

// Memory that is kept from episode to episode: fresh pages cost as much as the arithmetic on them.
template <typename T>
struct Buffer {
  std::unique_ptr<T, decltype(&std::free)> data{nullptr, &std::free};
  size_t capacity = 0;
  void fit(size_t count) {
    if (count <= capacity) return;
    const size_t page = count * sizeof(T) < kHugePage ? 64 : kHugePage;
    const size_t bytes = (count * sizeof(T) + page - 1) / page * page;
    data.reset(static_cast<T*>(std::aligned_alloc(page, bytes)));
    TORCH_CHECK(data, "out of memory");
#ifdef MADV_HUGEPAGE
    if (page == kHugePage) madvise(data.get(), bytes, MADV_HUGEPAGE);  // Fewer TLB misses; only a hint.
#endif
    std::memset(static_cast<void*>(data.get()), 0, bytes);
    capacity = count;
  }
  operator T*() const { return data.get(); }
};

// The threads that share a piece of work; rank r takes every size-th group of channels.
struct Team {
  int rank, size;
  void wait() const {
    if (size > 1) {
#pragma omp barrier
    }
  }
};


// Runs work(team) on some threads, fewer where OpenMP has fewer.
template <typename Work>
void parallel(int threads, const Work& work) {
#pragma omp parallel num_threads(threads)
  work(Team{omp_get_thread_num(), omp_get_num_threads()});
}
