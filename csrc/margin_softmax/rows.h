// The vectorised inner loops of the class softmax: one tile of cosines, a row at a time.
//
// T is the dtype of x and weight, A the one of cosines, statistics and sums.
#pragma once

#include "../common/sums.h"
#include "transforms.h"

namespace hyperkernels::margin_softmax {

// What the loops know of a row of x. The second half is the backward's.
template <class A>
struct Row {
  A s, inverse_s;  // the scale and 1 / scale
  A factor;        // cosine = product * factor * Tile::inverse
  A parameters[kParameters];
  int64_t own;  // the target, or -1: every class is a negative
  bool active;  // false: the row is ignored

  int64_t own_center;  // which of the target's centres is nearest
  A slope;             // dL/dneg_lse
  A constant;          // dL/dneg_cos_sum
  A target;            // dL/dtarget_cos
  A top;               // the largest logit among the negatives, by the scale
  A log_sum;           // neg_lse - scale * top; apart from it, because scale * top alone would round away its digits
};

// A tile of cosines is [rows, ld] with the centres of a class side by side.
template <class A>
struct Tile {
  int64_t first, classes, sub_centers, ld;
  const A* inverse;      // [classes * sub_centers]  1 / max(|w_j|, eps), or 1
  const A* class_scale;  // [classes], as bias; not read by the plain kernels
  const A* bias;

  HK_INLINE int64_t centres() const { return classes * sub_centers; }
  // The target's place among the tile's classes; `classes` where it is not here.
  HK_INLINE int64_t own(const Row<A>& row) const {
    return row.own >= first && row.own < first + classes ? row.own - first : classes;
  }
};

// Rows of `classes` numbers for the loops: owned by a lane.
template <class A>
struct Scratch {
  A *best, *winner, *value, *plain;
};

// A running log-sum-exp of one row, kept as (largest v, sum of exp(s (v - largest)), the same sum weighted by the
// logit's share of the scale), with the sums and the hardest class that the same pass yields.
struct RowState {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0, weighted = 0;
  double hardest_cos = -std::numeric_limits<double>::infinity();
  int64_t hardest = -1;
  double neg_sum = 0, hard_sum = 0, hard_count = 0;

  void merge(const RowState& other, double s) {
    if (other.max > max) {
      const double fade = std::exp(s * (max - other.max));
      sum = sum * fade + other.sum;
      weighted = weighted * fade + other.weighted;
      max = other.max;
    } else if (other.sum != 0) {  // also where it is NaN: a NaN row stays one
      const double fade = std::isnan(other.sum) ? 1 : std::exp(s * (other.max - max));
      sum += other.sum * fade;
      weighted += other.weighted * fade;
    }
    if (other.hardest_cos > hardest_cos) {
      hardest_cos = other.hardest_cos;
      hardest = other.hardest;
    }
    neg_sum += other.neg_sum;
    hard_sum += other.hard_sum;
    hard_count += other.hard_count;
  }
};

// |w_j| of centres [count, D].
struct CentreNorms {
  template <class T, class A>
  static HK_INLINE void run(const T* w, int64_t count, int64_t dim, A* norm) {
    for (int64_t j = 0; j < count; ++j, w += dim) norm[j] = A(simd::length(w, dim));
  }
};

// What the products with centres of these norms are multiplied by.
struct Inverses {
  template <class A>
  static HK_INLINE void run(const A* norm, int64_t count, double eps, bool normalize, A* inverse) {
    for (int64_t j = 0; j < count; ++j) {
      inverse[j] = normalize ? A(1 / (double(norm[j]) < eps ? eps : double(norm[j]))) : A(1);
    }
  }
};

// z_ij *= factor_i * inverse_j: products become cosines.
struct ScaleTile {
  template <class A>
  static HK_INLINE void run(A* z, int64_t rows, Tile<A> tile, const Row<A>* row) {
    const A* inverse = tile.inverse;
    const int64_t centres = tile.centres();
    for (int64_t i = 0; i < rows; ++i, z += tile.ld) {
      const A factor = row[i].factor;
#pragma omp simd
      for (int64_t j = 0; j < centres; ++j) z[j] *= inverse[j] * factor;
    }
  }
};

// to[index[i]] += from[i], by rows.
struct AddRows {
  template <class A>
  static HK_INLINE void run(const A* from, const int64_t* index, int64_t rows, int64_t dim, A* to) {
    for (int64_t i = 0; i < rows; ++i, from += dim) {
      A* sum = to + index[i] * dim;
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) sum[k] += from[k];
    }
  }
};

// The gradients of centres from their sums over rows: out_j = v_j - u_j <u_j, v_j> with u_j = w_j / norm_j; centres
// shorter than eps get zero. Without `normalize` out_j = v_j. For `count` centres j, those that index lists where it is
// not null. out may be v.
struct FinishCentres {
  template <class T, class A>
  static HK_INLINE void run(const A* sums, const T* centres, const A* norms, const int64_t* index, int64_t count,
                            int64_t dim, double eps, bool normalize, T* gradients) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t j = index == nullptr ? i : index[i];
      const A* v = sums + j * dim;
      const T* w = centres + j * dim;
      T* out = gradients + j * dim;
      if (!normalize) {
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, v[k]);
      } else if (double(norms[j]) < eps) {
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, A(0));
      } else {
        const A inverse = A(1 / double(norms[j]));
        const A radial = A(simd::sums<A>(dim, [&](int64_t k, A& sum, A&, A&, A&) HK_LAMBDA {
                             sum += v[k] * (A(simd::load(w + k)) * inverse);
                           }).a);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, v[k] - A(simd::load(w + k)) * inverse * radial);
      }
    }
  }
};

// The gradient of x from that of |x|, given by d_norm, and that of x^ (of x where it is not normalised), which is the
// sum over the lanes' parts v. The first part takes the sum.
struct FinishRows {
  template <class T, class A>
  static HK_INLINE void run(A* v, int64_t lanes, int64_t lane_stride, const T* x, const Row<A>* row, const A* norm,
                            const A* d_norm, int64_t rows, int64_t dim, double eps, bool normalize, T* out) {
    for (int64_t i = 0; i < rows; ++i, v += dim, x += dim, out += dim) {
      const bool is_short = double(norm[i]) < eps;
      if (!row[i].active || (is_short && normalize)) {
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, A(0));
        continue;
      }
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) v[k] += A(0);  // so that -0 becomes 0, as in a sum that starts there
      for (int64_t lane = 1; lane < lanes; ++lane) {
        const A* part = v + lane * lane_stride;
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) v[k] += part[k];
      }
      const A inverse = is_short ? A(0) : A(1 / double(norm[i]));
      A radial = 0;
      if (normalize) {
        radial = A(simd::sums<A>(dim, [&](int64_t k, A& sum, A&, A&, A&) HK_LAMBDA {
                     sum += v[k] * (A(simd::load(x + k)) * inverse);
                   }).a);
      }
      const A outer = normalize ? inverse : A(1), along = is_short ? A(0) : d_norm[i];
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) {
        const A u = is_short ? A(0) : A(simd::load(x + k)) * inverse;
        simd::store(out + k, (v[k] - u * radial) * outer + along * u);
      }
    }
  }
};

}  // namespace hyperkernels::margin_softmax
