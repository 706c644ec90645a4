// Products of bfloat16 matrices with sums in float, by the processor's own instruction for it.
//
// The instruction adds two products at a time: operands are pairs of numbers that lie next to each other along the
// summed dimension, as one uint32. A right operand is packed in panels of kPanel columns, [panel][pair][kPanel].
// Everything here needs simd::multiplies_bfloat16().
#pragma once

#include "../common/storage.h"

namespace hyperkernels::margin_softmax::bf16 {

constexpr int64_t kPanel = 32;

inline int64_t pairs(int64_t count) { return (count + 1) / 2; }
inline int64_t padded(int64_t count) { return (count + kPanel - 1) / kPanel * kPanel; }
// Numbers that a packed right operand takes, in uint32.
inline int64_t packed_size(int64_t summed, int64_t columns) { return pairs(summed) * padded(columns); }

// The right operand m^T of m [columns, summed].
void pack_transposed(const simd::Bfloat16* m, int64_t ld, int64_t columns, int64_t summed, uint32_t* out);
// The right operand m [summed, columns].
void pack(const simd::Bfloat16* m, int64_t ld, int64_t summed, int64_t columns, uint32_t* out);

// m [rows, columns] rounded; out [rows, padded(columns)] pairs along the columns.
void round_rows(const float* m, int64_t ld, int64_t rows, int64_t columns, uint32_t* out);
// factor_i m_ij rounded, paired along the rows: out [pairs(rows), padded(columns)].
void round_columns(const float* m, int64_t ld, const float* factor, int64_t rows, int64_t columns, uint32_t* out);

// A left operand: the pair (row, k) is at pairs[row * stride + k], or at pairs[row + k * stride] where transposed.
struct Left {
  const uint32_t* pairs;
  int64_t stride;
  bool transposed;
};

// c [rows, columns] (+)= left right.
void multiply(Left left, const uint32_t* right, int64_t rows, int64_t columns, int64_t summed, float* c, int64_t ldc,
              bool add);

}  // namespace hyperkernels::margin_softmax::bf16
