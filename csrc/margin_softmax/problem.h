// What forward and backward share: the problem's tensors and options, and who computes what.
//
// Classes are cut into tiles of `block`, tiles into at most kLanes contiguous lanes; a lane is one unit of parallel
// work and owns its partial sums, so results depend on the sizes and not on the number of threads. Within a lane every
// product is a single-threaded GEMM whose output stays in cache for the loops of rows.h. Rows go in chunks of kRows.
// Never stored: unit centres, their gradient, and the N x C cosines beyond the tiles that the caller paid for (`kept`,
// tile t of them at [t, N, block * sub_centers]).
//
// Where `classes` are given these R classes alone exist: C is R, a class is its position among them, and what is stored
// a class or a centre has their numbers alone. The weight keeps all of its rows; a tile's own are gathered by the lane.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../interrupt.h"
#include "../storage.h"
#include "rows.h"

namespace hyperkernels::margin_softmax {

constexpr int64_t kLanes = 32;
constexpr int64_t kFewLanes = 8;
constexpr int64_t kRows = 256;
constexpr int64_t kLargestTile = 4096;           // centres of a tile, unless one class has more
constexpr int64_t kLaneSums = int64_t(1) << 25;  // numbers that the lanes' partial sums of dx may take

struct Problem {
  at::Tensor x, weight, target, scale;
  at::Tensor class_scale, bias, transform, classes;  // undefined where the problem has none
  KindFacts negatives;
  int64_t sub_centers;
  bool normalize_x, normalize_weight;
  double eps;
  int64_t ignore_index, absent_index;
  int64_t block, kept_blocks;

  int64_t n, c, d;  // rows, classes, embedding size

  // The logit is the cosine by the scale: the case that has kernels of its own.
  bool plain() const { return negatives.kind == Kind::kCosine && !class_scale.defined() && !bias.defined(); }
  at::TensorOptions accumulate() const { return scale.options(); }

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
  // Kept tiles are spread evenly, so that every lane has its share of them.
  int64_t kept_before(int64_t b) const { return b * kept_blocks / blocks(); }
  bool keeps(int64_t b) const { return kept_before(b + 1) > kept_before(b); }
  // Where row r of tile b lies in `kept`.
  int64_t kept_at(int64_t b, int64_t r) const { return (kept_before(b) * n + r) * tile_width(); }

  // Calls f(lane, interrupt) for every lane, in parallel; f may use ATen, and asks `interrupt` now and then.
  template <class F>
  void over_lanes(F f) const {
    Interrupt interrupt;
    // At least two items, or a single lane would run outside a parallel region, where GEMMs take all threads and their
    // sums come out in another order.
    at::parallel_for(0, std::max<int64_t>(2, lanes()), 1, [&](int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      for (int64_t lane = begin; lane < std::min(end, lanes()); ++lane) f(lane, interrupt);
    });
    interrupt.rethrow();
  }

  // Calls f(begin, end) for chunks of rows, in parallel.
  template <class F>
  void over_rows(F f) const {
    at::parallel_for(0, n, std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, d)), f);
  }
};

// Checks every size and dtype; the tensors come out contiguous.
Problem make_problem(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target, const at::Tensor& scale,
                     const std::optional<at::Tensor>& class_scale, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& transform, const std::optional<at::Tensor>& classes,
                     std::string_view negatives, int64_t sub_centers, bool normalize_x, bool normalize_weight,
                     double eps, int64_t ignore_index, int64_t absent_index, int64_t block, int64_t kept_blocks);

// Asks for large pages behind a tensor that is about to be written for the first time. Where most tiles are skipped,
// handing out the gradient's memory in the usual 4 KiB is most of the time; where none are, large pages gain nothing.
void use_large_pages(at::Tensor& tensor);

// Calls f with the storage type of the problem's x and weight.
template <class F>
auto with_storage(const Problem& problem, F f) {
  return hyperkernels::with_storage(problem.x.scalar_type(), "x", f);
}

