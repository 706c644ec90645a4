// x / max(|x|, eps) over rows, and its derivative: one read of each input, one write, nothing else stored.
//
// A team of threads owns a row: 8 lanes of a warp, a warp, or a block, chosen by the bytes of a row, so that each lane
// holds a few 16-byte words in registers. Wider rows go through a block that reads them again from the caches.
#include "cuda.h"
#include "row.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace hyperkernels {
namespace {

constexpr int kWarp = 32;
constexpr int kBlock = 256;      // threads of a block that loops over a wide row
constexpr int kWarpBlock = 128;  // threads of a block of smaller teams
constexpr unsigned kAllLanes = 0xffffffffu;

struct Max {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a > b ? a : b;  // NaN may go either way: the sum of squares carries it
  }
};
struct Sum {
  template <typename A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

// Threads that own one row together.
template <int kThreads>
struct Team {
  static constexpr int kBlockThreads = kThreads > kWarp ? kThreads : kWarpBlock;
  static constexpr int kPerBlock = kBlockThreads / kThreads;

  __device__ static int rank() { return threadIdx.x % kThreads; }
  __device__ static int64_t first_row() {
    return blockIdx.x * static_cast<int64_t>(kPerBlock) + threadIdx.x / kThreads;
  }
  __device__ static int64_t stride() { return gridDim.x * static_cast<int64_t>(kPerBlock); }

  // Every thread gets the combination of the whole team's values, in an order that never changes.
  template <int kValues, typename A, typename Op>
  __device__ static void reduce(A (&value)[kValues], Op op) {
    constexpr int kLanes = kThreads < kWarp ? kThreads : kWarp;
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) value[i] = op(value[i], __shfl_xor_sync(kAllLanes, value[i], step));
    }
    if constexpr (kThreads > kWarp) {
      constexpr int kWarps = kThreads / kWarp;
      __shared__ A partial[kWarps][kValues];
      __syncthreads();  // the previous reduction has been read
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp][i] = value[i];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        value[i] = partial[0][i];
#pragma unroll
        for (int w = 1; w < kWarps; ++w) value[i] = op(value[i], partial[w][i]);
      }
    }
  }
};

template <int kWords, int kVector, typename A>
__device__ A largest_of(const A (&value)[kWords][kVector]) {
  A largest = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) largest = Max()(largest, fabs(value[i][j]));
  }
  return largest;
}

template <int kWords, int kVector, typename A>
__device__ void scale_by(A (&value)[kWords][kVector], A factor) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) value[i][j] *= factor;
  }
}

template <int kWords, int kVector, typename A>
__device__ A inner_product(const A (&a)[kWords][kVector], const A (&b)[kWords][kVector]) {
  A sum = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum += a[i][j] * b[i][j];
  }
  return sum;
}

// A team owns a row at a time and holds it in registers. Reads x once, writes y once; the norm is never stored.
// x, y [rows, dim]; y may be x. The words of a row fit kWords per thread.
template <typename T, int kThreads, int kWords, bool kShifted>
__global__ void __launch_bounds__(Team<kThreads>::kBlockThreads)
    forward_kernel(const T* x, T* y, int64_t rows, int dim, Floor<arithmetic_t<T>> floor) {
  using A = arithmetic_t<T>;
  using TeamOfRow = Team<kThreads>;
  constexpr int kVector = 16 / sizeof(T);
  const int64_t team = TeamOfRow::first_row();
  const int within = static_cast<int>(team % (kWarp / (kThreads < kWarp ? kThreads : kWarp)));
  // The lanes of a warp go round together, past the last row as well: all of them take part in the shuffles.
  for (int64_t row = team; row - within < rows; row += TeamOfRow::stride()) {
    const Span<T, kVector, kShifted, int> span(x, row, rows, dim);
    A value[kWords][kVector];
    span.template load<kThreads>(x, TeamOfRow::rank(), value);
    A largest[1] = {largest_of(value)};
    TeamOfRow::reduce(largest, Max());
    const int exponent = row_exponent(largest[0], floor);
    scale_by(value, power_of_two<A>(-exponent));
    A total[1] = {inner_product(value, value)};
    TeamOfRow::reduce(total, Sum());
    scale_by(value, Length<A>(total[0], exponent, floor).inverse);
    span.template store<kThreads>(y, TeamOfRow::rank(), value);
  }
}

