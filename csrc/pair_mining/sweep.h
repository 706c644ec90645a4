// One pass over all pairs, for the ops whose results belong to rows.
//
// A unit of work is a tile of rows by a lane, a run of whole column tiles. There is one lane where the tiles of rows
// alone keep the threads busy; where few rows meet many columns there are several, as many as the sizes say, and the
// unit that comes last to a tile of rows merges their parts in the order of the lanes. So the results do not depend on
// the threads.
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "../common/interrupt.h"
#include "../common/parallel.h"
#include "problem.h"

namespace hyperkernels::pair_mining {

constexpr int64_t kUnits = 64;                      // enough for the threads of most machines
constexpr int64_t kLaneNumbers = int64_t(1) << 25;  // numbers that the lanes' parts may take together

// Runs of whole column tiles.
struct Lanes {
  int64_t count, tiles;

  int64_t begin(int64_t lane) const { return tiles * lane / count; }
};

// `numbers`: how many of them one lane's part takes for all rows.
inline Lanes lanes_of(const PairOptions& p, int64_t numbers) {
  const int64_t wanted = kUnits / std::max<int64_t>(1, p.row_tiles());
  const int64_t most = std::min(p.column_tiles(), kLaneNumbers / std::max<int64_t>(1, numbers));
  return {std::max<int64_t>(1, std::min(wanted, most)), p.column_tiles()};
}

// A tile of similarities u [rows, ld]: rows row .. row + rows by columns column .. column + columns.
template <class A>
struct PairTile {
  PairSelection selection;
  const A *lower, *upper;
  A* u;
  int64_t ld, row, rows, column, columns;
  Mask<A>* mask;  // [columns], that of one row at a time

  // Sets the mask to that of the tile's row i.
  HK_INLINE void mask_row(int64_t i) const {
    pair_mining::mask_row(selection, lower, upper, row + i, column, columns, static_cast<const A*>(u + i * ld), mask);
  }
};

// The tiles of similarities and one row of a mask.
template <class T>
struct MaskedTiles : Tiles<T> {
  using A = Accumulate<T>;

  template <class Memory>
  MaskedTiles(Memory& memory, const PairProblem<T>& problem, const SideNumbers<A>& squared_norms)
      : Tiles<T>(memory, problem, squared_norms), problem(problem), mask(memory.template take<Mask<A>>(this->ld)) {}

  // The tile of the taken rows and columns, computed.
  PairTile<A> tile(int64_t row, int64_t column) {
    this->compute();
    const int64_t rows = this->rows().rows, columns = this->columns().rows;
    return {problem.selection, problem.lower, problem.upper, this->u(), this->ld, row, rows, column, columns, mask};
  }

  const PairProblem<T>& problem;
  Mask<A>* const mask;
};

// Hands the rows of a tile to a part, whose take is inlined into the loop.
template <class Part>
struct VisitRows {
  template <class A>
  static HK_INLINE void run(const PairTile<A>* tile, Part* part) {
    for (int64_t i = 0; i < tile->rows; ++i) {
      tile->mask_row(i);
      part->take(i, tile->column, tile->columns, static_cast<const A*>(tile->u + i * tile->ld),
                 static_cast<const Mask<A>*>(tile->mask));
    }
  }
};

// Part: the pieces of a unit (see InWorkspace). make(first row, rows, lane) gives a InWorkspace<Part>, whose start() is
// called before the first tile; its take(i, first column, count, u, mask) gets row i of the tile of rows, the columns
// of a lane in rising order; merge(first row, rows, parts) gets the parts of all lanes, an array of optionals.
template <class Part, class T, class Make, class Merge>
void sweep(const PairProblem<T>& p, const Lanes& lanes, const Make& make, const Merge& merge) {
  using A = Accumulate<T>;
  const SideNumbers<A> squares = squared_norms(p);
  std::vector<std::optional<InWorkspace<Part>>> parts(p.row_tiles() * lanes.count);
  std::vector<std::atomic<int64_t>> missing(p.row_tiles());
  for (auto& lanes_missing : missing) lanes_missing = lanes.count;
  Interrupt interrupt;
  in_parallel(int64_t(parts.size()), [&](int64_t unit) {
    const int64_t tile = unit / lanes.count, lane = unit % lanes.count;
    const int64_t row = tile * p.row_tile, rows = std::min(p.row_tile, p.n - row);
    InWorkspace<MaskedTiles<T>> tiles(p, squares);
    InWorkspace<Part>& part = parts[unit].emplace(make(row, rows, lane));
    part->start();
    tiles->take_rows(row, rows);
    for (int64_t b = lanes.begin(lane); b < lanes.begin(lane + 1); ++b) {
      const int64_t first = b * p.column_tile, count = std::min(p.column_tile, p.m - first);
      if (!may_count(p, row, rows, first, count)) continue;
      if (interrupt.called()) return;
      tiles->take_columns(first, count);
      const PairTile<A> computed = tiles->tile(row, first);
      simd::run<VisitRows<Part>>(&computed, &*part);
    }
    if (missing[tile].fetch_sub(1) > 1) return;
    merge(row, rows, parts.data() + tile * lanes.count);
    for (int64_t k = 0; k < lanes.count; ++k) parts[tile * lanes.count + k].reset();
  });
  interrupt.rethrow();
}

// Bit j tells whether u[j] counts and beats `bar`: it is larger, or NaN, or the bar is NaN. At most 32 pairs.
template <class A>
HK_INLINE uint32_t beating(const A* u, const Mask<A>* mask, A bar, int64_t count) {
  Mask<A> bits = 0;
#pragma omp simd reduction(| : bits)
  for (int64_t j = 0; j < count; ++j) bits |= u[j] <= bar ? Mask<A>(0) : mask[j] & Mask<A>(uint32_t(1) << j);
  return uint32_t(bits);
}

}  // namespace hyperkernels::pair_mining
