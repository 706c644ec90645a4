// What the ops of the optimisers do with their tensors.
#pragma once

#include "../common/op.h"
#include "../common/parallel.h"

namespace hyperkernels::optim {

inline double number(const Optional& tensor, const char* name, double otherwise) {
  if (!tensor.has_value()) return otherwise;
  HK_CHECK_VALUE(tensor->numel() == 1, name, " must hold one number; got shape ", sizes_of(*tensor));
  double value;
  TORCH_ERROR_CODE_CHECK(aoti_torch_item_float64(tensor->get(), &value));
  return value;
}

// The gradient's factor.
inline double unscaling(const Optional& grad_scale, bool maximize) {
  return (maximize ? -1 : 1) / number(grad_scale, "grad_scale", 1);
}

// What is updated in place: [R, D] side by side.
inline void check_weight(const Tensor& weight, const char* name) {
  HK_CHECK_VALUE(weight.dim() == 2 && weight.is_contiguous(), name, " must be contiguous [R, D]; got shape ",
                 sizes_of(weight));
  with_accumulator(weight.scalar_type(), name, [](auto) {});
}

inline void check_step(const Tensor& step, const Tensor& weight, const char* name, const char* of) {
  HK_CHECK_VALUE(step.dim() == 1 && step.size(0) == weight.size(0) && step.is_contiguous(), name,
                 " must have one entry per row of ", of, ", ", weight.size(0), "; got shape ", sizes_of(step));
  check_dtype(step, Dtype::Int, name);
}

// State is kept in the accumulator of the weight.
inline void check_state(const Tensor& state, const char* name, const Tensor& weight, const Sizes& sizes) {
  HK_CHECK_VALUE(sizes_of(state) == sizes && state.is_contiguous(), name, " must be contiguous of shape ", sizes,
                 "; got ", sizes_of(state));
  check_dtype(state, accumulate_dtype(weight.scalar_type()), name);
}

}  // namespace hyperkernels::optim
