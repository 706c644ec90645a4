// Loops that run in torch's threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace hyperkernels {

// So many numbers are worth a thread.
constexpr int64_t kGrain = 32768;

// Rows of dim numbers that are worth a thread.
inline int64_t grain(int64_t dim) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, dim)); }

int64_t thread_count();

namespace detail {
void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context);
}  // namespace detail

// Calls f(begin, end) for ranges that make up [begin, end), in parallel where there is more than a grain of them. f
// must not throw.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const auto call = [](int64_t from, int64_t to, void* context) { (*static_cast<const F*>(context))(from, to); };
  detail::parallel_for(begin, end, grain, call, const_cast<F*>(&f));
}

// Calls f(k) for k in [0, count), in parallel. A matrix product inside runs on one thread, always: a single item
// outside a parallel region would take all threads, and its sums would come out in another order.
template <class F>
void in_parallel(int64_t count, const F& f) {
  parallel_for(0, std::max<int64_t>(2, count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < std::min(end, count); ++k) f(k);
  });
}

}  // namespace hyperkernels
