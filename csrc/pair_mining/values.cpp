// The similarities of listed pairs, and their gradients.

#include <numeric>
#include <vector>

#include "../common/parallel.h"
#include "../common/sums.h"
#include "selections.h"

namespace hyperkernels::pair_mining {

namespace {

template <class T>
HK_INLINE double squared_distance(const T* a, const T* b, int64_t d) {
  using A = Accumulate<T>;
  const auto add = [&](int64_t k, A& sum, A&, A&, A&) HK_LAMBDA {
    const A apart = A(simd::load(a + k)) - A(simd::load(b + k));
    sum += apart * apart;
  };
  return simd::sums<A>(d, add).a;
}

// The values of the pairs begin .. end.
struct Values {
  template <class T, class A>
  static HK_INLINE void run(const ListedPairs<T>* pairs, int64_t begin, int64_t end, A* values) {
    const ListedPairs<T>& p = *pairs;
    for (int64_t k = begin; k < end; ++k) {
      const T *a = p.x + p.rows[k] * p.d, *b = p.ref + p.columns[k] * p.d;
      if (p.similarity == Similarity::kDot) {
        values[k] = A(simd::dot<A>(a, b, p.d));
      } else {
        const double squared = squared_distance(a, b, p.d);
        values[k] = A(-(p.similarity == Similarity::kEuclidean ? std::sqrt(squared) : squared));
      }
    }
  }
};

// The pairs of every owner in their order: those of owner i are pairs[starts[i]] .. pairs[starts[i + 1]].
struct ByOwner {
  ByOwner(const int64_t* owner, int64_t count, int64_t n) : starts(n + 1), pairs(count) {
    for (int64_t k = 0; k < count; ++k) ++starts[owner[k] + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> at(starts.begin(), starts.end() - 1);
    for (int64_t k = 0; k < count; ++k) pairs[at[owner[k]]++] = k;
  }

  std::vector<int64_t> starts, pairs;
};

// Ends of pairs that are rows of one side, and the other ends: rows other[k] of others.
template <class T>
struct PairEnds {
  ByOwner own;
  const int64_t* other;
  const T* others;
};

// The gradients of the rows begin .. end of one side. sum [d] is memory.
struct GradientRows {
  template <class T, class A>
  static HK_INLINE void run(const T* side, const PairEnds<T>* ends, int64_t ends_count, const A* gradient, int64_t d,
                            Similarity similarity, int64_t begin, int64_t end, double* sum, T* out) {
    for (int64_t i = begin; i < end; ++i) {
      std::fill_n(sum, d, 0.0);
      for (const PairEnds<T>* e = ends; e < ends + ends_count; ++e) {
        const int64_t first = e->own.starts[i], last = e->own.starts[i + 1];
        for (int64_t k = first; k < last; ++k) {
          const int64_t pair = e->own.pairs[k];
          add(side + i * d, e->others + e->other[pair] * d, double(gradient[pair]), d, similarity, sum);
        }
      }
      for (int64_t k = 0; k < d; ++k) simd::store(out + i * d + k, A(sum[k]));
    }
  }

 private:
  // sum += the gradient that a pair gives to its end `own`.
  template <class T>
  static HK_INLINE void add(const T* own, const T* other, double g, int64_t d, Similarity similarity, double* sum) {
    if (g == 0) return;  // the other end may be NaN and mean nothing
    if (similarity == Similarity::kDot) {
#pragma omp simd
      for (int64_t e = 0; e < d; ++e) sum[e] += g * double(simd::load(other + e));
      return;
    }
    if (similarity == Similarity::kEuclidean) {
      const double distance = std::sqrt(squared_distance(own, other, d));
      g = distance == 0 ? 0 : g / distance;
    } else {
      g *= 2;
    }
#pragma omp simd
    for (int64_t e = 0; e < d; ++e) sum[e] += g * (double(simd::load(other + e)) - double(simd::load(own + e)));
  }
};

template <class T>
void gradient(const ListedPairs<T>& p, const Accumulate<T>* d, const T* side, int64_t n,
              const std::vector<PairEnds<T>>& ends, T* out) {
  parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    Buffer<double> sum(p.d);
    simd::run<GradientRows>(side, ends.data(), int64_t(ends.size()), d, p.d, p.similarity, begin, end, sum.data(), out);
  });
}

}  // namespace

template <class T>
void pair_values(const ListedPairs<T>& pairs, Accumulate<T>* values) {
  parallel_for(0, pairs.count, grain(pairs.d),
               [&](int64_t begin, int64_t end) { simd::run<Values>(&pairs, begin, end, values); });
}

template <class T>
void pair_values_backward(const ListedPairs<T>& pairs, const Accumulate<T>* d, T* dx, T* dref) {
  const ListedPairs<T>& p = pairs;
  std::vector<PairEnds<T>> at_rows, at_columns;
  if (dx != nullptr) at_rows.push_back({ByOwner(p.rows, p.count, p.n), p.columns, p.ref});
  if (p.self ? dx != nullptr : dref != nullptr) {
    (p.self ? at_rows : at_columns).push_back({ByOwner(p.columns, p.count, p.m), p.rows, p.x});
  }
  if (dx != nullptr) gradient(p, d, p.x, p.n, at_rows, dx);
  if (dref != nullptr) gradient(p, d, p.ref, p.m, at_columns, dref);
}

#define HK_VALUES(T)                                                \
  template void pair_values(const ListedPairs<T>&, Accumulate<T>*); \
  template void pair_values_backward(const ListedPairs<T>&, const Accumulate<T>*, T*, T*);

HK_VALUES(double)
HK_VALUES(float)
HK_VALUES(simd::Bfloat16)
HK_VALUES(simd::Half)

}  // namespace hyperkernels::pair_mining
