// Columns drawn in proportion to a weight: of every row the pair with the largest log weight - log E, E exponential of
// (seed, row, column, draw). The formulas are those of reference.py.

#include "../common/math.h"
#include "selections.h"
#include "sweep.h"

namespace hyperkernels::pair_mining {

namespace {

constexpr int64_t kBlock = 64;  // pairs whose numbers are on the stack at a time
constexpr int64_t kAtOnce = 4;  // draws that one Philox call serves

// Philox 4x32 with ten rounds: the counter is (column, row, quad, 0).
HK_INLINE void philox(uint32_t column, uint32_t row, uint32_t quad, uint64_t seed, int64_t count,
                      uint32_t (*numbers)[kBlock]) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    uint32_t c0 = column + uint32_t(j), c1 = row, c2 = quad, c3 = 0;
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t product0 = uint64_t(0xD2511F53u) * c0, product1 = uint64_t(0xCD9E8D57u) * c2;
      c0 = uint32_t(product1 >> 32) ^ c1 ^ key0;
      c1 = uint32_t(product1);
      c2 = uint32_t(product0 >> 32) ^ c3 ^ key1;
      c3 = uint32_t(product0);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    numbers[0][j] = c0;
    numbers[1][j] = c1;
    numbers[2][j] = c2;
    numbers[3][j] = c3;
  }
}

// log E, E = -log(1 - q), q = (number + 0.5) 2^-32.
template <class A>
HK_INLINE A log_exponential(uint32_t number) {
  if constexpr (std::is_same_v<A, double>) {
    return std::log(-std::log1p(-(double(number) + 0.5) * 0x1p-32));
  } else {
    // The smaller of q and 1 - q has all its leading digits, and so has E, near 0 and where it is large:
    // -log(1 - q) = 2 atanh(q / (2 - q)), and with 1 - q = 2^e (1 + f) it is -2 atanh(f / (2 + f)) - e log 2.
    const bool low = number < 0x80000000u;
    const float lesser = (float(int32_t(low ? number : ~number)) + 0.5f) * 0x1p-32f;
    const simd::Scientific s = simd::scientific(lesser);
    const float ratio = (low ? lesser : -s.fraction) / (low ? 2 - lesser : 2 + s.fraction);
    const float e = simd::twice_atanh(ratio) - (low ? 0.f : s.exponent) * 0.693147180559945f;
    return simd::log_normal(e);
  }
}

template <class A>
HK_INLINE void log_weights(const SampleWeights& weights, const A* u, int64_t count, A* out) {
  const A temperature = A(weights.temperature);
  if (!weights.distance) {
    const A p0 = A(weights.p0);
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) out[j] = p0 * u[j] / temperature;
    return;
  }
  const A far = A(2 - weights.p0), near = A((weights.p0 - 3) / 2), least = A(weights.p1);
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    const A d = -u[j] < least ? least : -u[j];  // NaN stays
    const A rest = 1 - d * d / 4;
    const A positive = rest < std::numeric_limits<A>::min() ? std::numeric_limits<A>::min() : rest;
    out[j] = (far * simd::log(d) - near * simd::log(positive)) / temperature;
  }
}

// The best pair of every row and draw.
template <class A>
class Draws {
 public:
  template <class Memory>
  Draws(Memory& memory, int64_t row, int64_t rows, int64_t draws, uint64_t seed, const SampleWeights& weights)
      : row_(row),
        rows_(rows),
        draws_(draws),
        seed_(seed),
        weights_(weights),
        best_(memory.template take<Best>(rows * draws)) {}

  struct Best {
    A key = std::numeric_limits<A>::quiet_NaN();  // which every other beats, until the first has come
    int64_t column = -1;

    bool beaten_by(A other) const { return column < 0 || (!(other <= key) && key == key); }
  };

  void start() { std::fill_n(best_, rows_ * draws_, Best()); }

  HK_INLINE void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    for (int64_t j = 0; j < count; j += kBlock) {
      draw_block(i, first + j, count - j < kBlock ? count - j : kBlock, u + j, mask + j);
    }
  }

  const Best& best(int64_t i, int64_t draw) const { return best_[i * draws_ + draw]; }

 private:
  HK_INLINE void draw_block(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    Mask<A> any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t j = 0; j < count; ++j) any |= mask[j];
    if (any == 0) return;
    A log_weight[kBlock], key[kBlock];
    uint32_t numbers[kAtOnce][kBlock];
    log_weights(weights_, u, count, log_weight);
    for (int64_t draw = 0; draw < draws_; ++draw) {
      if (draw % kAtOnce == 0) {
        philox(uint32_t(first), uint32_t(row_ + i), uint32_t(draw / kAtOnce), seed_, count, numbers);
      }
      const uint32_t* number = numbers[draw % kAtOnce];
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) key[j] = log_weight[j] - log_exponential<A>(number[j]);
      Best& best = best_[i * draws_ + draw];
      for (int64_t j = 0; j < count; j += 32) {
        uint32_t bits = beating(key + j, mask + j, best.key, std::min<int64_t>(32, count - j));
        for (; bits != 0; bits &= bits - 1) {
          const int64_t at = j + __builtin_ctz(bits);
          if (best.beaten_by(key[at])) best = {key[at], first + at};
        }
      }
    }
  }

  const int64_t row_, rows_, draws_;
  const uint64_t seed_;
  const SampleWeights weights_;
  Best* const best_;
};

}  // namespace

template <class T>
void pair_sample(const SampleCall<T>& call) {
  using Part = Draws<Accumulate<T>>;
  const PairProblem<T>& p = call.problem;
  const int64_t draws = call.draws;
  if (draws == 0) return;
  const Lanes lanes = lanes_of(p, p.n * draws * 2);
  const auto make = [&](int64_t row, int64_t rows, int64_t) {
    return InWorkspace<Part>(row, rows, draws, call.seed, call.weights);
  };
  const auto merge = [&](int64_t row, int64_t rows, const std::optional<InWorkspace<Part>>* parts) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t draw = 0; draw < draws; ++draw) {
        auto best = (*parts[0])->best(i, draw);
        for (int64_t lane = 1; lane < lanes.count; ++lane) {
          const auto& other = (*parts[lane])->best(i, draw);
          if (other.column >= 0 && best.beaten_by(other.key)) best = other;
        }
        call.drawn[(row + i) * draws + draw] = best.column;
      }
    }
  };
  sweep<Part>(p, lanes, make, merge);
}

template void pair_sample(const SampleCall<double>&);
template void pair_sample(const SampleCall<float>&);
template void pair_sample(const SampleCall<simd::Bfloat16>&);
template void pair_sample(const SampleCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
