#include "sphere.h"

#include "arguments.h"

namespace hyperkernels::optim {

namespace {

using List = std::vector<Tensor>;

// The tensors of a parameter, checked before anything is written.
struct Parameter {
  Tensor points, step, gradients;
  Optional momenta, squares, largest;
  Dtype dtype;
  int64_t rows, dim;

  Parameter(const Tensor& points, const Tensor& step, const Tensor& gradients)
      : points(points), step(step), gradients(packed(gradients)), dtype(points.scalar_type()) {
    check_weight(points, "points");
    rows = points.size(0);
    dim = points.size(1);
    check_sizes(gradients, {rows, dim}, "gradients");
    check_dtype(gradients, dtype, "gradients");
    check_step(step, points, "steps", "points");
  }

  template <class A>
  Vectors<A> vectors() const {
    return {out_rows<A>(points),
            in_rows<A>(gradients),
            mutable_data<A>(momenta),
            mutable_data<A>(squares),
            mutable_data<A>(largest),
            mutable_data<int32_t>(step),
            dim};
  }
};

void check_count(size_t count, const char* name, size_t wanted) {
  HK_CHECK_VALUE(count == wanted, name, " must be ", wanted, " tensors, one for each of points; got ", count);
}

std::vector<Parameter> parameters(const List& points, const List& steps, const List& gradients) {
  check_count(steps.size(), "steps", points.size());
  check_count(gradients.size(), "gradients", points.size());
  std::vector<Parameter> all;
  for (size_t i = 0; i < points.size(); ++i) all.emplace_back(points[i], steps[i], gradients[i]);
  return all;
}

// Runs the kernel over the vectors of all parameters in one parallel region, in pieces of about equal size.
template <class Kernel, class Options>
void over_vectors(const std::vector<Parameter>& all, const Options& options) {
  struct Piece {
    const Parameter* parameter;
    int64_t begin, end;
  };
  std::vector<Piece> pieces;
  int64_t numbers = 0;
  for (const Parameter& parameter : all) {
    const int64_t piece = grain(parameter.dim);
    for (int64_t begin = 0; begin < parameter.rows; begin += piece) {
      pieces.push_back({&parameter, begin, std::min(parameter.rows, begin + piece)});
    }
    numbers += parameter.rows * std::max<int64_t>(1, parameter.dim);
  }
  const int64_t count = int64_t(pieces.size()), at_once = numbers < kGrain ? count : 1;
  parallel_for(0, count, std::max<int64_t>(1, at_once), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Piece& piece = pieces[i];
      with_accumulator(piece.parameter->dtype, "points", [&](auto zero) {
        const auto vectors = piece.parameter->template vectors<decltype(zero)>();
        simd::run<Kernel>(&vectors, &options, piece.begin, piece.end);
      });
    }
  });
}

void sphere_sgd_(const List& points, const List& momentum_buffers, const List& steps, const List& gradients,
                 const Optional& lr_tensor, const Optional& grad_scale, const Optional& found_inf, double lr,
                 double momentum, double dampening, bool nesterov, bool maximize) {
  std::vector<Parameter> all = parameters(points, steps, gradients);
  if (!momentum_buffers.empty()) check_count(momentum_buffers.size(), "momentum_buffers", all.size());
  for (size_t i = 0; i < momentum_buffers.size(); ++i) {
    check_state(momentum_buffers[i], "momentum_buffers", points[i], {all[i].rows, all[i].dim});
    all[i].momenta = momentum_buffers[i];
  }
  const SphereSgdOptions options{number(lr_tensor, "lr_tensor", lr), momentum, dampening,
                                 unscaling(grad_scale, maximize), nesterov};
  if (number(found_inf, "found_inf", 0) == 0) over_vectors<SphereSgdRows>(all, options);
}

void sphere_adam_(const List& points, const List& exp_avgs, const List& exp_avg_sqs, const List& max_exp_avg_sqs,
                  const List& steps, const List& gradients, const Optional& lr_tensor, const Optional& grad_scale,
                  const Optional& found_inf, double lr, double beta1, double beta2, double eps, bool maximize) {
  std::vector<Parameter> all = parameters(points, steps, gradients);
  check_count(exp_avgs.size(), "exp_avgs", all.size());
  check_count(exp_avg_sqs.size(), "exp_avg_sqs", all.size());
  if (!max_exp_avg_sqs.empty()) check_count(max_exp_avg_sqs.size(), "max_exp_avg_sqs", all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    check_state(exp_avgs[i], "exp_avgs", points[i], {all[i].rows, all[i].dim});
    check_state(exp_avg_sqs[i], "exp_avg_sqs", points[i], {all[i].rows});
    all[i].momenta = exp_avgs[i];
    all[i].squares = exp_avg_sqs[i];
    if (max_exp_avg_sqs.empty()) continue;
    check_state(max_exp_avg_sqs[i], "max_exp_avg_sqs", points[i], {all[i].rows});
    all[i].largest = max_exp_avg_sqs[i];
  }
  const SphereAdamOptions options{number(lr_tensor, "lr_tensor", lr), beta1, beta2, eps,
                                  unscaling(grad_scale, maximize)};
  if (number(found_inf, "found_inf", 0) == 0) over_vectors<SphereAdamRows>(all, options);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "sphere_sgd_", sphere_sgd_);
  HK_OP(m, "sphere_adam_", sphere_adam_);
}

}  // namespace hyperkernels::optim
