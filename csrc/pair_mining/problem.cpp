#include "problem.h"

#include <cmath>

namespace hyperkernels::pair_mining {

namespace {

at::Tensor checked(const char* name, const at::Tensor& given, at::ScalarType dtype, int64_t n) {
  TORCH_CHECK_TYPE(given.scalar_type() == dtype, name, " must be ", dtype, "; got ", given.scalar_type());
  TORCH_CHECK_VALUE(given.dim() == 1 && given.size(0) == n, name, " must be [", n, "]; got ", given.sizes());
  TORCH_CHECK_VALUE(given.device().is_cpu(), name, " must be on the cpu; got ", given.device());
  return given.contiguous();
}

void fill_side(const char* prefix, const at::Tensor& values, const at::Tensor& label, const at::Tensor& id,
               at::ScalarType label_dtype, bool labelled, bool identified, Side& side) {
  const std::string name(prefix);
  side.values = values.contiguous();
  side.n = values.size(0);
  if (labelled) side.label = checked((name + "label").c_str(), label, label_dtype, side.n);
  if (identified) side.id = checked((name + "id").c_str(), id, at::kInt, side.n);
}

// A tile of float64 takes 128 MiB at most.
constexpr int64_t kLargestTile = 4096;

void check_tile(const char* name, int64_t tile) {
  TORCH_CHECK_VALUE(tile > 0 && tile <= kLargestTile, name, " must be in [1, ", kLargestTile, "]; got ", tile);
}

Select parse_select(std::string_view name) {
  if (name == "positive") return Select::kPositive;
  if (name == "negative") return Select::kNegative;
  TORCH_CHECK_VALUE(name == "all", "select must be positive, negative or all; got ", std::string(name));
  return Select::kAll;
}

Similarity parse_similarity(std::string_view name) {
  if (name == "dot") return Similarity::kDot;
  if (name == "euclidean") return Similarity::kEuclidean;
  TORCH_CHECK_VALUE(name == "squared_euclidean", "similarity must be dot, euclidean or squared_euclidean; got ",
                    std::string(name));
  return Similarity::kSquaredEuclidean;
}

struct Range {
  int32_t low, high;
};

Range label_range(const Side& side, int64_t first, int64_t count) {
  const int32_t* label = data<int32_t>(side.label) + first;
  Range range{label[0], label[0]};
  for (int64_t k = 1; k < count; ++k) {
    range.low = std::min(range.low, label[k]);
    range.high = std::max(range.high, label[k]);
  }
  return range;
}

struct SquaredNorms {
  template <class T, class A>
  static HK_INLINE void run(const T* v, int64_t rows, int64_t dim, A* out) {
    for (int64_t i = 0; i < rows; ++i, v += dim) out[i] = A(simd::sum_squares(v, dim));
  }
};

struct Widen {
  template <class T, class A>
  static HK_INLINE void run(const T* from, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] = A(simd::load(from + k));
  }
};

// Minus the distance, from inner products.
struct Distances {
  template <class A>
  static HK_INLINE void run(A* u, int64_t ld, int64_t rows, int64_t columns, const A* row_squares,
                            const A* column_squares, bool squared) {
    for (int64_t i = 0; i < rows; ++i, u += ld) {
      const A own = row_squares[i];
#pragma omp simd
      for (int64_t j = 0; j < columns; ++j) {
        const A apart = own + column_squares[j] - 2 * u[j];
        u[j] = apart < 0 ? A(0) : apart;  // NaN stays
      }
      if (squared) {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) u[j] = -u[j];
      } else {
#pragma omp simd
        for (int64_t j = 0; j < columns; ++j) u[j] = -std::sqrt(u[j]);
      }
    }
  }
};

}  // namespace

