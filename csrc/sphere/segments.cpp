// Sums of the rows that carry the same label, read in the order of their labels.

#include <torch/library.h>

#include "../indices.h"
#include "rows.h"

namespace hyperkernels::sphere {

namespace {

// Segment k holds the rows order[offsets[k]], ..., order[offsets[k + 1] - 1].
template <class S>
struct Segments {
  Matrix<S> x;
  const int64_t *order, *offsets;
  int64_t count, dim;
};

// The positions [begin, end) of the order. What they hold of a segment that begins before them goes to `head`; the
// result is that segment, -1 where there is none.
struct SegmentRows {
  template <class S>
  static HK_INLINE void run(const Segments<S>* of, Accumulate<S>* out, double* head, int64_t* unfinished, int64_t begin,
                            int64_t end) {
    using A = Accumulate<S>;
    const int64_t dim = of->dim;
    const int64_t* offsets = of->offsets;
    std::vector<double> sum(dim);
    int64_t segment = std::upper_bound(offsets, offsets + of->count + 1, begin) - offsets - 1;
    for (int64_t position = begin; position < end; ++segment) {
      const int64_t stop = std::min(end, offsets[segment + 1]);
      if (stop == position) continue;
      const bool continues = offsets[segment] < begin;
      double* total = continues ? head : sum.data();
      std::fill(total, total + dim, 0.);
      for (; position < stop; ++position) {
        const S* row = of->x.row(of->order[position]);
#pragma omp simd
        for (int64_t i = 0; i < dim; ++i) total[i] += double(simd::load(row + i));
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

at::Tensor indices(const at::Tensor& t, const char* name) {
  TORCH_CHECK_TYPE(t.scalar_type() == at::kLong, name, " must have dtype int64; got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.dim() == 1, name, " must have 1 dimension; got shape ", t.sizes());
  return own_copy(t);
}

at::Tensor segment_sum(const at::Tensor& given, const at::Tensor& labels, const at::Tensor& given_order,
                       const at::Tensor& given_offsets) {
  const at::Tensor x = rows_like(given, given, "x");
  const at::Tensor order = indices(given_order, "order"), offsets = indices(given_offsets, "offsets");
  const int64_t n = x.size(0), dim = x.size(1), count = offsets.size(0) - 1;
  TORCH_CHECK_VALUE(order.size(0) == n && labels.sizes() == order.sizes(), "order and labels must have an entry for ",
                    "each row of x, ", n, "; got shapes ", order.sizes(), ", ", labels.sizes());
  TORCH_CHECK_VALUE(count >= 0, "offsets must hold at least one entry");
  const auto *rows = data<int64_t>(order), *at = data<int64_t>(offsets);
  TORCH_CHECK_INDEX(std::all_of(rows, rows + n, [&](int64_t row) { return row >= 0 && row < n; }),
                    "order must lie in [0, ", n, ")");
  TORCH_CHECK_INDEX(at[0] >= 0 && at[count] <= n && std::is_sorted(at, at + count + 1), "offsets must rise within [0, ",
                    n, "]");
  const at::Tensor out = at::zeros({count, dim}, x.options().dtype(accumulate_dtype(x)));
  const int64_t first = at[0], total = at[count] - first, parts = parts_of(total);
  const at::Tensor heads = at::empty({parts, dim}, x.options().dtype(at::kDouble));
  std::vector<int64_t> unfinished(parts, -1);
  with_storage(x.scalar_type(), "x", [&](auto storage) {
    using S = decltype(storage);
    using A = Accumulate<S>;
    const Segments<S> segments{matrix<S>(x), rows, at, count, dim};
    A* to = mutable_data<A>(out);
    double* head = mutable_data<double>(heads);
    if (to == nullptr) return;
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        simd::run<SegmentRows>(&segments, to, head + p * dim, &unfinished[p], first + p * total / parts,
                               first + (p + 1) * total / parts);
      }
    });
    for (int64_t p = 0; p < parts; ++p) {
      for (int64_t i = 0; i < dim && unfinished[p] >= 0; ++i) to[unfinished[p] * dim + i] += A(head[p * dim + i]);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("segment_sum", segment_sum); }

}  // namespace hyperkernels::sphere
