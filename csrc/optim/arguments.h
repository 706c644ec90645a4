// What the ops of the optimisers do with their arguments.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "../simd.h"

namespace hyperkernels::optim {

template <class S>
using Accumulate = typename simd::Accumulate<S>::type;
using Optional = std::optional<at::Tensor>;

// Calls f with the storage type of the weight.
template <class F>
void with_storage(at::ScalarType dtype, F f) {
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
      TORCH_CHECK_TYPE(false, "weight must have dtype float64, float32, bfloat16 or float16; got ", dtype);
  }
}

template <class T>
T* mutable_data(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline double number(const Optional& tensor, const char* name, double otherwise) {
  if (!tensor.has_value()) return otherwise;
  TORCH_CHECK_VALUE(tensor->numel() == 1, name, " must hold one number; got shape ", tensor->sizes());
  return tensor->item<double>();
}

// State is kept in the accumulator of the weight.
inline void check_state(const at::Tensor& state, const char* name, const at::Tensor& weight, at::IntArrayRef sizes) {
  const at::ScalarType dtype = weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(state.sizes() == sizes && state.is_contiguous(), name, " must be contiguous of shape ", sizes,
                    "; got ", state.sizes());
  TORCH_CHECK_TYPE(state.scalar_type() == dtype, name, " must have dtype ", dtype, "; got ", state.scalar_type());
}

}  // namespace hyperkernels::optim
