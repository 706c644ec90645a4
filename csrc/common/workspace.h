// Memory for the time of a call, or of one lane of it: a plan says how much, a workspace hands it out.
#pragma once

#include <cstddef>
#include <stdexcept>

#include "buffer.h"

namespace hyperkernels {

// The sum of what is asked of it, in bytes. The same lines that take pieces from a workspace run over one of these
// first, so that both always agree.
class Measure {
 public:
  template <class T>
  T* take(int64_t count) {
    bytes_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// The bytes of a Layout: a struct of pieces that its constructor takes from the memory that is its last argument.
template <class Layout, class... Args>
int64_t measured(const Args&... args) {
  Measure memory;
  static_cast<void>(Layout(args..., memory));
  return memory.bytes();
}

// One buffer. Its pieces are aligned as torch's tensors are, and not initialised.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : buffer_(bytes), next_(buffer_.data()) {}

  template <class T>
  T* take(int64_t count) {
    std::byte* piece = next_;
    next_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    if (next_ > buffer_.data() + buffer_.size()) throw std::logic_error("a workspace is smaller than what is taken");
    return reinterpret_cast<T*>(piece);
  }

 private:
  Buffer<std::byte> buffer_;
  std::byte* next_;
};

// Pieces are pointers into a workspace: a struct that is constructed of (memory, args...), takes from the memory, and
// writes nothing there, since the memory may be a Measure. InWorkspace is such a struct with a workspace of its own.
template <class Pieces>
class InWorkspace {
 public:
  template <class... Args>
  explicit InWorkspace(const Args&... args) : workspace_(bytes(args...)), pieces_(workspace_, args...) {}

  Pieces* operator->() { return &pieces_; }
  const Pieces* operator->() const { return &pieces_; }
  Pieces& operator*() { return pieces_; }

 private:
  template <class... Args>
  static int64_t bytes(const Args&... args) {
    Measure measure;
    [[maybe_unused]] const Pieces pieces(measure, args...);
    return measure.bytes();
  }

  Workspace workspace_;
  Pieces pieces_;
};

}  // namespace hyperkernels
