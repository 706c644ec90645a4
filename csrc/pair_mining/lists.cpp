// How many pairs of every row count, and their list. Both look at the same tiles, so that they see the same bits.

#include <torch/library.h>

#include <tuple>

#include "sweep.h"

namespace hyperkernels::pair_mining {

namespace {

struct CountPairs {
  template <class M>
  static HK_INLINE void run(const M* mask, int64_t count, int64_t* total) {
    M sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum -= mask[j];
    *total += sum;
  }
};

template <class A>
struct Counter {
  explicit Counter(int64_t rows) : counts(rows) {}

  void take(int64_t i, int64_t, int64_t count, const A*, const Mask<A>* mask) {
    simd::run<CountPairs>(mask, count, &counts[i]);
  }

  std::vector<int64_t> counts;
};

// [lanes, N]
template <class T>
at::Tensor lane_counts(const Problem& p, const Lanes& lanes) {
  using Part = Counter<Accumulate<T>>;
  at::Tensor counts = at::empty({lanes.count, p.rows.n}, p.integers());
  const auto make = [&](int64_t, int64_t rows, int64_t) { return std::make_unique<Part>(rows); };
  const auto merge = [&](int64_t row, int64_t, const std::unique_ptr<Part>* parts) {
    for (int64_t lane = 0; lane < lanes.count; ++lane) {
      const auto& found = parts[lane]->counts;
      std::copy(found.begin(), found.end(), mutable_data<int64_t>(counts) + lane * p.rows.n + row);
    }
  };
  sweep<T>(p, lanes, make, merge);
  return counts;
}

// Writes the pairs of a lane's rows one after another.
template <class A>
class Lister {
 public:
  Lister(std::vector<int64_t> at, const int64_t* ends, int64_t* columns, A* similarities)
      : at_(std::move(at)), ends_(ends), columns_(columns), similarities_(similarities) {}

  void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    simd::run<Fill>(this, i, first, count, u, mask);
  }

  // Where the pair after the row's last would be.
  int64_t end(int64_t i) const { return at_[i]; }

 private:
  struct Fill {
    static HK_INLINE void run(Lister* self, int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
      constexpr A everything = std::numeric_limits<A>::quiet_NaN();
      int64_t at = self->at_[i];
      for (int64_t j = 0; j < count; j += 32) {
        uint32_t bits = beating(u + j, mask + j, everything, std::min<int64_t>(32, count - j));
        for (; bits != 0; bits &= bits - 1, ++at) {
          const int64_t k = j + __builtin_ctz(bits);
          if (at >= self->ends_[i]) continue;  // offsets of another problem; counted on, to be refused in the end
          self->columns_[at] = first + k;
          self->similarities_[at] = u[k];
        }
      }
      self->at_[i] = at;
    }
  };

  std::vector<int64_t> at_;
  const int64_t* ends_;
  int64_t* columns_;
  A* similarities_;
};

template <class T>
std::tuple<at::Tensor, at::Tensor> list(const Problem& p, const at::Tensor& offsets, int64_t total) {
  using A = Accumulate<T>;
  const Lanes lanes = lanes_of(p, p.rows.n);
  // A single lane starts where its row does.
  const at::Tensor counts = lanes.count > 1 ? lane_counts<T>(p, lanes) : at::Tensor();
  at::Tensor columns = at::empty({total}, p.integers()), similarities = at::empty({total}, p.accumulate());
  const int64_t* offset = data<int64_t>(offsets);
  std::atomic<bool> fits = true;
  const auto make = [&](int64_t row, int64_t rows, int64_t lane) {
    std::vector<int64_t> at(offset + row, offset + row + rows);
    for (int64_t before = 0; before < lane; ++before) {
      for (int64_t i = 0; i < rows; ++i) at[i] += data<int64_t>(counts)[before * p.rows.n + row + i];
    }
    return std::make_unique<Lister<A>>(std::move(at), offset + row + 1, mutable_data<int64_t>(columns),
                                       mutable_data<A>(similarities));
  };
  const auto merge = [&](int64_t row, int64_t rows, const std::unique_ptr<Lister<A>>* parts) {
    for (int64_t i = 0; i < rows; ++i) {
      if (parts[lanes.count - 1]->end(i) != offset[row + i + 1]) fits = false;
    }
  };
  sweep<T>(p, lanes, make, merge);
  TORCH_CHECK_VALUE(fits, "offsets must be those of pair_count over the same problem");
  return {columns, similarities};
}

at::Tensor pair_count(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label,
                      const at::Tensor& ref_label, const at::Tensor& id, const at::Tensor& ref_id,
                      const std::optional<at::Tensor>& lower, const std::optional<at::Tensor>& upper,
                      c10::string_view select, c10::string_view similarity, int64_t row_tile, int64_t column_tile) {
  const Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  return with_storage(p, [&](auto t) { return lane_counts<decltype(t)>(p, lanes_of(p, p.rows.n)).sum(0); });
}

std::tuple<at::Tensor, at::Tensor> pair_list(const at::Tensor& x, const std::optional<at::Tensor>& ref,
                                             const at::Tensor& label, const at::Tensor& ref_label, const at::Tensor& id,
                                             const at::Tensor& ref_id, const std::optional<at::Tensor>& lower,
                                             const std::optional<at::Tensor>& upper, c10::string_view select,
                                             c10::string_view similarity, const at::Tensor& offsets, int64_t total,
                                             int64_t row_tile, int64_t column_tile) {
  const Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const at::Tensor checked = checked_offsets(offsets, p.rows.n, total);
  return with_storage(p, [&](auto t) { return list<decltype(t)>(p, checked, total); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  m.impl("pair_count", pair_count);
  m.impl("pair_list", pair_list);
}

}  // namespace hyperkernels::pair_mining
