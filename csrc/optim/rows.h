// SGD and AdamW over some rows of a weight: each row, its state and its gradient are read once and written once. The
// gradient's row i belongs to row index[i] of weight and state. Rows are distinct, so threads share none.
#pragma once

#include <cmath>

#include "../common/storage.h"
#include "steps.h"

namespace hyperkernels::optim {

using simd::load;
using simd::store;

template <class S>
struct Rows {
  S* weight;
  const S* gradient;
  const int64_t* index;  // null: all rows, in order
  int32_t* step;
  int64_t dim;
  double unscale;  // factor of the gradient

  HK_INLINE int64_t at(int64_t i) const { return index == nullptr ? i : index[i]; }
};

struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
};

struct SgdRows {
  template <class S, class A>
  static HK_INLINE void run(const Rows<S>* rows, A* buffers, const SgdOptions* o, int64_t begin, int64_t end) {
    const A lr = A(o->lr), momentum = A(o->momentum), decay = A(o->weight_decay), unscale = A(rows->unscale);
    const bool nesterov = o->nesterov;
    const int64_t dim = rows->dim;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows->at(i);
      S* w = rows->weight + row * dim;
      const S* g = rows->gradient + i * dim;
      if (buffers == nullptr) {
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) {
          const A value = load(w + k);
          store(w + k, value - lr * (load(g + k) * unscale + decay * value));
        }
      } else {
        A* b = buffers + row * dim;
        const bool first = rows->step[row] == 0;
        const A kept = first ? A(0) : momentum, taken = first ? A(1) : A(1 - o->dampening);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) {
          const A value = load(w + k);
          const A change = load(g + k) * unscale + decay * value;
          const A moved = kept * b[k] + taken * change;
          b[k] = moved;
          store(w + k, value - lr * (nesterov ? change + momentum * moved : moved));
        }
      }
      rows->step[row] = next_step(rows->step[row]);
    }
  }
};

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

struct AdamWRows {
  template <class S, class A>
  static HK_INLINE void run(const Rows<S>* rows, A* means, A* squares, const AdamWOptions* o, int64_t begin,
                            int64_t end) {
    const double log_beta1 = std::log(o->beta1), log_beta2 = std::log(o->beta2);
    const A beta1 = A(o->beta1), beta2 = A(o->beta2), rest1 = A(1 - o->beta1), rest2 = A(1 - o->beta2);
    const A eps = A(o->eps), kept = A(1 - o->lr * o->weight_decay), unscale = A(rows->unscale);
    const int64_t dim = rows->dim;
    int32_t corrected = -1;  // rows that have come as far as the one before share its corrections
    A size = 0, inverse_root = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows->at(i);
      const int32_t step = rows->step[row] = next_step(rows->step[row]);
      if (step != corrected) {
        corrected = step;
        size = A(o->lr / -std::expm1(step * log_beta1));
        inverse_root = A(1 / std::sqrt(-std::expm1(step * log_beta2)));
      }
      S* w = rows->weight + row * dim;
      const S* g = rows->gradient + i * dim;
      A* m = means + row * dim;
      A* v = squares + row * dim;
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) {
        const A change = load(g + k) * unscale;
        m[k] = beta1 * m[k] + rest1 * change;
        v[k] = beta2 * v[k] + rest2 * change * change;
        store(w + k, load(w + k) * kept - size * m[k] / (std::sqrt(v[k]) * inverse_root + eps));
      }
    }
  }
};

}  // namespace hyperkernels::optim
