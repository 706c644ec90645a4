// The forward's loops: cosines into running log-sum-exps.

#include "tiles.h"

namespace hyperkernels::margin_softmax {

namespace {

template <class K, bool kPlain>
struct FoldTile {
  template <class A>
  static HK_INLINE void run(const A* z, int64_t rows, Tile<A> tile, Scratch<A> scratch, const Row<A>* row,
                            RowState* state, A* tile_lse, int64_t lse_stride) {
    constexpr A kNone = -std::numeric_limits<A>::infinity();
    const A *class_scale = tile.class_scale, *bias = tile.bias;
    const int64_t classes = tile.classes;
    for (int64_t i = 0; i < rows; ++i, z += tile.ld) {
      const A* c = z;
      if (tile.sub_centers > 1) {
        nearest_centres(z, classes, tile.sub_centers, scratch.best, scratch.winner);
        c = scratch.best;
      }
      const K kind(row[i].parameters, row[i].s);
      const A s = row[i].s, inverse_s = row[i].inverse_s;
      A *value = scratch.value, *plain = scratch.plain;
      const A* u = kPlain ? c : plain;       // what the hardest class is chosen by
      const A* w = kPlain ? c : value;       // the value without the bias
      const int64_t own = tile.own(row[i]);  // it cuts the row in two
      A largest = kNone, hardest = kNone;
      for (int64_t begin = 0, end = own; begin < classes; begin = end + 1, end = classes) {
#pragma omp simd reduction(max : largest, hardest)
        for (int64_t j = begin; j < end; ++j) {
          const A cosine = c[j];
          if constexpr (kPlain) {
            hardest = cosine > hardest ? cosine : hardest;
            continue;
          }
          const A weight = class_scale[j], b = bias[j], offset = b * inverse_s;
          const A phi = weight * kind.at(cosine, b).value, v = phi + offset, near = weight * cosine + offset;
          value[j] = phi;
          plain[j] = near;
          largest = v > largest ? v : largest;
          hardest = near > hardest ? near : hardest;
        }
      }
      if (kPlain) largest = hardest;
      const A shift = largest == kNone ? A(0) : largest;
      int64_t place = -1;
      if (hardest > state[i].hardest_cos) {
        for (place = 0; place < classes && (place == own || u[place] != hardest); ++place) {
        }
        place += tile.first;
      }
      A* e = kPlain ? value : plain;
      double sum = 0, weighted = 0, neg_sum = 0, hard_sum = 0, hard_count = 0;
      for (int64_t begin = 0, end = own; begin < classes; begin = end + 1, end = classes) {
        if constexpr (!K::kSum) {
#pragma omp simd
          for (int64_t j = begin; j < end; ++j) {
            const A v = kPlain ? w[j] : w[j] + bias[j] * inverse_s;
            e[j] = simd::exp(s * (v - shift));
          }
        }
        const simd::Sums part = simd::sums<A>(end - begin, [&](int64_t k, A& powers, A& shares, A& all, A&) HK_LAMBDA {
          const int64_t j = begin + k;
          all += w[j];
          if constexpr (!K::kSum) {
            powers += e[j];
            shares += e[j] * w[j];
          }
        });
        sum += part.a;
        weighted += part.b;
        neg_sum += part.c;
        if constexpr (K::kHard) {
          const simd::Sums hard = simd::sums<A>(end - begin, [&](int64_t k, A& cosines, A& count, A&, A&) HK_LAMBDA {
            const A cosine = c[begin + k];
            cosines += kind.hard(cosine) ? cosine : A(0);
            count += kind.hard(cosine) ? A(1) : A(0);
          });
          hard_sum += hard.a;
          hard_count += hard.b;
        }
      }
      const RowState part{double(largest), sum, weighted, double(hardest), place, neg_sum, hard_sum, hard_count};
      state[i].merge(part, double(s));
      if (tile_lse != nullptr) {
        const double lse = double(s) * double(largest) + std::log(sum);
        tile_lse[i * lse_stride] = largest == kNone && sum == 0 ? kNone : A(lse);
      }
    }
  }
};

}  // namespace

template <class A>
void fold_tile(Loops loops, const A* z, int64_t rows, const Tile<A>& tile, const Scratch<A>& scratch, const Row<A>* row,
               RowState* state, A* tile_lse, int64_t lse_stride) {
  with_loops<A>(loops, [&](auto tag, auto plain) {
    using K = typename decltype(tag)::type;
    simd::run<FoldTile<K, decltype(plain)::value>>(z, rows, tile, scratch, row, state, tile_lse, lse_stride);
  });
}

#define HK_FOLD_TILE(A)                                                                                              \
  template void fold_tile(Loops, const A*, int64_t, const Tile<A>&, const Scratch<A>&, const Row<A>*, RowState*, A*, \
                          int64_t);
HK_FOLD_TILE(double)
HK_FOLD_TILE(float)

}  // namespace hyperkernels::margin_softmax
