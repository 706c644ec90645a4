// The gradient of the pair statistics on the CPU, one tile of similarities at a time. schedule.h says how the work is
// cut.
//
// With h the gradients of the similarities of a tile, the gradient of its rows is h y and that of its columns h^T x.
// Distances depend on y - x, so that what a vector gets of itself is taken off at the end, by the sums of h. Of x with
// itself h holds both ends of a pair.

#include <torch/library.h>

#include <tuple>

#include "weights.h"

namespace hyperkernels::pair_mining {

namespace {

struct Coefficients {
  at::Tensor c, value;  // [4, n], [n]
};

Coefficients checked(const Problem& p, const char* prefix, int64_t n, Kind kind,
                     const std::optional<at::Tensor>& coefficients, const std::optional<at::Tensor>& value) {
  const std::string name(prefix);
  TORCH_CHECK_VALUE(coefficients.has_value(), "statistics of the columns need ", name, "coefficients");
  const auto dtype = c10::typeMetaToScalarType(p.accumulate().dtype());
  TORCH_CHECK_TYPE(coefficients->scalar_type() == dtype, name, "coefficients must be ", dtype, "; got ",
                   coefficients->scalar_type());
  TORCH_CHECK_VALUE(coefficients->dim() == 2 && coefficients->size(0) == 4 && coefficients->size(1) == n, name,
                    "coefficients must be [4, ", n, "]; got ", coefficients->sizes());
  TORCH_CHECK_VALUE(coefficients->device().is_cpu(), name, "coefficients must be on the cpu");
  const bool exponential = kind == Kind::kLinear || kind == Kind::kCircle;
  TORCH_CHECK_VALUE(!exponential || value.has_value(), "the transform needs ", name, "value");
  return {coefficients->contiguous(),
          exponential ? numbers_of(p, (name + "value").c_str(), value, n) : at::zeros({n}, p.accumulate())};
}

template <class A>
Terms<A> terms(const Numbers& numbers, const Coefficients& coefficients, int64_t n) {
  const A* c = data<A>(coefficients.c);
  return {data<A>(numbers.lower),
          data<A>(numbers.upper),
          data<A>(numbers.scale),
          data<A>(numbers.offset),
          data<A>(coefficients.value),
          c,
          c + n,
          c + 2 * n,
          c + 3 * n};
}

template <class A>
using Weigh = void (*)(const Problem*, const Terms<A>*, const Terms<A>*, A, A, A*, int64_t, int64_t, int64_t, int64_t,
                       int64_t, Mask<A>*, A*, double*, double*);

template <Kind kKind, class A>
Weigh<A> weigher(bool columns) {
  return columns ? simd::run<WeighRows<kKind, true>, const Problem*, const Terms<A>*, const Terms<A>*, A, A, A*,
                             int64_t, int64_t, int64_t, int64_t, int64_t, Mask<A>*, A*, double*, double*>
                 : simd::run<WeighRows<kKind, false>, const Problem*, const Terms<A>*, const Terms<A>*, A, A, A*,
                             int64_t, int64_t, int64_t, int64_t, int64_t, Mask<A>*, A*, double*, double*>;
}

template <class A>
Weigh<A> weigher(Kind kind, bool columns) {
  switch (kind) {
    case Kind::kLinear:
      return weigher<Kind::kLinear, A>(columns);
    case Kind::kCircle:
      return weigher<Kind::kCircle, A>(columns);
    case Kind::kSoftplus:
      return weigher<Kind::kSoftplus, A>(columns);
    default:
      return weigher<Kind::kNone, A>(columns);
  }
}

template <class F>
void over_rows(const Problem& p, int64_t n, F f) {
  at::parallel_for(0, n, std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, p.d)), f);
}

// The gradient of one side in the making: planes of sums, and for distances what each vector gets of itself.
template <class T>
class Gradient {
 public:
  using A = Accumulate<T>;

  Gradient(const Problem& p, const Side& side, int64_t planes)
      : p_(p), side_(side), planes_(planes), sums_(at::zeros({planes, side.n, p.d}, p.accumulate())) {
    if (p.similarity != Similarity::kDot) weights_.resize(planes * side.n);
  }

  // The rows first .. first + h.size(0) of a plane get h operand, less themselves by h_sums.
  void add(int64_t plane, int64_t first, const at::Tensor& h, const double* h_sums, const at::Tensor& operand,
           const uint8_t* finite) {
    add_product<A>(sums_.select(0, plane).narrow(0, first, h.size(0)), h, operand, finite);
    for (int64_t i = 0; i < h.size(0) && !weights_.empty(); ++i) {
      weights_[plane * side_.n + first + i] += h_sums[i];
    }
  }

  at::Tensor finish() {
    const bool in_place = std::is_same_v<T, A> && planes_ == 1;
    const at::Tensor out = in_place ? sums_.select(0, 0) : at::empty({side_.n, p_.d}, side_.values.options());
    if (in_place && weights_.empty()) return out;
    over_rows(p_, side_.n, [&](int64_t begin, int64_t end) {
      simd::run<FinishGradient>(mutable_data<A>(sums_) + begin * p_.d,
                                weights_.empty() ? nullptr : static_cast<const double*>(weights_.data() + begin),
                                data<T>(side_.values) + begin * p_.d, planes_, side_.n, p_.d, end - begin,
                                mutable_data<T>(out) + begin * p_.d);
    });
    return out;
  }

