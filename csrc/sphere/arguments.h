// What the ops of the sphere do with their tensors.
#pragma once

#include "../common/op.h"
#include "../common/parallel.h"
#include "rows.h"

namespace hyperkernels::sphere {

// [N, D] of the shape and dtype of `like`, with unit stride within rows.
inline Tensor rows_like(const Tensor& x, const Tensor& like, const char* name) {
  const Sizes sizes = sizes_of(x), wanted = sizes_of(like);
  HK_CHECK_VALUE(sizes.size() == 2 && sizes == wanted, name, " must have shape [N, D] = ", wanted, "; got ", sizes);
  check_dtype(x, like.scalar_type(), name);
  return sizes[1] < 2 || x.stride(1) == 1 ? x : packed(x);
}

// Of that shape, contiguous, in the accumulator's dtype.
inline Tensor numbers(const Tensor& t, const Sizes& sizes, Dtype dtype, const char* name) {
  check_sizes(t, sizes, name);
  check_dtype(t, dtype, name);
  return packed(t);
}

// A result's data: null where it is not wanted.
template <class T>
T* result(const Tensor& t) {
  return t.numel() > 0 ? mutable_data<T>(t) : nullptr;
}

// Sums over rows are taken by parts of the rows, so that their bits do not depend on the number of threads. What the
// parts hold in double takes at most half a byte for every element of the matrix.
inline int64_t parts_of(int64_t rows) { return std::clamp<int64_t>(rows / 16, 1, 256); }

// parts [count, size] -> [size], rounded to the accumulator's type.
template <class A>
void sum_parts(const std::vector<double>& parts, int64_t count, int64_t size, A* out) {
  for (int64_t i = 0; i < size; ++i) {
    double total = parts[i];
    for (int64_t part = 1; part < count; ++part) total += parts[part * size + i];
    out[i] = A(total);
  }
}

}  // namespace hyperkernels::sphere
