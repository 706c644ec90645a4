// Runs a .cu file on the host: included before it (g++ -x c++ -include), with CUDA's own headers on the include path.
//
// One block at a time; each of its threads is a fiber, and the fibers take turns in a fixed order. Warp shuffles and
// __syncthreads are real rendezvous: a thread that never comes to one is noticed, and the launch returns kDeadlock.
// Memory ordering is not modelled.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
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

struct Index3 {
  unsigned x, y, z;
};

class Machine {
 public:
  Index3 thread{}, block{}, grid{};

  int run(unsigned blocks, int threads, std::function<void()> kernel) {
    kernel_ = std::move(kernel);
    grid.x = blocks;
    for (block.x = 0; block.x < blocks; ++block.x) {
      if (!run_block(threads)) return kDeadlock;
    }
    return 0;
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
  bool progress_ = false;
};

inline Machine machine;

inline void Machine::enter() {
  machine.kernel_();
  machine.fibers_[machine.thread.x].done = true;
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void*, Arguments... arguments) {
  return machine.run(static_cast<unsigned>(blocks), threads, [=] { kernel(arguments...); });
}

}  // namespace hyperkernels

#define threadIdx hyperkernels::machine.thread
#define blockIdx hyperkernels::machine.block
#define gridDim hyperkernels::machine.grid

template <typename A>
A __shfl_xor_sync(unsigned, A value, int mask) {
  return hyperkernels::machine.exchange(value, mask);
}
inline void __syncthreads() { hyperkernels::machine.meet_block(); }
