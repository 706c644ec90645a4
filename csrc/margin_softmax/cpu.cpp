// The class softmax on the CPU: log-sum-exp over the other classes, and its gradient, one tile of cosines at a time.
//
// Classes are cut into tiles of `block`, tiles into at most kLanes contiguous lanes; a lane is one unit of parallel
// work and owns its partial sums, so results depend on the sizes and not on the number of threads. Within a lane every
// product is a single-threaded GEMM whose output stays in cache for the loops of rows.h. Rows go in chunks of kRows.
// Never stored: unit centres, their gradient, and the N x C cosines beyond the tiles that the caller paid for (`kept`,
// tile t of them at [t, N, block]).

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "rows.h"

namespace hyperkernels::margin_softmax {

namespace {

constexpr int64_t kLanes = 32;
constexpr int64_t kRows = 256;

// Who computes what: sizes, tiles and lanes.
struct Plan {
  int64_t n, c, d, block, kept_blocks;
  int64_t blocks() const { return (c + block - 1) / block; }
  int64_t lanes() const { return std::min(kLanes, blocks()); }
  int64_t lane_begin(int64_t lane) const { return blocks() * lane / lanes(); }
  int64_t first_class(int64_t b) const { return b * block; }
  int64_t classes(int64_t b) const { return std::min(block, c - b * block); }
  // Kept tiles are spread evenly, so that every lane has its share of them.
  int64_t kept_before(int64_t b) const { return b * kept_blocks / blocks(); }
  bool keeps(int64_t b) const { return kept_before(b + 1) > kept_before(b); }

  // Calls f(lane) for every lane, in parallel; f may use ATen.
  template <class F>
  void over_lanes(F f) const {
    // At least two items, or a single lane would run outside a parallel region, where GEMMs take all threads and their
    // sums come out in another order.
    at::parallel_for(0, std::max<int64_t>(2, lanes()), 1, [&](int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      for (int64_t lane = begin; lane < std::min(end, lanes()); ++lane) f(lane);
    });
  }

  // Calls f(begin, end) for chunks of rows, in parallel.
  template <class F>
  void over_rows(F f) const {
    at::parallel_for(0, n, std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, d)), f);
  }
};

Plan check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target, int64_t block,
           int64_t kept_blocks) {
  TORCH_CHECK_VALUE(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
                    "x and weight must be [N, D] and [C, D]; got ", x.sizes(), " and ", weight.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == weight.scalar_type(), "weight must have the dtype of x");
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, "target must have dtype int64");
  TORCH_CHECK_VALUE(target.dim() == 1 && target.size(0) == x.size(0), "target must have one entry per row of x");
  const Plan plan{x.size(0), weight.size(0), x.size(1), block, kept_blocks};
  TORCH_CHECK_VALUE(plan.c > 0 && block > 0 && kept_blocks >= 0 && kept_blocks <= plan.blocks(),
                    "weight must have at least one row, block and kept_blocks must fit it");
  return plan;
}

void check_targets(const int64_t* target, const Plan& plan, int64_t ignore_index) {
  for (int64_t i = 0; i < plan.n; ++i) {
    TORCH_CHECK_INDEX(target[i] == ignore_index || (target[i] >= 0 && target[i] < plan.c), "target[", i, "] is ",
                      target[i], ", which is neither in [0, ", plan.c, ") nor ignore_index=", ignore_index);
  }
}

// x^ [N, D] and norm [N], zeros where the row is ignored. Unit rows are what the tiles multiply.
struct UnitRows {
  template <class T>
  static HK_INLINE void run(const T* x, const int64_t* target, int64_t rows, int64_t dim, double eps,
                            int64_t ignore_index, T* unit, T* norm) {
    for (int64_t i = 0; i < rows; ++i, x += dim, unit += dim) {
      if (target[i] == ignore_index) {
        norm[i] = 0;
        for (int64_t k = 0; k < dim; ++k) unit[k] = 0;
        continue;
      }
      const double length = std::sqrt(simd::sum_squares(x, dim));
      norm[i] = T(length);
      const T inverse = T(1 / (length < eps ? eps : length));
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) unit[k] = x[k] * inverse;
    }
  }
};

// cos(x_i, w_y) from the unit row and the raw centre, in double: the margin's slope can magnify its rounding error.
struct TargetCosines {
  template <class T>
  static HK_INLINE void run(const T* unit, const T* weight, const int64_t* target, int64_t rows, int64_t dim,
                            double eps, int64_t ignore_index, T* cosine) {
    for (int64_t i = 0; i < rows; ++i, unit += dim) {
      cosine[i] = 0;
      if (target[i] == ignore_index) continue;
      const T* w = weight + target[i] * dim;
      const double length = std::sqrt(simd::dot<double>(w, w, dim));
      cosine[i] = T(simd::dot<double>(unit, w, dim) / (length < eps ? eps : length));
    }
  }
};