// A team owns a row at a time and holds x and grad in registers. Reads both once, writes dx once; neither y nor the
// norm is stored. grad, x, dx [rows, dim]; dx may be either.
template <typename T, int kThreads, int kWords, bool kShifted>
__global__ void __launch_bounds__(Team<kThreads>::kBlockThreads)
    backward_kernel(const T* grad, const T* x, T* dx, int64_t rows, int dim, Floor<arithmetic_t<T>> floor) {
  using A = arithmetic_t<T>;
  using TeamOfRow = Team<kThreads>;
  constexpr int kVector = 16 / sizeof(T);
  const int64_t team = TeamOfRow::first_row();
  const int within = static_cast<int>(team % (kWarp / (kThreads < kWarp ? kThreads : kWarp)));
  for (int64_t row = team; row - within < rows; row += TeamOfRow::stride()) {
    const Span<T, kVector, kShifted, int> span(x, row, rows, dim);
    A value[kWords][kVector], change[kWords][kVector];
    span.template load<kThreads>(x, TeamOfRow::rank(), value);
    span.template load<kThreads>(grad, TeamOfRow::rank(), change);
    A largest[2] = {largest_of(value), largest_of(change)};
    TeamOfRow::reduce(largest, Max());
    const int exponent = row_exponent(largest[0], floor), grad_exponent = exponent_of(largest[1]);
    scale_by(value, power_of_two<A>(-exponent));
    scale_by(change, power_of_two<A>(-grad_exponent));
    A sums[2] = {inner_product(value, value), inner_product(value, change)};
    TeamOfRow::reduce(sums, Sum());
    const Tangent<A> tangent(Length<A>(sums[0], exponent, floor), sums[1], grad_exponent - exponent);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) change[i][j] = tangent(change[i][j], value[i][j]);
    }
    span.template store<kThreads>(dx, TeamOfRow::rank(), change);
  }
}

// A block owns a row at a time, of any width. Reads x three times (twice from the caches), writes y once. Serves rows
// too wide for the registers, and with kVector = 1 tensors that are not aligned alike. x, y [rows, dim]; y may be x.
template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock)
    forward_wide_kernel(const T* x, T* y, int64_t rows, int64_t dim, Floor<arithmetic_t<T>> floor) {
  using A = arithmetic_t<T>;
  A value[1][kVector];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const Span<T, kVector, true, int64_t> span(x, row, rows, dim);
    A largest[1] = {0}, total[1] = {0};
    for (int64_t word = threadIdx.x; word < span.words; word += kBlock) {
      span.template load<kBlock>(x, word, value);
      largest[0] = Max()(largest[0], largest_of(value));
    }
    Team<kBlock>::reduce(largest, Max());
    const int exponent = row_exponent(largest[0], floor);
    const A scale = power_of_two<A>(-exponent);
    for (int64_t word = threadIdx.x; word < span.words; word += kBlock) {
      span.template load<kBlock>(x, word, value);
      scale_by(value, scale);
      total[0] += inner_product(value, value);
    }
    Team<kBlock>::reduce(total, Sum());
    const A inverse = Length<A>(total[0], exponent, floor).inverse;
    for (int64_t word = threadIdx.x; word < span.words; word += kBlock) {
      span.template load<kBlock>(x, word, value);
      scale_by(value, scale);
      scale_by(value, inverse);
      span.template store<kBlock>(y, word, value);
    }
  }
}

