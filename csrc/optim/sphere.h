// SGD and Adam on the unit sphere. A vector, its gradient and its momentum are read once from memory and written once:
// the passes over them in between find them in the nearest cache.
#pragma once

#include <cmath>
#include <vector>

#include "../common/rows.h"
#include "../common/sums.h"
#include "steps.h"

namespace hyperkernels::optim {

constexpr double kShort = 1e-12;  // a shorter vector has no direction
constexpr double kLong = 1e37;    // a larger sum of squares is taken again in double

struct SphereSgdOptions {
  double lr, momentum, dampening, unscale;
  bool nesterov;
};

struct SphereAdamOptions {
  double lr, beta1, beta2, eps, unscale;
};

// One parameter: vectors of `dim` numbers. Momentum is null where there is none, squares and largest are Adam's.
template <class A>
struct Vectors {
  OutRows<A> points;
  InRows<A> gradients;
  A* momenta;
  A* squares;
  A* largest;
  int32_t* step;
  int64_t dim;
};

// A vector on its way: it starts at a point of the sphere and feels the part of its gradient that is tangent there.
template <class A>
struct Row {
  A* point;
  const A* gradient;
  A* momentum;
  int64_t dim;
  A inverse, unscale, radial;

  // The scratch memory is for rows that are stored in 16 bits.
  HK_INLINE Row(const Vectors<A>& v, int64_t row, double scale, std::vector<A>& scratch)
      : point(v.points.read(row, scratch.data(), v.dim)),
        gradient(v.gradients.read(row, scratch.data() + scratch.size() / 2, v.dim)),
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

  HK_INLINE A start(int64_t k) const { return point[k] * inverse; }
  HK_INLINE A slope(int64_t k) const { return gradient[k] * unscale; }
  HK_INLINE A tangent(int64_t k) const { return slope(k) - radial * start(k); }
};

enum class Change { kTangent, kMomentum, kNesterov };

// The straight way from the start, which the retraction brings back to the sphere.
template <Change change, class A>
struct Path {
  Row<A> row;
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
      row.point[k] = A(y);
      if constexpr (change != Change::kTangent) row.momentum[k] = A(row.momentum[k] - along * y);
    }
  }

  // Writes the new point, and the momentum projected to its tangents.
  HK_INLINE void follow() const {
    const Sums total = sums<A>();
    if (sizeof(A) == 4 && !(total.squares < kLong)) return follow_far();
    const double length = std::sqrt(total.squares), inverse = 1 / length;
    if (length < kShort) return stay();
    write<A>(A(inverse), A(total.along * inverse));
  }

  // To an end so far that its square overflows in float.
  HK_RARE void follow_far() const {
    const Sums total = sums<double>();
    const double inverse = 1 / std::sqrt(total.squares);
    write<double>(inverse, total.along * inverse);
  }

  // The end has no direction.
  HK_RARE void stay() const {
    for (int64_t k = 0; k < row.dim; ++k) {
      row.point[k] = row.start(k);
      if constexpr (change != Change::kTangent) row.momentum[k] = 0;
    }
  }
};

struct SphereSgdRows {
  template <class A>
  static HK_INLINE void run(const Vectors<A>* vectors, const SphereSgdOptions* o, int64_t begin, int64_t end) {
    const A lr = A(o->lr), momentum = A(o->momentum), taken = A(1 - o->dampening);
    std::vector<A> scratch(2 * vectors->points.scratch(vectors->dim));
    for (int64_t i = begin; i < end; ++i) {
      const Row<A> row(*vectors, i, o->unscale, scratch);
      const bool first = vectors->step[i] == 0;
      vectors->step[i] = next_step(vectors->step[i]);
      if (row.momentum == nullptr) {
        Path<Change::kTangent, A>{row, lr, 0}.follow();
      } else {
#pragma omp simd
        for (int64_t k = 0; k < row.dim; ++k) {
          const A before = first ? row.slope(k) : row.momentum[k];
          row.momentum[k] = momentum * before + taken * row.tangent(k);
        }
        if (o->nesterov) {
          Path<Change::kNesterov, A>{row, lr, momentum}.follow();
        } else {
          Path<Change::kMomentum, A>{row, lr, 0}.follow();
        }
      }
      vectors->points.finish(i, row.point, row.dim);
    }
  }
};

struct SphereAdamRows {
  template <class A>
  static HK_INLINE void run(const Vectors<A>* vectors, const SphereAdamOptions* o, int64_t begin, int64_t end) {
    const double log_beta1 = std::log(o->beta1), log_beta2 = std::log(o->beta2);
    const A beta1 = A(o->beta1), rest1 = A(1 - o->beta1);
    std::vector<A> scratch(2 * vectors->points.scratch(vectors->dim));
    int32_t corrected = -1;  // vectors that have come as far as the one before share its corrections
    double size = 0, correction = 1;
    for (int64_t i = begin; i < end; ++i) {
      const Row<A> row(*vectors, i, o->unscale, scratch);
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
      Path<Change::kMomentum, A>{row, A(divisor == 0 ? 0 : size / divisor), 0}.follow();
      vectors->points.finish(i, row.point, row.dim);
    }
  }
};

}  // namespace hyperkernels::optim
