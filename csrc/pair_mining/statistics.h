// Statistics of the pairs that count in each row, and in each column, and their gradient.
#pragma once

#include "problem.h"

namespace hyperkernels::pair_mining {

enum class Kind { kNone, kLinear, kCircle, kSoftplus };

struct Transform {
  Kind kind;
  double p0, p1;
};

// What the rows of one side bring along, [n] each. Null: absent, without effect.
template <class A>
struct PairNumbers {
  const A *lower, *upper, *scale, *offset;
};

// Results of the rows of one side, [n] each. Null: not asked for.
template <class A>
struct PairRowStatistics {
  int64_t* count;
  A *sum, *sum_squares;
  A* min;
  int64_t* argmin;
  A* max;
  int64_t* argmax;
  A *lse, *d_scale, *d_offset;
};

template <class T>
struct PairStatisticsCall {
  using A = Accumulate<T>;

  PairProblem<T> problem;
  bool columns, moments, extremes;
  Transform transform;
  PairNumbers<A> row_numbers, column_numbers;
  PairRowStatistics<A> row_statistics, column_statistics;
};

template <class T>
void pair_statistics(const PairStatisticsCall<T>& call);

// What the gradients of the similarities are made of, of one side.
template <class A>
struct PairGradientNumbers {
  PairNumbers<A> numbers;
  const A* coefficients;  // [4, n]
  const A* lse;           // [n]; null where the transform needs none
};

template <class T>
struct PairBackwardCall {
  using A = Accumulate<T>;

  PairProblem<T> problem;
  bool columns;
  Transform transform;
  PairGradientNumbers<A> of_rows, of_columns;
  T *dx, *dref;  // [n, D], [m, D]; null: not needed, and dref where x meets itself
};

template <class T>
void pair_statistics_backward(const PairBackwardCall<T>& call);

}  // namespace hyperkernels::pair_mining
