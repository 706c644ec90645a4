// The class softmax, forward and backward. T is the type of x and weight: double, float, simd::Bfloat16 or simd::Half.
#pragma once

#include "problem.h"

namespace hyperkernels::margin_softmax {

// Where the forward's results go; hyperkernels/kernels/margin_softmax/problem.py says what each is.
template <class A>
struct Statistics {
  A* neg_lse;
  double* target_cos;
  A *x_norm, *hardest_cos;
  int64_t* hardest_class;
  A* neg_cos_sum;
  int64_t* target_center;
  A *hard_cos_sum, *hard_count, *top, *log_sum, *scale_slope;  // as all above: [N]
  A* w_norm;                                                   // [C * sub_centers]
  A* block_lse;                                                // [N, blocks], or null: not wanted
  A* kept;                                                     // [kept_size]
};

// What the backward is handed beside the problem.
template <class A>
struct Saved {
  const A *d_neg_lse, *d_target_cos, *d_x_norm, *d_neg_cos_sum;  // [N], the incoming gradients
  const A* x_norm;                                               // from here on the forward's
  const int64_t* target_center;
  const A *top, *log_sum, *w_norm, *kept;
  const uint8_t* skip;  // [N, blocks], not 0: the row takes no part in the tile; null: every row takes part in all
};

// Where the backward's results go; null: not wanted.
template <class T>
struct Gradients {
  T *x, *weight;                     // [N, D], [C * sub_centers, D]
  Accumulate<T>*class_scale, *bias;  // [C]
};

template <class T>
void forward(const ClassProblem<T>& problem, const Statistics<Accumulate<T>>& out);

template <class T>
void backward(const ClassProblem<T>& problem, const Saved<Accumulate<T>>& saved, const Gradients<T>& out);

}  // namespace hyperkernels::margin_softmax
