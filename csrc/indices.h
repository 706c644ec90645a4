// Indices that an op finds memory by.
#pragma once

#include <ATen/ATen.h>

namespace hyperkernels {

// A contiguous copy of indices. They are checked and then read again to find memory, and another thread may write to
// the caller's tensor in between: what is checked must be what is used. It costs one pass over the indices.
inline at::Tensor own_copy(const at::Tensor& indices) { return indices.clone(at::MemoryFormat::Contiguous); }

}  // namespace hyperkernels