struct Inverses {
  template <class T>
  static HK_INLINE void run(const T* norm, int64_t n, double eps, T* inverse) {
    for (int64_t j = 0; j < n; ++j) inverse[j] = T(1 / (double(norm[j]) < eps ? eps : double(norm[j])));
  }
};

// neg_lse, target_cos, x_norm, hardest_cos, hardest_class, neg_cos_sum for the caller; log_sum, w_norm, kept for the
// backward.
using Statistics = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                              at::Tensor, at::Tensor>;

template <class T>
Statistics forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target, double scale, double eps,
                   int64_t ignore_index, const Plan& plan) {
  const int64_t* targets = target.const_data_ptr<int64_t>();
  const T* w = weight.const_data_ptr<T>();
  check_targets(targets, plan, ignore_index);

  at::Tensor unit = at::empty_like(x);
  at::Tensor x_norm = at::empty({plan.n}, x.options());
  at::Tensor target_cos = at::empty_like(x_norm);
  at::Tensor w_norm = at::empty({plan.c}, x.options());
  at::Tensor kept = at::empty({plan.kept_blocks * plan.n * plan.block}, x.options());
  at::Tensor sums = at::zeros({plan.lanes(), plan.d}, x.options().dtype(at::kDouble));
  std::vector<RowState> states(plan.lanes() * plan.n);

  plan.over_rows([&](int64_t begin, int64_t end) {
    T* unit_rows = unit.mutable_data_ptr<T>() + begin * plan.d;
    simd::run<UnitRows>(x.const_data_ptr<T>() + begin * plan.d, targets + begin, end - begin, plan.d, eps, ignore_index,
                        unit_rows, x_norm.mutable_data_ptr<T>() + begin);
    simd::run<TargetCosines>(static_cast<const T*>(unit_rows), w, targets + begin, end - begin, plan.d, eps,
                             ignore_index, target_cos.mutable_data_ptr<T>() + begin);
  });

  plan.over_lanes([&](int64_t lane) {
    at::Tensor scratch = at::empty({std::min(kRows, plan.n), plan.block}, x.options());
    std::vector<T> inverse(plan.block), partial(plan.d);
    for (int64_t b = plan.lane_begin(lane); b < plan.lane_begin(lane + 1); ++b) {
      const int64_t first = plan.first_class(b), classes = plan.classes(b);
      T* norms = w_norm.mutable_data_ptr<T>() + first;
      simd::run<CentreNorms>(w + first * plan.d, classes, plan.d, eps, norms,
                             sums.mutable_data_ptr<double>() + lane * plan.d, partial.data());
      simd::run<Inverses>(static_cast<const T*>(norms), classes, eps, inverse.data());
      const at::Tensor centres = weight.narrow(0, first, classes).t();
      for (int64_t r = 0; r < plan.n; r += kRows) {
        const int64_t rows = std::min(kRows, plan.n - r);
        at::Tensor tile = scratch;
        if (plan.keeps(b)) {
          tile = kept.narrow(0, (plan.kept_before(b) * plan.n + r) * plan.block, rows * plan.block)
                     .view({rows, plan.block});
          if (classes < plan.block) tile.narrow(1, classes, plan.block - classes).zero_();
        }
        at::Tensor products = tile.narrow(0, 0, rows).narrow(1, 0, classes);
        at::mm_out(products, unit.narrow(0, r, rows), centres);
        simd::run<FoldTile>(products.mutable_data_ptr<T>(), plan.block, rows, first, classes,
                            static_cast<const T*>(inverse.data()), targets + r, scale,
                            states.data() + lane * plan.n + r);
      }
    }
  });

  at::Tensor neg_lse = at::empty_like(x_norm), log_sum = at::empty_like(x_norm), hardest_cos = at::empty_like(x_norm),
             hardest_class = at::empty_like(target);
  for (int64_t i = 0; i < plan.n; ++i) {
    RowState row;
    for (int64_t lane = 0; lane < plan.lanes() && targets[i] != ignore_index; ++lane) {
      const RowState& part = states[lane * plan.n + i];
      row.merge(part.max, part.sum, part.hardest, scale);
    }
    // A row of NaN has a NaN sum and no maximum.
    const double top = std::isnan(row.sum) ? row.sum : row.max;
    const double log_of_sum = row.sum > 0 ? std::log(row.sum) : 0;
    neg_lse.mutable_data_ptr<T>()[i] = T(scale * top + log_of_sum);
    log_sum.mutable_data_ptr<T>()[i] = T(log_of_sum);
    hardest_cos.mutable_data_ptr<T>()[i] = T(row.max);
    hardest_class.mutable_data_ptr<int64_t>()[i] = row.hardest;
  }
  at::Tensor neg_cos_sum = at::mv(unit, sums.sum(0).to(x.scalar_type())).sub_(target_cos);
  return {neg_lse, target_cos, x_norm, hardest_cos, hardest_class, neg_cos_sum, log_sum, w_norm, kept};
}

