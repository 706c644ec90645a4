// The vectorised inner loops of the class softmax: one tile of cosines, a row at a time.
#pragma once

#include "../simd.h"

namespace hyperkernels::margin_softmax {

// A running log-sum-exp of one row, kept as (largest cosine, sum of exp(scale * (cosine - largest))), and its hardest
// class.
struct RowState {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;
  int64_t hardest = -1;

  void merge(double other_max, double other_sum, int64_t other_hardest, double scale) {
    if (other_max > max) {
      sum = sum * std::exp(scale * (max - other_max)) + other_sum;
      max = other_max;
      hardest = other_hardest;
    } else if (other_sum != 0) {  // also where it is NaN: a NaN row stays one
      sum += std::isnan(other_sum) ? other_sum : other_sum * std::exp(scale * (other_max - max));
    }
  }
};

// Reads one class centre a row: norm [classes], and sum [D] += the unit centres.
struct CentreNorms {
  template <class T>
  static HK_INLINE void run(const T* w, int64_t classes, int64_t dim, double eps, T* norm, double* sum, T* partial) {
    for (int64_t k = 0; k < dim; ++k) partial[k] = 0;
    for (int64_t j = 0; j < classes; ++j, w += dim) {
      const double length = std::sqrt(simd::sum_squares(w, dim));
      norm[j] = T(length);
      const T inverse = T(1 / (length < eps ? eps : length));
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) partial[k] += w[k] * inverse;
    }
    for (int64_t k = 0; k < dim; ++k) sum[k] += double(partial[k]);
  }
};

// Turns a tile of products x^ . w_j into cosines, in place, with -inf at each row's target, and folds it into the rows'
// states.
//   z        [rows, ld]   in: products, out: cosines
//   inverse  [classes]    1 / max(|w_j|, eps)
//   target   [rows]       class index of the row
//   state    [rows]
struct FoldTile {
  template <class T>
  static HK_INLINE void run(T* z, int64_t ld, int64_t rows, int64_t first_class, int64_t classes, const T* inverse,
                            const int64_t* target, double scale, RowState* state) {
    constexpr T kNone = -std::numeric_limits<T>::infinity();
    const T s = T(scale);
    for (int64_t i = 0; i < rows; ++i, z += ld) {
      const int64_t own = target[i] - first_class;
#pragma omp simd
      for (int64_t j = 0; j < classes; ++j) z[j] *= inverse[j];
      if (own >= 0 && own < classes) z[own] = kNone;
      T largest = kNone;
#pragma omp simd reduction(max : largest)
      for (int64_t j = 0; j < classes; ++j) largest = z[j] > largest ? z[j] : largest;
      const T shift = largest == kNone ? T(0) : largest;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < classes; ++j) sum += simd::exp(s * (z[j] - shift));
      int64_t hardest = -1;
      if (largest > state[i].max) {
        for (hardest = 0; z[hardest] != largest; ++hardest) {
        }
        hardest += first_class;
      }
      state[i].merge(double(largest), double(sum), hardest, scale);
    }
  }
};

// What the backward needs to know of a row.
template <class T>
struct RowGradient {
  T slope;      // scale * dL/dneg_lse
  T constant;   // dL/dneg_cos_sum
  T target;     // dL/dtarget_cos
  T top;        // largest cosine among the negatives
  T log_sum;    // neg_lse - scale * top; apart from it, because scale * top alone would round away its digits
  bool active;  // false: the row is ignored
};

// z_ij *= inverse_j: the products x^ . w_j become cosines, rounded as FoldTile rounds them.
struct ScaleTile {
  template <class T>
  static HK_INLINE void run(T* z, int64_t ld, int64_t rows, int64_t classes, const T* inverse) {
    for (int64_t i = 0; i < rows; ++i, z += ld) {
#pragma omp simd
      for (int64_t j = 0; j < classes; ++j) z[j] *= inverse[j];
    }
  }
};

// h_ij = g_ij / |w_j| from a tile of cosines, where g is the gradient of the cosines. c and h are [rows, ld] and may be
// one array.
struct GradientTile {
  template <class T>
  static HK_INLINE void run(const T* c, T* h, int64_t ld, int64_t rows, int64_t first_class, int64_t classes,
                            const T* inverse, const int64_t* target, const RowGradient<T>* gradient, T s) {
    for (int64_t i = 0; i < rows; ++i, c += ld, h += ld) {
      const RowGradient<T> g = gradient[i];
      if (!g.active || (g.slope == 0 && g.constant == 0)) {
        for (int64_t j = 0; j < classes; ++j) h[j] = 0;
      } else {
#pragma omp simd
        for (int64_t j = 0; j < classes; ++j) {
          h[j] = (g.slope * simd::exp(s * (c[j] - g.top) - g.log_sum) + g.constant) * inverse[j];
        }
      }
      const int64_t own = target[i] - first_class;
      if (g.active && own >= 0 && own < classes) h[own] = g.target * inverse[own];
    }
  }
};

// v_r -= u_r <u_r, v_r> with u_r = w_r / norm_r, by rows; rows shorter than eps become zero.
struct ProjectTangent {
  template <class T>
  static HK_INLINE void run(T* v, const T* w, const T* norm, int64_t rows, int64_t dim, double eps) {
    for (int64_t r = 0; r < rows; ++r, v += dim, w += dim) {
      if (double(norm[r]) < eps) {
        for (int64_t k = 0; k < dim; ++k) v[k] = 0;
        continue;
      }
      const T inverse = T(1 / double(norm[r]));
      T radial = 0;
#pragma omp simd reduction(+ : radial)
      for (int64_t k = 0; k < dim; ++k) radial += v[k] * (w[k] * inverse);
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) v[k] -= w[k] * inverse * radial;
    }
  }
};

}  // namespace hyperkernels::margin_softmax
