// class_statistics and its gradient on the CPU.

#include "../common/op.h"

#include <cmath>

#include "statistics.h"

namespace hyperkernels::margin_softmax {

namespace {

struct ProblemTensors {
  const Tensor &x, &weight, &target, &scale;
  const Optional &class_scale, &bias, &transform, &classes;
};

struct Options {
  std::string_view negatives;
  int64_t sub_centers;
  bool normalize_x, normalize_weight;
  double eps;
  int64_t ignore_index, absent_index, block, kept_blocks;
};

void check_numbers(const Optional& tensor, const Sizes& sizes, Dtype dtype, const char* name) {
  if (!tensor.has_value()) return;
  check_sizes(*tensor, sizes, name);
  check_dtype(*tensor, dtype, name);
}

std::vector<int64_t> checked_classes(const Tensor& classes, int64_t count) {
  check_dtype(classes, Dtype::Long, "classes");
  HK_CHECK_VALUE(classes.dim() == 1 && classes.size(0) > 0, "classes must be [R] with R > 0; got ", sizes_of(classes));
  std::vector<int64_t> index = own_copy(classes);
  for (size_t r = 0; r < index.size(); ++r) {
    HK_CHECK_INDEX(index[r] >= 0 && index[r] < count, "classes[", r, "] is ", index[r], ", which is not in [0, ", count,
                   ")");
    HK_CHECK_VALUE(r == 0 || index[r] > index[r - 1], "classes must be strictly increasing; classes[", r, "] is ",
                   index[r], " after ", index[r - 1]);
  }
  return index;
}

void check_targets(const Plan& p, const std::vector<int64_t>& target, bool has_classes) {
  for (int64_t i = 0; i < p.n; ++i) {
    const bool here = target[i] != p.ignore_index && target[i] != p.absent_index;
    const bool known = !here || (target[i] >= 0 && target[i] < p.c);
    HK_CHECK_INDEX(known || !has_classes, "target[", i, "] is neither among classes nor ignore_index");
    HK_CHECK_INDEX(known, "target[", i, "] is ", target[i], ", which is neither in [0, ", p.c,
                   ") nor ignore_index=", p.ignore_index);
  }
}

// The kernels know the powers by their binary digits.
template <class A>
void check_powers(const Tensor& transform) {
  const A* parameters = data<A>(transform);
  for (int64_t i = 0; i < transform.size(0); ++i) {
    const A power = parameters[i * transform.size(1) + 1];
    HK_CHECK_VALUE(power >= 1 && power <= 8 && power == std::floor(power), "transform[", i,
                   ", 1], the power of sphereface2, must be a whole number in [1, 8]; got ", power);
  }
}

void check_shapes(const ProblemTensors& t, int64_t sub_centers) {
  HK_CHECK_VALUE(t.x.dim() == 2 && t.weight.dim() == 2 && t.x.size(1) == t.weight.size(1),
                 "x and weight must be [N, D] and [C * sub_centers, D]; got ", sizes_of(t.x), " and ",
                 sizes_of(t.weight));
  with_storage(t.x.scalar_type(), "x", [](auto) {});
  check_dtype(t.weight, t.x.scalar_type(), "weight");
  check_dtype(t.target, Dtype::Long, "target");
  HK_CHECK_VALUE(t.target.dim() == 1 && t.target.size(0) == t.x.size(0),
                 "target must have one entry per row of x; got ", sizes_of(t.target), " for ", t.x.size(0), " rows");
  HK_CHECK_VALUE(sub_centers > 0 && t.weight.size(0) > 0 && t.weight.size(0) % sub_centers == 0,
                 "weight must have sub_centers=", sub_centers, " rows for each of at least one class; got ",
                 t.weight.size(0));
}

// A problem with every size and dtype checked. Its tensors are contiguous.
class Problem {
 public:
  Problem(const ProblemTensors& t, const Options& options)
      : plan_(checked_plan(t, options)),
        x_(packed(t.x)),
        weight_(packed(t.weight)),
        scale_(packed(t.scale)),
        class_scale_(packed(t.class_scale)),
        bias_(packed(t.bias)),
        transform_(packed(t.transform)),
        target_(own_copy(t.target)) {
    if (t.classes.has_value()) {
      classes_ = checked_classes(*t.classes, plan_.c);
      plan_.c = int64_t(classes_.size());
    }
    check_tiles();
    check_numbers(scale_, {plan_.n}, numbers(), "scale");
    check_numbers(class_scale_, {plan_.c}, numbers(), "class_scale");
    check_numbers(bias_, {plan_.c}, numbers(), "bias");
    check_numbers(transform_, {plan_.n, plan_.negatives.parameters}, numbers(), "transform");
    const KindFacts& negatives = plan_.negatives;
    HK_CHECK_VALUE(transform_.has_value() || negatives.parameters == 0, "negatives of kind ", negatives.name,
                   " need their parameters");
    HK_CHECK_VALUE(!negatives.sum || !class_scale_.has_value(), "negatives of kind ", negatives.name,
                   " take no class_scale");
    check_targets(plan_, target_, !classes_.empty());
    if (negatives.kind == Kind::kSphereface2) {
      numbers() == Dtype::Double ? check_powers<double>(*transform_) : check_powers<float>(*transform_);
    }
  }

