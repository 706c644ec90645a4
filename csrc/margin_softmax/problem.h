// A problem as forward and backward see it: sizes, options, pointers, and who computes what.
//
// Classes are cut into tiles of `block`, tiles into at most kLanes contiguous lanes; a lane is one unit of parallel
// work and owns its partial sums, so results depend on the sizes and not on the number of threads. Within a lane every
// product is a single-threaded GEMM whose output stays in cache for the loops of rows.h and tiles.h. Rows go in chunks
// of kRows. Never stored: unit centres, their gradient, and the N x C cosines beyond the tiles that the caller paid for
// (`kept`, tile t of them at [t, N, block * sub_centers]).
//
// Where `classes` are given these R classes alone exist: C is R, a class is its position among them, and what is stored
// a class or a centre has their numbers alone. The weight keeps all of its rows; a tile's own are gathered by the lane.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/interrupt.h"
#include "../common/parallel.h"
#include "../common/workspace.h"
#include "tiles.h"

namespace hyperkernels::margin_softmax {

constexpr int64_t kLanes = 32;
constexpr int64_t kFewLanes = 8;
constexpr int64_t kRows = 256;
constexpr int64_t kLargestTile = 4096;           // centres of a tile, unless one class has more
constexpr int64_t kLaneSums = int64_t(1) << 25;  // numbers that the lanes' partial sums of dx may take

// Sizes and options, and how the work is cut.
struct Plan {
  int64_t n, c, d;  // rows, classes, embedding size
  KindFacts negatives;
  int64_t sub_centers;
  bool normalize_x, normalize_weight;
  double eps;
  int64_t ignore_index, absent_index;
  int64_t block, kept_blocks;

  int64_t blocks() const { return (c + block - 1) / block; }
  int64_t lanes() const {
    const int64_t affordable = std::max(kFewLanes, kLaneSums / std::max<int64_t>(1, n * d));
    return std::min({kLanes, blocks(), affordable});
  }
  int64_t lane_begin(int64_t lane) const { return blocks() * lane / lanes(); }
  int64_t first_class(int64_t b) const { return b * block; }
  int64_t classes_in(int64_t b) const { return std::min(block, c - b * block); }
  int64_t tile_width() const { return block * sub_centers; }
  int64_t centres() const { return c * sub_centers; }
  int64_t chunk() const { return std::min(kRows, n); }
  // Kept tiles are spread evenly, so that every lane has its share of them.
  int64_t kept_before(int64_t b) const { return b * kept_blocks / blocks(); }
  bool keeps(int64_t b) const { return kept_before(b + 1) > kept_before(b); }
  // Where row r of tile b lies in `kept`.
  int64_t kept_at(int64_t b, int64_t r) const { return (kept_before(b) * n + r) * tile_width(); }
  int64_t kept_size() const { return kept_blocks * n * tile_width(); }

  // Calls f(lane, interrupt) for every lane, in parallel; f asks `interrupt` now and then.
  template <class F>
  void over_lanes(const F& f) const {
    Interrupt interrupt;
    in_parallel(lanes(), [&](int64_t lane) { f(lane, interrupt); });
    interrupt.rethrow();
  }

  // Calls f(begin, end) for ranges of rows, in parallel.
  template <class F>
  void over_rows(const F& f) const {
    parallel_for(0, n, grain(d), f);
  }
};

// T is the type of x and weight.
template <class T>
struct ClassProblem : Plan {
  using A = Accumulate<T>;

  const T* x;                   // [N, D]
  const T* weight;              // [all classes * sub_centers, D]
  const int64_t* target;        // [N]
  const A* scale;               // [N]
  const A *class_scale, *bias;  // [C], or null
  const A* transform;           // [N, negatives.parameters], or null
  const int64_t* classes;       // [C], increasing, or null: all of them

  Loops loops() const {
    return {negatives.kind, negatives.kind == Kind::kCosine && class_scale == nullptr && bias == nullptr};
  }

  // The raw centres of the class at that position.
  HK_INLINE const T* centres_of(int64_t position) const {
    const int64_t index = classes == nullptr ? position : classes[position];
    return weight + index * sub_centers * d;
  }

  // The raw centres of tile b, side by side: where they stand in the weight, or in the copy, of a whole tile's size,
  // that they are gathered into.
  const T* centres_of_tile(int64_t b, T* copy) const {
    const int64_t first = first_class(b), size = sub_centers * d;
    if (classes == nullptr) return centres_of(first);
    for (int64_t j = 0; j < classes_in(b); ++j) std::copy_n(centres_of(first + j), size, copy + j * size);
    return copy;
  }
  int64_t copy_size() const { return classes == nullptr ? 0 : tile_width() * d; }
};

// The first half of every row; `factor` is 1 until the products say otherwise.
template <class T>
std::vector<Row<Accumulate<T>>> make_rows(const ClassProblem<T>& p) {
  using A = Accumulate<T>;
  std::vector<Row<A>> rows(p.n);
  const int64_t parameters = p.negatives.parameters;
  for (int64_t i = 0; i < p.n; ++i) {
    Row<A>& row = rows[i];
    row.s = p.scale[i];
    row.inverse_s = A(1 / double(p.scale[i]));
    row.factor = 1;
    row.active = p.target[i] != p.ignore_index;
    row.own = row.active && p.target[i] != p.absent_index ? p.target[i] : -1;
    for (int64_t k = 0; k < parameters; ++k) row.parameters[k] = p.transform[i * parameters + k];
  }
  return rows;
}

// A lane's memory for the loops over a tile.
template <class A>
struct TileScratch {
  Scratch<A> loops;
  A *inverse, *ones, *zeros;

  template <class Memory>
  TileScratch(const Plan& p, Memory& memory) {
    for (A** row : {&loops.best, &loops.winner, &loops.value, &loops.plain, &ones, &zeros}) {
      *row = memory.template take<A>(p.block);
    }
    inverse = memory.template take<A>(p.tile_width());
  }
};

// Tile b with centres of the given norms. A problem that lacks class_scale or bias has ones and zeros in their place.
template <class T, class A = Accumulate<T>>
Tile<A> make_tile(const ClassProblem<T>& p, int64_t b, const A* norms, const TileScratch<A>& scratch) {
  const int64_t first = p.first_class(b), classes = p.classes_in(b);
  Tile<A> tile{first, classes, p.sub_centers, p.tile_width(), scratch.inverse, scratch.ones, scratch.zeros};
  simd::run<Inverses>(norms, tile.centres(), p.eps, p.normalize_weight, scratch.inverse);
  if (p.class_scale != nullptr) {
    tile.class_scale = p.class_scale + first;
  } else {
    std::fill_n(scratch.ones, classes, A(1));
  }
  if (p.bias != nullptr) {
    tile.bias = p.bias + first;
  } else {
    std::fill_n(scratch.zeros, classes, A(0));
  }
  return tile;
}

}  // namespace hyperkernels::margin_softmax