 private:
  const Problem& p_;
  const Side& side_;
  const int64_t planes_;
  at::Tensor sums_;
  std::vector<double> weights_;
};

struct Given {
  bool columns, need_x, need_ref;
  Transform transform;
  Numbers of_rows, of_columns;
  Coefficients row_coefficients, column_coefficients;
};

template <class T>
std::tuple<at::Tensor, at::Tensor> backward(const Problem& p, const Given& given) {
  using A = Accumulate<T>;
  const at::Tensor none = at::empty({0}, p.rows.values.options());
  if (!given.need_x && !given.need_ref) return {none, none};
  const Schedule schedule(p, given.need_x, given.need_ref);
  std::optional<Gradient<T>> dx, dref;
  if (given.need_x) dx.emplace(p, p.rows, schedule.row_planes());
  if (given.need_ref) dref.emplace(p, p.columns, schedule.column_planes());
  // Where x meets itself both ends of a pair are rows of x.
  Gradient<T>* const of_columns = p.self ? &*dx : given.need_ref ? &*dref : nullptr;
  const auto row_finite = finite_rows<T>(p, p.rows);
  const auto column_finite = p.self ? row_finite : finite_rows<T>(p, p.columns);
  const at::Tensor row_squares = squared_norms(p, p.rows);
  const at::Tensor column_squares = p.self ? row_squares : squared_norms(p, p.columns);
  const Terms<A> row_terms = terms<A>(given.of_rows, given.row_coefficients, p.rows.n);
  Terms<A> column_terms = row_terms;
  if (given.columns) column_terms = terms<A>(given.of_columns, given.column_coefficients, p.columns.n);
  const int64_t most_rows = std::min(p.row_tile, p.rows.n), ld = std::min(p.column_tile, p.columns.n);
  schedule.run([&](const Item& item, Interrupt& interrupt) {
    Tiles<T> tiles(p, row_squares, column_squares);
    const at::Tensor tile = at::empty({most_rows, ld}, p.accumulate());
    std::vector<A> gradients(ld);
    std::vector<double> row_sums(most_rows), column_sums(ld);
    std::vector<Mask<A>> mask(2 * ld);
    over_tiles(p, item, interrupt, [&](const TilePlace& at) {
      const at::Tensor& y = tiles.take_columns(at.column, at.columns);
      const at::Tensor& x = tiles.take_rows(at.row, at.rows);
      A* u = mutable_data<A>(tile);
      tiles.similarities(u, ld);
      const bool both = p.self ? !at.diagonal : given.columns;
      weigher<A>(given.transform.kind, both)(&p, &row_terms, &column_terms, A(given.transform.p0),
                                             A(given.transform.p1), u, ld, at.row, at.rows, at.column, at.columns,
                                             mask.data(), gradients.data(), row_sums.data(), column_sums.data());
      const at::Tensor h = tile.narrow(0, 0, at.rows).narrow(1, 0, at.columns);
      if (dx) dx->add(item.row_plane, at.row, h, row_sums.data(), y, column_finite.data() + at.column);
      if (of_columns == nullptr) return;
      of_columns->add(item.column_plane, at.column, h.t(), column_sums.data(), x, row_finite.data() + at.row);
    });
  });
  return {dx ? dx->finish() : none, dref ? dref->finish() : none};
}

std::tuple<at::Tensor, at::Tensor> pair_statistics_backward(
    const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label, const at::Tensor& ref_label,
    const at::Tensor& id, const at::Tensor& ref_id, const std::optional<at::Tensor>& lower,
    const std::optional<at::Tensor>& upper, c10::string_view select, c10::string_view similarity,
    const at::Tensor& coefficients, const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& offset,
    const at::Tensor& value, bool columns, const std::optional<at::Tensor>& ref_lower,
    const std::optional<at::Tensor>& ref_upper, const std::optional<at::Tensor>& ref_scale,
    const std::optional<at::Tensor>& ref_offset, const std::optional<at::Tensor>& ref_coefficients,
    const std::optional<at::Tensor>& ref_value, c10::string_view transform, double p0, double p1, int64_t row_tile,
    int64_t column_tile, bool need_x, bool need_ref) {
  Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  take_column_bounds(p, columns, ref_lower, ref_upper);
  Given given{columns, need_x, need_ref && !p.self, parse_transform(transform, p0, p1), {}, {}, {}, {}};
  const Kind kind = given.transform.kind;
  given.of_rows = numbers_of_side(p, "", p.rows, kind, scale, offset);
  given.row_coefficients = checked(p, "", p.rows.n, kind, coefficients, value);
  if (columns) {
    given.of_columns = numbers_of_side(p, "ref_", p.columns, kind, ref_scale, ref_offset);
    given.column_coefficients = checked(p, "ref_", p.columns.n, kind, ref_coefficients, ref_value);
  }
  return with_storage(p, [&](auto t) { return backward<decltype(t)>(p, given); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("pair_statistics_backward", pair_statistics_backward); }

}  // namespace hyperkernels::pair_mining
