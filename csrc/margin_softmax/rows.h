// The vectorised inner loops of the class softmax: one tile of cosines, a row at a time.
//
// T is the dtype of x and weight, A the one of cosines, statistics and sums.
#pragma once

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

// |w_j| of centres [count, D], and what their products are multiplied by.
struct CentreNorms {
  template <class T, class A>
  static HK_INLINE void run(const T* w, int64_t count, int64_t dim, A* norm) {
    for (int64_t j = 0; j < count; ++j, w += dim) norm[j] = A(simd::length(w, dim));
  }
};

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

// The largest cosine of each class and the centre that has it, the lowest where several do.
template <class A>
HK_INLINE void nearest_centres(const A* c, int64_t classes, int64_t sub_centers, A* best, A* winner) {
#pragma omp simd
  for (int64_t j = 0; j < classes; ++j) best[j] = c[j * sub_centers], winner[j] = 0;
  for (int64_t k = 1; k < sub_centers; ++k) {
    const A number = A(k);
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) {
      const A other = c[j * sub_centers + k];
      const bool nearer = other > best[j] || other != other;
      best[j] = nearer ? other : best[j];
      winner[j] = nearer ? number : winner[j];
    }
  }
}

// Folds a tile of cosines into the rows' states. tile_lse, where not null, takes the tile's own log-sum-exp of each
// row. kPlain, here and below: the logit is the cosine by the scale, there is no class_scale and no bias.
template <class K, bool kPlain>
struct FoldTile {
  template <class A>
  static HK_INLINE void run(const A* z, int64_t rows, Tile<A> tile, Scratch<A> scratch, const Row<A>* row,
                            RowState* state, A* tile_lse, int64_t lse_stride) {
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    const A *class_scale = tile.class_scale, *bias = tile.bias;
    const int64_t classes = tile.classes;
    for (int64_t i = 0; i < rows; ++i, z += tile.ld) {
      const A* c = z;
      if (tile.sub_centers > 1) {
        nearest_centres(z, classes, tile.sub_centers, scratch.best, scratch.winner);
        c = scratch.best;
      }
      const K kind(row[i].parameters, row[i].s);
      const A s = row[i].s, inverse_s = row[i].inverse_s;
      A *value = scratch.value, *plain = scratch.plain;
      const A* u = kPlain ? c : plain;       // what the hardest class is chosen by
      const A* w = kPlain ? c : value;       // the value without the bias
      const int64_t own = tile.own(row[i]);  // it cuts the row in two
      A largest = kNone, hardest = kNone;
      for (int64_t begin = 0, end = own; begin < classes; begin = end + 1, end = classes) {
#pragma omp simd reduction(max : largest, hardest)
        for (int64_t j = begin; j < end; ++j) {
          const A cosine = c[j];
          if constexpr (kPlain) {
            hardest = cosine > hardest ? cosine : hardest;
            continue;
          }
          const A weight = class_scale[j], b = bias[j], offset = b * inverse_s;
          const A phi = weight * kind.at(cosine, b).value, v = phi + offset, near = weight * cosine + offset;
          value[j] = phi;
          plain[j] = near;
          largest = v > largest ? v : largest;
          hardest = near > hardest ? near : hardest;
        }
      }
      if (kPlain) largest = hardest;
      const A shift = largest == kNone ? A(0) : largest;
      int64_t place = -1;
      if (hardest > state[i].hardest_cos) {
        for (place = 0; place < classes && (place == own || u[place] != hardest); ++place) {
        }
        place += tile.first;
      }
      A* e = kPlain ? value : plain;
      double sum = 0, weighted = 0, neg_sum = 0, hard_sum = 0, hard_count = 0;
      for (int64_t begin = 0, end = own; begin < classes; begin = end + 1, end = classes) {
        if constexpr (!K::kSum) {
#pragma omp simd
          for (int64_t j = begin; j < end; ++j) {
            const A v = kPlain ? w[j] : w[j] + bias[j] * inverse_s;
            e[j] = simd::exp(s * (v - shift));
          }
        }
        const simd::Sums part = simd::sums<A>(end - begin, [&](int64_t k, A& powers, A& shares, A& all, A&) HK_LAMBDA {
          const int64_t j = begin + k;
          all += w[j];
          if constexpr (!K::kSum) {
            powers += e[j];
            shares += e[j] * w[j];
          }
        });
        sum += part.a;
        weighted += part.b;
        neg_sum += part.c;
        if constexpr (K::kHard) {
          const simd::Sums hard = simd::sums<A>(end - begin, [&](int64_t k, A& cosines, A& count, A&, A&) HK_LAMBDA {
            const A cosine = c[begin + k];
            cosines += kind.hard(cosine) ? cosine : A(0);
            count += kind.hard(cosine) ? A(1) : A(0);
          });
          hard_sum += hard.a;
          hard_count += hard.b;
        }
      }
      const RowState part{double(largest), sum, weighted, double(hardest), place, neg_sum, hard_sum, hard_count};
      state[i].merge(part, double(s));
      if (tile_lse != nullptr) {
        const double lse = double(s) * double(largest) + std::log(sum);
        tile_lse[i * lse_stride] = largest == kNone && sum == 0 ? kNone : A(lse);
      }
    }
  }
};

