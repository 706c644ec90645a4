// Bins of similarities: every row has rising edges of its own, and the bin of a similarity is the number of the row's
// edges below it. Edges that are NaN stand at the end, above every similarity; NaN itself falls into the last bin.
#pragma once

#include "sweep.h"

namespace hyperkernels::pair_mining {

struct Bins {
  at::Tensor edges, offsets;

  Bins(const Problem& p, const at::Tensor& given, const at::Tensor& given_offsets);

  // The row's first edge and first bin.
  int64_t first_edge(int64_t i) const { return data<int64_t>(offsets)[i]; }
  int64_t first_bin(int64_t i) const { return first_edge(i) + i; }
  int64_t edges_of(int64_t i) const { return first_edge(i + 1) - first_edge(i); }
};

struct FindBins {
  template <class A>
  static HK_INLINE void run(const A* edges, int64_t edges_count, const A* u, int64_t count, Mask<A>* bin) {
    using I = Mask<A>;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) bin[j] = 0;
    // Halving: the bin is among bin[j] .. bin[j] + n.
    I n = I(edges_count);
    while (n > 0) {
      const I half = (n + 1) / 2;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const A edge = edges[bin[j] + half - 1];
        bin[j] += edge < u[j] || u[j] != u[j] ? half : I(0);
      }
      n -= half;
    }
  }
};

}  // namespace hyperkernels::pair_mining
