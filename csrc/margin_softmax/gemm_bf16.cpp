#include "gemm_bf16.h"

#include <algorithm>

#ifdef HK_X86
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of the intrinsics' own headers
#endif
#endif

namespace hyperkernels::margin_softmax::bf16 {

#ifdef HK_X86

namespace {

constexpr int64_t kRowsAtOnce = 8;     // with two columns of accumulators: 16 of the 32 registers
constexpr int64_t kPairsAtOnce = 256;  // a panel of so many pairs fits the first cache

HK_INLINE __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? ~__mmask32(0) : count <= 0 ? 0 : (__mmask32(1) << count) - 1;
}
HK_INLINE __mmask16 first_of_16(int64_t count) { return __mmask16(first_of_32(std::min<int64_t>(count, 16))); }

// 16 rows of 16 numbers become 16 columns.
HK_AVX512_BF16 inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

template <int kRows, bool kTransposed>
HK_AVX512_BF16 void block(const uint32_t* left, int64_t stride, const uint32_t* right, int64_t pairs, float* c,
                          int64_t ldc, int64_t columns, bool add) {
  const __mmask16 low = first_of_16(columns), high = first_of_16(columns - 16);
  __m512 sum[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = add ? _mm512_maskz_loadu_ps(low, c + r * ldc) : _mm512_setzero_ps();
    sum[r][1] = add ? _mm512_maskz_loadu_ps(high, c + r * ldc + 16) : _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < pairs; ++k) {
    const __m512i b0 = _mm512_loadu_si512(right + k * kPanel), b1 = _mm512_loadu_si512(right + k * kPanel + 16);
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(int(kTransposed ? left[r + k * stride] : left[r * stride + k]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)a, (__m512bh)b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)a, (__m512bh)b1);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm512_mask_storeu_ps(c + r * ldc, low, sum[r][0]);
    _mm512_mask_storeu_ps(c + r * ldc + 16, high, sum[r][1]);
  }
}

using Block = void (*)(const uint32_t*, int64_t, const uint32_t*, int64_t, float*, int64_t, int64_t, bool);

template <bool kTransposed>
Block block_of(int64_t rows) {
  static constexpr Block kBlocks[] = {block<1, kTransposed>, block<2, kTransposed>, block<3, kTransposed>,
                                      block<4, kTransposed>, block<5, kTransposed>, block<6, kTransposed>,
                                      block<7, kTransposed>, block<8, kTransposed>};
  return kBlocks[rows - 1];
}

// 16 floats as bfloat16 in the lower halves of 16 numbers.
HK_AVX512_BF16 inline __m512i rounded(__m512 v) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)); }

}  // namespace

HK_AVX512_BF16 void pack_transposed(const simd::Bfloat16* m, int64_t ld, int64_t columns, int64_t summed,
                                    uint32_t* out) {
  const int64_t depth = pairs(summed);
  for (int64_t j = 0; j < padded(columns); j += 16) {
    uint32_t* panel = out + j / kPanel * kPanel * depth + j % kPanel;
    for (int64_t k = 0; k < depth; k += 16) {
      const __mmask32 mask = first_of_32(summed - 2 * k);
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i) {
        r[i] = j + i < columns ? _mm512_maskz_loadu_epi16(mask, m + (j + i) * ld + 2 * k) : _mm512_setzero_si512();
      }
      transpose(r);
      const int64_t count = std::min<int64_t>(16, depth - k);
      for (int64_t i = 0; i < count; ++i) _mm512_storeu_si512(panel + (k + i) * kPanel, r[i]);
    }
  }
}

HK_AVX512_BF16 void pack(const simd::Bfloat16* m, int64_t ld, int64_t summed, int64_t columns, uint32_t* out) {
  const int64_t depth = pairs(summed);
  for (int64_t k = 0; k < depth; ++k) {
    const simd::Bfloat16 *even = m + 2 * k * ld, *odd = even + ld;
    const bool both = 2 * k + 1 < summed;
    for (int64_t j = 0; j < padded(columns); j += 16) {
      const __mmask16 mask = first_of_16(columns - j);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + j));
      const __m512i high =
          both ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + j)) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + (j / kPanel * depth + k) * kPanel + j % kPanel,
                          _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

HK_AVX512_BF16 void round_rows(const float* m, int64_t ld, int64_t rows, int64_t columns, uint32_t* out) {
  for (int64_t i = 0; i < rows; ++i, m += ld, out += padded(columns)) {
    for (int64_t j = 0; j < columns; j += 16) {
      const __m512 v = _mm512_maskz_loadu_ps(first_of_16(columns - j), m + j);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j / 2), (__m256i)_mm512_cvtneps_pbh(v));
    }
  }
}

HK_AVX512_BF16 void round_columns(const float* m, int64_t ld, const float* factor, int64_t rows, int64_t columns,
                                  uint32_t* out) {
  for (int64_t i = 0; i < rows; i += 2, m += 2 * ld, out += padded(columns)) {
    const bool both = i + 1 < rows;
    const __m512 even = _mm512_set1_ps(factor[i]), odd = _mm512_set1_ps(both ? factor[i + 1] : 0.f);
    for (int64_t j = 0; j < columns; j += 16) {
      const __mmask16 mask = first_of_16(columns - j);
      const __m512i low = rounded(_mm512_mul_ps(even, _mm512_maskz_loadu_ps(mask, m + j)));
      const __m512i high =
          both ? rounded(_mm512_mul_ps(odd, _mm512_maskz_loadu_ps(mask, m + ld + j))) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

void multiply(Left left, const uint32_t* right, int64_t rows, int64_t columns, int64_t summed, float* c, int64_t ldc,
              bool add) {
  const int64_t depth = pairs(summed);
  for (int64_t k = 0; k < depth; k += kPairsAtOnce) {
    const int64_t count = std::min(kPairsAtOnce, depth - k);
    for (int64_t j = 0; j < columns; j += kPanel) {
      const uint32_t* panel = right + j * depth + k * kPanel;
      for (int64_t i = 0; i < rows; i += kRowsAtOnce) {
        const int64_t some = std::min(kRowsAtOnce, rows - i);
        const uint32_t* first = left.pairs + (left.transposed ? i + k * left.stride : i * left.stride + k);
        const Block function = left.transposed ? block_of<true>(some) : block_of<false>(some);
        function(first, left.stride, panel, count, c + i * ldc + j, ldc, columns - j, add || k > 0);
      }
    }
  }
}

#else  // never called: simd::multiplies_bfloat16() is false

void pack_transposed(const simd::Bfloat16*, int64_t, int64_t, int64_t, uint32_t*) {}
void pack(const simd::Bfloat16*, int64_t, int64_t, int64_t, uint32_t*) {}
void round_rows(const float*, int64_t, int64_t, int64_t, uint32_t*) {}
void round_columns(const float*, int64_t, const float*, int64_t, int64_t, uint32_t*) {}
void multiply(Left, const uint32_t*, int64_t, int64_t, int64_t, float*, int64_t, bool) {}

#endif

}  // namespace hyperkernels::margin_softmax::bf16
