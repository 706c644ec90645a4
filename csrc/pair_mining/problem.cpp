#include "problem.h"

#include <cmath>

#include "../common/parallel.h"
#include "../common/rows.h"
#include "../common/sums.h"

namespace hyperkernels::pair_mining {

namespace {

struct LabelRange {
  int32_t least, greatest;

  LabelRange(const int32_t* code, int64_t count) : least(code[0]), greatest(code[0]) {
    for (int64_t k = 1; k < count; ++k) {
      least = std::min(least, code[k]);
      greatest = std::max(greatest, code[k]);
    }
  }
};

struct SquaredNormRows {
  template <class T, class A>
  static HK_INLINE void run(const T* v, int64_t rows, int64_t dim, A* out) {
    for (int64_t i = 0; i < rows; ++i, v += dim) out[i] = A(simd::sum_squares(v, dim));
  }
};

struct FiniteRows {
  template <class T>
  static HK_INLINE void run(const T* v, int64_t rows, int64_t dim, uint8_t* finite) {
    for (int64_t i = 0; i < rows; ++i, v += dim) {
      int32_t bad = 0;
#pragma omp simd reduction(| : bad)
      for (int64_t k = 0; k < dim; ++k) {
        const auto e = simd::load(v + k);
        bad |= e - e != 0 ? 1 : 0;
      }
      finite[i] = bad == 0;
    }
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

// Runs the kernel over the rows of both sides.
template <class Kernel, class T, class R>
SideNumbers<R> side_numbers(const PairProblem<T>& p) {
  SideNumbers<R> numbers(p.n, p.m, p.self);
  const auto fill = [&](const T* side, int64_t n, R* out) {
    parallel_for(0, n, grain(p.d), [&](int64_t begin, int64_t end) {
      simd::run<Kernel>(side + begin * p.d, end - begin, p.d, out + begin);
    });
  };
  fill(p.x, p.n, numbers.rows());
  if (!p.self) fill(p.ref, p.m, numbers.columns());
  return numbers;
}

}  // namespace

bool may_count(const PairOptions& options, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  const PairSelection& s = options.selection;
  if (s.rows.code == nullptr) return true;
  const LabelRange a(s.rows.code + row, rows), b(s.columns.code + column, columns);
  if (a.greatest < 0 || b.greatest < 0) return false;
  if (s.select == Select::kPositive) return a.least <= b.greatest && b.least <= a.greatest;
  return s.select == Select::kAll || !(a.least == a.greatest && b.least == b.greatest && a.least == b.least);
}

template <class T>
SideNumbers<Accumulate<T>> squared_norms(const PairProblem<T>& p) {
  if (p.similarity == Similarity::kDot) return {};
  return side_numbers<SquaredNormRows, T, Accumulate<T>>(p);
}

template <class T>
SideNumbers<uint8_t> finite_rows(const PairProblem<T>& p) {
  return side_numbers<FiniteRows, T, uint8_t>(p);
}

template <class T>
Matrix<Accumulate<T>> Tiles<T>::take(const T* side, int64_t first, int64_t count, A* widened) const {
  const int64_t d = problem_.d;
  const T* taken = side + first * d;
  if constexpr (kWidens) {
    simd::run<Widen>(taken, count * d, widened);
    return matrix<A>(widened, count, d, d);
  } else {
    return matrix<A>(taken, count, d, d);
  }
}

template <class T>
void Tiles<T>::take_rows(int64_t first, int64_t count) {
  first_row_ = first;
  rows_ = take(problem_.x, first, count, widened_rows_);
}

template <class T>
void Tiles<T>::take_columns(int64_t first, int64_t count) {
  if (first_column_ == first && columns_.rows == count) return;
  first_column_ = first;
  columns_ = take(problem_.ref, first, count, widened_columns_);
}

template <class T>
void Tiles<T>::compute() {
  multiply(rows_, columns_.transposed(), u_, ld, false);
  if (problem_.similarity == Similarity::kDot) return;
  simd::run<Distances>(u_, ld, rows_.rows, columns_.rows, squares_.rows() + first_row_,
                       squares_.columns() + first_column_, problem_.similarity == Similarity::kSquaredEuclidean);
}

#define HK_PROBLEM(T)                                                          \
  template SideNumbers<Accumulate<T>> squared_norms<T>(const PairProblem<T>&); \
  template SideNumbers<uint8_t> finite_rows<T>(const PairProblem<T>&);         \
  template class Tiles<T>;

HK_PROBLEM(double)
HK_PROBLEM(float)
HK_PROBLEM(simd::Bfloat16)
HK_PROBLEM(simd::Half)

}  // namespace hyperkernels::pair_mining
