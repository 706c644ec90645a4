// What the kernels do to one row: where its 16-byte words lie, and the arithmetic that cannot overflow.
//
// A row is brought near 1 by an exact power of two, as is its gradient: squares then neither overflow nor underflow,
// whatever the row holds, and one formula serves rows of 1e-45 and of 1e38. Needs IEEE arithmetic: no --use_fast_math.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace hyperkernels {

template <typename T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <typename T>
using arithmetic_t = typename Arithmetic<T>::type;

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline void narrow(float v, float& to) { to = v; }
__device__ inline void narrow(double v, double& to) { to = v; }
__device__ inline void narrow(float v, __half& to) { to = __float2half_rn(v); }
__device__ inline void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }

// The bits of a number: where its exponent begins, and the largest exponent e of which 2^-e is a normal number.
template <typename A>
struct Binary;
template <>
struct Binary<float> {
  using Word = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127, kMost = 126;
};
template <>
struct Binary<double> {
  using Word = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kMost = 1022;
};

template <typename A>
__device__ inline int clamp_exponent(int e) {
  constexpr int kMost = Binary<A>::kMost;
  return e < -kMost ? -kMost : e > kMost ? kMost : e;
}

// floor(log2(largest)), clamped to +-kMost; kMost for inf and NaN.
template <typename A>
__device__ inline int exponent_of(A largest) {
  typename Binary<A>::Word bits;
  memcpy(&bits, &largest, sizeof bits);
  return clamp_exponent<A>(static_cast<int>(bits >> Binary<A>::kMantissa) - Binary<A>::kBias);
}

