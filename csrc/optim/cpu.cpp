// SGD and AdamW over some rows of a weight on the CPU: each row, its state and its gradient are read once and written
// once. The gradient's row i belongs to row index[i] of weight and state. Rows are distinct, so threads share none.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "../indices.h"
#include "arguments.h"

namespace hyperkernels::optim {

namespace {

using simd::load;
using simd::store;

template <class S>
struct Rows {
  S* weight;
  const S* gradient;
  const int64_t* index;  // null: all rows, in order
  int32_t* step;
  int64_t dim;
  double unscale;  // factor of the gradient

  HK_INLINE int64_t at(int64_t i) const { return index == nullptr ? i : index[i]; }
};

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
};

struct SgdRows {
  template <class S, class A>
  static HK_INLINE void run(const Rows<S>* rows, A* buffers, const SgdOptions* o, int64_t begin, int64_t end) {
    const A lr = A(o->lr), momentum = A(o->momentum), decay = A(o->weight_decay), unscale = A(rows->unscale);
    const bool nesterov = o->nesterov;
    const int64_t dim = rows->dim;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows->at(i);
      S* w = rows->weight + row * dim;
      const S* g = rows->gradient + i * dim;
      if (buffers == nullptr) {
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) {
          const A value = load(w + k);
          store(w + k, value - lr * (load(g + k) * unscale + decay * value));
        }
      } else {
        A* b = buffers + row * dim;
        const bool first = rows->step[row] == 0;
        const A kept = first ? A(0) : momentum, taken = first ? A(1) : A(1 - o->dampening);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) {
          const A value = load(w + k);
          const A change = load(g + k) * unscale + decay * value;
          const A moved = kept * b[k] + taken * change;
          b[k] = moved;
          store(w + k, value - lr * (nesterov ? change + momentum * moved : moved));
        }
      }
      rows->step[row] = next_step(rows->step[row]);
    }
  }
};

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

struct AdamWRows {
  template <class S, class A>
  static HK_INLINE void run(const Rows<S>* rows, A* means, A* squares, const AdamWOptions* o, int64_t begin,
                            int64_t end) {
    const double log_beta1 = std::log(o->beta1), log_beta2 = std::log(o->beta2);
    const A beta1 = A(o->beta1), beta2 = A(o->beta2), rest1 = A(1 - o->beta1), rest2 = A(1 - o->beta2);
    const A eps = A(o->eps), kept = A(1 - o->lr * o->weight_decay), unscale = A(rows->unscale);
    const int64_t dim = rows->dim;
    int32_t corrected = -1;  // rows that have come as far as the one before share its corrections
    A size = 0, inverse_root = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows->at(i);
      const int32_t step = rows->step[row] = next_step(rows->step[row]);
      if (step != corrected) {
        corrected = step;
        size = A(o->lr / -std::expm1(step * log_beta1));
        inverse_root = A(1 / std::sqrt(-std::expm1(step * log_beta2)));
      }
      S* w = rows->weight + row * dim;
      const S* g = rows->gradient + i * dim;
      A* m = means + row * dim;
      A* v = squares + row * dim;
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) {
        const A change = load(g + k) * unscale;
        m[k] = beta1 * m[k] + rest1 * change;
        v[k] = beta2 * v[k] + rest2 * change * change;
        store(w + k, load(w + k) * kept - size * m[k] / (std::sqrt(v[k]) * inverse_root + eps));
      }
    }
  }
};

// What both optimisers are given, checked before anything is written.
struct Update {
  at::Tensor weight, step, gradient, rows;
  double unscale;
  bool skipped;