// The raw centres of classes, side by side: where they stand in the weight, or a lane's copy of a tile of them.
template <class T>
class Centres {
 public:
  explicit Centres(const Problem& problem)
      : problem_(problem), classes_(problem.classes.defined() ? data<int64_t>(problem.classes) : nullptr) {}

  // Of the class at that position.
  const T* of_class(int64_t position) const {
    const int64_t index = classes_ == nullptr ? position : classes_[position];
    return data<T>(problem_.weight) + index * problem_.sub_centers * problem_.d;
  }

  const T* of_tile(int64_t b) {
    const int64_t first = problem_.first_class(b), count = problem_.classes_in(b);
    if (classes_ == nullptr) return of_class(first);
    const int64_t size = problem_.sub_centers * problem_.d;
    // A tensor, for its alignment: the order of a GEMM's sums may depend on it.
    if (!copy_.defined()) copy_ = at::empty({problem_.block * size}, problem_.weight.options());
    T* to = mutable_data<T>(copy_);
    for (int64_t j = 0; j < count; ++j, to += size) std::copy_n(of_class(first + j), size, to);
    return data<T>(copy_);
  }

 private:
  const Problem& problem_;
  const int64_t* const classes_;
  at::Tensor copy_;
};

// Calls f(Tag<K>, std::bool_constant<kPlain>) with the template arguments of the problem's kernels.
template <class A, class F>
void with_kernel(const Problem& problem, F f) {
  if (problem.plain()) return f(Tag<Cosine<A>>(), std::true_type());
  with_kind<A>(problem.negatives.kind, [&](auto tag) { f(tag, std::false_type()); });
}

// The first half of every row; `factor` is 1 until the products say otherwise.
template <class A>
std::vector<Row<A>> make_rows(const Problem& problem) {
  const int64_t* target = data<int64_t>(problem.target);
  const A* scale = data<A>(problem.scale);
  std::vector<Row<A>> rows(problem.n);
  for (int64_t i = 0; i < problem.n; ++i) {
    Row<A>& row = rows[i];
    row.s = scale[i];
    row.inverse_s = A(1 / double(scale[i]));
    row.factor = 1;
    row.active = target[i] != problem.ignore_index;
    row.own = row.active && target[i] != problem.absent_index ? target[i] : -1;
    const int64_t parameters = problem.negatives.parameters;
    for (int64_t p = 0; p < parameters; ++p) row.parameters[p] = data<A>(problem.transform)[i * parameters + p];
  }
  return rows;
}

// A lane's memory for the loops: the scratch rows, and class_scale and bias of a problem that has none.
template <class A>
class LaneMemory {
 public:
  explicit LaneMemory(const Problem& problem)
      : problem_(problem),
        numbers_(4 * problem.block),
        inverse_(problem.tile_width()),
        ones_(problem.block, A(1)),
        zeros_(problem.block, A(0)) {}

  Scratch<A> scratch() {
    A* p = numbers_.data();
    const int64_t block = problem_.block;
    return {p, p + block, p + 2 * block, p + 3 * block};
  }

  // Tile b with centres of the given norms.
  Tile<A> tile(int64_t b, const A* norm) {
    const int64_t first = problem_.first_class(b);
    Tile<A> tile{first, problem_.classes_in(b), problem_.sub_centers, problem_.tile_width(), inverse_.data()};
    simd::run<Inverses>(norm, tile.centres(), problem_.eps, problem_.normalize_weight, inverse_.data());
    tile.class_scale = problem_.class_scale.defined() ? data<A>(problem_.class_scale) + first : ones_.data();
    tile.bias = problem_.bias.defined() ? data<A>(problem_.bias) + first : zeros_.data();
    return tile;
  }

 private:
  const Problem& problem_;
  std::vector<A> numbers_, inverse_, ones_, zeros_;
};

}  // namespace hyperkernels::margin_softmax
