// Memory for the time of a call.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

namespace hyperkernels {

// For tests: new memory is filled with NaN (integers with a large number), so that what is read before it is written
// shows.
inline std::atomic<bool> poisons_memory{false};

// `size` numbers, not initialised. They are aligned as torch's tensors are: the order of a matrix product's sums may
// depend on it.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : size_(size) {
    constexpr size_t kAlignment = 64;
    const size_t bytes = (size_t(size) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes == 0) return;
    data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
    if (poisons_memory.load(std::memory_order_relaxed)) std::memset(static_cast<void*>(data_.get()), 0xff, bytes);
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  // At least so many; what it held is gone where it grows.
  void reserve(int64_t size) {
    if (size > size_) *this = Buffer(size);
  }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t size_ = 0;
};

}  // namespace hyperkernels
