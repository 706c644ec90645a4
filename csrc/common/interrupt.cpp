#include "interrupt.h"

namespace hyperkernels {

namespace {

std::atomic<void (*)()> interruption{nullptr};

}  // namespace

void set_interruption(void (*check)()) { interruption = check; }

// Often enough for a person who waits, and seldom enough for a question that may have to wait for Python's lock.
Interrupt::Clock::time_point Interrupt::later() { return Clock::now() + std::chrono::milliseconds(200); }

void Interrupt::ask() {
  next_ = later();
  if (interruption == nullptr) return;
  try {
    interruption.load()();
  } catch (...) {
    error_ = std::current_exception();
    left_ = true;
  }
}

}  // namespace hyperkernels
