// The vectorised inner loops of the pair statistics: a tile of similarities, a row at a time.
#pragma once

#include "../common/math.h"
#include "../common/sums.h"
#include "statistics.h"

namespace hyperkernels::pair_mining {

// The largest value so far and its lowest index, -1 where there is none; NaN is larger than any number.
struct Extreme {
  double value = -std::numeric_limits<double>::infinity();
  int64_t index = -1;

  HK_INLINE bool yields_to(double other, int64_t at) const {
    if (index < 0) return true;
    if (value != value || other != other) return other != other && (value == value || at < index);
    return other > value || (other == value && at < index);
  }
  HK_INLINE void take(double other, int64_t at) {
    if (at < 0 || !yields_to(other, at)) return;
    value = other;
    index = at;
  }
};

// The statistics of one row over the pairs seen so far.
struct PairRowState {
  int64_t count = 0;
  double sum = 0, sum_squares = 0;
  Extreme min, max;  // min holds the largest of -u
  // Of a log-sum-exp the largest power and the sums of e = exp(power - largest) and of e by the pair's share of the
  // scale; of softplus the sum and its two derivatives.
  double largest = -std::numeric_limits<double>::infinity();
  double total = 0, weighted = 0, slope = 0;

  void add_powers(double other, double other_total, double other_weighted) {
    if (other > largest) {
      const double fade = std::exp(largest - other);
      total *= fade;
      weighted *= fade;
      largest = other;
    }
    const double fade = other == largest ? 1 : std::exp(other - largest);
    total += fade * other_total;
    weighted += fade * other_weighted;
  }

  void merge(const PairRowState& other, Kind kind) {
    count += other.count;
    sum += other.sum;
    sum_squares += other.sum_squares;
    min.take(other.min.value, other.min.index);
    max.take(other.max.value, other.max.index);
    if (kind == Kind::kSoftplus) {
      total += other.total;
      weighted += other.weighted;
      slope += other.slope;
    } else if (other.count > 0) {
      add_powers(other.largest, other.total, other.weighted);
    }
  }
};

// What is folded into the states of the rows of one side.
template <class A>
struct FoldOptions {
  PairSelection selection;  // its rows are those of that side
  PairNumbers<A> numbers;
  bool moments, extremes;
  Kind kind;
  A p0, p1;
};

// The largest of sign * u.
template <class A>
HK_INLINE void fold_extreme(const A* u, const Mask<A>* mask, int64_t n, A sign, int64_t first, Extreme& extreme) {
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  A best = kNone;
  Mask<A> nan = 0;
#pragma omp simd reduction(max : best) reduction(| : nan)
  for (int64_t j = 0; j < n; ++j) {
    const A v = mask[j] != 0 ? sign * u[j] : kNone;
    best = v > best ? v : best;
    nan |= v != v ? Mask<A>(-1) : Mask<A>(0);
  }
  if (nan != 0) best = std::numeric_limits<A>::quiet_NaN();
  if (!extreme.yields_to(double(best), first)) return;
  Mask<A> place = Mask<A>(n);
#pragma omp simd reduction(min : place)
  for (int64_t j = 0; j < n; ++j) {
    const A v = sign * u[j];
    const bool hit = mask[j] != 0 && (nan != 0 ? v != v : v == best);
    const Mask<A> at = hit ? Mask<A>(j) : Mask<A>(n);
    place = at < place ? at : place;
  }
  extreme.take(double(best), first + place);
}

// A sum of +inf, which no difference of powers can tell.
template <class A>
inline void fold_infinite(const A* power, const Mask<A>* mask, int64_t n, double largest, PairRowState& state) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  bool nan = false;
  for (int64_t j = 0; j < n; ++j) nan |= mask[j] != 0 && power[j] != power[j];
  state.add_powers(largest, nan ? kNan : 1, kNan);
}

template <class A>
HK_INLINE void fold_powers(const A* u, const Mask<A>* mask, int64_t n, A scale, bool circle, A p0, A p1, A* power,
                           PairRowState& state) {
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  const A sign = scale < 0 ? A(-1) : scale == 0 ? A(0) : A(1), strength = sign * scale;
  // A linear power is scaled after the largest is taken off: a large scale would magnify its rounding error.
  const A turn = circle ? sign : scale < 0 ? A(-1) : A(1), factor = circle ? A(1) : strength;
  A top = kNone;
  if (circle) {
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < n; ++j) {
      const A v = turn * u[j], a = v + p0 < 0 ? A(0) : v + p0;
      const A z = mask[j] != 0 ? strength * a * (v + p1) : kNone;
      power[j] = z;
      top = z > top ? z : top;
    }
  } else {
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < n; ++j) {
      const A z = mask[j] != 0 ? turn * u[j] : kNone;
      power[j] = z;
      top = z > top ? z : top;
    }
  }
  const double largest = double(factor) * double(top);
  if (top == -kNone) return fold_infinite(power, mask, n, largest, state);
  const A shift = top == kNone ? A(0) : top;
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const A e = simd::exp(factor * (power[j] - shift));
    power[j] = mask[j] != 0 ? e : A(0);
  }
  const simd::Sums sums = simd::sums<A>(n, [&](int64_t j, A& total, A& weighted, A&, A&) HK_LAMBDA {
    const A v = turn * u[j], a = v + p0 < 0 ? A(0) : v + p0;
    const A share = circle ? strength * a * (v + p1) : u[j];
    total += power[j];
    weighted += mask[j] != 0 ? power[j] * share : A(0);
  });
  state.add_powers(largest, sums.a, sums.b);
}

