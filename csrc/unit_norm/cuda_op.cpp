// unit_norm on CUDA: hands the tensors' pointers and the current stream to the launchers of cuda.cu.
#define USE_CUDA  // declares the stream in torch's header
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "../common/op.h"
#include "cuda.h"

namespace hyperkernels::unit_norm {

namespace {

int code_of(const Tensor& x) {
  const Dtype dtype = x.scalar_type();
  HK_CHECK_VALUE(dtype == Dtype::Double || dtype == Dtype::Float || dtype == Dtype::BFloat16 || dtype == Dtype::Half,
                 "x must have dtype float64, float32, bfloat16 or float16; got ", name_of(dtype));
  return dtype == Dtype::Double     ? HK_FLOAT64
         : dtype == Dtype::Float    ? HK_FLOAT32
         : dtype == Dtype::BFloat16 ? HK_BFLOAT16
                                    : HK_FLOAT16;
}

// The last dimension of x holds the vectors. While it lives x's device is the current one.
struct Launch {
  int64_t rows, dim;
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;

  explicit Launch(const Tensor& x) : guard(x.get_device_index()) {
    HK_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension; got a scalar");
    dim = x.size(-1);
    rows = dim == 0 ? 0 : x.numel() / dim;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  }
};

void check_launch(int error) {
  if (error != 0)
    refuse<std::runtime_error>("CUDA error ", error, ": ", cudaGetErrorString(static_cast<cudaError_t>(error)));
}

void forward_into(const Tensor& x, const Tensor& y, double eps) {
  const Launch on(x);
  check_launch(
      hk_unit_norm_forward(x.const_data_ptr(), y.mutable_data_ptr(), on.rows, on.dim, eps, code_of(x), on.stream));
}

Tensor unit_norm(const Tensor& x, double eps) {
  const Tensor rows = packed(x), y = torch::stable::empty_like(rows);
  forward_into(rows, y, eps);
  return y;
}

void unit_norm_(const Tensor& x, double eps) {
  HK_CHECK_VALUE(x.is_contiguous(), "x must be contiguous to be written in place");
  forward_into(x, x, eps);
}

Tensor unit_norm_backward(const Tensor& grad, const Tensor& x, double eps) {
  check_sizes(grad, sizes_of(x), "grad");
  check_dtype(grad, x.scalar_type(), "grad");
  HK_CHECK_VALUE(grad.is_cuda() && grad.get_device_index() == x.get_device_index(),
                 "grad must be on the device of x, cuda:", x.get_device_index());
  const Tensor change = packed(grad), rows = packed(x), dx = torch::stable::empty_like(rows);
  const Launch on(rows);
  check_launch(hk_unit_norm_backward(change.const_data_ptr(), rows.const_data_ptr(), dx.mutable_data_ptr(), on.rows,
                                     on.dim, eps, code_of(x), on.stream));
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CUDA, m) {
  HK_OP(m, "unit_norm", unit_norm);
  HK_OP(m, "unit_norm_", unit_norm_);
  HK_OP(m, "unit_norm_backward", unit_norm_backward);
}

}  // namespace hyperkernels::unit_norm
