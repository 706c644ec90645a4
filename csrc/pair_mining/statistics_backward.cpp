// The gradient of the pair statistics, one tile of similarities at a time. schedule.h says how the work is cut.
//
// With h the gradients of the similarities of a tile, the gradient of its rows is h y and that of its columns h^T x.
// Distances depend on y - x, so that what a vector gets of itself is taken off at the end, by the sums of h. Of x with
// itself h holds both ends of a pair.

#include <optional>
#include <vector>

#include "products.h"
#include "schedule.h"
#include "weights.h"

namespace hyperkernels::pair_mining {

namespace {

// The numbers of one side, with arrays in place of what is absent.
template <class A>
class WholeTerms {
 public:
  WholeTerms(const PairGradientNumbers<A>& given, int64_t n) : n_(n) {
    const A* c = given.coefficients;
    const PairNumbers<A>& numbers = given.numbers;
    terms_ = {whole(numbers.lower, kNowhere<A>),
              whole(numbers.upper, kNowhere<A>),
              whole(numbers.scale, A(1)),
              whole(numbers.offset, A(0)),
              whole(given.lse, A(0)),
              c,
              c + n,
              c + 2 * n,
              c + 3 * n};
  }

  const PairTerms<A>* get() const { return &terms_; }

 private:
  const A* whole(const A* given, A value) {
    if (given != nullptr) return given;
    Buffer<A>& filled = filled_.emplace_back(n_);
    std::fill_n(filled.data(), n_, value);
    return filled.data();
  }

  const int64_t n_;
  std::vector<Buffer<A>> filled_;
  PairTerms<A> terms_;
};

template <Kind kKind, class A>
void weigh(const WeighTile<A>* tile, bool columns) {
  if (columns) {
    simd::run<WeighRows<kKind, true>>(tile);
  } else {
    simd::run<WeighRows<kKind, false>>(tile);
  }
}

template <class A>
void weigh(Kind kind, const WeighTile<A>* tile, bool columns) {
  switch (kind) {
    case Kind::kLinear:
      return weigh<Kind::kLinear>(tile, columns);
    case Kind::kCircle:
      return weigh<Kind::kCircle>(tile, columns);
    case Kind::kSoftplus:
      return weigh<Kind::kSoftplus>(tile, columns);
    case Kind::kNone:
      return weigh<Kind::kNone>(tile, columns);
  }
}

// The gradient of one side in the making: planes of sums, and for distances what each vector gets of itself. A single
// plane of the accumulator's dtype is the result's memory.
template <class T>
class Gradient {
 public:
  using A = Accumulate<T>;

  Gradient(const PairOptions& p, const T* side, int64_t n, int64_t planes, T* out)
      : side_(side), n_(n), d_(p.d), planes_(planes), out_(out) {
    if constexpr (std::is_same_v<T, A>) sums_ = planes == 1 ? out : nullptr;
    if (sums_ == nullptr) {
      memory_ = Buffer<A>(planes * n * p.d);
      sums_ = memory_.data();
    }
    fill_zero(sums_, planes * n * p.d);
    if (p.similarity != Similarity::kDot) weights_.resize(planes * n);
  }

  // The rows first .. first + h.rows of a plane get h operand, less themselves by h_sums.
  void add(int64_t plane, int64_t first, const Matrix<A>& h, const double* h_sums, const Matrix<A>& operand,
           const uint8_t* finite, Buffer<A>& tame) {
    const int64_t row = plane * n_ + first;
    add_product(h, operand, finite, sums_ + row * d_, tame);
    if (weights_.empty()) return;
    for (int64_t i = 0; i < h.rows; ++i) weights_[row + i] += h_sums[i];
  }

  void finish() {
    const bool in_place = memory_.data() == nullptr;
    if (in_place && weights_.empty()) return;
    parallel_for(0, n_, grain(d_), [&](int64_t begin, int64_t end) {
      const double* weights = weights_.empty() ? nullptr : weights_.data() + begin;
      const int64_t first = begin * d_;
      simd::run<FinishGradient>(sums_ + first, weights, side_ + first, planes_, n_, d_, end - begin, out_ + first);
    });
  }

