// Who computes which pairs, where a tile writes to what belongs to its rows and to what belongs to its columns.
//
// Rows and columns are cut into chunks. A round is a set of items, each a chunk of rows by a chunk of columns, in which
// no chunk appears twice: every item writes to its chunks in place, without partial sums, and the order in which a
// chunk is written to is that of the rounds, whatever the threads. Of x with itself the rounds are those of a
// tournament in which every chunk meets every other; with ref they are the diagonals of the grid. Where one side has
// few chunks several items of a round share one, and each writes to a plane of its own.
#pragma once

#include <atomic>
#include <vector>

#include "../common/interrupt.h"
#include "../common/parallel.h"
#include "problem.h"

namespace hyperkernels::pair_mining {

struct Item {
  int64_t row, row_end, column, column_end;
  int64_t row_plane, column_plane;
};

struct TilePlace {
  int64_t row, rows, column, columns;
  bool diagonal;  // of x with itself: it holds both (i, j) and (j, i), and is seen from its rows alone
};

class Schedule {
 public:
  // Which sides are written to; both of them, where x meets itself.
  Schedule(const PairOptions& options, bool rows, bool columns);

  int64_t row_planes() const { return row_planes_; }
  int64_t column_planes() const { return column_planes_; }

  // Calls f(item, memory, interrupt) for every item, those of a round in parallel. `memory` is what make() gave to the
  // thread; f asks `interrupt` now and then. A GEMM inside runs on one thread.
  template <class Make, class F>
  void run(const Make& make, const F& f) const {
    Interrupt interrupt;
    for (const std::vector<Item>& round : rounds_) {
      std::atomic<int64_t> next{0};
      const int64_t count = round.size();
      // At least two, for the reason that in_parallel has.
      parallel_for(0, std::max<int64_t>(2, thread_count()), 1, [&](int64_t, int64_t) {
        int64_t k = next++;
        if (k >= count) return;
        auto memory = make();
        for (; k < count; k = next++) f(round[k], memory, interrupt);
      });
      interrupt.rethrow();
    }
  }

 private:
  std::vector<std::vector<Item>> rounds_;
  int64_t row_planes_ = 1, column_planes_ = 1;
};

// Calls f(place) for the tiles of an item in which a pair may count. Of x with itself those are the tiles above the
// diagonal, and squares on it; after an interrupt none.
template <class F>
void over_tiles(const PairOptions& p, const Item& item, Interrupt& interrupt, F f) {
  const auto visit = [&](int64_t row, int64_t rows, int64_t column, int64_t columns, bool diagonal) {
    if (columns <= 0 || !may_count(p, row, rows, column, columns) || interrupt.called()) return;
    f(TilePlace{row, rows, column, columns, diagonal});
  };
  for (int64_t column = item.column; column < item.column_end; column += p.column_tile) {
    const int64_t column_end = std::min(column + p.column_tile, item.column_end);
    const int64_t row_end = p.self ? std::min(item.row_end, column_end) : item.row_end;
    for (int64_t row = item.row, rows = 0; row < row_end; row += rows) {
      rows = std::min(p.row_tile, row_end - row);
      if (p.self) rows = std::min(rows, p.column_tile - row % p.column_tile);
      const bool meets_diagonal = p.self && row >= column;
      if (meets_diagonal) visit(row, rows, row, rows, true);
      const int64_t first = meets_diagonal ? row + rows : column;
      visit(row, rows, first, column_end - first, false);
    }
  }
}

}  // namespace hyperkernels::pair_mining
