// Count, sum, largest similarity and its column in every bin of every row.

#include "bins.h"

#include <torch/library.h>

#include <tuple>

namespace hyperkernels::pair_mining {

Bins::Bins(const Problem& p, const at::Tensor& given, const at::Tensor& given_offsets) {
  TORCH_CHECK_VALUE(given.dim() == 1, "edges must be [E]; got ", given.sizes());
  edges = numbers_of(p, "edges", given, given.size(0));
  offsets = checked_offsets(given_offsets, p.rows.n, edges.size(0));
  with_storage(p, [&](auto t) {
    using A = Accumulate<decltype(t)>;
    for (int64_t i = 0; i < p.rows.n; ++i) {
      const A* edge = data<A>(edges) + first_edge(i);
      TORCH_CHECK_VALUE(edges_of(i) <= std::numeric_limits<int32_t>::max(), "at most 2^31 - 1 edges in a row");
      for (int64_t e = 1; e < edges_of(i); ++e) {
        TORCH_CHECK_VALUE(!(edge[e] < edge[e - 1]), "edges must rise; those of row ", i, " do not");
      }
    }
  });
}

namespace {

template <class A>
struct Bin {
  int64_t count = 0;
  double sum = 0;
  A high = -std::numeric_limits<A>::infinity();
  int64_t index = -1;

  void offer(A u, int64_t column) {
    if (index >= 0 && (u <= high || high != high)) return;
    high = u;
    index = column;
  }
};

// The bins of a tile of rows.
template <class A>
class RowBins {
 public:
  RowBins(const Bins& bins, int64_t row, int64_t rows)
      : bins_(bins), row_(row), found_(bins.first_bin(row + rows) - bins.first_bin(row)) {}

  void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    Bin<A>* found = found_.data() + bins_.first_bin(row_ + i) - bins_.first_bin(row_);
    of_.resize(std::max<size_t>(of_.size(), count));
    simd::run<FindBins>(data<A>(bins_.edges) + bins_.first_edge(row_ + i), bins_.edges_of(row_ + i), u, count,
                        of_.data());
    for (int64_t j = 0; j < count; ++j) {
      if (mask[j] == 0) continue;
      Bin<A>& bin = found[of_[j]];
      ++bin.count;
      bin.sum += double(u[j]);
      bin.offer(u[j], first + j);
    }
  }

  void merge(const RowBins& later) {
    for (size_t b = 0; b < found_.size(); ++b) {
      const Bin<A>& other = later.found_[b];
      found_[b].count += other.count;
      found_[b].sum += other.sum;
      if (other.index >= 0) found_[b].offer(other.high, other.index);
    }
  }

  const std::vector<Bin<A>>& found() const { return found_; }

 private:
  const Bins& bins_;
  const int64_t row_;
  std::vector<Bin<A>> found_;
  std::vector<Mask<A>> of_;
};

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <class T>
Results binned(const Problem& p, const Bins& bins) {
  using A = Accumulate<T>;
  using Part = RowBins<A>;
  const int64_t total = bins.first_bin(p.rows.n);
  at::Tensor count = at::empty({total}, p.integers()), sum = at::empty({total}, p.accumulate());
  at::Tensor high = at::empty({total}, p.accumulate()), high_index = at::empty({total}, p.integers());
  const Lanes lanes = lanes_of(p, 4 * total);
  const auto make = [&](int64_t row, int64_t rows, int64_t) { return std::make_unique<Part>(bins, row, rows); };
  const auto merge = [&](int64_t row, int64_t, const std::unique_ptr<Part>* parts) {
    for (int64_t lane = 1; lane < lanes.count; ++lane) parts[0]->merge(*parts[lane]);
    int64_t at = bins.first_bin(row);
    for (const Bin<A>& bin : parts[0]->found()) {
      mutable_data<int64_t>(count)[at] = bin.count;
      mutable_data<A>(sum)[at] = A(bin.sum);
      mutable_data<A>(high)[at] = bin.high;
      mutable_data<int64_t>(high_index)[at++] = bin.index;
    }
  };
  sweep<T>(p, lanes, make, merge);
  return {count, sum, high, high_index};
}

Results pair_bins(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label,
                  const at::Tensor& ref_label, const at::Tensor& id, const at::Tensor& ref_id,
                  const std::optional<at::Tensor>& lower, const std::optional<at::Tensor>& upper,
                  c10::string_view select, c10::string_view similarity, const at::Tensor& edges,
                  const at::Tensor& offsets, int64_t row_tile, int64_t column_tile) {
  const Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const Bins bins(p, edges, offsets);
  return with_storage(p, [&](auto t) { return binned<decltype(t)>(p, bins); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("pair_bins", pair_bins); }

}  // namespace hyperkernels::pair_mining
