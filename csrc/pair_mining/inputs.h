// The tensors that all pair ops take, checked. They are kept until the op is done: kernels read their memory.
#pragma once

#include <string>
#include <string_view>

#include "../common/tensor.h"
#include "problem.h"

namespace hyperkernels::pair_mining {

// [n], contiguous.
inline Tensor checked(const std::string& name, const Tensor& given, Dtype dtype, int64_t n) {
  check_dtype(given, dtype, name.c_str());
  HK_CHECK_VALUE(given.dim() == 1 && given.size(0) == n, name, " must be [", n, "]; got ", sizes_of(given));
  check_cpu(given, name.c_str());
  return packed(given);
}

inline Optional checked(const std::string& name, const Optional& given, Dtype dtype, int64_t n) {
  return given.has_value() ? Optional(checked(name, *given, dtype, n)) : std::nullopt;
}

inline Similarity parse_similarity(std::string_view name) {
  if (name == "dot") return Similarity::kDot;
  if (name == "euclidean") return Similarity::kEuclidean;
  HK_CHECK_VALUE(name == "squared_euclidean", "similarity must be dot, euclidean or squared_euclidean; got ", name);
  return Similarity::kSquaredEuclidean;
}

inline Select parse_select(std::string_view name) {
  if (name == "positive") return Select::kPositive;
  if (name == "negative") return Select::kNegative;
  HK_CHECK_VALUE(name == "all", "select must be positive, negative or all; got ", name);
  return Select::kAll;
}

// x and ref, contiguous.
struct [[gnu::visibility("hidden")]] PairVectors {
  Dtype dtype, accumulate;
  Tensor x, ref;  // ref is x where `self`
  bool self;
  int64_t n, m, d;

  PairVectors(const Tensor& given_x, const Optional& given_ref)
      : dtype(given_x.scalar_type()),
        accumulate(accumulate_dtype(dtype)),
        x(checked_vectors("x", given_x, dtype, -1)),
        ref(given_ref.has_value() ? checked_vectors("ref", *given_ref, dtype, x.size(1)) : x),
        self(!given_ref.has_value()),
        n(x.size(0)),
        m(ref.size(0)),
        d(x.size(1)) {}

  // Results of pairs.
  Tensor numbers(const Sizes& sizes) const { return empty(sizes, accumulate); }
  Tensor indices(const Sizes& sizes) const { return empty(sizes, Dtype::Long); }
  // Gradients; where x meets itself dx holds both ends of every pair. What is not needed is empty: its pointer is null.
  Tensor x_gradient(bool needed) const { return empty_if(needed, {n, d}, dtype); }
  Tensor ref_gradient(bool needed) const { return empty_if(needed && !self, {m, d}, dtype); }

 private:
  // [n, d], any d where it is -1.
  static Tensor checked_vectors(const char* name, const Tensor& given, Dtype dtype, int64_t d) {
    HK_CHECK_VALUE(dtype == Dtype::Double || dtype == Dtype::Float || dtype == Dtype::BFloat16 || dtype == Dtype::Half,
                   name, " must have dtype float64, float32, bfloat16 or float16; got ", name_of(dtype));
    check_dtype(given, dtype, name);
    check_cpu(given, name);
    if (d < 0) {
      HK_CHECK_VALUE(given.dim() == 2, name, " must be [N, D]; got ", sizes_of(given));
    } else {
      HK_CHECK_VALUE(given.dim() == 2 && given.size(1) == d, name, " must be [M, ", d, "]; got ", sizes_of(given));
    }
    return packed(given);
  }
};

// What pairs are selected by, of one side. Types that hold tensors are hidden, since tensors are.
struct [[gnu::visibility("hidden")]] SideTensors {
  Optional label, id;

  PairLabels labels(bool bits) const {
    return {bits ? nullptr : data<int32_t>(label), bits ? data<int64_t>(label) : nullptr, data<int32_t>(id)};
  }
};

// A pair problem. Checks every size and dtype.
class [[gnu::visibility("hidden")]] PairInputs : public PairVectors {
 public:
  PairInputs(const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label, const Tensor& id,
             const Tensor& ref_id, const Optional& lower, const Optional& upper, std::string_view select,
             std::string_view similarity, int64_t row_tile, int64_t column_tile)
      : PairVectors(x, ref) {
    check_tile("row_tile", row_tile);
    check_tile("column_tile", column_tile);
    const PairSelection selection = select_by(parse_select(select), label, ref_label, id, ref_id);
    options_ = {n, m, d, row_tile, column_tile, self, parse_similarity(similarity), selection};
    lower_ = checked("lower", lower, accumulate, n);
    upper_ = checked("upper", upper, accumulate, n);
  }

  const Optional& lower() const { return lower_; }
  const Optional& upper() const { return upper_; }

  template <class T>
  PairProblem<T> problem() const {
    using A = Accumulate<T>;
    return {options_, data<T>(x), data<T>(ref), data<A>(lower_), data<A>(upper_)};
  }

 private:
  static void check_tile(const char* name, int64_t tile) {
    constexpr int64_t kLargestTile = 4096;  // a tile of float64 takes 128 MiB
    HK_CHECK_VALUE(tile > 0 && tile <= kLargestTile, name, " must be in [1, ", kLargestTile, "]; got ", tile);
  }

  PairSelection select_by(Select select, const Tensor& label, const Tensor& ref_label, const Tensor& id,
                          const Tensor& ref_id) {
    const Dtype label_dtype = label.scalar_type();
    HK_CHECK_VALUE(label_dtype == Dtype::Int || label_dtype == Dtype::Long, "label must be int32 or int64; got ",
                   name_of(label_dtype));
    const bool labelled = label.numel() > 0 || ref_label.numel() > 0;
    const bool identified = id.numel() > 0 || ref_id.numel() > 0;
    HK_CHECK_VALUE(labelled || select == Select::kAll || n == 0 || m == 0,
                   "select=", select == Select::kPositive ? "positive" : "negative", " needs label");
    const auto fill = [&](const std::string& prefix, const Tensor& label, const Tensor& id, int64_t n) {
      SideTensors side;
      if (labelled) side.label = checked(prefix + "label", label, label_dtype, n);
      if (identified) side.id = checked(prefix + "id", id, Dtype::Int, n);
      return side;
    };
    rows_ = fill("", label, id, n);
    columns_ = self ? rows_ : fill("ref_", ref_label, ref_id, m);
    const bool bits = label_dtype == Dtype::Long;
    return {select, rows_.labels(bits), columns_.labels(bits)};
  }

  SideTensors rows_, columns_;
  Optional lower_, upper_;
  PairOptions options_;
};

}  // namespace hyperkernels::pair_mining
