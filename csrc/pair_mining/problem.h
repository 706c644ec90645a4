// What all pair kernels share: which pairs (i, j) of rows of x and ref count, and how alike they are. The formulas are
// those of hyperkernels/kernels/pair_mining/problem.py.
//
// Similarities are computed a tile at a time, row_tile rows of x by column_tile rows of ref, by a single-threaded GEMM
// whose output stays in cache for the loops that read it. A tile's numbers depend on its place alone, so that two
// passes over one problem see the same bits, whatever the threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../common/matmul.h"
#include "../common/workspace.h"
#include "mask.h"

namespace hyperkernels::pair_mining {

enum class Similarity { kDot, kEuclidean, kSquaredEuclidean };

// Sizes, options, and which pairs are selected.
struct PairOptions {
  int64_t n, m, d;  // x [n, d], ref [m, d]
  int64_t row_tile, column_tile;
  bool self;  // ref is x: the columns have the same labels and ids
  Similarity similarity;
  PairSelection selection;

  int64_t row_tiles() const { return (n + row_tile - 1) / row_tile; }
  int64_t column_tiles() const { return (m + column_tile - 1) / column_tile; }
  // Of any tile.
  int64_t most_rows() const { return std::min(row_tile, n); }
  int64_t most_columns() const { return std::min(column_tile, m); }
};

template <class T>
struct PairProblem : PairOptions {
  const T *x, *ref;                   // one array where `self`
  const Accumulate<T>*lower, *upper;  // [n] bounds of the rows; null: none
};

// Whether any pair of the two ranges may be selected, by the range of their labels.
bool may_count(const PairOptions& options, int64_t row, int64_t rows, int64_t column, int64_t columns);

// A number for each row of x and each of ref. Those of x serve as both where x meets itself.
template <class R>
class SideNumbers {
 public:
  SideNumbers() = default;
  SideNumbers(int64_t n, int64_t m, bool self) : self_(self), rows_(n), columns_(self ? 0 : m) {}

  R* rows() { return rows_.data(); }
  const R* rows() const { return rows_.data(); }
  R* columns() { return self_ ? rows_.data() : columns_.data(); }
  const R* columns() const { return self_ ? rows_.data() : columns_.data(); }

 private:
  bool self_ = true;
  Buffer<R> rows_, columns_;
};

// |v|^2 of every row; empty where the similarity does not need it.
template <class T>
SideNumbers<Accumulate<T>> squared_norms(const PairProblem<T>& problem);

// 1 for the rows that hold finite numbers only, 0 for the others.
template <class T>
SideNumbers<uint8_t> finite_rows(const PairProblem<T>& problem);

// Computes tiles of similarities. The pieces of one thread.
template <class T>
class Tiles {
 public:
  using A = Accumulate<T>;

  template <class Memory>
  Tiles(Memory& memory, const PairProblem<T>& problem, const SideNumbers<A>& squared_norms)
      : ld(problem.most_columns()),
        problem_(problem),
        squares_(squared_norms),
        u_(memory.template take<A>(problem.most_rows() * ld)),
        widened_rows_(memory.template take<A>(kWidens ? problem.most_rows() * problem.d : 0)),
        widened_columns_(memory.template take<A>(kWidens ? ld * problem.d : 0)) {}

  // The rows (columns) that the next products are of. Taking the same columns again costs nothing.
  void take_rows(int64_t first, int64_t count);
  void take_columns(int64_t first, int64_t count);
  // They, in dtype A.
  const Matrix<A>& rows() const { return rows_; }
  const Matrix<A>& columns() const { return columns_; }

  // Writes u [rows, ld] of the taken rows and columns.
  void compute();
  A* u() { return u_; }

  const int64_t ld;

 private:
  static constexpr bool kWidens = !std::is_same_v<T, A>;

  Matrix<A> take(const T* side, int64_t first, int64_t count, A* widened) const;

  const PairProblem<T>& problem_;
  const SideNumbers<A>& squares_;
  A* const u_;
  A *const widened_rows_, *const widened_columns_;
  Matrix<A> rows_{}, columns_{};
  int64_t first_row_ = -1, first_column_ = -1;
};

}  // namespace hyperkernels::pair_mining
