// Which pairs of a row count: masks, by labels, ids and bounds.
#pragma once

#include <limits>
#include <type_traits>

#include "../common/storage.h"

namespace hyperkernels::pair_mining {

enum class Select { kPositive, kNegative, kAll };

// As wide as the number beside it, so that loops over both fill whole vectors: -1 or 0.
template <class A>
using Mask = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// Of the rows of x, or of those of ref, [n] each. Null: absent.
struct PairLabels {
  const int32_t* code;  // equal: positive; -1: no pair of that row counts
  const int64_t* bits;  // sets of bits in place of codes; one in common: positive
  const int32_t* id;    // pairs of equal ids do not count, but for -1
};

struct PairSelection {
  Select select;
  PairLabels rows, columns;

  PairSelection transposed() const { return {select, columns, rows}; }
};

// mask = whether the pairs of row i with the columns first .. first + count are selected, by labels and ids.
template <class M>
HK_INLINE void select_pairs(const PairSelection& s, int64_t i, int64_t first, int64_t count, M* mask) {
  if (s.select == Select::kAll && s.rows.code == nullptr) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) mask[j] = -1;
  } else if (s.rows.bits != nullptr) {
    const int64_t own = s.rows.bits[i];
    const int64_t* other = s.columns.bits + first;
    const M on_share = s.select == Select::kPositive ? -1 : 0, on_none = ~on_share;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) mask[j] = (own & other[j]) != 0 ? on_share : on_none;
  } else {
    const int32_t own = s.rows.code[i];
    const int32_t* other = s.columns.code + first;
    const M on_equal = own < 0 || s.select == Select::kNegative ? 0 : -1;
    const M on_other = own < 0 || s.select == Select::kPositive ? 0 : -1;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      const M by_label = own == other[j] ? on_equal : on_other;
      mask[j] = other[j] < 0 ? M(0) : by_label;
    }
  }
  if (s.rows.id == nullptr) return;
  const int32_t own = s.rows.id[i];
  const int32_t* other = s.columns.id + first;
  if (own < 0) return;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) mask[j] = other[j] == own ? M(0) : mask[j];
}

// A bound that excludes no similarity, not even an infinite one.
template <class A>
constexpr A kNowhere = std::numeric_limits<A>::quiet_NaN();

// mask &= lower < u < upper; NaN stays.
template <class A>
HK_INLINE void keep_within(const A* u, A lower, A upper, int64_t count, Mask<A>* mask) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) mask[j] = u[j] <= lower || u[j] >= upper ? Mask<A>(0) : mask[j];
}

// mask = whether the pairs of row i with those columns count. The bounds are those of all rows; null: none.
template <class A>
HK_INLINE void mask_row(const PairSelection& selection, const A* lower, const A* upper, int64_t i, int64_t first,
                        int64_t count, const A* u, Mask<A>* mask) {
  select_pairs(selection, i, first, count, mask);
  if (lower == nullptr && upper == nullptr) return;
  keep_within(u, lower != nullptr ? lower[i] : kNowhere<A>, upper != nullptr ? upper[i] : kNowhere<A>, count, mask);
}

}  // namespace hyperkernels::pair_mining
