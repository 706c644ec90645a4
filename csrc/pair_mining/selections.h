// The ops that return pairs. Their formulas are those of hyperkernels/kernels/pair_mining/reference.py.
#pragma once

#include "problem.h"

namespace hyperkernels::pair_mining {

// The k best pairs of every row, in falling order, the lowest index first on ties; -inf and -1 where there are fewer.
template <class T>
struct TopKCall {
  PairProblem<T> problem;
  int64_t k;
  Accumulate<T>* values;  // [n, k]
  int64_t* indices;       // [n, k]
};

template <class T>
void pair_top_k(const TopKCall<T>& call);

// counts [n] = how many pairs of every row count.
template <class T>
void pair_count(const PairProblem<T>& problem, int64_t* counts);

// The pairs that count, row by row. Both ops compute the same tiles, so that they see the same bits.
template <class T>
struct ListCall {
  PairProblem<T> problem;
  const int64_t* offsets;       // [n + 1], where the pairs of every row begin
  int64_t* columns;             // [offsets[n]]
  Accumulate<T>* similarities;  // [offsets[n]]
};

// Whether the offsets are those of pair_count.
template <class T>
bool pair_list(const ListCall<T>& call);

struct SampleWeights {
  bool distance;  // else exponential
  double p0, p1, temperature;
};

// Columns drawn in proportion to a weight; -1 where no pair counts.
template <class T>
struct SampleCall {
  PairProblem<T> problem;
  int64_t draws;
  uint64_t seed;
  SampleWeights weights;
  int64_t* drawn;  // [n, draws]
};

template <class T>
void pair_sample(const SampleCall<T>& call);

// Pairs of rows of x and of ref by their indices.
template <class T>
struct ListedPairs {
  const T *x, *ref;  // [n, d], [m, d]; one array where `self`
  int64_t n, m, d;
  bool self;
  Similarity similarity;
  const int64_t *rows, *columns;  // [count], in range
  int64_t count;
};

// values [count] = their similarities. Distances are those of the difference of two rows, which loses nothing where
// they are close.
template <class T>
void pair_values(const ListedPairs<T>& pairs, Accumulate<T>* values);

// d [count]: the gradients of the values. dx [n, d], dref [m, d]; null: not needed, and dref where x meets itself.
template <class T>
void pair_values_backward(const ListedPairs<T>& pairs, const Accumulate<T>* d, T* dx, T* dref);

}  // namespace hyperkernels::pair_mining
