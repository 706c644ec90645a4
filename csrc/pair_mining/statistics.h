// What forward and backward of the pair statistics share: the transform, and the numbers that a side brings along.
#pragma once

#include <string>

#include "schedule.h"

namespace hyperkernels::pair_mining {

enum class Kind { kNone, kLinear, kCircle, kSoftplus };

struct Transform {
  Kind kind;
  double p0, p1;
};

inline Transform parse_transform(std::string_view name, double p0, double p1) {
  if (name == "none") return {Kind::kNone, p0, p1};
  if (name == "linear") return {Kind::kLinear, p0, p1};
  if (name == "circle") return {Kind::kCircle, p0, p1};
  TORCH_CHECK_VALUE(name == "softplus", "transform must be none, linear, circle or softplus; got ", std::string(name));
  return {Kind::kSoftplus, p0, p1};
}

// [n] each, whole: what was not given has no effect.
struct Numbers {
  at::Tensor lower, upper, scale, offset;
};

inline Numbers numbers_of_side(const Problem& p, const char* prefix, const Side& side, Kind kind,
                               const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& offset) {
  const std::string name(prefix);
  const auto filled = [&](const at::Tensor& given, double value) {
    return given.defined() ? given : at::full({side.n}, value, p.accumulate());
  };
  TORCH_CHECK_VALUE(kind == Kind::kNone || scale.has_value(), "the transform needs ", name, "scale");
  constexpr double nowhere = std::numeric_limits<double>::quiet_NaN();  // no similarity is beyond it
  return {filled(side.lower, nowhere), filled(side.upper, nowhere),
          filled(numbers_of(p, (name + "scale").c_str(), scale, side.n), 1),
          filled(numbers_of(p, (name + "offset").c_str(), offset, side.n), 0)};
}

// The bounds of the columns: those of the rows where x meets itself.
inline void take_column_bounds(Problem& p, bool columns, const std::optional<at::Tensor>& lower,
                               const std::optional<at::Tensor>& upper) {
  TORCH_CHECK_VALUE(!columns || !p.self, "statistics of the columns need ref");
  if (columns) {
    p.columns.lower = numbers_of(p, "ref_lower", lower, p.columns.n);
    p.columns.upper = numbers_of(p, "ref_upper", upper, p.columns.n);
  } else if (p.self) {
    p.columns = p.rows;
  }
}

}  // namespace hyperkernels::pair_mining
