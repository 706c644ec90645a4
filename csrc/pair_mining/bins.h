// Bins of similarities: every row has rising edges of its own, and the bin of a similarity is the number of the row's
// edges below it. Edges that are NaN stand at the end, above every similarity; NaN itself falls into the last bin.
#pragma once

#include "problem.h"

namespace hyperkernels::pair_mining {

template <class A>
struct Bins {
  const A* edges;          // [E], at most 2^31 - 1 of one row
  const int64_t* offsets;  // [n + 1], where the edges of every row begin

  // The row's first edge and first bin.
  int64_t first_edge(int64_t i) const { return offsets[i]; }
  int64_t first_bin(int64_t i) const { return offsets[i] + i; }

  // bin[j] = that of u[j], of row i.
  HK_INLINE void find(int64_t i, const A* u, int64_t count, Mask<A>* bin) const {
    using I = Mask<A>;
    const A* of_row = edges + offsets[i];
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) bin[j] = 0;
    // Halving: the bin is among bin[j] .. bin[j] + n.
    I n = I(offsets[i + 1] - offsets[i]);
    while (n > 0) {
      const I half = (n + 1) / 2;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const A edge = of_row[bin[j] + half - 1];
        bin[j] += edge < u[j] || u[j] != u[j] ? half : I(0);
      }
      n -= half;
    }
  }
};

// Count, sum, largest similarity and its column of every bin, [E + n] each.
template <class T>
struct BinsCall {
  PairProblem<T> problem;
  Bins<Accumulate<T>> bins;
  int64_t* count;
  Accumulate<T>*sum, *max;
  int64_t* argmax;
};

template <class T>
void pair_bins(const BinsCall<T>& call);

// The gradient of the sums.
template <class T>
struct BinsBackwardCall {
  PairProblem<T> problem;
  Bins<Accumulate<T>> bins;
  const Accumulate<T>* d_sum;  // [E + n]
  T *dx, *dref;                // [n, D], [m, D]; null: not needed, and dref where x meets itself
};

template <class T>
void pair_bins_backward(const BinsBackwardCall<T>& call);

}  // namespace hyperkernels::pair_mining