template <typename A>
__device__ inline A power_of_two(int exponent) {
  using Word = typename Binary<A>::Word;
  const Word bits = static_cast<Word>(exponent + Binary<A>::kBias) << Binary<A>::kMantissa;
  A power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

// eps = mantissa * 2^exponent: one below the smallest normal number keeps its value.
template <typename A>
struct Floor {
  A mantissa;
  int exponent;
};

template <typename A>
inline Floor<A> make_floor(double eps) {
  constexpr int kEnd = 2 * Binary<A>::kMost;  // past it a row cannot tell the difference
  if (!(eps > 0)) return {static_cast<A>(eps), -kEnd};
  int exponent;
  const double mantissa = 2 * std::frexp(eps, &exponent);
  exponent -= 1;
  return {static_cast<A>(mantissa), exponent < -kEnd ? -kEnd : exponent > kEnd ? kEnd : exponent};
}

// The power of two that brings max(largest, eps) near 1.
template <typename A>
__device__ inline int row_exponent(A largest, Floor<A> floor) {
  const int e = exponent_of(largest);
  const int larger = e > floor.exponent ? e : floor.exponent;
  return larger > Binary<A>::kMost ? Binary<A>::kMost : larger;
}

// Norm, floor and inverse of a row in units of 2^exponent.
template <typename A>
struct Length {
  A squared, norm, floor, inverse;

  __device__ Length(A sum_of_squares, int exponent, Floor<A> eps) : squared(sum_of_squares) {
    norm = sqrt(sum_of_squares);
    floor = eps.mantissa * power_of_two<A>(clamp_exponent<A>(eps.exponent - exponent));
    inverse = A(1) / (norm < floor ? floor : norm);  // a NaN norm stays NaN
  }

  // What times the row is the radial part of its gradient; 0 where the floor holds. The square root's rounding stays
  // out of it.
  __device__ A radial(A dot) const { return norm >= floor ? dot / squared : A(0); }
};

// ((grad - unit * radial) * inverse) * 2^exponent; two factors, since |exponent| reaches 2 kMost.
template <typename A>
struct Tangent {
  A radial, inverse, power, power_rest;

  __device__ Tangent(const Length<A>& length, A dot, int exponent)
      : radial(length.radial(dot)),
        inverse(length.inverse),
        power(power_of_two<A>(exponent >> 1)),
        power_rest(power_of_two<A>(exponent - (exponent >> 1))) {}
  __device__ A operator()(A grad, A unit) const { return (grad - unit * radial) * inverse * power * power_rest; }
};

template <int kBytes>
struct Bits;
template <>
struct Bits<16> {
  using type = uint4;
};
template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<4> {
  using type = uint32_t;
};
template <>
struct Bits<2> {
  using type = uint16_t;
};

// The aligned words a row touches. Its elements are [begin, begin + dim) of them; unless kShifted, begin is 0 and dim a
// whole number of words. A word that holds any element of the row is read whole, unless it passes an end of the tensor:
// there only the row's elements are read. What belongs to the neighbours unpacks as 0. A word is written whole only if
// all of it is the row's. Index: int where a row is short; the row's own offset is always 64 bits wide.
template <typename T, int kVector, bool kShifted, typename Index>
struct Span {
  struct Word {
    T element[kVector];
  };
  using A = arithmetic_t<T>;
  using Raw = typename Bits<sizeof(Word)>::type;  // a copy of the struct itself would be made element by element

  int64_t offset;     // of the first word, in elements from the tensor's base; negative if the base is not aligned
  Index begin;        // 0 .. kVector - 1
  Index end;          // begin + dim
  Index words;        // 0 for a row that does not exist
  Index first, last;  // [first, last): the words that lie in the tensor whole

  __device__ Span(const T* base, int64_t row, int64_t rows, Index dim) : offset(row * dim), begin(0), end(dim) {
    if (kShifted) {
      begin = static_cast<Index>((reinterpret_cast<uintptr_t>(base + offset) % sizeof(Word)) / sizeof(T));
      offset -= begin;
      end += begin;
    }
    words = row < rows ? (end + kVector - 1) / kVector : 0;
    first = kShifted && offset < 0 ? 1 : 0;
    last = kShifted && offset + static_cast<int64_t>(words) * kVector > rows * dim ? words - 1 : words;
  }

  __device__ bool whole(Index word) const {
    return !kShifted || (word * kVector >= begin && (word + 1) * kVector <= end);
  }
  __device__ bool owns(Index element) const { return element >= begin && element < end; }

  __device__ Raw read(const T* base, Index word) const {
    const T* const source = base + offset + static_cast<int64_t>(word) * kVector;
    if constexpr (!kShifted || kVector == 1) {
      return word < words ? *reinterpret_cast<const Raw*>(source) : Raw{};
    } else {
      if (word >= first && word < last) return *reinterpret_cast<const Raw*>(source);
      Word data{};
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (word < words && owns(word * kVector + j)) data.element[j] = source[j];
      }
      Raw raw;
      memcpy(&raw, &data, sizeof raw);
      return raw;
    }
  }

  __device__ void unpack(Raw raw, Index word, A (&value)[kVector]) const {
    Word data;
    memcpy(&data, &raw, sizeof data);
#pragma unroll
    for (int j = 0; j < kVector; ++j) value[j] = widen(data.element[j]);
    if (whole(word)) return;
#pragma unroll
    for (int j = 0; j < kVector; ++j) value[j] = owns(word * kVector + j) ? value[j] : A(0);
  }

  __device__ void write(T* base, Index word, const A (&value)[kVector]) const {
    if (word >= words) return;
    T* const target = base + offset + static_cast<int64_t>(word) * kVector;
    Word data;
#pragma unroll
    for (int j = 0; j < kVector; ++j) narrow(value[j], data.element[j]);
    if (whole(word)) {
      Raw raw;
      memcpy(&raw, &data, sizeof raw);
      *reinterpret_cast<Raw*>(target) = raw;
      return;
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (owns(word * kVector + j)) target[j] = data.element[j];
    }
  }

  // Word number rank + i * kThreads for each i, all requested before the first is used.
  template <int kThreads, int kWords>
  __device__ void load(const T* base, Index rank, A (&value)[kWords][kVector]) const {
    Raw raw[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) raw[i] = read(base, rank + i * kThreads);
#pragma unroll
    for (int i = 0; i < kWords; ++i) unpack(raw[i], rank + i * kThreads, value[i]);
  }

  template <int kThreads, int kWords>
  __device__ void store(T* base, Index rank, const A (&value)[kWords][kVector]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) write(base, rank + i * kThreads, value[i]);
  }
};

}  // namespace hyperkernels
