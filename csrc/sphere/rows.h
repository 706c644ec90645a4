// What the kernels of the sphere share: rows of matrices, brought into a form that every pass can read without a
// second thought, and sums over them.
//
// Rows come from memory once: all passes but the first find them in the cache. Sums and what is computed from them are
// double; the passes over elements are in the accumulator's type.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "../simd.h"
#include "../storage.h"

namespace hyperkernels::sphere {

// A shorter row has no direction: it counts as 0 and gets a gradient of 0.
constexpr double kEps = 1e-12;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Rows of equal length, unit stride within each; rows may coincide (stride 0).
template <class S>
struct Matrix {
  const S* data;
  int64_t stride;

  HK_INLINE const S* row(int64_t i) const { return data + i * stride; }
};

// A row whose squares and products neither overflow nor vanish.
template <class A>
struct Row {
  const A* data;
  double norm;     // of data; 1 where the row is short
  double inverse;  // 1 / the length of the row as it was given; 0 where it is short
  bool is_short;   // data is 0
};

// The elements of a row in the accumulator's type: in place, or in scratch.
HK_INLINE const float* plain(const float* row, float*, int64_t) { return row; }
HK_INLINE const double* plain(const double* row, double*, int64_t) { return row; }
template <class S>
HK_INLINE const float* plain(const S* row, float* scratch, int64_t dim) {
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) scratch[i] = simd::load(row + i);
  return scratch;
}

using simd::Sums;
using simd::sums;

// Whether the squares and products of a row of that length are safe.
HK_INLINE bool ordinary(double length) { return length > 1e-6 && length < 1e6; }

template <class S, class A>
HK_INLINE Row<A> bring(const S* row, A* scratch, int64_t dim) {
  const A* data = plain(row, scratch, dim);
  const double length = simd::length(data, dim);
  if (ordinary(length)) return {data, length, 1 / length, false};
  if (length < kEps) {
    std::fill(scratch, scratch + dim, A(0));
    return {scratch, 1, 0, true};
  }
  const bool finite = length < std::numeric_limits<double>::infinity();
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) scratch[i] = A(double(data[i]) / length);
  return {scratch, finite ? 1 : kNaN, finite ? 1 / length : kNaN, false};
}

// Two rows and their product, in one pass where both are ordinary. The scratch holds two rows.
template <class A>
struct Pair {
  Row<A> x, y;
  double product;
};

template <class S, class A>
HK_INLINE Pair<A> bring(const S* x, const S* y, A* scratch, int64_t dim) {
  const A *a = plain(x, scratch, dim), *b = plain(y, scratch + dim, dim);
  const Sums s = sums<A>(dim, [&](int64_t i, A& xx, A& yy, A& xy, A&) HK_LAMBDA {
    xx += a[i] * a[i];
    yy += b[i] * b[i];
    xy += a[i] * b[i];
  });
  const double first = std::sqrt(s.a), second = std::sqrt(s.b);
  if (ordinary(first) && ordinary(second)) return {{a, first, 1 / first, false}, {b, second, 1 / second, false}, s.c};
  const Row<A> one = bring(a, scratch, dim), other = bring(b, scratch + dim, dim);
  return {one, other, simd::dot<A>(one.data, other.data, dim)};
}

inline at::ScalarType accumulate_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// [N, D] of the shape and dtype of `like`, with unit stride within rows.
inline at::Tensor rows_like(const at::Tensor& x, const at::Tensor& like, const char* name) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.sizes() == like.sizes(), name, " must have shape [N, D] = ", like.sizes(),
                    "; got ", x.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == like.scalar_type(), name, " must have dtype ", like.scalar_type(), "; got ",
                   x.scalar_type());
  return x.size(1) < 2 || x.stride(1) == 1 ? x : x.contiguous();
}

// Of that shape, contiguous, in the accumulator's dtype.
inline at::Tensor numbers(const at::Tensor& t, at::IntArrayRef shape, at::ScalarType dtype, const char* name) {
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape, "; got ", t.sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, " must have dtype ", dtype, "; got ", t.scalar_type());
  return t.contiguous();
}

template <class S>
Matrix<S> matrix(const at::Tensor& x) {
  return {static_cast<const S*>(x.const_data_ptr()), x.stride(0)};
}

template <class T>
const T* data(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

// A result: null where it is not wanted.
template <class T>
T* mutable_data(const at::Tensor& t) {
  return t.numel() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

inline at::Tensor wanted(bool need, at::IntArrayRef shape, const at::Tensor& like, at::ScalarType dtype) {
  return at::empty(need ? shape : at::IntArrayRef{0}, like.options().dtype(dtype));
}

// Sums over rows are taken by parts of the rows, so that their bits do not depend on the number of threads. What the
// parts hold in double takes at most half a byte for every element of the matrix.
inline int64_t parts_of(int64_t rows) { return std::clamp<int64_t>(rows / 16, 1, 256); }

// [parts, ...] -> [...], in the accumulator's dtype.
inline at::Tensor sum_of_parts(const at::Tensor& parts, at::ScalarType dtype) {
  at::Tensor total = parts.select(0, 0);
  for (int64_t p = 1; p < parts.size(0); ++p) total.add_(parts.select(0, p));
  return total.to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

inline int64_t grain(int64_t dim) { return std::max<int64_t>(1, at::internal::GRAIN_SIZE / std::max<int64_t>(1, dim)); }

}  // namespace hyperkernels::sphere