Statistics class_statistics(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target, double scale,
                            double eps, int64_t ignore_index, int64_t block, int64_t kept_blocks) {
  const Plan plan = check(x, weight, target, block, kept_blocks);
  const at::Tensor xc = x.contiguous(), wc = weight.contiguous(), tc = target.contiguous();
  if (x.scalar_type() == at::kDouble) return forward<double>(xc, wc, tc, scale, eps, ignore_index, plan);
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "x must have dtype float32 or float64; got ", x.scalar_type());
  return forward<float>(xc, wc, tc, scale, eps, ignore_index, plan);
}

// The incoming gradients of the statistics and the saved tensors, contiguous.
struct Saved {
  at::Tensor d_neg_lse, d_target_cos, d_x_norm, d_neg_cos_sum, x, weight, target, x_norm, hardest_cos, log_sum, w_norm,
      kept;
};

template <class T>
std::vector<RowGradient<T>> row_gradients(const Saved& s, double scale, int64_t ignore_index, const Plan& plan) {
  std::vector<RowGradient<T>> rows(plan.n);
  for (int64_t i = 0; i < plan.n; ++i) {
    rows[i] = {T(scale * s.d_neg_lse.const_data_ptr<T>()[i]),
               s.d_neg_cos_sum.const_data_ptr<T>()[i],
               s.d_target_cos.const_data_ptr<T>()[i],
               s.hardest_cos.const_data_ptr<T>()[i],
               s.log_sum.const_data_ptr<T>()[i],
               s.target.const_data_ptr<int64_t>()[i] != ignore_index};
  }
  return rows;
}

// dx = (P_x d)/|x| + dL/d|x| x^, where d [lanes, rows, D] are the lanes' parts of the gradient of x^.
template <class T>
void finish_rows(const Saved& s, const at::Tensor& unit, const at::Tensor& parts, int64_t r, int64_t rows, double eps,
                 int64_t ignore_index, const Plan& plan, at::Tensor& dx) {
  at::Tensor total = dx.narrow(0, r, rows);
  at::sum_out(total, parts.narrow(1, 0, rows), 0);
  T* v = total.mutable_data_ptr<T>();
  const T* u = unit.const_data_ptr<T>() + r * plan.d;
  const std::vector<T> ones(rows, T(1));
  simd::run<ProjectTangent>(v, u, ones.data(), rows, plan.d, 0.0);
  for (int64_t i = 0; i < rows; ++i, v += plan.d, u += plan.d) {
    const T norm = s.x_norm.const_data_ptr<T>()[r + i];
    const bool still = double(norm) < eps || s.target.const_data_ptr<int64_t>()[r + i] == ignore_index;
    const T inverse = T(1 / double(norm)), radial = s.d_x_norm.const_data_ptr<T>()[r + i];
    for (int64_t k = 0; k < plan.d; ++k) v[k] = still ? T(0) : v[k] * inverse + radial * u[k];
  }
}

