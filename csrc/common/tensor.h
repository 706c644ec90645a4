// Tensors on the CPU, through libtorch's stable ABI: what is compiled once runs beside every torch from 2.10 on.
//
// Looking at a tensor is a call of a C function. So an op looks at its tensors once, before its loops, and hands
// kernels pointers and numbers: no kernel includes this file.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "rows.h"

namespace hyperkernels {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Dtype = torch::headeronly::ScalarType;

// As Python writes it.
inline const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::Double:
      return "float64";
    case Dtype::Float:
      return "float32";
    case Dtype::BFloat16:
      return "bfloat16";
    case Dtype::Half:
      return "float16";
    case Dtype::Long:
      return "int64";
    case Dtype::Int:
      return "int32";
    case Dtype::Byte:
      return "uint8";
    case Dtype::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
// Null where there is none.
template <class T>
const T* data(const Optional& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}
template <class T>
T* mutable_data(const Optional& tensor) {
  return tensor.has_value() ? mutable_data<T>(*tensor) : nullptr;
}

// The dtype of results and sums of numbers stored in that one.
inline Dtype accumulate_dtype(Dtype dtype) { return dtype == Dtype::Double ? Dtype::Double : Dtype::Float; }

// A new tensor, not initialised; contiguous.
inline Tensor empty(const Sizes& sizes, Dtype dtype) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(1, sizes[i])) strides[i] = stride;
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), type,
                                                  aoti_torch_device_type_cpu(), -1, &made));
  const Tensor tensor(made);
  if (poisons_memory.load(std::memory_order_relaxed) && tensor.numel() > 0) {
    const bool integers = dtype == Dtype::Long || dtype == Dtype::Int;
    std::memset(tensor.mutable_data_ptr(), integers ? 0x7f : 0xff, tensor.numel() * tensor.element_size());
  }
  return tensor;
}

// A result that is wanted or not.
inline Tensor empty_if(bool wanted, const Sizes& sizes, Dtype dtype) { return empty(wanted ? sizes : Sizes{0}, dtype); }

// The tensor itself, or a contiguous copy of it.
inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline Optional packed(const Optional& tensor) { return tensor.has_value() ? Optional(packed(*tensor)) : std::nullopt; }

// A copy of one-dimensional int64 indices. They are checked and then read again to find memory, and another thread may
// write to the caller's tensor in between: what is checked must be what is used. It costs one pass over the indices.
inline std::vector<int64_t> own_copy(const Tensor& indices) {
  const int64_t count = indices.size(0), stride = indices.stride(0);
  const int64_t* from = data<int64_t>(indices);
  std::vector<int64_t> copy(count);
  for (int64_t i = 0; i < count; ++i) copy[i] = from[i * stride];
  return copy;
}

inline void check_dtype(const Tensor& tensor, Dtype dtype, const char* name) {
  const Dtype found = tensor.scalar_type();
  HK_CHECK_VALUE(found == dtype, name, " must have dtype ", name_of(dtype), "; got ", name_of(found));
}
inline void check_sizes(const Tensor& tensor, const Sizes& sizes, const char* name) {
  const Sizes found = sizes_of(tensor);
  HK_CHECK_VALUE(found == sizes, name, " must have shape ", sizes, "; got ", found);
}
inline void check_cpu(const Tensor& tensor, const char* name) {
  HK_CHECK_VALUE(tensor.is_cpu(), name, " must be on the cpu");
}

// Calls f with a value of the type that the tensor `name` of this dtype is stored in.
template <class F>
auto with_storage(Dtype dtype, const char* name, F f) {
  switch (dtype) {
    case Dtype::Double:
      return f(double());
    case Dtype::Float:
      return f(float());
    case Dtype::BFloat16:
      return f(simd::Bfloat16());
    case Dtype::Half:
      return f(simd::Half());
    default:
      refuse<std::invalid_argument>(name, " must have dtype float64, float32, bfloat16 or float16; got ",
                                    name_of(dtype));
  }
}

// Calls f with a value of the type in which such a tensor is computed.
template <class F>
auto with_accumulator(Dtype dtype, const char* name, F f) {
  return with_storage(dtype, name, [&](auto storage) { return f(Accumulate<decltype(storage)>()); });
}

inline Stored stored_as(Dtype dtype) {
  return dtype == Dtype::BFloat16 ? Stored::kBfloat16 : dtype == Dtype::Half ? Stored::kHalf : Stored::kPlain;
}

// The rows of a matrix with unit stride within them, in the type they are computed in.
template <class A>
InRows<A> in_rows(const Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), stored_as(x.scalar_type())};
}
// Of a contiguous one; null where it is empty.
template <class A>
OutRows<A> out_rows(const Tensor& x) {
  return {x.numel() > 0 ? x.mutable_data_ptr() : nullptr, stored_as(x.scalar_type())};
}

}  // namespace hyperkernels