// Takes the gradient g of the classes' cosines to the centres: h = g * inverse for the nearest, 0 for the others.
template <class A>
HK_INLINE void spread_to_centres(const A* g, const A* winner, Tile<A> tile, A* h) {
  const A* inverse = tile.inverse;
  const int64_t classes = tile.classes, sub_centers = tile.sub_centers;
  if (sub_centers == 1) {
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) h[j] = g[j] * inverse[j];
    return;
  }
  for (int64_t k = 0; k < sub_centers; ++k) {
    const A number = A(k);
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) {
      const int64_t at = j * sub_centers + k;
      h[at] = winner[j] == number ? g[j] * inverse[at] : A(0);
    }
  }
}

// h_ij = g_ij * inverse_j from a tile of cosines, where g is the gradient of the cosines. c and h are [rows, ld] and
// may be one array. class_sums [2, classes] += the gradients of class_scale and bias, unless kPlain.
template <class K, bool kPlain>
struct GradientTile {
  template <class A>
  static HK_INLINE void run(const A* z, A* h, int64_t rows, Tile<A> tile, Scratch<A> scratch, const Row<A>* row,
                            A* class_sums) {
    const A *class_scale = tile.class_scale, *bias = tile.bias;
    A *scale_sums = class_sums, *bias_sums = class_sums + tile.classes;
    const int64_t classes = tile.classes;
    for (int64_t i = 0; i < rows; ++i, z += tile.ld, h += tile.ld) {
      const Row<A>& r = row[i];
      const int64_t own = tile.own(r);
      if (!r.active || (r.slope == 0 && r.constant == 0)) {
        for (int64_t j = 0; j < tile.centres(); ++j) h[j] = 0;
      } else {
        const A* c = z;
        A* g = h;
        if (tile.sub_centers > 1) {
          nearest_centres(z, classes, tile.sub_centers, scratch.best, scratch.winner);
          c = scratch.best;
          g = scratch.value;
        }
        const K kind(r.parameters, r.s);
        const A s = r.s, inverse_s = r.inverse_s, top = r.top, log_sum = r.log_sum, constant = r.constant;
        const A slope = r.slope * s;
        for (int64_t begin = 0, end = own; begin < classes; begin = end + 1, end = classes) {
#pragma omp simd
          for (int64_t j = begin; j < end; ++j) {
            const A weight = kPlain ? A(1) : class_scale[j], b = kPlain ? A(0) : bias[j];
            const Term<A> term = kind.at(c[j], b);
            if constexpr (K::kSum) {
              g[j] = constant * term.slope;
              if constexpr (!kPlain) bias_sums[j] += constant * term.bias_slope;
            } else {
              const A v = weight * term.value + b * inverse_s;
              // v is computed again and may pass top by a rounding that a large scale magnifies: a share is at most 1.
              const A power = s * (v - top) - log_sum;
              const A pull = slope * simd::exp(power > 0 ? A(0) : power);
              g[j] = (pull + constant) * (weight * term.slope);
              if constexpr (!kPlain) {
                scale_sums[j] += (pull + constant) * term.value;
                bias_sums[j] += pull * inverse_s;
              }
            }
          }
        }
        spread_to_centres(static_cast<const A*>(g), static_cast<const A*>(scratch.winner), tile, h);
      }
      if (!r.active || own == classes) continue;
      A* mine = h + own * tile.sub_centers;
      for (int64_t k = 0; k < tile.sub_centers; ++k) mine[k] = 0;
      mine[r.own_center] = r.target * tile.inverse[own * tile.sub_centers + r.own_center];
    }
  }
};

// out_r = v_r - u_r <u_r, v_r> with u_r = w_r / norm_r, by rows; rows shorter than eps become zero. Without `normalize`
// out_r = v_r. out may be v.
struct FinishCentres {
  template <class T, class A>
  static HK_INLINE void run(const A* v, const T* w, const A* norm, int64_t rows, int64_t dim, double eps,
                            bool normalize, T* out) {
    for (int64_t r = 0; r < rows; ++r, v += dim, w += dim, out += dim) {
      if (!normalize) {
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, v[k]);
      } else if (double(norm[r]) < eps) {
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, A(0));
      } else {
        const A inverse = A(1 / double(norm[r]));
        const A radial = A(simd::sums<A>(dim, [&](int64_t k, A& sum, A&, A&, A&) HK_LAMBDA {
                             sum += v[k] * (A(simd::load(w + k)) * inverse);
                           }).a);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, v[k] - A(simd::load(w + k)) * inverse * radial);
      }
    }
  }
};

// The gradient of x from that of x^ (of x where it is not normalised) and of |x|, given by d_norm.
struct FinishRows {
  template <class T, class A>
  static HK_INLINE void run(const A* v, const T* x, const Row<A>* row, const A* norm, const A* d_norm, int64_t rows,
                            int64_t dim, double eps, bool normalize, T* out) {
    for (int64_t i = 0; i < rows; ++i, v += dim, x += dim, out += dim) {
      const bool is_short = double(norm[i]) < eps;
      if (!row[i].active || (is_short && normalize)) {
        for (int64_t k = 0; k < dim; ++k) simd::store(out + k, A(0));
        continue;
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