template <class T>
std::tuple<at::Tensor, at::Tensor> backward(const Saved& s, double scale, double eps, int64_t ignore_index,
                                            const Plan& plan, bool need_x, bool need_weight) {
  const int64_t* targets = s.target.const_data_ptr<int64_t>();
  const T* w = s.weight.const_data_ptr<T>();
  const std::vector<RowGradient<T>> gradients = row_gradients<T>(s, scale, ignore_index, plan);
  at::Tensor unit = at::empty_like(s.x), norm = at::empty_like(s.x_norm);
  plan.over_rows([&](int64_t begin, int64_t end) {
    simd::run<UnitRows>(s.x.const_data_ptr<T>() + begin * plan.d, targets + begin, end - begin, plan.d, eps,
                        ignore_index, unit.mutable_data_ptr<T>() + begin * plan.d, norm.mutable_data_ptr<T>() + begin);
  });
  at::Tensor dx = at::empty({need_x ? plan.n : 0, plan.d}, s.x.options());
  at::Tensor dweight = at::empty({need_weight ? plan.c : 0, plan.d}, s.x.options());
  if (need_weight && plan.n == 0) dweight.zero_();
  const int64_t chunk = std::min(kRows, plan.n);
  at::Tensor parts = at::empty({need_x ? plan.lanes() : 0, chunk, plan.d}, s.x.options());

  for (int64_t r = 0; r < plan.n; r += kRows) {
    const int64_t rows = std::min(kRows, plan.n - r);
    const at::Tensor unit_rows = unit.narrow(0, r, rows);
    plan.over_lanes([&](int64_t lane) {
      at::Tensor scratch = at::empty({rows, plan.block}, s.x.options());
      std::vector<T> inverse(plan.block);
      for (int64_t b = plan.lane_begin(lane); b < plan.lane_begin(lane + 1); ++b) {
        const int64_t first = plan.first_class(b), classes = plan.classes(b);
        const at::Tensor centres = s.weight.narrow(0, first, classes);
        simd::run<Inverses>(s.w_norm.const_data_ptr<T>() + first, classes, eps, inverse.data());
        at::Tensor h = scratch.narrow(1, 0, classes);
        const T* cosines = scratch.const_data_ptr<T>();
        if (plan.keeps(b)) {
          cosines = s.kept.const_data_ptr<T>() + (plan.kept_before(b) * plan.n + r) * plan.block;
        } else {
          at::mm_out(h, unit_rows, centres.t());
          simd::run<ScaleTile>(scratch.mutable_data_ptr<T>(), plan.block, rows, classes,
                               static_cast<const T*>(inverse.data()));
        }
        simd::run<GradientTile>(cosines, scratch.mutable_data_ptr<T>(), plan.block, rows, first, classes,
                                static_cast<const T*>(inverse.data()), targets + r, gradients.data() + r, T(scale));
        if (need_x) {
          at::Tensor part = parts.select(0, lane).narrow(0, 0, rows);
          at::addmm_out(part, part, h, centres, b == plan.lane_begin(lane) ? 0 : 1, 1);
        }
        if (need_weight) {
          at::Tensor dw = dweight.narrow(0, first, classes);
          at::addmm_out(dw, dw, h.t(), unit_rows, r == 0 ? 0 : 1, 1);
          if (r + kRows >= plan.n) {
            simd::run<ProjectTangent>(dw.mutable_data_ptr<T>(), w + first * plan.d,
                                      s.w_norm.const_data_ptr<T>() + first, classes, plan.d, eps);
          }
        }
      }
    });
    if (need_x) finish_rows<T>(s, unit, parts, r, rows, eps, ignore_index, plan, dx);
  }
  return {dx, dweight};
}

std::tuple<at::Tensor, at::Tensor> class_statistics_backward(
    const at::Tensor& d_neg_lse, const at::Tensor& d_target_cos, const at::Tensor& d_x_norm,
    const at::Tensor& d_neg_cos_sum, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
    const at::Tensor& x_norm, const at::Tensor& hardest_cos, const at::Tensor& log_sum, const at::Tensor& w_norm,
    const at::Tensor& kept, double scale, double eps, int64_t ignore_index, int64_t block, int64_t kept_blocks,
    bool need_x, bool need_weight) {
  const Plan plan = check(x, weight, target, block, kept_blocks);
  for (const at::Tensor* rows :
       {&d_neg_lse, &d_target_cos, &d_x_norm, &d_neg_cos_sum, &x_norm, &hardest_cos, &log_sum}) {
    TORCH_CHECK_VALUE(rows->numel() == plan.n && rows->scalar_type() == x.scalar_type(),
                      "incoming gradients and saved statistics must have one entry per row of x, in its dtype");
  }
  TORCH_CHECK_VALUE(w_norm.numel() == plan.c && kept.numel() == kept_blocks * plan.n * block,
                    "w_norm must have one entry per class, kept must hold kept_blocks tiles");
  const Saved saved{
      d_neg_lse.contiguous(),   d_target_cos.contiguous(), d_x_norm.contiguous(), d_neg_cos_sum.contiguous(),
      x.contiguous(),           weight.contiguous(),       target.contiguous(),   x_norm.contiguous(),
      hardest_cos.contiguous(), log_sum.contiguous(),      w_norm.contiguous(),   kept.contiguous()};
  if (x.scalar_type() == at::kDouble)
    return backward<double>(saved, scale, eps, ignore_index, plan, need_x, need_weight);
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, "x must have dtype float32 or float64; got ", x.scalar_type());
  return backward<float>(saved, scale, eps, ignore_index, plan, need_x, need_weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("class_statistics", class_statistics);
  m.impl("class_statistics_backward", class_statistics_backward);
}

}  // namespace hyperkernels::margin_softmax
