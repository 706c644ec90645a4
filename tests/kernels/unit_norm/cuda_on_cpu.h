// Runs a .cu file on the host: included before it (g++ -x c++ -include), with CUDA's own headers on the include path.
//
// One block at a time; each of its threads is a fiber, and the fibers take turns in a fixed order. Warp shuffles and
// __syncthreads are real rendezvous: a thread that never comes to one is noticed, and the launch returns kDeadlock.
// Memory ordering is not modelled. A 16-byte access that passes either end of a tensor ends the launch with
// kOutOfBounds: an aligned word never leaves the page of its elements, so that no guard page would notice.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

using std::fabs;
using std::sqrt;

namespace hyperkernels {

constexpr int kInvalidValue = 1;
constexpr int kDeadlock = 2;
constexpr int kOutOfBounds = 3;

struct Index3 {
  unsigned x, y, z;
};

class Machine {
 public:
  Index3 thread{}, block{}, grid{};
  std::vector<std::pair<uintptr_t, uintptr_t>> tensors;  // first byte, past the last

  void check_access(const void* word, size_t bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(word), end = begin + bytes;
    for (const auto& [first, last] : tensors) {
      if (begin < last && end > first && (begin < first || end > last)) out_of_bounds_ = true;
    }
  }

  int run(unsigned blocks, int threads, std::function<void()> kernel) {
    kernel_ = std::move(kernel);
    grid.x = blocks;
    out_of_bounds_ = false;
    for (block.x = 0; block.x < blocks; ++block.x) {
      if (!run_block(threads)) return kDeadlock;
    }
    return out_of_bounds_ ? kOutOfBounds : 0;
  }

  void meet_block() { meet(meetings_.back(), static_cast<int>(fibers_.size())); }

  template <typename A>
  A exchange(A value, int mask) {
    static_assert(sizeof value <= sizeof(uint64_t));
    const unsigned me = thread.x;
    memcpy(&slots_[me], &value, sizeof value);
    meet(meetings_[me / 32], 32);
    memcpy(&value, &slots_[me ^ mask], sizeof value);
    meet(meetings_[me / 32], 32);  // nobody writes a slot that is still to be read
    return value;
  }

 private:
  struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done = false;
  };
  struct Meeting {
    int arrived = 0, held = 0;
  };

  void meet(Meeting& meeting, int size) {
    const int mine = meeting.held;
    if (++meeting.arrived == size) {
      meeting = {0, mine + 1};
      progress_ = true;
    }
    while (meeting.held == mine) swapcontext(&fibers_[thread.x].context, &scheduler_);
  }

  static void enter();

  bool run_block(int threads) {
    fibers_ = std::vector<Fiber>(threads);
    meetings_.assign(threads / 32 + 1, {});  // one per warp, and the block's
    slots_.assign(threads, 0);
    for (Fiber& fiber : fibers_) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler_;
      makecontext(&fiber.context, enter, 0);
    }
    for (int left = threads; left > 0;) {
      progress_ = false;
      for (thread.x = 0; thread.x < fibers_.size(); ++thread.x) {
        Fiber& fiber = fibers_[thread.x];
        if (fiber.done) continue;
        swapcontext(&scheduler_, &fiber.context);
        left -= fiber.done;
        progress_ |= fiber.done;
      }
      if (!progress_) return false;
    }
    return true;
  }

  std::function<void()> kernel_;
  std::vector<Fiber> fibers_;
  std::vector<Meeting> meetings_;
  std::vector<uint64_t> slots_;
  ucontext_t scheduler_{};
  bool progress_ = false, out_of_bounds_ = false;
};

inline Machine machine;

// CUDA's uint4, whose copies are 16-byte accesses; the kernels' own variables lie in no tensor.
struct Word16 {
  uint64_t half[2];

  Word16() = default;
  Word16(const Word16& from) { *this = from; }
  Word16& operator=(const Word16& from) {
    machine.check_access(&from, sizeof from);
    machine.check_access(this, sizeof *this);
    memcpy(half, from.half, sizeof half);
    return *this;
  }
};

inline void Machine::enter() {
  machine.kernel_();
  machine.fibers_[machine.thread.x].done = true;
}

// Among the arguments are the sizes of one shape, which every pointer's tensor has.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void*, Arguments... arguments) {
  int64_t elements = 1;
  const auto multiply = [&](auto argument) {
    if constexpr (std::is_integral_v<decltype(argument)>) elements *= argument;
  };
  (multiply(arguments), ...);
  machine.tensors.clear();
  const auto note = [&](auto argument) {
    if constexpr (std::is_pointer_v<decltype(argument)>) {
      machine.tensors.push_back(
          {reinterpret_cast<uintptr_t>(argument), reinterpret_cast<uintptr_t>(argument + elements)});
    }
  };
  (note(arguments), ...);
  return machine.run(static_cast<unsigned>(blocks), threads, [=] { kernel(arguments...); });
}

}  // namespace hyperkernels

#define threadIdx hyperkernels::machine.thread
#define blockIdx hyperkernels::machine.block
#define gridDim hyperkernels::machine.grid
#define uint4 hyperkernels::Word16

template <typename A>
A __shfl_xor_sync(unsigned, A value, int mask) {
  return hyperkernels::machine.exchange(value, mask);
}
inline void __syncthreads() { hyperkernels::machine.meet_block(); }
