#include "problem.h"

#include <cmath>

#include "../indices.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hyperkernels::margin_softmax {

namespace {

at::Tensor contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}

void check_numbers(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, at::ScalarType dtype) {
  if (!tensor.defined()) return;
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must have shape ", sizes, "; got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must have dtype ", dtype, "; got ", tensor.scalar_type());
}

// The kernels know the powers by their binary digits.
template <class A>
void check_powers(const Problem& p) {
  constexpr int64_t kParameters = 3;
  for (int64_t i = 0; i < p.n; ++i) {
    const A power = data<A>(p.transform)[i * kParameters + 1];
    TORCH_CHECK_VALUE(power >= 1 && power <= 8 && power == std::floor(power), "transform[", i,
                      ", 1], the power of sphereface2, must be a whole number in [1, 8]; got ", power);
  }
}

void check_targets(const Problem& p) {
  const int64_t* target = data<int64_t>(p.target);
  for (int64_t i = 0; i < p.n; ++i) {
    const bool here = target[i] != p.ignore_index && target[i] != p.absent_index;
    const bool known = !here || (target[i] >= 0 && target[i] < p.c);
    TORCH_CHECK_INDEX(known || !p.classes.defined(), "target[", i, "] is neither among classes nor ignore_index");
    TORCH_CHECK_INDEX(known, "target[", i, "] is ", target[i], ", which is neither in [0, ", p.c,
                      ") nor ignore_index=", p.ignore_index);
  }
}

void check_classes(const at::Tensor& classes, int64_t count) {
  TORCH_CHECK_TYPE(classes.scalar_type() == at::kLong, "classes must have dtype int64");
  TORCH_CHECK_VALUE(classes.dim() == 1 && classes.size(0) > 0, "classes must be [R] with R > 0; got ", classes.sizes());
  const int64_t* index = data<int64_t>(classes);
  for (int64_t r = 0; r < classes.size(0); ++r) {
    TORCH_CHECK_INDEX(index[r] >= 0 && index[r] < count, "classes[", r, "] is ", index[r], ", which is not in [0, ",
                      count, ")");
    TORCH_CHECK_VALUE(r == 0 || index[r] > index[r - 1], "classes must be strictly increasing; classes[", r, "] is ",
                      index[r], " after ", index[r - 1]);
  }
}

}  // namespace

void use_large_pages(at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()), end = begin + tensor.nbytes();
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  // Advice only: where it is refused nothing changes.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Problem make_problem(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target, const at::Tensor& scale,
                     const std::optional<at::Tensor>& class_scale, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& transform, const std::optional<at::Tensor>& classes,
                     std::string_view negatives, int64_t sub_centers, bool normalize_x, bool normalize_weight,
                     double eps, int64_t ignore_index, int64_t absent_index, int64_t block, int64_t kept_blocks) {
  TORCH_CHECK_VALUE(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
                    "x and weight must be [N, D] and [C * sub_centers, D]; got ", x.sizes(), " and ", weight.sizes());
  const at::ScalarType dtype = x.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kDouble || dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
                   "x must have dtype float64, float32, bfloat16 or float16; got ", dtype);
  TORCH_CHECK_TYPE(weight.scalar_type() == dtype, "weight must have the dtype of x");
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, "target must have dtype int64");
  TORCH_CHECK_VALUE(target.dim() == 1 && target.size(0) == x.size(0), "target must have one entry per row of x");
  TORCH_CHECK_VALUE(sub_centers > 0 && weight.size(0) > 0 && weight.size(0) % sub_centers == 0,
                    "weight must have sub_centers=", sub_centers, " rows for each of at least one class; got ",
                    weight.size(0));
  Problem p{x.contiguous(),
            weight.contiguous(),
            own_copy(target),
            scale.contiguous(),
            contiguous(class_scale),
            contiguous(bias),
            contiguous(transform),
            classes.has_value() ? own_copy(*classes) : at::Tensor(),
            kind_facts(negatives),
            sub_centers,
            normalize_x,
            normalize_weight,
            eps,
            ignore_index,
            absent_index,
            block,
            kept_blocks,
            x.size(0),
            weight.size(0) / sub_centers,
            x.size(1)};
  if (p.classes.defined()) {
    check_classes(p.classes, p.c);
    p.c = p.classes.size(0);
  }
  const int64_t largest_block = std::max<int64_t>(1, kLargestTile / sub_centers);
  TORCH_CHECK_VALUE(block > 0 && block <= largest_block, "block must be in [1, ", largest_block, "]; got ", block);
  TORCH_CHECK_VALUE(kept_blocks >= 0 && kept_blocks <= p.blocks(), "kept_blocks must be in [0, ", p.blocks(), "]; got ",
                    kept_blocks);
  const at::ScalarType accumulate = dtype == at::kDouble ? at::kDouble : at::kFloat;
  check_numbers("scale", p.scale, {p.n}, accumulate);
  check_numbers("class_scale", p.class_scale, {p.c}, accumulate);
  check_numbers("bias", p.bias, {p.c}, accumulate);
  check_numbers("transform", p.transform, {p.n, p.negatives.parameters}, accumulate);
  TORCH_CHECK_VALUE(p.transform.defined() || p.negatives.parameters == 0, "negatives of kind ", negatives,
                    " need their parameters");
  TORCH_CHECK_VALUE(!p.negatives.sum || !p.class_scale.defined(), "negatives of kind ", negatives,
                    " take no class_scale");
  check_targets(p);
  if (p.negatives.kind == Kind::kSphereface2) {
    accumulate == at::kDouble ? check_powers<double>(p) : check_powers<float>(p);
  }
  return p;
}

}  // namespace hyperkernels::margin_softmax