 private:
  const T* const side_;
  const int64_t n_, d_, planes_;
  T* const out_;
  A* sums_ = nullptr;  // [planes, n, D]
  Buffer<A> memory_;
  std::vector<double> weights_;
};

// The pieces of one thread.
template <class T>
struct WeighPieces {
  using A = Accumulate<T>;

  template <class Memory>
  WeighPieces(Memory& memory, const PairProblem<T>& p, const SideNumbers<A>& squared_norms)
      : tiles(memory, p, squared_norms),
        h(memory.template take<A>(tiles.ld)),
        row_sums(memory.template take<double>(p.most_rows())),
        column_sums(memory.template take<double>(tiles.ld)),
        mask(memory.template take<Mask<A>>(2 * tiles.ld)) {}

  Tiles<T> tiles;
  A* const h;
  double *const row_sums, *const column_sums;
  Mask<A>* const mask;
  Buffer<A> tame;  // seldom needed
};

}  // namespace

template <class T>
void pair_statistics_backward(const PairBackwardCall<T>& call) {
  using A = Accumulate<T>;
  using Pieces = WeighPieces<T>;
  const PairProblem<T>& p = call.problem;
  if (call.dx == nullptr && call.dref == nullptr) return;
  const Schedule schedule(p, call.dx != nullptr, call.dref != nullptr);
  std::optional<Gradient<T>> dx, dref;
  if (call.dx != nullptr) dx.emplace(p, p.x, p.n, schedule.row_planes(), call.dx);
  if (call.dref != nullptr) dref.emplace(p, p.ref, p.m, schedule.column_planes(), call.dref);
  // Where x meets itself both ends of a pair are rows of x.
  Gradient<T>* const column_gradient = p.self ? &*dx : dref ? &*dref : nullptr;
  const SideNumbers<uint8_t> finite = finite_rows(p);
  const SideNumbers<A> squares = squared_norms(p);
  const WholeTerms<A> row_terms(call.of_rows, p.n);
  std::optional<WholeTerms<A>> column_terms;
  if (call.columns) column_terms.emplace(call.of_columns, p.m);
  const auto make = [&] { return InWorkspace<Pieces>(p, squares); };
  schedule.run(make, [&](const Item& item, InWorkspace<Pieces>& memory, Interrupt& interrupt) {
    Tiles<T>& tiles = memory->tiles;
    over_tiles(p, item, interrupt, [&](const TilePlace& at) {
      tiles.take_columns(at.column, at.columns);
      tiles.take_rows(at.row, at.rows);
      tiles.compute();
      const WeighTile<A> tile{&p.selection,
                              p.similarity,
                              row_terms.get(),
                              column_terms ? column_terms->get() : row_terms.get(),
                              A(call.transform.p0),
                              A(call.transform.p1),
                              tiles.u(),
                              tiles.ld,
                              at.row,
                              at.rows,
                              at.column,
                              at.columns,
                              memory->mask,
                              memory->h,
                              memory->row_sums,
                              memory->column_sums};
      weigh(call.transform.kind, &tile, p.self ? !at.diagonal : call.columns);
      const Matrix<A> h = matrix<A>(tiles.u(), at.rows, at.columns, tiles.ld);
      if (dx) {
        dx->add(item.row_plane, at.row, h, memory->row_sums, tiles.columns(), finite.columns() + at.column,
                memory->tame);
      }
      if (column_gradient == nullptr) return;
      column_gradient->add(item.column_plane, at.column, h.transposed(), memory->column_sums, tiles.rows(),
                           finite.rows() + at.row, memory->tame);
    });
  });
  if (dx) dx->finish();
  if (dref) dref->finish();
}

template void pair_statistics_backward(const PairBackwardCall<double>&);
template void pair_statistics_backward(const PairBackwardCall<float>&);
template void pair_statistics_backward(const PairBackwardCall<simd::Bfloat16>&);
template void pair_statistics_backward(const PairBackwardCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
