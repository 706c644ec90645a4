// SGD and Adam on the unit sphere on the CPU, over a list of parameters at once. A vector, its gradient and its
// momentum are read once from memory and written once: the passes over them in between find them in the nearest cache.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "arguments.h"

namespace hyperkernels::optim {

namespace {

using simd::load;
using simd::store;

constexpr double kShort = 1e-12;  // a shorter vector has no direction
constexpr double kLong = 1e37;    // a larger sum of squares is taken again in double

struct SgdOptions {
  double lr, momentum, dampening, unscale;
  bool nesterov;
};

struct AdamOptions {
  double lr, beta1, beta2, eps, unscale;
};

// One parameter: vectors of `dim` numbers. Momentum is null where there is none, squares and largest are Adam's.
template <class S>
struct Vectors {
  S* points;
  const S* gradients;
  Accumulate<S>* momenta;
  Accumulate<S>* squares;
  Accumulate<S>* largest;
  int32_t* step;
  int64_t dim;
};

// A vector on its way: it starts at a point of the sphere and feels the part of its gradient that is tangent there.
template <class S>
struct Row {
  using A = Accumulate<S>;

  S* point;
  const S* gradient;
  A* momentum;
  int64_t dim;
  A inverse, unscale, radial;

  HK_INLINE Row(const Vectors<S>& v, int64_t row, double scale)
      : point(v.points + row * v.dim),
        gradient(v.gradients + row * v.dim),
        momentum(v.momenta == nullptr ? nullptr : v.momenta + row * v.dim),
        dim(v.dim) {
    const double norm = simd::length(point, dim);
    const double inverse_norm = norm < kShort ? 0 : 1 / norm;
    // The tangent is a difference, of which nothing but rounding is left where the gradient is radial.
    const double product = simd::dot<double>(point, gradient, dim);
    inverse = A(inverse_norm);
    unscale = A(scale);
    radial = A(product * inverse_norm * scale);
  }

  HK_INLINE A start(int64_t k) const { return load(point + k) * inverse; }
  HK_INLINE A slope(int64_t k) const { return load(gradient + k) * unscale; }
  HK_INLINE A tangent(int64_t k) const { return slope(k) - radial * start(k); }
};

enum class Change { kTangent, kMomentum, kNesterov };

// The straight way from the start, which the retraction brings back to the sphere.
template <Change change, class S>
struct Path {
  using A = Accumulate<S>;

  Row<S> row;
  A rate;
  A share;  // of the momentum in Nesterov's change

  HK_INLINE A end(int64_t k) const {
    if constexpr (change == Change::kTangent) return row.start(k) - rate * row.tangent(k);
    if constexpr (change == Change::kMomentum) return row.start(k) - rate * row.momentum[k];
    if constexpr (change == Change::kNesterov) {
      return row.start(k) - rate * (row.tangent(k) + share * row.momentum[k]);
    }
  }

  struct Sums {
    double squares, along;  // |end|^2 and end . momentum
  };

  template <class T>
  HK_INLINE Sums sums() const {
    const simd::Sums total = simd::sums<T>(row.dim, [&](int64_t k, T& squares, T& along, T&, T&) HK_LAMBDA {
      const T y = end(k);
      squares += y * y;
      if constexpr (change != Change::kTangent) along += y * row.momentum[k];
    });
    return {total.a, total.b};
  }

  template <class T>
  HK_INLINE void write(T inverse, T along) const {
#pragma omp simd
    for (int64_t k = 0; k < row.dim; ++k) {
      const T y = end(k) * inverse;
      store(row.point + k, A(y));
      if constexpr (change != Change::kTangent) row.momentum[k] = A(row.momentum[k] - along * y);
    }
  }

  // Writes the new point, and the momentum projected to its tangents.
  HK_INLINE void follow() {
    Sums total = sums<A>();
    const bool wide = sizeof(A) == 4 && !(total.squares < kLong);
    if (wide) total = sums<double>();
    const double length = std::sqrt(total.squares), inverse = 1 / length;
    if (length < kShort) {
      stay();
    } else if (wide) {
      write<double>(inverse, total.along * inverse);
    } else {
      write<A>(A(inverse), A(total.along * inverse));
    }
  }

