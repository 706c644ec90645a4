// Statistics of the pairs that count in each row, and in each column, on the CPU, one tile of similarities at a time.
// schedule.h says how the work is cut.
//
// A tile is folded into the states of its rows. Where its columns have states as well (those of ref, or of x itself,
// whose similarities are computed once for both ends) the same loops run over the transposed tile.

#include <torch/library.h>

#include <tuple>

#include "rows.h"

namespace hyperkernels::pair_mining {

namespace {

struct Wanted {
  bool columns, moments, extremes;
  Transform transform;
};

// The results of one side, in the order of the op's.
struct Statistics {
  at::Tensor count, sum, sum_squares, low, low_index, high, high_index, value, d_scale, d_offset;

  Statistics(const Problem& p, int64_t n, const Wanted& wanted) {
    const int64_t moments = wanted.moments ? n : 0, extremes = wanted.extremes ? n : 0;
    const int64_t values = wanted.transform.kind != Kind::kNone ? n : 0;
    count = at::empty({n}, p.integers());
    sum = at::empty({moments}, p.accumulate());
    sum_squares = at::empty({moments}, p.accumulate());
    low = at::empty({extremes}, p.accumulate());
    low_index = at::empty({extremes}, p.integers());
    high = at::empty({extremes}, p.accumulate());
    high_index = at::empty({extremes}, p.integers());
    value = at::empty({values}, p.accumulate());
    d_scale = at::empty({values}, p.accumulate());
    d_offset = at::empty({wanted.transform.kind == Kind::kSoftplus ? n : 0}, p.accumulate());
  }

  auto tuple() const {
    return std::make_tuple(count, sum, sum_squares, low, low_index, high, high_index, value, d_scale, d_offset);
  }

  template <class A>
  void set(int64_t i, const State& state, const Wanted& wanted, double scale) {
    mutable_data<int64_t>(count)[i] = state.count;
    if (wanted.moments) {
      mutable_data<A>(sum)[i] = A(state.sum);
      mutable_data<A>(sum_squares)[i] = A(state.sum_squares);
    }
    if (wanted.extremes) {
      mutable_data<A>(low)[i] = A(-state.low.value);
      mutable_data<int64_t>(low_index)[i] = state.low.index;
      mutable_data<A>(high)[i] = A(state.high.value);
      mutable_data<int64_t>(high_index)[i] = state.high.index;
    }
    if (wanted.transform.kind == Kind::kNone) return;
    if (wanted.transform.kind == Kind::kSoftplus) {
      mutable_data<A>(value)[i] = A(state.total);
      mutable_data<A>(d_scale)[i] = A(state.weighted);
      mutable_data<A>(d_offset)[i] = A(state.slope);
      return;
    }
    const double by = wanted.transform.kind == Kind::kCircle ? state.total * scale : state.total;
    mutable_data<A>(value)[i] = A(state.total == 0 ? state.max : state.max + std::log(state.total));
    mutable_data<A>(d_scale)[i] = A(state.count == 0 ? 0 : state.weighted / by);
  }
};

// One side's states [planes, n], and the problem as that side sees it.
template <class A>
class SideStates {
 public:
  SideStates(const Problem& problem, const Numbers& numbers, const Wanted& wanted, int64_t planes)
      : problem_(problem), numbers_(numbers), planes_(planes), states_(planes * problem.rows.n) {
    const Side& rows = problem_.rows;
    asked_ = {&problem_,
              data<A>(numbers_.lower),
              data<A>(numbers_.upper),
              data<A>(numbers_.scale),
              data<A>(numbers_.offset),
              rows.lower.defined() || rows.upper.defined(),
              wanted.moments,
              wanted.extremes,
              wanted.transform.kind,
              A(wanted.transform.p0),
              A(wanted.transform.p1)};
  }
  SideStates(const SideStates&) = delete;

  void fold(const A* u, int64_t ld, int64_t plane, int64_t row, int64_t rows, int64_t column, int64_t columns,
            Mask<A>* mask, A* power) {
    State* state = states_.data() + plane * problem_.rows.n + row;
    simd::run<FoldRows>(static_cast<const Asked<A>*>(&asked_), u, ld, row, rows, column, columns, mask, power, state);
  }

