// Count, sum, largest similarity and its column in every bin of every row.

#include "bins.h"

#include "sweep.h"

namespace hyperkernels::pair_mining {

namespace {

template <class A>
struct Bin {
  int64_t count = 0;
  double sum = 0;
  A max = -std::numeric_limits<A>::infinity();
  int64_t argmax = -1;

  void offer(A u, int64_t column) {
    if (argmax >= 0 && (u <= max || max != max)) return;
    max = u;
    argmax = column;
  }
};

// The bins of a tile of rows.
template <class A>
class RowBins {
 public:
  template <class Memory>
  RowBins(Memory& memory, const Bins<A>& bins, int64_t row, int64_t rows, int64_t column_tile)
      : bins_(bins),
        row_(row),
        size_(bins.first_bin(row + rows) - bins.first_bin(row)),
        found_(memory.template take<Bin<A>>(size_)),
        bin_(memory.template take<Mask<A>>(column_tile)) {}

  void start() { std::fill_n(found_, size_, Bin<A>()); }

  HK_INLINE void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    Bin<A>* found = found_ + bins_.first_bin(row_ + i) - bins_.first_bin(row_);
    bins_.find(row_ + i, u, count, bin_);
    for (int64_t j = 0; j < count; ++j) {
      if (mask[j] == 0) continue;
      Bin<A>& bin = found[bin_[j]];
      ++bin.count;
      bin.sum += double(u[j]);
      bin.offer(u[j], first + j);
    }
  }

  void merge(const RowBins& later) {
    for (int64_t b = 0; b < size_; ++b) {
      const Bin<A>& other = later.found_[b];
      found_[b].count += other.count;
      found_[b].sum += other.sum;
      if (other.argmax >= 0) found_[b].offer(other.max, other.argmax);
    }
  }

  int64_t size() const { return size_; }
  const Bin<A>& operator[](int64_t b) const { return found_[b]; }

 private:
  const Bins<A>& bins_;
  const int64_t row_, size_;
  Bin<A>* const found_;
  Mask<A>* const bin_;  // of a row's pairs
};

}  // namespace

template <class T>
void pair_bins(const BinsCall<T>& call) {
  using A = Accumulate<T>;
  using Part = RowBins<A>;
  const PairProblem<T>& p = call.problem;
  const Bins<A>& bins = call.bins;
  const Lanes lanes = lanes_of(p, 4 * bins.first_bin(p.n));
  const auto make = [&](int64_t row, int64_t rows, int64_t) {
    return InWorkspace<Part>(bins, row, rows, p.most_columns());
  };
  const auto merge = [&](int64_t row, int64_t, std::optional<InWorkspace<Part>>* parts) {
    Part& all = **parts[0];
    for (int64_t lane = 1; lane < lanes.count; ++lane) all.merge(**parts[lane]);
    const int64_t first = bins.first_bin(row);
    for (int64_t b = 0; b < all.size(); ++b) {
      call.count[first + b] = all[b].count;
      call.sum[first + b] = A(all[b].sum);
      call.max[first + b] = all[b].max;
      call.argmax[first + b] = all[b].argmax;
    }
  };
  sweep<Part>(p, lanes, make, merge);
}

template void pair_bins(const BinsCall<double>&);
template void pair_bins(const BinsCall<float>&);
template void pair_bins(const BinsCall<simd::Bfloat16>&);
template void pair_bins(const BinsCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
