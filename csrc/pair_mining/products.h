// Products of pairs' factors and their ends, in which pairs that do not count see nothing of an end that is not finite.
#pragma once

#include "problem.h"

namespace hyperkernels::pair_mining {

// Which rows hold finite numbers only.
struct FiniteRows {
  template <class T>
  static HK_INLINE void run(const T* v, int64_t rows, int64_t dim, uint8_t* finite) {
    for (int64_t i = 0; i < rows; ++i, v += dim) {
      int32_t bad = 0;
#pragma omp simd reduction(| : bad)
      for (int64_t k = 0; k < dim; ++k) {
        const auto e = simd::load(v + k);
        bad |= e - e != 0 ? 1 : 0;
      }
      finite[i] = bad == 0;
    }
  }
};

// to += factor * from
struct AddScaled {
  template <class A>
  static HK_INLINE void run(const A* from, A factor, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += factor * from[k];
  }
};

template <class T>
std::vector<uint8_t> finite_rows(const Problem& p, const Side& side) {
  std::vector<uint8_t> finite(side.n);
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, p.d));
  at::parallel_for(0, side.n, grain, [&](int64_t begin, int64_t end) {
    simd::run<FiniteRows>(data<T>(side.values) + begin * p.d, end - begin, p.d, finite.data() + begin);
  });
  return finite;
}

// sums [rows, D] += factors ends. An end that is not finite is added where its factor is not zero alone.
template <class A>
void add_product(at::Tensor sums, const at::Tensor& factors, const at::Tensor& ends, const uint8_t* finite) {
  std::vector<int64_t> wild;
  for (int64_t j = 0; j < ends.size(0); ++j) {
    if (finite[j] == 0) wild.push_back(j);
  }
  const at::Tensor tame = wild.empty() ? ends : ends.clone();
  for (const int64_t j : wild) tame.select(0, j).zero_();
  at::addmm_out(sums, sums, factors, tame);
  const int64_t dim = ends.size(1);
  for (const int64_t j : wild) {
    for (int64_t i = 0; i < factors.size(0); ++i) {
      const A by = data<A>(factors)[i * factors.stride(0) + j * factors.stride(1)];
      if (by != 0) simd::run<AddScaled>(data<A>(ends) + j * dim, by, dim, mutable_data<A>(sums) + i * dim);
    }
  }
}

}  // namespace hyperkernels::pair_mining
