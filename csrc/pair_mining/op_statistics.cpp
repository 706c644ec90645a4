// pair_statistics and its gradient on the CPU.

#include "../common/op.h"
#include "inputs.h"
#include "statistics.h"

namespace hyperkernels::pair_mining {

namespace {

Transform parse_transform(std::string_view name, double p0, double p1) {
  if (name == "none") return {Kind::kNone, p0, p1};
  if (name == "linear") return {Kind::kLinear, p0, p1};
  if (name == "circle") return {Kind::kCircle, p0, p1};
  HK_CHECK_VALUE(name == "softplus", "transform must be none, linear, circle or softplus; got ", name);
  return {Kind::kSoftplus, p0, p1};
}

// The numbers of one side; `prefix` begins their names.
struct NumberTensors {
  Optional lower, upper, scale, offset;

  NumberTensors(const std::string& prefix, Dtype dtype, int64_t n, Kind kind, const Optional& lower,
                const Optional& upper, const Optional& scale, const Optional& offset)
      : lower(checked(prefix + "lower", lower, dtype, n)),
        upper(checked(prefix + "upper", upper, dtype, n)),
        scale(checked(prefix + "scale", scale, dtype, n)),
        offset(checked(prefix + "offset", offset, dtype, n)) {
    HK_CHECK_VALUE(kind == Kind::kNone || scale.has_value(), "the transform needs ", prefix, "scale");
  }

  template <class A>
  PairNumbers<A> numbers() const {
    return {data<A>(lower), data<A>(upper), data<A>(scale), data<A>(offset)};
  }
};

void check_columns(bool columns, bool self) { HK_CHECK_VALUE(!columns || !self, "statistics of the columns need ref"); }

// The results of one side, in the order of the op's. What is not asked for is empty.
struct StatisticsTensors {
  bool moments, extremes, transforms, offsets;
  Tensor count, sum, sum_squares, min, argmin, max, argmax, lse, d_scale, d_offset;

  StatisticsTensors(Dtype dtype, int64_t n, bool moments, bool extremes, Kind kind)
      : moments(moments),
        extremes(extremes),
        transforms(kind != Kind::kNone),
        offsets(kind == Kind::kSoftplus),
        count(empty({n}, Dtype::Long)),
        sum(empty_if(moments, {n}, dtype)),
        sum_squares(empty_if(moments, {n}, dtype)),
        min(empty_if(extremes, {n}, dtype)),
        argmin(empty_if(extremes, {n}, Dtype::Long)),
        max(empty_if(extremes, {n}, dtype)),
        argmax(empty_if(extremes, {n}, Dtype::Long)),
        lse(empty_if(transforms, {n}, dtype)),
        d_scale(empty_if(transforms, {n}, dtype)),
        d_offset(empty_if(offsets, {n}, dtype)) {}

  auto tuple() const {
    return std::make_tuple(count, sum, sum_squares, min, argmin, max, argmax, lse, d_scale, d_offset);
  }

  template <class A>
  PairRowStatistics<A> pointers() const {
    return {mutable_data<int64_t>(count),  mutable_data<A>(sum),          mutable_data<A>(sum_squares),
            mutable_data<A>(min),          mutable_data<int64_t>(argmin), mutable_data<A>(max),
            mutable_data<int64_t>(argmax), mutable_data<A>(lse),          mutable_data<A>(d_scale),
            mutable_data<A>(d_offset)};
  }
};

auto statistics(const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label, const Tensor& id,
                const Tensor& ref_id, const Optional& lower, const Optional& upper, std::string_view select,
                std::string_view similarity, const Optional& scale, const Optional& offset, bool columns,
                const Optional& ref_lower, const Optional& ref_upper, const Optional& ref_scale,
                const Optional& ref_offset, bool moments, bool extremes, std::string_view transform, double p0,
                double p1, int64_t row_tile, int64_t column_tile) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  check_columns(columns, in.self);
  const Transform power = parse_transform(transform, p0, p1);
  const Kind kind = power.kind;
  const NumberTensors of_rows("", in.accumulate, in.n, kind, in.lower(), in.upper(), scale, offset);
  std::optional<NumberTensors> of_columns;
  if (columns) of_columns.emplace("ref_", in.accumulate, in.m, kind, ref_lower, ref_upper, ref_scale, ref_offset);
  const StatisticsTensors row_out(in.accumulate, in.n, moments, extremes, kind);
  const StatisticsTensors column_out(in.accumulate, columns ? in.m : 0, moments, extremes, kind);
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    pair_statistics<T>({in.problem<T>(), columns, moments, extremes, power, of_rows.numbers<A>(),
                        columns ? of_columns->numbers<A>() : PairNumbers<A>(), row_out.pointers<A>(),
                        column_out.pointers<A>()});
  });
  return std::tuple_cat(row_out.tuple(), column_out.tuple());
}