// A block owns a row at a time, of any width. Reads grad and x three times (twice from the caches), writes dx once.
// grad, x, dx [rows, dim]; dx may be either.
template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock)
    backward_wide_kernel(const T* grad, const T* x, T* dx, int64_t rows, int64_t dim, Floor<arithmetic_t<T>> floor) {
  using A = arithmetic_t<T>;
  A value[1][kVector], change[1][kVector];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const Span<T, kVector, true, int64_t> span(x, row, rows, dim);
    A largest[2] = {0, 0}, sums[2] = {0, 0};
    for (int64_t word = threadIdx.x; word < span.words; word += kBlock) {
      span.template load<kBlock>(x, word, value);
      span.template load<kBlock>(grad, word, change);
      largest[0] = Max()(largest[0], largest_of(value));
      largest[1] = Max()(largest[1], largest_of(change));
    }
    Team<kBlock>::reduce(largest, Max());
    const int exponent = row_exponent(largest[0], floor), grad_exponent = exponent_of(largest[1]);
    const A scale = power_of_two<A>(-exponent), grad_scale = power_of_two<A>(-grad_exponent);
    for (int64_t word = threadIdx.x; word < span.words; word += kBlock) {
      span.template load<kBlock>(x, word, value);
      span.template load<kBlock>(grad, word, change);
      scale_by(value, scale);
      scale_by(change, grad_scale);
      sums[0] += inner_product(value, value);
      sums[1] += inner_product(value, change);
    }
    Team<kBlock>::reduce(sums, Sum());
    const Tangent<A> tangent(Length<A>(sums[0], exponent, floor), sums[1], grad_exponent - exponent);
    for (int64_t word = threadIdx.x; word < span.words; word += kBlock) {
      span.template load<kBlock>(x, word, value);
      span.template load<kBlock>(grad, word, change);
#pragma unroll
      for (int j = 0; j < kVector; ++j) change[0][j] = tangent(change[0][j] * grad_scale, value[0][j] * scale);
      span.template store<kBlock>(dx, word, change);
    }
  }
}

#ifdef __CUDACC__
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream, Arguments... arguments) {
  const unsigned grid =
      static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff);  // the kernels stride over the rest
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return static_cast<int>(cudaGetLastError());
}
constexpr int kInvalidValue = cudaErrorInvalidValue;
#endif

// The two directions, so that one table serves both: `run<...>` launches the kernel of that shape.
template <typename T>
struct Forward {
  const T* x;
  T* y;
  bool aligned_alike() const { return reinterpret_cast<uintptr_t>(x) % 16 == reinterpret_cast<uintptr_t>(y) % 16; }
  const T* base() const { return x; }

  template <int kThreads, int kWords, bool kShifted>
  int run(int64_t rows, int64_t dim, double eps, void* stream) const {
    constexpr int kPerBlock = Team<kThreads>::kPerBlock;
    return launch(forward_kernel<T, kThreads, kWords, kShifted>, (rows + kPerBlock - 1) / kPerBlock,
                  Team<kThreads>::kBlockThreads, stream, x, y, rows, static_cast<int>(dim),
                  make_floor<arithmetic_t<T>>(eps));
  }
  template <int kVector>
  int run_wide(int64_t rows, int64_t dim, double eps, void* stream) const {
    return launch(forward_wide_kernel<T, kVector>, rows, kBlock, stream, x, y, rows, dim,
                  make_floor<arithmetic_t<T>>(eps));
  }
};

template <typename T>
struct Backward {
  const T* grad;
  const T* x;
  T* dx;
  bool aligned_alike() const {
    const uintptr_t shift = reinterpret_cast<uintptr_t>(x) % 16;
    return reinterpret_cast<uintptr_t>(grad) % 16 == shift && reinterpret_cast<uintptr_t>(dx) % 16 == shift;
  }
  const T* base() const { return x; }

