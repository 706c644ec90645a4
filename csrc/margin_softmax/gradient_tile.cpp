// The backward's loops: cosines into their gradients.

#include "tiles.h"

namespace hyperkernels::margin_softmax {

namespace {

// Takes the gradient g of the classes' cosines to the centres: h = g * inverse for the nearest, 0 for the others.
template <class A>
HK_INLINE void spread_to_centres(const A* g, const A* winner, Tile<A> tile, A* h) {
  const A* inverse = tile.inverse;
  const int64_t classes = tile.classes, sub_centers = tile.sub_centers;
  if (sub_centers == 1) {
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) h[j] = g[j] * inverse[j];
    return;
  }
  for (int64_t k = 0; k < sub_centers; ++k) {
    const A number = A(k);
#pragma omp simd
    for (int64_t j = 0; j < classes; ++j) {
      const int64_t at = j * sub_centers + k;
      h[at] = winner[j] == number ? g[j] * inverse[at] : A(0);
    }
  }
}

template <class K, bool kPlain>
struct GradientTile {
  template <class A>
  static HK_INLINE void run(const A* z, A* h, int64_t rows, Tile<A> tile, Scratch<A> scratch, const Row<A>* row,
                            A* class_sums) {
    const A *class_scale = tile.class_scale, *bias = tile.bias;
    A *scale_sums = class_sums, *bias_sums = class_sums + tile.classes;
    const int64_t classes = tile.classes;
    for (int64_t i = 0; i < rows; ++i, z += tile.ld, h += tile.ld) {
      const Row<A>& r = row[i];
      const int64_t own = tile.own(r);
      if (!r.active || (r.slope == 0 && r.constant == 0)) {
        for (int64_t j = 0; j < tile.centres(); ++j) h[j] = 0;
      } else {
        const A* c = z;
        A* g = h;
        if (tile.sub_centers > 1) {
          nearest_centres(z, classes, tile.sub_centers, scratch.best, scratch.winner);
          c = scratch.best;
          g = scratch.value;
        }
        const K kind(r.parameters, r.s);
        const A s = r.s, inverse_s = r.inverse_s, top = r.top, log_sum = r.log_sum, constant = r.constant;
        const A slope = r.slope * s;
        for (int64_t begin = 0, end = own; begin < classes; begin = end + 1, end = classes) {
#pragma omp simd
          for (int64_t j = begin; j < end; ++j) {
            const A weight = kPlain ? A(1) : class_scale[j], b = kPlain ? A(0) : bias[j];
            const Term<A> term = kind.at(c[j], b);
            if constexpr (K::kSum) {
              g[j] = constant * term.slope;
              if constexpr (!kPlain) bias_sums[j] += constant * term.bias_slope;
            } else {
              const A v = weight * term.value + b * inverse_s;
              // v is computed again and may pass top by a rounding that a large scale magnifies: a share is at most 1.
              const A power = s * (v - top) - log_sum;
              const A pull = slope * simd::exp(power > 0 ? A(0) : power);
              g[j] = (pull + constant) * (weight * term.slope);
              if constexpr (!kPlain) {
                scale_sums[j] += (pull + constant) * term.value;
                bias_sums[j] += pull * inverse_s;
              }
            }
          }
        }
        spread_to_centres(static_cast<const A*>(g), static_cast<const A*>(scratch.winner), tile, h);
      }
      if (!r.active || own == classes) continue;
      A* mine = h + own * tile.sub_centers;
      for (int64_t k = 0; k < tile.sub_centers; ++k) mine[k] = 0;
      mine[r.own_center] = r.target * tile.inverse[own * tile.sub_centers + r.own_center];
    }
  }
};

}  // namespace

template <class A>
void gradient_tile(Loops loops, const A* z, A* h, int64_t rows, const Tile<A>& tile, const Scratch<A>& scratch,
                   const Row<A>* row, A* class_sums) {
  with_loops<A>(loops, [&](auto tag, auto plain) {
    using K = typename decltype(tag)::type;
    simd::run<GradientTile<K, decltype(plain)::value>>(z, h, rows, tile, scratch, row, class_sums);
  });
}

#define HK_GRADIENT_TILE(A) \
  template void gradient_tile(Loops, const A*, A*, int64_t, const Tile<A>&, const Scratch<A>&, const Row<A>*, A*);
HK_GRADIENT_TILE(double)
HK_GRADIENT_TILE(float)

}  // namespace hyperkernels::margin_softmax