  Update(const at::Tensor& weight, const at::Tensor& step, const at::Tensor& gradient, const Optional& index,
         const Optional& grad_scale, const Optional& found_inf, bool maximize)
      : weight(weight), step(step), gradient(gradient.contiguous()) {
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(), "weight must be contiguous [R, D]; got shape ",
                      weight.sizes(), ", strides ", weight.strides());
    TORCH_CHECK_VALUE(step.dim() == 1 && step.size(0) == weight.size(0) && step.is_contiguous(),
                      "step must have one entry per row of weight, ", weight.size(0), "; got shape ", step.sizes());
    TORCH_CHECK_TYPE(step.scalar_type() == at::kInt, "step must have dtype int32; got ", step.scalar_type());
    const int64_t count = index.has_value() ? index->numel() : weight.size(0);
    TORCH_CHECK_VALUE(gradient.dim() == 2 && gradient.size(0) == count && gradient.size(1) == weight.size(1),
                      "gradient must have shape [", count, ", ", weight.size(1), "]; got ", gradient.sizes());
    TORCH_CHECK_TYPE(gradient.scalar_type() == weight.scalar_type(), "gradient must have the dtype of weight, ",
                     weight.scalar_type(), "; got ", gradient.scalar_type());
    if (index.has_value()) {
      TORCH_CHECK_VALUE(index->dim() == 1, "rows must be one-dimensional; got shape ", index->sizes());
      TORCH_CHECK_TYPE(index->scalar_type() == at::kLong, "rows must have dtype int64; got ", index->scalar_type());
      rows = own_copy(*index);
      const int64_t* row = rows.const_data_ptr<int64_t>();
      for (int64_t i = 0; i < count; ++i) {
        TORCH_CHECK_INDEX(row[i] >= 0 && row[i] < weight.size(0), "rows must lie in [0, ", weight.size(0), "); got ",
                          row[i]);
      }
    }
    unscale = (maximize ? -1 : 1) / number(grad_scale, "grad_scale", 1);
    skipped = number(found_inf, "found_inf", 0) != 0;
  }

  // Calls f(rows, begin, end) for ranges of the gradient's rows, in parallel.
  template <class S, class F>
  void over_rows(F f) const {
    const int64_t dim = weight.size(1),
                  grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, dim));
    const Rows<S> all{mutable_data<S>(weight),
                      static_cast<const S*>(gradient.const_data_ptr()),
                      rows.defined() ? rows.const_data_ptr<int64_t>() : nullptr,
                      mutable_data<int32_t>(step),
                      dim,
                      unscale};
    if (skipped) return;
    at::parallel_for(0, gradient.size(0), grain, [&](int64_t begin, int64_t end) { f(&all, begin, end); });
  }
};

void sgd_rows_(at::Tensor weight, const Optional& momentum_buffer, at::Tensor step, const at::Tensor& gradient,
               const Optional& rows, const Optional& lr_tensor, const Optional& grad_scale, const Optional& found_inf,
               double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
  const Update update(weight, step, gradient, rows, grad_scale, found_inf, maximize);
  if (momentum_buffer.has_value()) check_state(*momentum_buffer, "momentum_buffer", weight, weight.sizes());
  const SgdOptions options{number(lr_tensor, "lr_tensor", lr), momentum, dampening, weight_decay, nesterov};
  with_storage(weight.scalar_type(), "weight", [&](auto storage) {
    using S = decltype(storage);
    auto* buffers = momentum_buffer.has_value() ? mutable_data<Accumulate<S>>(*momentum_buffer) : nullptr;
    update.over_rows<S>([&](const Rows<S>* all, int64_t begin, int64_t end) {
      simd::run<SgdRows>(all, buffers, &options, begin, end);
    });
  });
}

void adamw_rows_(at::Tensor weight, at::Tensor exp_avg, at::Tensor exp_avg_sq, at::Tensor step,
                 const at::Tensor& gradient, const Optional& rows, const Optional& lr_tensor,
                 const Optional& grad_scale, const Optional& found_inf, double lr, double beta1, double beta2,
                 double eps, double weight_decay, bool maximize) {
  const Update update(weight, step, gradient, rows, grad_scale, found_inf, maximize);
  check_state(exp_avg, "exp_avg", weight, weight.sizes());
  check_state(exp_avg_sq, "exp_avg_sq", weight, weight.sizes());
  const AdamWOptions options{number(lr_tensor, "lr_tensor", lr), beta1, beta2, eps, weight_decay};
  with_storage(weight.scalar_type(), "weight", [&](auto storage) {
    using S = decltype(storage);
    auto* means = mutable_data<Accumulate<S>>(exp_avg);
    auto* squares = mutable_data<Accumulate<S>>(exp_avg_sq);
    update.over_rows<S>([&](const Rows<S>* all, int64_t begin, int64_t end) {
      simd::run<AdamWRows>(all, means, squares, &options, begin, end);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("sgd_rows_", sgd_rows_);
  m.impl("adamw_rows_", adamw_rows_);
}

}  // namespace hyperkernels::optim
