// Ctrl-C in the middle of a long op.
//
// Python hears of a signal between two of its own instructions, and an op that multiplies all pairs may take half a
// minute. So the thread that called it asks now and then, between two tiles, whether to go on, and the others see the
// answer. What is asked belongs to whoever loads the kernels (facts.cpp); nothing here knows of Python.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>

namespace hyperkernels {

// What is asked: it throws what is to leave the op. Called by the thread that called the op. Null: ops run to their
// end.
void set_interruption(void (*check)());

// Belongs to one call of an op, and is made in the thread that called it.
class Interrupt {
 public:
  // Whether the loops are to be left. For every thread, before each tile that is computed: it is cheap beside one, and
  // not beside a tile that is passed over.
  bool called() {
    if (left_.load(std::memory_order_relaxed)) return true;
    if (std::this_thread::get_id() != caller_ || Clock::now() < next_) return false;
    ask();
    return left_.load(std::memory_order_relaxed);
  }

  // Behind the loops, in the thread that called the op: ends it where they were left.
  void rethrow() const {
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  using Clock = std::chrono::steady_clock;

  void ask();
  static Clock::time_point later();

  const std::thread::id caller_ = std::this_thread::get_id();
  Clock::time_point next_ = later();
  std::exception_ptr error_;
  std::atomic<bool> left_{false};
};

}  // namespace hyperkernels
