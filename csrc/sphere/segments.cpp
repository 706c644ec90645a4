#include "segments.h"

#include "arguments.h"

namespace hyperkernels::sphere {

namespace {

std::vector<int64_t> indices(const Tensor& t, const char* name) {
  check_dtype(t, Dtype::Long, name);
  HK_CHECK_VALUE(t.dim() == 1, name, " must have 1 dimension; got shape ", sizes_of(t));
  return own_copy(t);
}

Tensor segment_sum(const Tensor& given, const Tensor& labels, const Tensor& given_order, const Tensor& given_offsets) {
  const Tensor x = rows_like(given, given, "x");
  const std::vector<int64_t> order = indices(given_order, "order"), offsets = indices(given_offsets, "offsets");
  const int64_t n = x.size(0), dim = x.size(1), count = int64_t(offsets.size()) - 1;
  HK_CHECK_VALUE(int64_t(order.size()) == n && sizes_of(labels) == Sizes{n},
                 "order and labels must have an entry for each row of x, ", n, "; got shapes ", sizes_of(given_order),
                 ", ", sizes_of(labels));
  HK_CHECK_VALUE(count >= 0, "offsets must hold at least one entry");
  HK_CHECK_INDEX(std::all_of(order.begin(), order.end(), [&](int64_t row) { return row >= 0 && row < n; }),
                 "order must lie in [0, ", n, ")");
  HK_CHECK_INDEX(offsets[0] >= 0 && offsets[count] <= n && std::is_sorted(offsets.begin(), offsets.end()),
                 "offsets must rise within [0, ", n, "]");
  const Tensor out = empty({count, dim}, accumulate_dtype(x.scalar_type()));
  const int64_t first = offsets[0], total = offsets[count] - first, parts = parts_of(total);
  std::vector<double> heads(parts * dim);
  std::vector<int64_t> unfinished(parts, -1);
  with_accumulator(x.scalar_type(), "x", [&](auto zero) {
    using A = decltype(zero);
    const Segments<A> segments{in_rows<A>(x), order.data(), offsets.data(), count, dim};
    A* to = result<A>(out);
    if (to == nullptr) return;
    std::fill_n(to, count * dim, A(0));  // what has no row
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        simd::run<SegmentRows>(&segments, to, heads.data() + p * dim, &unfinished[p], first + p * total / parts,
                               first + (p + 1) * total / parts);
      }
    });
    for (int64_t p = 0; p < parts; ++p) {
      for (int64_t i = 0; i < dim && unfinished[p] >= 0; ++i) to[unfinished[p] * dim + i] += A(heads[p * dim + i]);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { HK_OP(m, "segment_sum", segment_sum); }

}  // namespace hyperkernels::sphere