  const Plan& plan() const { return plan_; }
  // Of x and weight, and of the numbers that are computed from them.
  Dtype dtype() const { return x_.scalar_type(); }
  Dtype numbers() const { return accumulate_dtype(dtype()); }
  bool has_class_scale() const { return class_scale_.has_value(); }
  bool has_bias() const { return bias_.has_value(); }

  template <class T>
  ClassProblem<T> pointers() const {
    using A = Accumulate<T>;
    return {plan_,          data<T>(x_),         data<T>(weight_),
            target_.data(), data<A>(scale_),     data<A>(class_scale_),
            data<A>(bias_), data<A>(transform_), classes_.empty() ? nullptr : classes_.data()};
  }

 private:
  static Plan checked_plan(const ProblemTensors& t, const Options& o) {
    check_shapes(t, o.sub_centers);
    return {t.x.size(0),
            t.weight.size(0) / o.sub_centers,
            t.x.size(1),
            kind_facts(o.negatives),
            o.sub_centers,
            o.normalize_x,
            o.normalize_weight,
            o.eps,
            o.ignore_index,
            o.absent_index,
            o.block,
            o.kept_blocks};
  }

  void check_tiles() const {
    const int64_t largest = std::max<int64_t>(1, kLargestTile / plan_.sub_centers), block = plan_.block;
    HK_CHECK_VALUE(block > 0 && block <= largest, "block must be in [1, ", largest, "]; got ", block);
    const int64_t kept = plan_.kept_blocks, blocks = plan_.blocks();
    HK_CHECK_VALUE(kept >= 0 && kept <= blocks, "kept_blocks must be in [0, ", blocks, "]; got ", kept);
  }

