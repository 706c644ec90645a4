// How many pairs of every row count, and their list.

#include "selections.h"
#include "sweep.h"

namespace hyperkernels::pair_mining {

namespace {

template <class A>
class Counter {
 public:
  template <class Memory>
  Counter(Memory& memory, int64_t rows) : rows_(rows), counts_(memory.template take<int64_t>(rows)) {}

  void start() { std::fill_n(counts_, rows_, int64_t(0)); }

  HK_INLINE void take(int64_t i, int64_t, int64_t count, const A*, const Mask<A>* mask) {
    Mask<A> sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum -= mask[j];
    counts_[i] += sum;
  }

  const int64_t* counts() const { return counts_; }

 private:
  const int64_t rows_;
  int64_t* const counts_;
};

// counts [lanes, n]
template <class T>
void lane_counts(const PairProblem<T>& p, const Lanes& lanes, int64_t* counts) {
  using Part = Counter<Accumulate<T>>;
  const auto make = [&](int64_t, int64_t rows, int64_t) { return InWorkspace<Part>(rows); };
  const auto merge = [&](int64_t row, int64_t rows, const std::optional<InWorkspace<Part>>* parts) {
    for (int64_t lane = 0; lane < lanes.count; ++lane) {
      std::copy_n((*parts[lane])->counts(), rows, counts + lane * p.n + row);
    }
  };
  sweep<Part>(p, lanes, make, merge);
}

// Writes the pairs of a lane's rows one after another.
template <class A>
class Lister {
 public:
  // offsets: of the tile's rows. earlier [lanes, n]: the counts of the lanes before this one, of those rows.
  template <class Memory>
  Lister(Memory& memory, int64_t rows, const int64_t* offsets, const int64_t* earlier, int64_t lane, int64_t n,
         int64_t* columns, A* similarities)
      : rows_(rows),
        offsets_(offsets),
        earlier_(earlier),
        lane_(lane),
        n_(n),
        columns_(columns),
        similarities_(similarities),
        at_(memory.template take<int64_t>(rows)) {}

  void start() {
    std::copy_n(offsets_, rows_, at_);
    for (int64_t lane = 0; lane < lane_; ++lane) {
      for (int64_t i = 0; i < rows_; ++i) at_[i] += earlier_[lane * n_ + i];
    }
  }

  HK_INLINE void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    constexpr A kEverything = std::numeric_limits<A>::quiet_NaN();
    const int64_t end = offsets_[i + 1];
    int64_t at = at_[i];
    for (int64_t j = 0; j < count; j += 32) {
      uint32_t bits = beating(u + j, mask + j, kEverything, std::min<int64_t>(32, count - j));
      for (; bits != 0; bits &= bits - 1, ++at) {
        const int64_t k = j + __builtin_ctz(bits);
        if (at >= end) continue;  // offsets of another problem; counted on, to be refused in the end
        columns_[at] = first + k;
        similarities_[at] = u[k];
      }
    }
    at_[i] = at;
  }

  // Where the pair after the row's last would be.
  int64_t end(int64_t i) const { return at_[i]; }

 private:
  const int64_t rows_;
  const int64_t *const offsets_, *const earlier_;
  const int64_t lane_, n_;
  int64_t* const columns_;
  A* const similarities_;
  int64_t* const at_;
};

}  // namespace

template <class T>
void pair_count(const PairProblem<T>& p, int64_t* counts) {
  const Lanes lanes = lanes_of(p, p.n);
  if (lanes.count == 1) return lane_counts(p, lanes, counts);
  Buffer<int64_t> of_lanes(lanes.count * p.n);
  lane_counts(p, lanes, of_lanes.data());
  std::fill_n(counts, p.n, int64_t(0));
  for (int64_t lane = 0; lane < lanes.count; ++lane) {
    for (int64_t i = 0; i < p.n; ++i) counts[i] += of_lanes.data()[lane * p.n + i];
  }
}

template <class T>
bool pair_list(const ListCall<T>& call) {
  using Part = Lister<Accumulate<T>>;
  const PairProblem<T>& p = call.problem;
  const Lanes lanes = lanes_of(p, p.n);
  // A single lane starts where its row does.
  Buffer<int64_t> counts(lanes.count > 1 ? lanes.count * p.n : 0);
  if (lanes.count > 1) lane_counts(p, lanes, counts.data());
  std::atomic<bool> fits = true;
  const auto make = [&](int64_t row, int64_t rows, int64_t lane) {
    const int64_t* earlier = lanes.count > 1 ? counts.data() + row : nullptr;
    return InWorkspace<Part>(rows, call.offsets + row, earlier, lane, p.n, call.columns, call.similarities);
  };
  const auto merge = [&](int64_t row, int64_t rows, const std::optional<InWorkspace<Part>>* parts) {
    for (int64_t i = 0; i < rows; ++i) {
      if ((*parts[lanes.count - 1])->end(i) != call.offsets[row + i + 1]) fits = false;
    }
  };
  sweep<Part>(p, lanes, make, merge);
  return fits;
}

template void pair_count(const PairProblem<double>&, int64_t*);
template void pair_count(const PairProblem<float>&, int64_t*);
template void pair_count(const PairProblem<simd::Bfloat16>&, int64_t*);
template void pair_count(const PairProblem<simd::Half>&, int64_t*);

template bool pair_list(const ListCall<double>&);
template bool pair_list(const ListCall<float>&);
template bool pair_list(const ListCall<simd::Bfloat16>&);
template bool pair_list(const ListCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
