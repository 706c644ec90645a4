// Checks of what an op was given. torch turns the standard exceptions into Python's: std::invalid_argument into a
// ValueError, std::out_of_range into an IndexError. Never inside a parallel loop, which would lose their type.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace hyperkernels {

using Sizes = std::vector<int64_t>;

// "[3, 4]"
inline std::ostream& operator<<(std::ostream& out, const Sizes& sizes) {
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i == 0 ? "" : ", ") << sizes[i];
  return out << ']';
}

template <class Error, class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace hyperkernels

// What follows the condition is the message, whose parts are only looked at where the check fails.
#define HK_CHECK_VALUE(condition, ...) \
  if (!(condition)) ::hyperkernels::refuse<std::invalid_argument>(__VA_ARGS__)
#define HK_CHECK_INDEX(condition, ...) \
  if (!(condition)) ::hyperkernels::refuse<std::out_of_range>(__VA_ARGS__)