template <class A>
HK_INLINE void fold_softplus(const A* u, const Mask<A>* mask, int64_t n, A scale, A offset, PairRowState& state) {
  constexpr int64_t kRun = 64;
  A value[kRun], slope[kRun], weighted[kRun];
  for (int64_t j0 = 0; j0 < n; j0 += kRun, u += kRun, mask += kRun) {
    const int64_t run = std::min(kRun, n - j0);
#pragma omp simd
    for (int64_t j = 0; j < run; ++j) {
      const A v = u[j], z = scale * v + offset, loss = simd::softplus(z), sigma = simd::sigmoid(z);
      value[j] = mask[j] != 0 ? loss : A(0);
      slope[j] = mask[j] != 0 ? sigma : A(0);
      weighted[j] = mask[j] != 0 ? sigma * v : A(0);
    }
    const simd::Sums sums = simd::sums<A>(run, [&](int64_t j, A& a, A& b, A& c, A&) HK_LAMBDA {
      a += value[j];
      b += weighted[j];
      c += slope[j];
    });
    state.total += sums.a;
    state.weighted += sums.b;
    state.slope += sums.c;
  }
}

// Folds a tile u [rows, ld] into the states of its rows. state is that of the first row; mask and power have room for
// `columns` numbers.
struct FoldRows {
  template <class A>
  static HK_INLINE void run(const FoldOptions<A>* options, const A* u, int64_t ld, int64_t row, int64_t rows,
                            int64_t column, int64_t columns, Mask<A>* mask, A* power, PairRowState* state) {
    const FoldOptions<A>& o = *options;
    const PairNumbers<A>& numbers = o.numbers;
    for (int64_t i = row; i < row + rows; ++i, u += ld, ++state) {
      mask_row(o.selection, numbers.lower, numbers.upper, i, column, columns, u, mask);
      Mask<A> count = 0;
#pragma omp simd reduction(- : count)
      for (int64_t j = 0; j < columns; ++j) count -= mask[j];
      if (count == 0) continue;
      state->count += count;
      if (o.moments) {
        const simd::Sums sums = simd::sums<A>(columns, [&](int64_t j, A& sum, A& squares, A&, A&) HK_LAMBDA {
          const A any = u[j], v = mask[j] != 0 ? any : A(0);  // read whether or not it counts: a masked load is slow
          sum += v;
          squares += v * v;
        });
        state->sum += sums.a;
        state->sum_squares += sums.b;
      }
      if (o.extremes) {
        fold_extreme(u, mask, columns, A(-1), column, state->min);
        fold_extreme(u, mask, columns, A(1), column, state->max);
      }
      if (o.kind == Kind::kSoftplus) {
        const A offset = numbers.offset != nullptr ? numbers.offset[i] : A(0);
        fold_softplus(u, mask, columns, numbers.scale[i], offset, *state);
      } else if (o.kind != Kind::kNone) {
        fold_powers(u, mask, columns, numbers.scale[i], o.kind == Kind::kCircle, o.p0, o.p1, power, *state);
      }
    }
  }
};

// t [columns, rows] = u [rows, ld] transposed, in squares that fit the first cache.
struct Transpose {
  template <class A>
  static HK_INLINE void run(const A* u, int64_t ld, int64_t rows, int64_t columns, A* t) {
    constexpr int64_t kSquare = 16;
    for (int64_t j0 = 0; j0 < columns; j0 += kSquare) {
      const int64_t j1 = std::min(columns, j0 + kSquare);
      for (int64_t i0 = 0; i0 < rows; i0 += kSquare) {
        const int64_t i1 = std::min(rows, i0 + kSquare);
        for (int64_t j = j0; j < j1; ++j) {
          for (int64_t i = i0; i < i1; ++i) t[j * rows + i] = u[i * ld + j];
        }
      }
    }
  }
};

}  // namespace hyperkernels::pair_mining