  void finish(const Wanted& wanted, Statistics& out) {
    const int64_t n = problem_.rows.n;
    at::parallel_for(0, n, at::internal::GRAIN_SIZE / 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        State state = states_[i];
        for (int64_t plane = 1; plane < planes_; ++plane) {
          state.merge(states_[plane * n + i], wanted.transform.kind);
        }
        out.set<A>(i, state, wanted, double(asked_.scale[i]));
      }
    });
  }

 private:
  const Problem problem_;
  const Numbers numbers_;
  const int64_t planes_;
  Asked<A> asked_;
  std::vector<State> states_;
};

Problem transposed(const Problem& p) {
  Problem other = p;
  std::swap(other.rows, other.columns);
  return other;
}

template <class T>
void forward(const Problem& p, const Wanted& wanted, const Numbers& of_rows, const Numbers& of_columns,
             Statistics& row_out, Statistics& column_out) {
  using A = Accumulate<T>;
  const bool both = p.self || wanted.columns;
  const Schedule schedule(p, true, both);
  SideStates<A> rows(p, of_rows, wanted, schedule.row_planes());
  std::optional<SideStates<A>> columns;
  if (wanted.columns) columns.emplace(transposed(p), of_columns, wanted, schedule.column_planes());
  SideStates<A>& others = wanted.columns ? *columns : rows;
  const at::Tensor row_squares = squared_norms(p, p.rows);
  const at::Tensor column_squares = p.self ? row_squares : squared_norms(p, p.columns);
  const int64_t most_rows = std::min(p.row_tile, p.rows.n), ld = std::min(p.column_tile, p.columns.n);
  schedule.run([&](const Item& item, Interrupt& interrupt) {
    Tiles<T> tiles(p, row_squares, column_squares);
    const at::Tensor u = at::empty({most_rows * ld}, p.accumulate());
    const at::Tensor flipped = at::empty({both ? most_rows * ld : 0}, p.accumulate());
    std::vector<A> power(std::max(most_rows, ld));
    std::vector<Mask<A>> mask(power.size());
    over_tiles(p, item, interrupt, [&](const TilePlace& at) {
      tiles.take_columns(at.column, at.columns);
      tiles.take_rows(at.row, at.rows);
      tiles.similarities(mutable_data<A>(u), ld);
      rows.fold(data<A>(u), ld, item.row_plane, at.row, at.rows, at.column, at.columns, mask.data(), power.data());
      if (!both || at.diagonal) return;
      simd::run<Transpose>(data<A>(u), ld, at.rows, at.columns, mutable_data<A>(flipped));
      others.fold(data<A>(flipped), at.rows, item.column_plane, at.column, at.columns, at.row, at.rows, mask.data(),
                  power.data());
    });
  });
  rows.finish(wanted, row_out);
  if (wanted.columns) columns->finish(wanted, column_out);
}

auto pair_statistics(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label,
                     const at::Tensor& ref_label, const at::Tensor& id, const at::Tensor& ref_id,
                     const std::optional<at::Tensor>& lower, const std::optional<at::Tensor>& upper,
                     c10::string_view select, c10::string_view similarity, const std::optional<at::Tensor>& scale,
                     const std::optional<at::Tensor>& offset, bool columns, const std::optional<at::Tensor>& ref_lower,
                     const std::optional<at::Tensor>& ref_upper, const std::optional<at::Tensor>& ref_scale,
                     const std::optional<at::Tensor>& ref_offset, bool moments, bool extremes,
                     c10::string_view transform, double p0, double p1, int64_t row_tile, int64_t column_tile) {
  Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  take_column_bounds(p, columns, ref_lower, ref_upper);
  const Wanted wanted{columns, moments, extremes, parse_transform(transform, p0, p1)};
  const Kind kind = wanted.transform.kind;
  const Numbers of_rows = numbers_of_side(p, "", p.rows, kind, scale, offset);
  const Numbers of_columns = columns ? numbers_of_side(p, "ref_", p.columns, kind, ref_scale, ref_offset) : Numbers();
  Statistics row_out(p, p.rows.n, wanted), column_out(p, columns ? p.columns.n : 0, wanted);
  with_storage(p, [&](auto t) { forward<decltype(t)>(p, wanted, of_rows, of_columns, row_out, column_out); });
  return std::tuple_cat(row_out.tuple(), column_out.tuple());
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("pair_statistics", pair_statistics); }

}  // namespace hyperkernels::pair_mining
