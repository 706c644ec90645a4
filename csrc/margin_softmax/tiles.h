// The loops over a tile of cosines that depend on the kind of negatives: compiled for each of them.
#pragma once

#include <type_traits>

#include "rows.h"

namespace hyperkernels::margin_softmax {

// Which of the compiled loops a problem takes. Plain: the logit is the cosine by the scale, there is no class_scale and
// no bias.
struct Loops {
  Kind kind;
  bool plain;
};

// Folds a tile of cosines z [rows, ld] into the rows' states. tile_lse, where not null, takes the tile's own
// log-sum-exp of each row, at the given stride.
template <class A>
void fold_tile(Loops loops, const A* z, int64_t rows, const Tile<A>& tile, const Scratch<A>& scratch, const Row<A>* row,
               RowState* state, A* tile_lse, int64_t lse_stride);

// h_ij = g_ij * inverse_j from a tile of cosines z, where g is the gradient of the cosines. z and h are [rows, ld] and
// may be one array. class_sums [2, classes] += the gradients of class_scale and bias, unless plain.
template <class A>
void gradient_tile(Loops loops, const A* z, A* h, int64_t rows, const Tile<A>& tile, const Scratch<A>& scratch,
                   const Row<A>* row, A* class_sums);

// Calls f(Tag<K>, std::bool_constant<plain>) with the template arguments of the loops.
template <class A, class F>
void with_loops(Loops loops, F f) {
  if (loops.plain) return f(Tag<Cosine<A>>(), std::true_type());
  with_kind<A>(loops.kind, [&](auto tag) { f(tag, std::false_type()); });
}

// The largest cosine of each class and the centre that has it, the lowest where several do.
template <class A>
HK_INLINE void nearest_centres(const A* c, int64_t classes, int64_t sub_centers, A* best, A* winner) {
#pragma omp simd
  for (int64_t j = 0; j < classes; ++j) best[j] = c[j * sub_centers], winner[j] = 0;
  for (int64_t k = 1; k < sub_centers; ++k) {
    const A number = A(k);
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) {
      const A other = c[j * sub_centers + k];
      const bool nearer = other > best[j] || other != other;
      best[j] = nearer ? other : best[j];
      winner[j] = nearer ? number : winner[j];
    }
  }
}

}  // namespace hyperkernels::margin_softmax
