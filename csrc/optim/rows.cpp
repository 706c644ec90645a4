#include "rows.h"

#include "arguments.h"

namespace hyperkernels::optim {

namespace {

// What both optimisers are given, checked before anything is written.
struct Update {
  Tensor weight, step, gradient;
  std::optional<std::vector<int64_t>> rows;
  int64_t count, dim;
  double unscale;
  bool skipped;

  Update(const Tensor& weight, const Tensor& step, const Tensor& gradient, const Optional& index,
         const Optional& grad_scale, const Optional& found_inf, bool maximize)
      : weight(weight), step(step), gradient(packed(gradient)) {
    check_weight(weight, "weight");
    check_step(step, weight, "step", "weight");
    const int64_t all = weight.size(0);
    count = index.has_value() ? index->numel() : all;
    dim = weight.size(1);
    check_sizes(gradient, {count, dim}, "gradient");
    check_dtype(gradient, weight.scalar_type(), "gradient");
    if (index.has_value()) {
      HK_CHECK_VALUE(index->dim() == 1, "rows must be one-dimensional; got shape ", sizes_of(*index));
      check_dtype(*index, Dtype::Long, "rows");
      rows = own_copy(*index);
      for (const int64_t row : *rows) {
        HK_CHECK_INDEX(row >= 0 && row < all, "rows must lie in [0, ", all, "); got ", row);
      }
    }
    unscale = unscaling(grad_scale, maximize);
    skipped = number(found_inf, "found_inf", 0) != 0;
  }

  // Calls f(rows, begin, end) for ranges of the gradient's rows, in parallel.
  template <class A, class F>
  void over_rows(F f) const {
    if (skipped) return;
    const Rows<A> all{out_rows<A>(weight),
                      in_rows<A>(gradient),
                      rows.has_value() ? rows->data() : nullptr,
                      mutable_data<int32_t>(step),
                      dim,
                      unscale};
    parallel_for(0, count, grain(dim), [&](int64_t begin, int64_t end) { f(&all, begin, end); });
  }
};

void sgd_rows_(const Tensor& weight, const Optional& momentum_buffer, const Tensor& step, const Tensor& gradient,
               const Optional& rows, const Optional& lr_tensor, const Optional& grad_scale, const Optional& found_inf,
               double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
  const Update update(weight, step, gradient, rows, grad_scale, found_inf, maximize);
  if (momentum_buffer.has_value()) check_state(*momentum_buffer, "momentum_buffer", weight, sizes_of(weight));
  const SgdOptions options{number(lr_tensor, "lr_tensor", lr), momentum, dampening, weight_decay, nesterov};
  with_accumulator(weight.scalar_type(), "weight", [&](auto zero) {
    using A = decltype(zero);
    auto* buffers = mutable_data<A>(momentum_buffer);
    update.over_rows<A>([&](const Rows<A>* all, int64_t begin, int64_t end) {
      simd::run<SgdRows>(all, buffers, &options, begin, end);
    });
  });
}

void adamw_rows_(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& step,
                 const Tensor& gradient, const Optional& rows, const Optional& lr_tensor, const Optional& grad_scale,
                 const Optional& found_inf, double lr, double beta1, double beta2, double eps, double weight_decay,
                 bool maximize) {
  const Update update(weight, step, gradient, rows, grad_scale, found_inf, maximize);
  check_state(exp_avg, "exp_avg", weight, sizes_of(weight));
  check_state(exp_avg_sq, "exp_avg_sq", weight, sizes_of(weight));
  const AdamWOptions options{number(lr_tensor, "lr_tensor", lr), beta1, beta2, eps, weight_decay};
  with_accumulator(weight.scalar_type(), "weight", [&](auto zero) {
    using A = decltype(zero);
    auto* means = mutable_data<A>(exp_avg);
    auto* squares = mutable_data<A>(exp_avg_sq);
    update.over_rows<A>([&](const Rows<A>* all, int64_t begin, int64_t end) {
      simd::run<AdamWRows>(all, means, squares, &options, begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "sgd_rows_", sgd_rows_);
  HK_OP(m, "adamw_rows_", adamw_rows_);
}

}  // namespace hyperkernels::optim
