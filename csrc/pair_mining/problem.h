// What all pair kernels share: which pairs (i, j) of rows of x and ref count, and how alike they are. The formulas are
// those of hyperkernels/kernels/pair_mining/problem.py.
//
// Similarities are computed a tile at a time, row_tile rows of x by column_tile rows of ref, by a single-threaded GEMM
// whose output stays in cache for the loops that read it. A tile's numbers depend on its place alone, so that two
// passes over one problem see the same bits, whatever the threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../simd.h"
#include "../storage.h"

namespace hyperkernels::pair_mining {

enum class Select { kPositive, kNegative, kAll };
enum class Similarity { kDot, kEuclidean, kSquaredEuclidean };

// As wide as the number beside it, so that loops over both fill whole vectors: -1 or 0.
template <class A>
using Mask = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// The rows of x, or those of ref.
struct Side {
  at::Tensor values;        // [n, D]
  at::Tensor label;         // [n] int32 codes or int64 bits; undefined: every pair is selected
  at::Tensor id;            // [n] int32; undefined: no pair is excluded by it
  at::Tensor lower, upper;  // [n], undefined: no bound
  int64_t n;
};

struct Problem {
  Side rows, columns;  // where `self`, columns has the same labels and ids; its bounds are those that the op was given
  bool self;
  Select select;
  Similarity similarity;
  bool bits;  // labels are sets of bits
  int64_t d, row_tile, column_tile;

  at::TensorOptions accumulate() const {
    return rows.values.options().dtype(rows.values.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  }
  at::TensorOptions integers() const { return rows.values.options().dtype(at::kLong); }
  int64_t row_tiles() const { return (rows.n + row_tile - 1) / row_tile; }
  int64_t column_tiles() const { return (columns.n + column_tile - 1) / column_tile; }
};

// Checks every size and dtype; the tensors come out contiguous. The bounds of the columns are optional in every case.
Problem make_problem(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label,
                     const at::Tensor& ref_label, const at::Tensor& id, const at::Tensor& ref_id,
                     const std::optional<at::Tensor>& lower, const std::optional<at::Tensor>& upper,
                     std::string_view select, std::string_view similarity, int64_t row_tile, int64_t column_tile);

// [n] of the accumulator's dtype, contiguous; undefined where not given.
at::Tensor numbers_of(const Problem& problem, const char* name, const std::optional<at::Tensor>& given, int64_t n);

// Whether any pair of the two ranges may be selected, by the range of their labels.
bool may_count(const Problem& problem, int64_t row, int64_t rows, int64_t column, int64_t columns);

// |v|^2 of every row, [n] of the accumulator's dtype; undefined where the similarity does not need it.
at::Tensor squared_norms(const Problem& problem, const Side& side);

// Calls f with the storage type of x.
template <class F>
auto with_storage(const Problem& problem, F f) {
  return hyperkernels::with_storage(problem.rows.values.scalar_type(), "x", f);
}

// Calls f(k) for k in [0, count), in parallel; f may use ATen. A GEMM inside runs on one thread, always: a single item
// outside a parallel region would take all threads, and its sums would come out in another order.
template <class F>
void in_parallel(int64_t count, F f) {
  at::parallel_for(0, std::max<int64_t>(2, count), 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t k = begin; k < std::min(end, count); ++k) f(k);
  });
}

// Which pairs of row i with the columns first .. first + count are selected, by labels and ids.
struct SelectPairs {
  template <class M>
  static HK_INLINE void run(const Problem* problem, int64_t i, int64_t first, int64_t count, M* mask) {
    const Problem& p = *problem;
    if (p.select == Select::kAll && (!p.rows.label.defined() || p.bits)) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) mask[j] = -1;
    } else if (p.bits) {
      const int64_t own = data<int64_t>(p.rows.label)[i];
      const int64_t* other = data<int64_t>(p.columns.label) + first;
      const M on_share = p.select == Select::kPositive ? -1 : 0, on_none = ~on_share;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) mask[j] = (own & other[j]) != 0 ? on_share : on_none;
    } else {
      const int32_t own = data<int32_t>(p.rows.label)[i];
      const int32_t* other = data<int32_t>(p.columns.label) + first;
      const M on_equal = own < 0 || p.select == Select::kNegative ? 0 : -1;
      const M on_other = own < 0 || p.select == Select::kPositive ? 0 : -1;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const M by_label = own == other[j] ? on_equal : on_other;
        mask[j] = other[j] < 0 ? M(0) : by_label;
      }
    }
    if (!p.rows.id.defined()) return;
    const int32_t own = data<int32_t>(p.rows.id)[i];
    const int32_t* other = data<int32_t>(p.columns.id) + first;
    if (own < 0) return;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) mask[j] = other[j] == own ? M(0) : mask[j];
  }
};

// mask &= lower < u < upper; NaN stays.
struct WithinBounds {
  template <class A>
  static HK_INLINE void run(const A* u, A lower, A upper, int64_t count, Mask<A>* mask) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) mask[j] = u[j] <= lower || u[j] >= upper ? Mask<A>(0) : mask[j];
  }
};

// The pairs of row i that count, with the bounds of the row.
template <class A>
void counting_pairs(const Problem& p, int64_t i, int64_t first, int64_t count, const A* u, Mask<A>* mask) {
  simd::run<SelectPairs>(&p, i, first, count, mask);
  if (!p.rows.lower.defined() && !p.rows.upper.defined()) return;
  const bool low = p.rows.lower.defined(), high = p.rows.upper.defined();
  constexpr A nowhere = std::numeric_limits<A>::quiet_NaN();  // an infinite similarity is within a missing bound
  simd::run<WithinBounds>(u, low ? data<A>(p.rows.lower)[i] : nowhere, high ? data<A>(p.rows.upper)[i] : nowhere, count,
                          mask);
}

// Computes tiles of similarities; one object for each unit of parallel work.
template <class T>
class Tiles {
 public:
  using A = Accumulate<T>;

  // The squared norms of both sides, where the similarity needs them.
  Tiles(const Problem& problem, const at::Tensor& row_squares, const at::Tensor& column_squares);

  // The rows (columns) that the next products are of, in dtype A. Taking the same columns again costs nothing.
  const at::Tensor& take_rows(int64_t first, int64_t count);
  const at::Tensor& take_columns(int64_t first, int64_t count);

  // u [rows, ld] of the taken rows and columns.
  void similarities(A* u, int64_t ld);

 private:
  const at::Tensor& take(const Side& side, int64_t first, int64_t count, at::Tensor& widened, at::Tensor& taken);

  const Problem& problem_;
  const at::Tensor row_squares_, column_squares_;
  at::Tensor widened_rows_, widened_columns_, rows_, columns_;
  int64_t first_row_ = 0, first_column_ = 0;
};

}  // namespace hyperkernels::pair_mining