  Plan plan_;
  const Tensor x_, weight_, scale_;
  const Optional class_scale_, bias_, transform_;
  const std::vector<int64_t> target_;
  std::vector<int64_t> classes_;  // empty: all of them
};

using StatisticsTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                     Tensor, Tensor, Tensor, Tensor, Tensor>;

StatisticsTensors class_statistics(const Tensor& x, const Tensor& weight, const Tensor& target, const Tensor& scale,
                                   const Optional& class_scale, const Optional& bias, const Optional& transform,
                                   const Optional& classes, std::string_view negatives, int64_t sub_centers,
                                   bool normalize_x, bool normalize_weight, double eps, int64_t ignore_index,
                                   int64_t absent_index, int64_t block, int64_t kept_blocks, double skip_budget,
                                   const Optional&) {
  const Problem problem(
      {x, weight, target, scale, class_scale, bias, transform, classes},
      {negatives, sub_centers, normalize_x, normalize_weight, eps, ignore_index, absent_index, block, kept_blocks});
  const Plan& p = problem.plan();
  const bool with_block_lse = skip_budget > 0;
  HK_CHECK_VALUE(!with_block_lse || !p.negatives.sum, "negatives of kind ", negatives,
                 " have no log-sum-exp by which tiles could be skipped");
  const Dtype numbers = problem.numbers();
  const auto rows = [&](Dtype dtype) { return empty({p.n}, dtype); };
  const Tensor neg_lse = rows(numbers), target_cos = rows(Dtype::Double), x_norm = rows(numbers),
               hardest_cos = rows(numbers), hardest_class = rows(Dtype::Long), neg_cos_sum = rows(numbers),
               target_center = rows(Dtype::Long), hard_cos_sum = rows(numbers), hard_count = rows(numbers),
               top = rows(numbers), log_sum = rows(numbers), scale_slope = rows(numbers),
               w_norm = empty({p.centres()}, numbers),
               block_lse = empty(with_block_lse ? Sizes{p.n, p.blocks()} : Sizes{0, 0}, numbers),
               kept = empty({p.kept_size()}, numbers);
  with_storage(problem.dtype(), "x", [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    const Statistics<A> out{mutable_data<A>(neg_lse),
                            mutable_data<double>(target_cos),
                            mutable_data<A>(x_norm),
                            mutable_data<A>(hardest_cos),
                            mutable_data<int64_t>(hardest_class),
                            mutable_data<A>(neg_cos_sum),
                            mutable_data<int64_t>(target_center),
                            mutable_data<A>(hard_cos_sum),
                            mutable_data<A>(hard_count),
                            mutable_data<A>(top),
                            mutable_data<A>(log_sum),
                            mutable_data<A>(scale_slope),
                            mutable_data<A>(w_norm),
                            with_block_lse ? mutable_data<A>(block_lse) : nullptr,
                            mutable_data<A>(kept)};
    forward(problem.pointers<T>(), out);
  });
  return {neg_lse,    target_cos, x_norm,  hardest_cos, hardest_class, neg_cos_sum, target_center, hard_cos_sum,
          hard_count, top,        log_sum, scale_slope, w_norm,        block_lse,   kept};
}

// What the forward returned and what flows in, beside the problem.
struct SavedTensors {
  const Tensor &d_neg_lse, &d_target_cos, &d_x_norm, &d_neg_cos_sum, &x_norm, &target_center, &top, &log_sum, &w_norm,
      &kept, &skip;
};

// The same with every size and dtype checked, contiguous.
class CheckedSaved {
 public:
  CheckedSaved(const SavedTensors& s, const Problem& problem)
      : d_neg_lse_(packed(s.d_neg_lse)),
        d_target_cos_(packed(s.d_target_cos)),
        d_x_norm_(packed(s.d_x_norm)),
        d_neg_cos_sum_(packed(s.d_neg_cos_sum)),
        x_norm_(packed(s.x_norm)),
        top_(packed(s.top)),
        log_sum_(packed(s.log_sum)),
        w_norm_(packed(s.w_norm)),
        kept_(packed(s.kept)),
        skip_(packed(s.skip)),
        target_center_(checked_centers(s.target_center, problem.plan())) {
    const Plan& p = problem.plan();
    const auto holds = [&](const Tensor& tensor, int64_t count) {
      return tensor.numel() == count && tensor.scalar_type() == problem.numbers();
    };
    for (const Tensor* rows : {&d_neg_lse_, &d_target_cos_, &d_x_norm_, &d_neg_cos_sum_, &x_norm_, &top_, &log_sum_}) {
      HK_CHECK_VALUE(holds(*rows, p.n),
                     "incoming gradients and saved statistics must have one entry per row of x, in the dtype of scale");
    }
    HK_CHECK_VALUE(holds(w_norm_, p.centres()), "w_norm must have one entry per centre, in the dtype of scale");
    HK_CHECK_VALUE(holds(kept_, p.kept_size()), "kept must hold kept_blocks tiles, in the dtype of scale");
    HK_CHECK_VALUE(skip_.scalar_type() == Dtype::Byte && (!skips() || skip_.numel() == p.n * p.blocks()),
                   "skip must be empty or uint8 with one entry per row of x and tile");
  }

