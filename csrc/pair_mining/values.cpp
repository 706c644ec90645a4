// The similarities of listed pairs, and their gradients. Distances are those of the difference of two rows, which loses
// nothing where they are close.

#include <torch/library.h>

#include <numeric>
#include <tuple>

#include "../indices.h"
#include "problem.h"

namespace hyperkernels::pair_mining {

namespace {

struct SquaredDistance {
  template <class T>
  static HK_INLINE double of(const T* a, const T* b, int64_t d) {
    using A = Accumulate<T>;
    const auto add = [&](int64_t k, A& sum, A&, A&, A&) HK_LAMBDA {
      const A apart = A(simd::load(a + k)) - A(simd::load(b + k));
      sum += apart * apart;
    };
    return simd::sums<A>(d, add).a;
  }
};

struct Values {
  template <class T, class A>
  static HK_INLINE void run(const T* x, const T* ref, const int64_t* rows, const int64_t* columns, int64_t count,
                            int64_t d, Similarity similarity, A* out) {
    for (int64_t k = 0; k < count; ++k) {
      const T *a = x + rows[k] * d, *b = ref + columns[k] * d;
      if (similarity == Similarity::kDot) {
        out[k] = A(simd::dot<A>(a, b, d));
      } else {
        const double squared = SquaredDistance::of(a, b, d);
        out[k] = A(-(similarity == Similarity::kEuclidean ? std::sqrt(squared) : squared));
      }
    }
  }
};

// sum += the gradient that pairs give to their end `own`; the other ends are rows of `others`.
struct AddGradients {
  template <class T, class A>
  static HK_INLINE void run(const T* own, const T* others, const int64_t* other, const int64_t* pairs, int64_t count,
                            const A* gradient, int64_t d, Similarity similarity, double* sum) {
    for (int64_t k = 0; k < count; ++k) {
      const T* b = others + other[pairs[k]] * d;
      double g = double(gradient[pairs[k]]);
      if (g == 0) continue;  // the other end may be NaN and mean nothing
      if (similarity == Similarity::kDot) {
#pragma omp simd
        for (int64_t e = 0; e < d; ++e) sum[e] += g * double(simd::load(b + e));
        continue;
      }
      if (similarity == Similarity::kEuclidean) {
        const double distance = std::sqrt(SquaredDistance::of(own, b, d));
        g = distance == 0 ? 0 : g / distance;
      } else {
        g *= 2;
      }
#pragma omp simd
      for (int64_t e = 0; e < d; ++e) sum[e] += g * (double(simd::load(b + e)) - double(simd::load(own + e)));
    }
  }
};

struct Round {
  template <class T>
  static HK_INLINE void run(const double* from, int64_t count, T* to) {
    using A = Accumulate<T>;
    for (int64_t k = 0; k < count; ++k) simd::store(to + k, A(from[k]));
  }
};

at::Tensor checked_indices(const char* name, const at::Tensor& indices, int64_t n) {
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong, name, " must be int64; got ", indices.scalar_type());
  TORCH_CHECK_VALUE(indices.dim() == 1, name, " must be [K]; got ", indices.sizes());
  TORCH_CHECK_VALUE(indices.device().is_cpu(), name, " must be on the cpu; got ", indices.device());
  const at::Tensor kept = own_copy(indices);
  for (int64_t k = 0; k < kept.size(0); ++k) {
    const int64_t at = data<int64_t>(kept)[k];
    TORCH_CHECK_INDEX(at >= 0 && at < n, name, "[", k, "] is ", at, "; it must be in [0, ", n, ")");
  }
  return kept;
}

struct Pairs {
  Problem problem;
  at::Tensor rows, columns;
};

Pairs make_pairs(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& rows,
                 const at::Tensor& columns, std::string_view similarity) {
  const at::Tensor none = at::empty({0}, x.options().dtype(at::kInt));
  Pairs pairs{make_problem(x, ref, none, none, none, none, {}, {}, "all", similarity, 1, 1), {}, {}};
  pairs.rows = checked_indices("rows", rows, pairs.problem.rows.n);
  pairs.columns = checked_indices("columns", columns, pairs.problem.columns.n);
  TORCH_CHECK_VALUE(pairs.rows.size(0) == pairs.columns.size(0), "rows and columns must be equally long; got ",
                    pairs.rows.size(0), " and ", pairs.columns.size(0));
  return pairs;
}

at::Tensor pair_values(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& rows,
                       const at::Tensor& columns, c10::string_view similarity) {
  const Pairs pairs = make_pairs(x, ref, rows, columns, similarity);
  const Problem& p = pairs.problem;
  const int64_t count = rows.size(0),
                grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, p.d));
  at::Tensor out = at::empty({count}, p.accumulate());
  with_storage(p, [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      simd::run<Values>(data<T>(p.rows.values), data<T>(p.columns.values), data<int64_t>(pairs.rows) + begin,
                        data<int64_t>(pairs.columns) + begin, end - begin, p.d, p.similarity,
                        mutable_data<Accumulate<T>>(out) + begin);
    });
  });
  return out;
}