  // The end has no direction.
  HK_INLINE void stay() const {
    for (int64_t k = 0; k < row.dim; ++k) {
      store(row.point + k, row.start(k));
      if constexpr (change != Change::kTangent) row.momentum[k] = 0;
    }
  }
};

struct SphereSgdRows {
  template <class S>
  static HK_INLINE void run(const Vectors<S>* vectors, const SgdOptions* o, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const A lr = A(o->lr), momentum = A(o->momentum), taken = A(1 - o->dampening);
    for (int64_t i = begin; i < end; ++i) {
      const Row<S> row(*vectors, i, o->unscale);
      const bool first = vectors->step[i] == 0;
      vectors->step[i] = next_step(vectors->step[i]);
      if (row.momentum == nullptr) {
        Path<Change::kTangent, S>{row, lr, 0}.follow();
        continue;
      }
#pragma omp simd
      for (int64_t k = 0; k < row.dim; ++k) {
        const A before = first ? row.slope(k) : row.momentum[k];
        row.momentum[k] = momentum * before + taken * row.tangent(k);
      }
      if (o->nesterov) {
        Path<Change::kNesterov, S>{row, lr, momentum}.follow();
      } else {
        Path<Change::kMomentum, S>{row, lr, 0}.follow();
      }
    }
  }
};

struct SphereAdamRows {
  template <class S>
  static HK_INLINE void run(const Vectors<S>* vectors, const AdamOptions* o, int64_t begin, int64_t end) {
    using A = Accumulate<S>;
    const double log_beta1 = std::log(o->beta1), log_beta2 = std::log(o->beta2);
    const A beta1 = A(o->beta1), rest1 = A(1 - o->beta1);
    int32_t corrected = -1;  // vectors that have come as far as the one before share its corrections
    double size = 0, correction = 1;
    for (int64_t i = begin; i < end; ++i) {
      const Row<S> row(*vectors, i, o->unscale);
      const int32_t step = vectors->step[i] = next_step(vectors->step[i]);
      if (step != corrected) {
        corrected = step;
        size = o->lr / -std::expm1(step * log_beta1);
        correction = -std::expm1(step * log_beta2);
      }
      const double total = simd::sums<A>(row.dim, [&](int64_t k, A& squares, A&, A&, A&) HK_LAMBDA {
                             const A tangent = row.tangent(k);
                             row.momentum[k] = beta1 * row.momentum[k] + rest1 * tangent;
                             squares += tangent * tangent;
                           }).a;
      double square = o->beta2 * vectors->squares[i] + (1 - o->beta2) * total;
      vectors->squares[i] = A(square);
      if (vectors->largest != nullptr) {
        const double before = vectors->largest[i];
        square = square > before || square != square ? square : before;
        vectors->largest[i] = A(square);
      }
      const double divisor = std::sqrt(square / correction) + o->eps;
      Path<Change::kMomentum, S>{row, A(divisor == 0 ? 0 : size / divisor), 0}.follow();
    }
  }
};

// The tensors of a parameter, checked before anything is written.
struct Parameter {
  at::Tensor points, gradients, step, momenta, squares, largest;

  Parameter(const at::Tensor& points, const at::Tensor& step, const at::Tensor& gradients)
      : points(points), gradients(gradients.contiguous()), step(step) {
    TORCH_CHECK_VALUE(points.dim() == 2 && points.is_contiguous(), "points must be contiguous [R, D]; got shape ",
                      points.sizes(), ", strides ", points.strides());
    with_storage(points.scalar_type(), "points", [](auto) {});
    TORCH_CHECK_VALUE(gradients.sizes() == points.sizes(), "gradients must have the shape of points, ", points.sizes(),
                      "; got ", gradients.sizes());
    TORCH_CHECK_TYPE(gradients.scalar_type() == points.scalar_type(), "gradients must have the dtype of points, ",
                     points.scalar_type(), "; got ", gradients.scalar_type());
    TORCH_CHECK_VALUE(step.dim() == 1 && step.size(0) == points.size(0) && step.is_contiguous(),
                      "steps must have one entry per row of points, ", points.size(0), "; got shape ", step.sizes());
    TORCH_CHECK_TYPE(step.scalar_type() == at::kInt, "steps must have dtype int32; got ", step.scalar_type());
  }

