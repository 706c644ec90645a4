// Registers kernels with torch's dispatcher. Schemas are in hyperkernels/kernels/<family>/op.py.
//
// libtorch hands arguments over by the schema and takes them by the C++ type, and compares their number alone: an int
// read as a double would be silent garbage. So each function's types are kept beside its name, as words of a schema,
// and tests/kernels/test_library.py compares them.
#pragma once

#include <torch/csrc/stable/library.h>

#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "tensor.h"

namespace hyperkernels {

// "Tensor, Tensor?, str -> Tensor, Tensor" for every op.
std::map<std::string, std::string>& signatures();

// Where the kernels of two devices differ both stand there, which no schema equals.
inline void note_signature(const char* name, const std::string& types) {
  std::string& known = signatures()[name];
  known = known.empty() || known == types ? types : known + " | " + types;
}

namespace detail {

template <class T>
constexpr const char* word() {
  if constexpr (std::is_same_v<T, Tensor>) return "Tensor";
  if constexpr (std::is_same_v<T, Optional>) return "Tensor?";
  if constexpr (std::is_same_v<T, std::vector<Tensor>>) return "Tensor[]";
  if constexpr (std::is_same_v<T, std::string_view>) return "str";
  if constexpr (std::is_same_v<T, int64_t>) return "int";
  if constexpr (std::is_same_v<T, double>) return "float";
  if constexpr (std::is_same_v<T, bool>) return "bool";
}

template <class... T>
std::string words() {
  std::string text;
  ((text += (text.empty() ? "" : ", ") + std::string(word<std::remove_cv_t<std::remove_reference_t<T>>>())), ...);
  return text;
}

template <class R>
struct Results {
  static std::string text() { return words<R>(); }
};
template <>
struct Results<void> {
  static std::string text() { return ""; }
};
template <class... R>
struct Results<std::tuple<R...>> {
  static std::string text() { return words<R...>(); }
};

}  // namespace detail

template <class R, class... A>
std::string signature(R (*)(A...)) {
  return detail::words<A...>() + " -> " + detail::Results<R>::text();
}

}  // namespace hyperkernels

// Inside STABLE_TORCH_LIBRARY_IMPL(hyperkernels, <device>, m).
#define HK_OP(m, name, function)      \
  m.impl(name, TORCH_BOX(&function)); \
  ::hyperkernels::note_signature(name, ::hyperkernels::signature(&function))
