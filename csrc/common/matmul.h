// Matrix products by torch's BLAS.
#pragma once

#include <cstdint>

namespace hyperkernels {

// [rows, columns] in memory of any strides.
template <class A>
struct Matrix {
  const A* data;
  int64_t rows, columns, row_stride, column_stride;

  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

// [rows, columns] with the columns side by side.
template <class A>
Matrix<A> matrix(const A* data, int64_t rows, int64_t columns, int64_t row_stride) {
  return {data, rows, columns, row_stride, 1};
}

// out [a.rows, b.columns], of that stride, = a b; or += where `add`. The threads are those of torch: one inside a
// parallel loop.
template <class A>
void multiply(const Matrix<A>& a, const Matrix<A>& b, A* out, int64_t row_stride, bool add);

}  // namespace hyperkernels
