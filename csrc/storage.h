// The types that tensors are stored in.
#pragma once

#include <ATen/ATen.h>

#include "simd.h"

namespace hyperkernels {

// The type in which numbers stored as T are computed.
template <class T>
using Accumulate = typename simd::Accumulate<T>::type;

template <class T>
const T* data(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls f with a value of the type that the tensor `name` of this dtype is stored in.
template <class F>
auto with_storage(at::ScalarType dtype, const char* name, F f) {
  switch (dtype) {
    case at::kDouble:
      return f(double());
    case at::kFloat:
      return f(float());
    case at::kBFloat16:
      return f(simd::Bfloat16());
    case at::kHalf:
      return f(simd::Half());
    default:
      TORCH_CHECK_TYPE(false, name, " must have dtype float64, float32, bfloat16 or float16; got ", dtype);
  }
}

}  // namespace hyperkernels