  template <class A>
  Saved<A> pointers() const {
    return {data<A>(d_neg_lse_),
            data<A>(d_target_cos_),
            data<A>(d_x_norm_),
            data<A>(d_neg_cos_sum_),
            data<A>(x_norm_),
            target_center_.data(),
            data<A>(top_),
            data<A>(log_sum_),
            data<A>(w_norm_),
            data<A>(kept_),
            skips() ? data<uint8_t>(skip_) : nullptr};
  }

 private:
  static std::vector<int64_t> checked_centers(const Tensor& target_center, const Plan& p) {
    HK_CHECK_VALUE(
        target_center.dim() == 1 && target_center.size(0) == p.n && target_center.scalar_type() == Dtype::Long,
        "target_center must have one int64 per row of x");
    std::vector<int64_t> centers = own_copy(target_center);
    for (const int64_t center : centers) {
      HK_CHECK_VALUE(center >= 0 && center < p.sub_centers, "target_center must lie in [0, ", p.sub_centers, "); got ",
                     center);
    }
    return centers;
  }

  bool skips() const { return skip_.numel() > 0; }

  const Tensor d_neg_lse_, d_target_cos_, d_x_norm_, d_neg_cos_sum_, x_norm_, top_, log_sum_, w_norm_, kept_, skip_;
  const std::vector<int64_t> target_center_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> class_statistics_backward(
    const Tensor& d_neg_lse, const Tensor& d_target_cos, const Tensor& d_x_norm, const Tensor& d_neg_cos_sum,
    const Tensor& x, const Tensor& weight, const Tensor& target, const Tensor& scale, const Optional& class_scale,
    const Optional& bias, const Optional& transform, const Optional& classes, const Tensor& x_norm,
    const Tensor& target_center, const Tensor& top, const Tensor& log_sum, const Tensor& w_norm, const Tensor& kept,
    const Tensor& skip, std::string_view negatives, int64_t sub_centers, bool normalize_x, bool normalize_weight,
    double eps, int64_t ignore_index, int64_t absent_index, int64_t block, int64_t kept_blocks, bool need_x,
    bool need_weight, bool need_class_scale, bool need_bias) {
  const Problem problem(
      {x, weight, target, scale, class_scale, bias, transform, classes},
      {negatives, sub_centers, normalize_x, normalize_weight, eps, ignore_index, absent_index, block, kept_blocks});
  const CheckedSaved saved(
      {d_neg_lse, d_target_cos, d_x_norm, d_neg_cos_sum, x_norm, target_center, top, log_sum, w_norm, kept, skip},
      problem);
  const Plan& p = problem.plan();
  need_class_scale = need_class_scale && problem.has_class_scale();
  need_bias = need_bias && problem.has_bias();
  const Dtype numbers = problem.numbers();
  const Tensor dx = empty_if(need_x, {p.n, p.d}, problem.dtype()),
               dweight = empty_if(need_weight, {p.centres(), p.d}, problem.dtype()),
               dclass_scale = empty_if(need_class_scale, {p.c}, numbers), dbias = empty_if(need_bias, {p.c}, numbers);
  with_storage(problem.dtype(), "x", [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    const Gradients<T> out{need_x ? mutable_data<T>(dx) : nullptr, need_weight ? mutable_data<T>(dweight) : nullptr,
                           need_class_scale ? mutable_data<A>(dclass_scale) : nullptr,
                           need_bias ? mutable_data<A>(dbias) : nullptr};
    backward(problem.pointers<T>(), saved.pointers<A>(), out);
  });
  return {dx, dweight, dclass_scale, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "class_statistics", class_statistics);
  HK_OP(m, "class_statistics_backward", class_statistics_backward);
}

}  // namespace hyperkernels::margin_softmax
