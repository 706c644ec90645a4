// SGD and AdamW over some rows of a weight: each row, its state and its gradient are read once and written once. The
// gradient's row i belongs to row index[i] of weight and state. Rows are distinct, so threads share none.
#pragma once

#include <cmath>
#include <vector>

#include "../common/rows.h"
#include "steps.h"

namespace hyperkernels::optim {

template <class A>
struct Rows {
  OutRows<A> weight;
  InRows<A> gradient;
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
  template <class A>
  static HK_INLINE void run(const Rows<A>* rows, A* buffers, const SgdOptions* o, int64_t begin, int64_t end) {
    const A lr = A(o->lr), momentum = A(o->momentum), decay = A(o->weight_decay), unscale = A(rows->unscale);
    const bool nesterov = o->nesterov;
    const int64_t dim = rows->dim, extra = rows->weight.scratch(dim);
    std::vector<A> scratch(2 * extra);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows->at(i);
      A* w = rows->weight.read(row, scratch.data(), dim);
      const A* g = rows->gradient.read(i, scratch.data() + extra, dim);
      if (buffers == nullptr) {
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) {
          w[k] -= lr * (g[k] * unscale + decay * w[k]);
        }
      } else {
        A* b = buffers + row * dim;
        const bool first = rows->step[row] == 0;
        const A kept = first ? A(0) : momentum, taken = first ? A(1) : A(1 - o->dampening);
#pragma omp simd
        for (int64_t k = 0; k < dim; ++k) {
          const A change = g[k] * unscale + decay * w[k];
          const A moved = kept * b[k] + taken * change;
          b[k] = moved;
          w[k] -= lr * (nesterov ? change + momentum * moved : moved);
        }
      }
      rows->weight.finish(row, w, dim);
      rows->step[row] = next_step(rows->step[row]);
    }
  }
};

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

struct AdamWRows {
  template <class A>
  static HK_INLINE void run(const Rows<A>* rows, A* means, A* squares, const AdamWOptions* o, int64_t begin,
                            int64_t end) {
    const double log_beta1 = std::log(o->beta1), log_beta2 = std::log(o->beta2);
    const A beta1 = A(o->beta1), beta2 = A(o->beta2), rest1 = A(1 - o->beta1), rest2 = A(1 - o->beta2);
    const A eps = A(o->eps), kept = A(1 - o->lr * o->weight_decay), unscale = A(rows->unscale);
    const int64_t dim = rows->dim, extra = rows->weight.scratch(dim);
    std::vector<A> scratch(2 * extra);
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
      A* w = rows->weight.read(row, scratch.data(), dim);
      const A* g = rows->gradient.read(i, scratch.data() + extra, dim);
      A* m = means + row * dim;
      A* v = squares + row * dim;
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) {
        const A change = g[k] * unscale;
        m[k] = beta1 * m[k] + rest1 * change;
        v[k] = beta2 * v[k] + rest2 * change * change;
        w[k] = w[k] * kept - size * m[k] / (std::sqrt(v[k]) * inverse_root + eps);
      }
      rows->weight.finish(row, w, dim);
    }
  }
};

}  // namespace hyperkernels::optim