// The pairs of every owner in their order: those of owner i are pairs[starts[i]] .. pairs[starts[i + 1]].
struct ByOwner {
  ByOwner(const at::Tensor& owners, int64_t n) : starts(n + 1), pairs(owners.size(0)) {
    const int64_t* owner = data<int64_t>(owners);
    for (int64_t k = 0; k < owners.size(0); ++k) ++starts[owner[k] + 1];
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    std::vector<int64_t> at(starts.begin(), starts.end() - 1);
    for (int64_t k = 0; k < owners.size(0); ++k) pairs[at[owner[k]]++] = k;
  }

  std::vector<int64_t> starts, pairs;
};

// Ends of pairs that are rows of one side, and the other ends.
struct Ends {
  ByOwner own;
  const at::Tensor &other, &others;
};

template <class T>
at::Tensor gradient(const Problem& p, const at::Tensor& d, const Side& side, const std::vector<Ends>& ends) {
  using A = Accumulate<T>;
  at::Tensor out = at::empty({side.n, p.d}, side.values.options());
  at::parallel_for(0, side.n, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(p.d);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (const Ends& e : ends) {
        const int64_t first = e.own.starts[i];
        simd::run<AddGradients>(data<T>(side.values) + i * p.d, data<T>(e.others), data<int64_t>(e.other),
                                e.own.pairs.data() + first, e.own.starts[i + 1] - first, data<A>(d), p.d, p.similarity,
                                sum.data());
      }
      simd::run<Round>(static_cast<const double*>(sum.data()), p.d, mutable_data<T>(out) + i * p.d);
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> pair_values_backward(const at::Tensor& d, const at::Tensor& x,
                                                        const std::optional<at::Tensor>& ref, const at::Tensor& rows,
                                                        const at::Tensor& columns, c10::string_view similarity,
                                                        bool need_x, bool need_ref) {
  const Pairs pairs = make_pairs(x, ref, rows, columns, similarity);
  const Problem& p = pairs.problem;
  const at::Tensor given = numbers_of(p, "d", d, rows.size(0));
  at::Tensor dx = at::empty({0}, x.options()), dref = at::empty({0}, x.options());
  with_storage(p, [&](auto t) {
    using T = decltype(t);
    std::vector<Ends> at_rows, at_columns;
    if (need_x) at_rows.push_back({ByOwner(pairs.rows, p.rows.n), pairs.columns, p.columns.values});
    if (p.self ? need_x : need_ref) {
      (p.self ? at_rows : at_columns).push_back({ByOwner(pairs.columns, p.columns.n), pairs.rows, p.rows.values});
    }
    if (need_x) dx = gradient<T>(p, given, p.rows, at_rows);
    if (need_ref && !p.self) dref = gradient<T>(p, given, p.columns, at_columns);
  });
  return {dx, dref};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("pair_values", pair_values);
  m.impl("pair_values_backward", pair_values_backward);
}

}  // namespace hyperkernels::pair_mining
