// The three products of a tile of centres with rows of x: cosines, and the gradients of both sides.
//
// `XOperand` is the rows as the products want them, made once a call; `Products` belongs to a lane and looks at one
// tile and one set of rows at a time. Sums are in A whatever T is, and the order of summation depends on the sizes
// alone.
#pragma once

#include <memory>

#include "problem.h"

namespace hyperkernels::margin_softmax {

// Rows in dtype A (dense) or in T times a power of two (packed), zero where a row is ignored.
struct XOperand {
  at::Tensor values;  // [N, ld]
  bool packed;
};

// Also writes |x_i| to norm [N] (0 for ignored rows) and the rows' factors.
template <class T>
XOperand make_x_operand(const Problem& problem, std::vector<Row<Accumulate<T>>>& rows, Accumulate<T>* norm);

template <class T>
class Products {
 public:
  using A = Accumulate<T>;

  virtual ~Products() = default;
  // Raw centres [count, D], which stay where they are until others are taken.
  virtual void take_centres(const T* centres, int64_t count) = 0;
  // Rows begin .. begin + count, or those listed in index where it is not null.
  virtual void take_rows(const int64_t* index, int64_t begin, int64_t count) = 0;
  // z [rows, ld] = <row, centre>, short of the factors of Row and Tile.
  virtual void multiply(A* z, int64_t ld) = 0;
  // dx [rows, D] (+)= h w.
  virtual void row_gradients(const A* h, int64_t ld, A* dx, bool add) = 0;
  // dw [centres, D] (+)= h^T x, where x includes the factors of Row.
  virtual void centre_gradients(const A* h, int64_t ld, A* dw, bool add) = 0;
  // The same for row i of all rows and one of the taken centres with h = g: dx [D] += g w, dw [D] += g x; null: not.
  virtual void add_pair(int64_t row, int64_t centre, A g, A* dx, A* dw) = 0;
};

template <class T>
std::unique_ptr<Products<T>> make_products(const Problem& problem, const XOperand& x,
                                           const std::vector<Row<Accumulate<T>>>& rows);

}  // namespace hyperkernels::margin_softmax
