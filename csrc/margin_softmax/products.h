// The three products of a tile of centres with rows of x: cosines, and the gradients of both sides.
//
// `XOperand` is the rows as the products want them, made once a call; `Products` belongs to a lane and looks at one
// tile and one set of rows at a time. Sums are in A whatever T is, and the order of summation depends on the sizes
// alone.
#pragma once

#include <memory>

#include "gemm_bf16.h"
#include "problem.h"

namespace hyperkernels::margin_softmax {

// Zero where a row is ignored.
template <class T>
struct XOperand {
  Buffer<Accumulate<T>> unit;  // dense: x^ [N, D] in dtype A
  Buffer<T> packed;            // packed: x [N, ld] times powers of two, which the rows' factors undo
  bool is_packed = false;
};

// Also writes |x_i| to norm [N] (0 for ignored rows; null: not wanted) and the rows' factors.
template <class T>
XOperand<T> make_x_operand(const ClassProblem<T>& problem, Row<Accumulate<T>>* rows, Accumulate<T>* norm);

// What a lane asks of its products beside the cosines.
struct ProductUse {
  bool row_gradients = false, centre_gradients = false;
  bool selects_rows = false;  // rows are listed
};

// The memory of a lane's products.
template <class T>
class ProductScratch {
 public:
  using A = Accumulate<T>;

  template <class Memory>
  ProductScratch(const Plan& p, bool is_packed, ProductUse use, Memory& memory) {
    if (is_packed) {
      take_packed(p, use, memory);
    } else {
      if (!std::is_same_v<T, A>) centres = memory.template take<A>(p.tile_width() * p.d);
      if (use.selects_rows) rows = memory.template take<A>(p.chunk() * p.d);
    }
  }

  // Dense: 16-bit centres and selected rows, in dtype A.
  A *centres = nullptr, *rows = nullptr;
  // Packed: the rows' factors, selected rows, and operands of bf16::multiply.
  A* factors = nullptr;
  T* selected = nullptr;
  uint32_t *right = nullptr, *rounded = nullptr, *packed_centres = nullptr, *packed_rows = nullptr;

 private:
  template <class Memory>
  void take_packed(const Plan& p, ProductUse use, Memory& memory) {
    factors = memory.template take<A>(p.chunk());
    right = memory.template take<uint32_t>(bf16::packed_size(p.d, p.tile_width()));
    if (use.selects_rows) selected = memory.template take<T>(p.chunk() * bf16::padded(p.d));
    if (use.row_gradients || use.centre_gradients) {
      rounded = memory.template take<uint32_t>(p.chunk() * bf16::padded(p.tile_width()));
    }
    if (use.row_gradients) packed_centres = memory.template take<uint32_t>(bf16::packed_size(p.tile_width(), p.d));
    if (use.centre_gradients) packed_rows = memory.template take<uint32_t>(bf16::packed_size(p.chunk(), p.d));
  }
};

// A row of x, one of the taken centres, and the gradient of their product.
template <class A>
struct Pair {
  int64_t row, centre;
  A h;
};

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
  // The same for single pairs, added one after the other: dx [N, D] += h w, dw [centres, D] += h x; null: not.
  virtual void add_pairs(const Pair<A>* pairs, int64_t count, A* dx, A* dw) = 0;
};

template <class T>
std::unique_ptr<Products<T>> make_products(const ClassProblem<T>& problem, const XOperand<T>& x,
                                           const Row<Accumulate<T>>* rows, const ProductScratch<T>& scratch);

}  // namespace hyperkernels::margin_softmax