// What the gradients of the similarities are made of, of one side.
struct GradientTensors {
  NumberTensors numbers;
  Tensor coefficients;
  Optional lse;

  GradientTensors(const std::string& prefix, const NumberTensors& numbers, Dtype dtype, int64_t n, Kind kind,
                  const Optional& coefficients, const Optional& lse)
      : numbers(numbers), coefficients(checked_coefficients(prefix, dtype, n, coefficients)) {
    if (kind != Kind::kLinear && kind != Kind::kCircle) return;
    HK_CHECK_VALUE(lse.has_value(), "the transform needs ", prefix, "lse");
    this->lse = checked(prefix + "lse", *lse, dtype, n);
  }

  template <class A>
  PairGradientNumbers<A> pointers() const {
    return {numbers.numbers<A>(), data<A>(coefficients), data<A>(lse)};
  }

 private:
  static Tensor checked_coefficients(const std::string& prefix, Dtype dtype, int64_t n, const Optional& given) {
    const std::string name = prefix + "coefficients";
    HK_CHECK_VALUE(given.has_value(), "statistics of the columns need ", name);
    check_dtype(*given, dtype, name.c_str());
    check_sizes(*given, {4, n}, name.c_str());
    check_cpu(*given, name.c_str());
    return packed(*given);
  }
};

std::tuple<Tensor, Tensor> statistics_backward(
    const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label, const Tensor& id,
    const Tensor& ref_id, const Optional& lower, const Optional& upper, std::string_view select,
    std::string_view similarity, const Tensor& coefficients, const Optional& scale, const Optional& offset,
    const Tensor& lse, bool columns, const Optional& ref_lower, const Optional& ref_upper, const Optional& ref_scale,
    const Optional& ref_offset, const Optional& ref_coefficients, const Optional& ref_lse, std::string_view transform,
    double p0, double p1, int64_t row_tile, int64_t column_tile, bool need_x, bool need_ref) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  check_columns(columns, in.self);
  const Transform power = parse_transform(transform, p0, p1);
  const Kind kind = power.kind;
  const NumberTensors row_numbers("", in.accumulate, in.n, kind, in.lower(), in.upper(), scale, offset);
  const GradientTensors of_rows("", row_numbers, in.accumulate, in.n, kind, coefficients, lse);
  std::optional<GradientTensors> of_columns;
  if (columns) {
    const NumberTensors numbers("ref_", in.accumulate, in.m, kind, ref_lower, ref_upper, ref_scale, ref_offset);
    of_columns.emplace("ref_", numbers, in.accumulate, in.m, kind, ref_coefficients, ref_lse);
  }
  const Tensor dx = in.x_gradient(need_x), dref = in.ref_gradient(need_ref);
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    pair_statistics_backward<T>({in.problem<T>(), columns, power, of_rows.pointers<A>(),
                                 columns ? of_columns->pointers<A>() : PairGradientNumbers<A>(), mutable_data<T>(dx),
                                 mutable_data<T>(dref)});
  });
  return {dx, dref};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "pair_statistics", statistics);
  HK_OP(m, "pair_statistics_backward", statistics_backward);
}

}  // namespace hyperkernels::pair_mining