  template <class S>
  Vectors<S> vectors() const {
    const auto state = [](const at::Tensor& t) { return t.defined() ? mutable_data<Accumulate<S>>(t) : nullptr; };
    return {mutable_data<S>(points), static_cast<const S*>(gradients.const_data_ptr()),
            state(momenta),          state(squares),
            state(largest),          mutable_data<int32_t>(step),
            points.size(1)};
  }
};

void check_count(size_t count, const char* name, size_t wanted) {
  TORCH_CHECK_VALUE(count == wanted, name, " must be ", wanted, " tensors, one for each of points; got ", count);
}

std::vector<Parameter> parameters(at::TensorList points, at::TensorList steps, at::TensorList gradients) {
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
    const int64_t rows = parameter.points.size(0), dim = std::max<int64_t>(1, parameter.points.size(1));
    const int64_t piece = std::max<int64_t>(1, at::internal::GRAIN_SIZE / dim);
    for (int64_t begin = 0; begin < rows; begin += piece) {
      pieces.push_back({&parameter, begin, std::min(rows, begin + piece)});
    }
    numbers += rows * dim;
  }
  const int64_t count = int64_t(pieces.size()), grain = numbers < at::internal::GRAIN_SIZE ? count : 1;
  at::parallel_for(0, count, std::max<int64_t>(1, grain), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Piece& piece = pieces[i];
      with_storage(piece.parameter->points.scalar_type(), "points", [&](auto storage) {
        const auto vectors = piece.parameter->template vectors<decltype(storage)>();
        simd::run<Kernel>(&vectors, &options, piece.begin, piece.end);
      });
    }
  });
}

double unscaling(const Optional& grad_scale, bool maximize) {
  return (maximize ? -1 : 1) / number(grad_scale, "grad_scale", 1);
}

void sphere_sgd_(at::TensorList points, at::TensorList momentum_buffers, at::TensorList steps, at::TensorList gradients,
                 const Optional& lr_tensor, const Optional& grad_scale, const Optional& found_inf, double lr,
                 double momentum, double dampening, bool nesterov, bool maximize) {
  std::vector<Parameter> all = parameters(points, steps, gradients);
  if (!momentum_buffers.empty()) check_count(momentum_buffers.size(), "momentum_buffers", all.size());
  for (size_t i = 0; i < momentum_buffers.size(); ++i) {
    check_state(momentum_buffers[i], "momentum_buffers", points[i], points[i].sizes());
    all[i].momenta = momentum_buffers[i];
  }
  const SgdOptions options{number(lr_tensor, "lr_tensor", lr), momentum, dampening, unscaling(grad_scale, maximize),
                           nesterov};
  if (number(found_inf, "found_inf", 0) == 0) over_vectors<SphereSgdRows>(all, options);
}

void sphere_adam_(at::TensorList points, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
                  at::TensorList max_exp_avg_sqs, at::TensorList steps, at::TensorList gradients,
                  const Optional& lr_tensor, const Optional& grad_scale, const Optional& found_inf, double lr,
                  double beta1, double beta2, double eps, bool maximize) {
  std::vector<Parameter> all = parameters(points, steps, gradients);
  check_count(exp_avgs.size(), "exp_avgs", all.size());
  check_count(exp_avg_sqs.size(), "exp_avg_sqs", all.size());
  if (!max_exp_avg_sqs.empty()) check_count(max_exp_avg_sqs.size(), "max_exp_avg_sqs", all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    check_state(exp_avgs[i], "exp_avgs", points[i], points[i].sizes());
    check_state(exp_avg_sqs[i], "exp_avg_sqs", points[i], points[i].sizes().slice(0, 1));
    all[i].momenta = exp_avgs[i];
    all[i].squares = exp_avg_sqs[i];
    if (max_exp_avg_sqs.empty()) continue;
    check_state(max_exp_avg_sqs[i], "max_exp_avg_sqs", points[i], points[i].sizes().slice(0, 1));
    all[i].largest = max_exp_avg_sqs[i];
  }
  const AdamOptions options{number(lr_tensor, "lr_tensor", lr), beta1, beta2, eps, unscaling(grad_scale, maximize)};
  if (number(found_inf, "found_inf", 0) == 0) over_vectors<SphereAdamRows>(all, options);
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("sphere_sgd_", sphere_sgd_);
  m.impl("sphere_adam_", sphere_adam_);
}

}  // namespace hyperkernels::optim
