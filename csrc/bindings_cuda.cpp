// Registers the CUDA C++ kernels for CUDA tensors. Schemas are in hyperkernels/<family>/op.py, kernels in
// csrc/<family>/cuda.cu.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "unit_norm/cuda.h"

namespace hyperkernels {
namespace {

int dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return HK_FLOAT64;
    case at::kFloat:
      return HK_FLOAT32;
    case at::kBFloat16:
      return HK_BFLOAT16;
    case at::kHalf:
      return HK_FLOAT16;
    default:
      TORCH_CHECK_TYPE(false, "x must have dtype float64, float32, bfloat16 or float16; got ", x.scalar_type());
  }
}

// The last dimension of x holds the vectors.
struct Rows {
  int64_t rows, dim;

  explicit Rows(const at::Tensor& x) {
    TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension; got a scalar");
    dim = x.size(-1);
    rows = dim == 0 ? 0 : x.numel() / dim;
  }
};

void check_launch(int error) { C10_CUDA_CHECK(static_cast<cudaError_t>(error)); }

void forward_into(const at::Tensor& x, const at::Tensor& y, double eps) {
  const Rows shape(x);
  const c10::cuda::CUDAGuard guard(x.device());
  check_launch(hk_unit_norm_forward(x.const_data_ptr(), y.mutable_data_ptr(), shape.rows, shape.dim, eps, dtype_of(x),
                                    c10::cuda::getCurrentCUDAStream().stream()));
}

at::Tensor unit_norm(const at::Tensor& x, double eps) {
  const at::Tensor rows = x.contiguous();
  at::Tensor y = at::empty_like(rows, at::MemoryFormat::Contiguous);
  forward_into(rows, y, eps);
  return y;
}

void unit_norm_(at::Tensor& x, double eps) {
  TORCH_CHECK_VALUE(x.is_contiguous(), "x must be contiguous to be written in place");
  forward_into(x, x, eps);
}

at::Tensor unit_norm_backward(const at::Tensor& grad, const at::Tensor& x, double eps) {
  TORCH_CHECK_VALUE(grad.sizes() == x.sizes(), "grad must have the shape of x, ", x.sizes(), "; got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == x.scalar_type(), "grad must have the dtype of x, ", x.scalar_type(), "; got ",
                   grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == x.device(), "grad must be on the device of x, ", x.device(), "; got ",
                    grad.device());
  const at::Tensor change = grad.contiguous(), rows = x.contiguous();
  at::Tensor dx = at::empty_like(rows, at::MemoryFormat::Contiguous);
  const Rows shape(rows);
  const c10::cuda::CUDAGuard guard(x.device());
  check_launch(hk_unit_norm_backward(change.const_data_ptr(), rows.const_data_ptr(), dx.mutable_data_ptr(), shape.rows,
                                     shape.dim, eps, dtype_of(x), c10::cuda::getCurrentCUDAStream().stream()));
  return dx;
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CUDA, m) {
  m.impl("unit_norm", &unit_norm);
  m.impl("unit_norm_", &unit_norm_);
  m.impl("unit_norm_backward", &unit_norm_backward);
}

}  // namespace hyperkernels
