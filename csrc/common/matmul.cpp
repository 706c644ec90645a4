#include "matmul.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <type_traits>

#include "tensor.h"

namespace hyperkernels {

namespace {

// A view for the time of a product. It is made where it is used: a tensor of one thread may be an inference tensor,
// which others must not write to.
template <class A>
Tensor view(const A* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  constexpr Dtype dtype = std::is_same_v<A, double> ? Dtype::Double : Dtype::Float;
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU, -1);
  return torch::stable::from_blob(const_cast<A*>(data), {sizes, 2}, {strides, 2}, cpu, dtype);
}

template <class A>
Tensor view(const Matrix<A>& m) {
  return view(m.data, m.rows, m.columns, m.row_stride, m.column_stride);
}

}  // namespace

template <class A>
void multiply(const Matrix<A>& a, const Matrix<A>& b, A* out, int64_t row_stride, bool add) {
  const Tensor left = view(a), right = view(b), result = view(out, a.rows, b.columns, row_stride, 1);
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(result.get(), result.get(), left.get(), right.get(), add ? 1 : 0, 1));
}

template void multiply(const Matrix<float>&, const Matrix<float>&, float*, int64_t, bool);
template void multiply(const Matrix<double>&, const Matrix<double>&, double*, int64_t, bool);

}  // namespace hyperkernels
