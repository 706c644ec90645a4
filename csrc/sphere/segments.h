// Sums of the rows that carry the same label, read in the order of their labels.
#pragma once

#include "rows.h"

namespace hyperkernels::sphere {

// Segment k holds the rows order[offsets[k]], ..., order[offsets[k + 1] - 1].
template <class A>
struct Segments {
  InRows<A> x;
  const int64_t *order, *offsets;
  int64_t count, dim;
};

// The positions [begin, end) of the order. What they hold of a segment that begins before them goes to `head`; the
// result is that segment, -1 where there is none.
struct SegmentRows {
  template <class A>
  static HK_INLINE void run(const Segments<A>* of, A* out, double* head, int64_t* unfinished, int64_t begin,
                            int64_t end) {
    const int64_t dim = of->dim;
    const int64_t* offsets = of->offsets;
    std::vector<double> sum(dim);
    std::vector<A> scratch(dim);
    int64_t segment = std::upper_bound(offsets, offsets + of->count + 1, begin) - offsets - 1;
    for (int64_t position = begin; position < end; ++segment) {
      const int64_t stop = std::min(end, offsets[segment + 1]);
      if (stop == position) continue;
      const bool continues = offsets[segment] < begin;
      double* total = continues ? head : sum.data();
      std::fill(total, total + dim, 0.);
      for (; position < stop; ++position) {
        const A* row = of->x.read(of->order[position], scratch.data(), dim);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) total[i] += double(row[i]);
      }
      if (continues) {
        *unfinished = segment;
      } else {
        A* to = out + segment * dim;
        for (int64_t i = 0; i < dim; ++i) to[i] = A(total[i]);
      }
    }
  }
};

}  // namespace hyperkernels::sphere