  template <int kThreads, int kWords, bool kShifted>
  int run(int64_t rows, int64_t dim, double eps, void* stream) const {
    constexpr int kPerBlock = Team<kThreads>::kPerBlock;
    return launch(backward_kernel<T, kThreads, kWords, kShifted>, (rows + kPerBlock - 1) / kPerBlock,
                  Team<kThreads>::kBlockThreads, stream, grad, x, dx, rows, static_cast<int>(dim),
                  make_floor<arithmetic_t<T>>(eps));
  }
  template <int kVector>
  int run_wide(int64_t rows, int64_t dim, double eps, void* stream) const {
    return launch(backward_wide_kernel<T, kVector>, rows, kBlock, stream, grad, x, dx, rows, dim,
                  make_floor<arithmetic_t<T>>(eps));
  }
};

// kWords words a thread hold an aligned row; a shifted one may touch a word more.
template <int kThreads, int kWords, typename Direction>
int run_team(const Direction& pass, bool shifted, int64_t rows, int64_t dim, double eps, void* stream) {
  if (shifted) return pass.template run<kThreads, kWords + 1, true>(rows, dim, eps, stream);
  return pass.template run<kThreads, kWords, false>(rows, dim, eps, stream);
}

template <typename T, typename Direction>
int dispatch(const Direction& pass, int64_t rows, int64_t dim, double eps, void* stream) {
  if (rows < 0 || dim < 0 || !(eps >= 0)) return kInvalidValue;
  if (rows == 0 || dim == 0) return 0;
  if (!pass.aligned_alike()) return pass.template run_wide<1>(rows, dim, eps, stream);
  const int64_t bytes = dim * static_cast<int64_t>(sizeof(T));
  const bool shifted = bytes % 16 != 0 || reinterpret_cast<uintptr_t>(pass.base()) % 16 != 0;
  if (bytes <= 128) return run_team<8, 1>(pass, shifted, rows, dim, eps, stream);
  if (bytes <= 512) return run_team<32, 1>(pass, shifted, rows, dim, eps, stream);
  if (bytes <= 1024) return run_team<32, 2>(pass, shifted, rows, dim, eps, stream);
  if (bytes <= 2048) return run_team<32, 4>(pass, shifted, rows, dim, eps, stream);
  if constexpr (sizeof(T) > 2) {  // 2-byte elements would take more registers than they are worth
    if (bytes <= 4096) return run_team<32, 8>(pass, shifted, rows, dim, eps, stream);
  }
  if (bytes <= 8192) return run_team<256, 2>(pass, shifted, rows, dim, eps, stream);
  if (bytes <= 32768) return run_team<512, 4>(pass, shifted, rows, dim, eps, stream);
  return pass.template run_wide<16 / sizeof(T)>(rows, dim, eps, stream);
}

}  // namespace
}  // namespace hyperkernels

namespace {

template <template <typename> class Direction, typename T, typename... Pointers>
int run(int64_t rows, int64_t dim, double eps, void* stream, void* output, Pointers... inputs) {
  const Direction<T> pass{static_cast<const T*>(inputs)..., static_cast<T*>(output)};
  return hyperkernels::dispatch<T>(pass, rows, dim, eps, stream);
}

template <template <typename> class Direction, typename... Arguments>
int run(int dtype, Arguments... arguments) {
  switch (dtype) {
    case HK_FLOAT64:
      return run<Direction, double>(arguments...);
    case HK_FLOAT32:
      return run<Direction, float>(arguments...);
    case HK_BFLOAT16:
      return run<Direction, __nv_bfloat16>(arguments...);
    case HK_FLOAT16:
      return run<Direction, __half>(arguments...);
  }
  return hyperkernels::kInvalidValue;
}

}  // namespace

extern "C" int hk_unit_norm_forward(const void* x, void* y, int64_t rows, int64_t dim, double eps, int dtype,
                                    void* stream) {
  return run<hyperkernels::Forward>(dtype, rows, dim, eps, stream, y, x);
}

extern "C" int hk_unit_norm_backward(const void* grad, const void* x, void* dx, int64_t rows, int64_t dim, double eps,
                                     int dtype, void* stream) {
  return run<hyperkernels::Backward>(dtype, rows, dim, eps, stream, dx, grad, x);
}
