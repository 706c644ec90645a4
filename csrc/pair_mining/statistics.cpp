// Statistics of the pairs that count in each row, and in each column, one tile of similarities at a time. schedule.h
// says how the work is cut.
//
// A tile is folded into the states of its rows. Where its columns have states as well (those of ref, or of x itself,
// whose similarities are computed once for both ends) the same loops run over the transposed tile.

#include "statistics.h"

#include <optional>
#include <vector>

#include "rows.h"
#include "schedule.h"

namespace hyperkernels::pair_mining {

namespace {

// The states of one side [planes, n].
template <class A>
class SideStates {
 public:
  SideStates(const FoldOptions<A>& options, int64_t n, int64_t planes)
      : options_(options), n_(n), planes_(planes), states_(planes * n) {}

  void fold(const A* u, int64_t ld, int64_t plane, int64_t row, int64_t rows, int64_t column, int64_t columns,
            Mask<A>* mask, A* power) {
    PairRowState* state = states_.data() + plane * n_ + row;
    simd::run<FoldRows>(static_cast<const FoldOptions<A>*>(&options_), u, ld, row, rows, column, columns, mask, power,
                        state);
  }

  void finish(const PairRowStatistics<A>& out) const {
    constexpr int64_t kStateGrain = kGrain / 64;
    parallel_for(0, n_, kStateGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        PairRowState state = states_[i];
        for (int64_t plane = 1; plane < planes_; ++plane) state.merge(states_[plane * n_ + i], options_.kind);
        write(i, state, out);
      }
    });
  }

 private:
  void write(int64_t i, const PairRowState& state, const PairRowStatistics<A>& out) const {
    out.count[i] = state.count;
    if (options_.moments) {
      out.sum[i] = A(state.sum);
      out.sum_squares[i] = A(state.sum_squares);
    }
    if (options_.extremes) {
      out.min[i] = A(-state.min.value);
      out.argmin[i] = state.min.index;
      out.max[i] = A(state.max.value);
      out.argmax[i] = state.max.index;
    }
    if (options_.kind == Kind::kNone) return;
    if (options_.kind == Kind::kSoftplus) {
      out.lse[i] = A(state.total);
      out.d_scale[i] = A(state.weighted);
      out.d_offset[i] = A(state.slope);
      return;
    }
    const double by = options_.kind == Kind::kCircle ? state.total * double(options_.numbers.scale[i]) : state.total;
    out.lse[i] = A(state.total == 0 ? state.largest : state.largest + std::log(state.total));
    out.d_scale[i] = A(state.count == 0 ? 0 : state.weighted / by);
  }

  const FoldOptions<A> options_;
  const int64_t n_, planes_;
  std::vector<PairRowState> states_;
};

// The pieces of one thread.
template <class T>
struct FoldPieces {
  using A = Accumulate<T>;

  template <class Memory>
  FoldPieces(Memory& memory, const PairProblem<T>& p, const SideNumbers<A>& squared_norms, bool both)
      : tiles(memory, p, squared_norms),
        flipped(memory.template take<A>(both ? p.most_rows() * p.most_columns() : 0)),
        power(memory.template take<A>(std::max(p.most_rows(), p.most_columns()))),
        mask(memory.template take<Mask<A>>(std::max(p.most_rows(), p.most_columns()))) {}

  Tiles<T> tiles;
  A* const flipped;  // a transposed tile
  A* const power;
  Mask<A>* const mask;
};

template <class T>
FoldOptions<Accumulate<T>> fold_options(const PairStatisticsCall<T>& call, bool columns) {
  using A = Accumulate<T>;
  const PairSelection& selection = call.problem.selection;
  return {columns ? selection.transposed() : selection,
          columns ? call.column_numbers : call.row_numbers,
          call.moments,
          call.extremes,
          call.transform.kind,
          A(call.transform.p0),
          A(call.transform.p1)};
}

}  // namespace

template <class T>
void pair_statistics(const PairStatisticsCall<T>& call) {
  using A = Accumulate<T>;
  using Pieces = FoldPieces<T>;
  const PairProblem<T>& p = call.problem;
  const bool both = p.self || call.columns;
  const Schedule schedule(p, true, both);
  SideStates<A> rows(fold_options(call, false), p.n, schedule.row_planes());
  std::optional<SideStates<A>> columns;
  if (call.columns) columns.emplace(fold_options(call, true), p.m, schedule.column_planes());
  SideStates<A>& others = call.columns ? *columns : rows;
  const SideNumbers<A> squares = squared_norms(p);
  const auto make = [&] { return InWorkspace<Pieces>(p, squares, both); };
  schedule.run(make, [&](const Item& item, InWorkspace<Pieces>& memory, Interrupt& interrupt) {
    Tiles<T>& tiles = memory->tiles;
    over_tiles(p, item, interrupt, [&](const TilePlace& at) {
      tiles.take_columns(at.column, at.columns);
      tiles.take_rows(at.row, at.rows);
      tiles.compute();
      const A* u = tiles.u();
      rows.fold(u, tiles.ld, item.row_plane, at.row, at.rows, at.column, at.columns, memory->mask, memory->power);
      if (!both || at.diagonal) return;
      simd::run<Transpose>(u, tiles.ld, at.rows, at.columns, memory->flipped);
      others.fold(memory->flipped, at.rows, item.column_plane, at.column, at.columns, at.row, at.rows, memory->mask,
                  memory->power);
    });
  });
  rows.finish(call.row_statistics);
  if (call.columns) columns->finish(call.column_statistics);
}

template void pair_statistics(const PairStatisticsCall<double>&);
template void pair_statistics(const PairStatisticsCall<float>&);
template void pair_statistics(const PairStatisticsCall<simd::Bfloat16>&);
template void pair_statistics(const PairStatisticsCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
