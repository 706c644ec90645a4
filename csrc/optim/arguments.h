// What the ops of the optimisers do with their arguments.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "../simd.h"
#include "../storage.h"

namespace hyperkernels::optim {

using Optional = std::optional<at::Tensor>;

// The count after one more update. It stays at its maximum, where the corrections of the moments are long 1.
HK_INLINE int32_t next_step(int32_t step) { return step < std::numeric_limits<int32_t>::max() ? step + 1 : step; }

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