Problem make_problem(const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label,
                     const at::Tensor& ref_label, const at::Tensor& id, const at::Tensor& ref_id,
                     const std::optional<at::Tensor>& lower, const std::optional<at::Tensor>& upper,
                     std::string_view select, std::string_view similarity, int64_t row_tile, int64_t column_tile) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
                   "x must be float64, float32, bfloat16 or float16; got ", dtype);
  TORCH_CHECK_VALUE(x.dim() == 2, "x must be [N, D]; got ", x.sizes());
  check_tile("row_tile", row_tile);
  check_tile("column_tile", column_tile);
  Problem p;
  p.self = !ref.has_value();
  const at::Tensor& other = p.self ? x : *ref;
  TORCH_CHECK_TYPE(other.scalar_type() == dtype, "ref must have the dtype of x (", dtype, "); got ",
                   other.scalar_type());
  TORCH_CHECK_VALUE(other.device().is_cpu(), "ref must be on the cpu; got ", other.device());
  TORCH_CHECK_VALUE(other.dim() == 2 && other.size(1) == x.size(1), "ref must be [M, ", x.size(1), "]; got ",
                    other.sizes());
  p.select = parse_select(select);
  p.similarity = parse_similarity(similarity);
  p.d = x.size(1);
  p.row_tile = row_tile;
  p.column_tile = column_tile;
  const auto label_dtype = label.scalar_type();
  TORCH_CHECK_TYPE(label_dtype == at::kInt || label_dtype == at::kLong, "label must be int32 or int64; got ",
                   label_dtype);
  const bool labelled = label.numel() > 0 || ref_label.numel() > 0;
  const bool identified = id.numel() > 0 || ref_id.numel() > 0;
  p.bits = labelled && label_dtype == at::kLong;
  TORCH_CHECK_VALUE(labelled || p.select == Select::kAll || x.size(0) == 0 || other.size(0) == 0,
                    "select=", std::string(select), " needs label");
  fill_side("", x, label, id, label_dtype, labelled, identified, p.rows);
  if (p.self) {
    p.columns = p.rows;
  } else {
    fill_side("ref_", other, ref_label, ref_id, label_dtype, labelled, identified, p.columns);
  }
  p.rows.lower = numbers_of(p, "lower", lower, p.rows.n);
  p.rows.upper = numbers_of(p, "upper", upper, p.rows.n);
  return p;
}

at::Tensor numbers_of(const Problem& problem, const char* name, const std::optional<at::Tensor>& given, int64_t n) {
  if (!given.has_value()) return {};
  return checked(name, *given, c10::typeMetaToScalarType(problem.accumulate().dtype()), n);
}

bool may_count(const Problem& p, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  if (!p.rows.label.defined() || p.bits) return true;
  const Range a = label_range(p.rows, row, rows), b = label_range(p.columns, column, columns);
  if (a.high < 0 || b.high < 0) return false;
  if (p.select == Select::kPositive) return a.low <= b.high && b.low <= a.high;
  return p.select == Select::kAll || !(a.low == a.high && b.low == b.high && a.low == b.low);
}

at::Tensor squared_norms(const Problem& problem, const Side& side) {
  if (problem.similarity == Similarity::kDot) return {};
  at::Tensor squares = at::empty({side.n}, problem.accumulate());
  const int64_t grain = std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, problem.d));
  with_storage(problem, [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, side.n, grain, [&](int64_t begin, int64_t end) {
      simd::run<SquaredNorms>(data<T>(side.values) + begin * problem.d, end - begin, problem.d,
                              mutable_data<Accumulate<T>>(squares) + begin);
    });
  });
  return squares;
}

template <class T>
Tiles<T>::Tiles(const Problem& problem, const at::Tensor& row_squares, const at::Tensor& column_squares)
    : problem_(problem), row_squares_(row_squares), column_squares_(column_squares) {}

template <class T>
const at::Tensor& Tiles<T>::take(const Side& side, int64_t first, int64_t count, at::Tensor& widened,
                                 at::Tensor& taken) {
  if constexpr (std::is_same_v<T, A>) {
    taken = side.values.narrow(0, first, count);
  } else {
    if (!widened.defined() || widened.size(0) < count) widened = at::empty({count, problem_.d}, problem_.accumulate());
    taken = widened.narrow(0, 0, count);
    simd::run<Widen>(data<T>(side.values) + first * problem_.d, count * problem_.d, mutable_data<A>(widened));
  }
  return taken;
}

template <class T>
const at::Tensor& Tiles<T>::take_rows(int64_t first, int64_t count) {
  first_row_ = first;
  return take(problem_.rows, first, count, widened_rows_, rows_);
}

template <class T>
const at::Tensor& Tiles<T>::take_columns(int64_t first, int64_t count) {
  if (columns_.defined() && first_column_ == first && columns_.size(0) == count) return columns_;
  first_column_ = first;
  return take(problem_.columns, first, count, widened_columns_, columns_);
}

template <class T>
void Tiles<T>::similarities(A* u, int64_t ld) {
  at::Tensor out = at::from_blob(u, {rows_.size(0), columns_.size(0)}, {ld, 1}, rows_.options());
  at::mm_out(out, rows_, columns_.t());
  if (problem_.similarity == Similarity::kDot) return;
  simd::run<Distances>(u, ld, rows_.size(0), columns_.size(0), data<A>(row_squares_) + first_row_,
                       data<A>(column_squares_) + first_column_, problem_.similarity == Similarity::kSquaredEuclidean);
}

template class Tiles<double>;
template class Tiles<float>;
template class Tiles<simd::Bfloat16>;
template class Tiles<simd::Half>;

}  // namespace hyperkernels::pair_mining
