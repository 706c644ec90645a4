#include "products.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../common/matmul.h"
#include "../common/rows.h"

namespace hyperkernels::margin_softmax {

namespace {

// x^ (x where it is not normalised) in dtype A, and |x|; zeros where the row is ignored.
struct UnitRows {
  template <class T, class A>
  static HK_INLINE void run(const T* x, const Row<A>* row, int64_t rows, int64_t dim, double eps, bool normalize,
                            A* unit, A* norm) {
    for (int64_t i = 0; i < rows; ++i, x += dim, unit += dim) {
      if (!row[i].active) {
        if (norm != nullptr) norm[i] = 0;
        for (int64_t k = 0; k < dim; ++k) unit[k] = 0;
        continue;
      }
      const double length = simd::length(x, dim);
      if (norm != nullptr) norm[i] = A(length);
      const A inverse = normalize ? A(1 / (length < eps ? eps : length)) : A(1);
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) unit[k] = A(simd::load(x + k)) * inverse;
    }
  }
};

// Products::add_pairs for rows x [N, ld] and centres [count, dim] of type S.
struct AddPairs {
  template <class S, class A>
  static HK_INLINE void run(const Pair<A>* pairs, int64_t count, const S* x, int64_t ld, const Row<A>* rows,
                            const S* centres, int64_t dim, A* dx, A* dw) {
    for (int64_t e = 0; e < count; ++e) {
      const int64_t i = pairs[e].row, j = pairs[e].centre;
      if (dx != nullptr) AddScaled::run(centres + j * dim, dim, pairs[e].h, dx + i * dim);
      if (dw != nullptr) AddScaled::run(x + i * ld, dim, pairs[e].h * rows[i].factor, dw + j * dim);
    }
  }
};

// Through torch's GEMM in dtype A; 16-bit centres are widened a tile at a time.
template <class T>
class DenseProducts : public Products<T> {
 public:
  using A = Accumulate<T>;

  DenseProducts(const Plan& plan, const A* x, const Row<A>* rows, const ProductScratch<T>& scratch)
      : d_(plan.d), x_(x), all_rows_(rows), scratch_(scratch) {}

  void take_centres(const T* centres, int64_t count) override {
    if constexpr (std::is_same_v<T, A>) {
      centres_ = matrix(centres, count, d_, d_);
    } else {
      simd::run<Widen>(centres, count * d_, scratch_.centres);
      centres_ = matrix<A>(scratch_.centres, count, d_, d_);
    }
  }

  void take_rows(const int64_t* index, int64_t begin, int64_t count) override {
    rows_ = matrix(index == nullptr ? x_ + begin * d_ : scratch_.rows, count, d_, d_);
    for (int64_t i = 0; index != nullptr && i < count; ++i) {
      std::copy_n(x_ + index[i] * d_, d_, scratch_.rows + i * d_);
    }
  }

  void multiply(A* z, int64_t ld) override { hyperkernels::multiply(rows_, centres_.transposed(), z, ld, false); }

  void row_gradients(const A* h, int64_t ld, A* dx, bool add) override {
    hyperkernels::multiply(gradient(h, ld), centres_, dx, d_, add);
  }

  void centre_gradients(const A* h, int64_t ld, A* dw, bool add) override {
    hyperkernels::multiply(gradient(h, ld).transposed(), rows_, dw, d_, add);
  }

  void add_pairs(const Pair<A>* pairs, int64_t count, A* dx, A* dw) override {
    simd::run<AddPairs>(pairs, count, x_, d_, all_rows_, centres_.data, d_, dx, dw);
  }

 private:
  Matrix<A> gradient(const A* h, int64_t ld) const { return matrix(h, rows_.rows, centres_.rows, ld); }

  const int64_t d_;
  const A* const x_;
  const Row<A>* const all_rows_;
  const ProductScratch<T> scratch_;
  Matrix<A> centres_{}, rows_{};
};

// Rows of x times a power of two that makes their norm about one: exact, and products neither overflow nor vanish.
struct PackedRows {
  static HK_INLINE void run(const simd::Bfloat16* x, Row<float>* row, int64_t rows, int64_t dim, int64_t ld, double eps,
                            bool normalize, simd::Bfloat16* packed, float* norm) {
    for (int64_t i = 0; i < rows; ++i, x += dim, packed += ld) {
      for (int64_t k = row[i].active ? dim : 0; k < ld; ++k) packed[k].bits = 0;
      if (norm != nullptr) norm[i] = 0;
      if (!row[i].active) continue;
      const double length = simd::length(x, dim);
      if (norm != nullptr) norm[i] = float(length);
      int exponent = 0;
      if (length > 0 && std::isfinite(length)) std::frexp(length, &exponent);
      exponent = exponent > 120 ? 120 : exponent < -120 ? -120 : exponent;
      const float power = std::ldexp(1.f, -exponent);
      row[i].factor = float((normalize ? 1 / (length < eps ? eps : length) : 1) / double(power));
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) simd::store(packed + k, simd::load(x + k) * power);
    }
  }
};

// Through the processor's bfloat16 products. Both sides go in as they are; h is rounded for the two products that read
// it, once with each side's factors.
class PackedProducts : public Products<simd::Bfloat16> {
 public:
  PackedProducts(const Plan& plan, const simd::Bfloat16* x, const Row<float>* rows,
                 const ProductScratch<simd::Bfloat16>& scratch)
      : d_(plan.d), ld_(bf16::padded(plan.d)), x_(x), all_rows_(rows), scratch_(scratch) {}

  void take_centres(const simd::Bfloat16* centres, int64_t count) override {
    centres_ = centres;
    count_ = count;
    centres_packed_ = false;
  }

  void take_rows(const int64_t* index, int64_t begin, int64_t count) override {
    const bool same = index == nullptr && all_ && begin == begin_ && count == rows_;
    all_ = index == nullptr;
    begin_ = begin;
    rows_ = count;
    if (same) return;
    rows_packed_ = false;
    selected_ = all_ ? x_ + begin * ld_ : scratch_.selected;
    for (int64_t i = 0; i < count; ++i) {
      scratch_.factors[i] = all_rows_[all_ ? begin + i : index[i]].factor;
      if (!all_) std::copy_n(x_ + index[i] * ld_, ld_, scratch_.selected + i * ld_);
    }
  }

  void multiply(float* z, int64_t ld) override {
    bf16::pack_transposed(centres_, d_, count_, d_, scratch_.right);
    const bf16::Left left{reinterpret_cast<const uint32_t*>(selected_), ld_ / 2, false};
    bf16::multiply(left, scratch_.right, rows_, count_, d_, z, ld, false);
  }

  void row_gradients(const float* h, int64_t ld, float* dx, bool add) override {
    if (!centres_packed_) bf16::pack(centres_, d_, count_, d_, scratch_.packed_centres);
    centres_packed_ = true;
    bf16::round_rows(h, ld, rows_, count_, scratch_.rounded);
    const bf16::Left left{scratch_.rounded, bf16::padded(count_), false};
    bf16::multiply(left, scratch_.packed_centres, rows_, d_, count_, dx, d_, add);
  }

  void centre_gradients(const float* h, int64_t ld, float* dw, bool add) override {
    if (!rows_packed_) bf16::pack(selected_, ld_, rows_, d_, scratch_.packed_rows);
    rows_packed_ = true;
    bf16::round_columns(h, ld, scratch_.factors, rows_, count_, scratch_.rounded);
    const bf16::Left left{scratch_.rounded, bf16::padded(count_), true};
    bf16::multiply(left, scratch_.packed_rows, count_, d_, rows_, dw, d_, add);
  }

  void add_pairs(const Pair<float>* pairs, int64_t count, float* dx, float* dw) override {
    simd::run<AddPairs>(pairs, count, x_, ld_, all_rows_, centres_, d_, dx, dw);
  }

 private:
  const int64_t d_, ld_;
  const simd::Bfloat16* const x_;  // [N, ld_]
  const Row<float>* const all_rows_;
  const ProductScratch<simd::Bfloat16> scratch_;
  const simd::Bfloat16 *centres_ = nullptr, *selected_ = nullptr;
  int64_t count_ = 0, begin_ = 0, rows_ = 0;
  bool all_ = false, centres_packed_ = false, rows_packed_ = false;
};

}  // namespace

template <class T>
XOperand<T> make_x_operand(const ClassProblem<T>& p, Row<Accumulate<T>>* rows, Accumulate<T>* norm) {
  using A = Accumulate<T>;
  const auto from = [&](int64_t begin) { return norm == nullptr ? nullptr : norm + begin; };
  XOperand<T> x;
  if constexpr (std::is_same_v<T, simd::Bfloat16>) {
    x.is_packed = simd::multiplies_bfloat16();
    if (x.is_packed) {
      const int64_t ld = bf16::padded(p.d);
      x.packed = Buffer<T>(p.n * ld);
      T* packed = x.packed.data();
      p.over_rows([&](int64_t begin, int64_t end) {
        simd::run<PackedRows>(p.x + begin * p.d, rows + begin, end - begin, p.d, ld, p.eps, p.normalize_x,
                              packed + begin * ld, from(begin));
      });
      return x;
    }
  }
  x.unit = Buffer<A>(p.n * p.d);
  A* unit = x.unit.data();
  p.over_rows([&](int64_t begin, int64_t end) {
    simd::run<UnitRows>(p.x + begin * p.d, static_cast<const Row<A>*>(rows + begin), end - begin, p.d, p.eps,
                        p.normalize_x, unit + begin * p.d, from(begin));
  });
  return x;
}

template <class T>
std::unique_ptr<Products<T>> make_products(const ClassProblem<T>& p, const XOperand<T>& x,
                                           const Row<Accumulate<T>>* rows, const ProductScratch<T>& scratch) {
  if constexpr (std::is_same_v<T, simd::Bfloat16>) {
    if (x.is_packed) return std::make_unique<PackedProducts>(p, x.packed.data(), rows, scratch);
  }
  return std::make_unique<DenseProducts<T>>(p, x.unit.data(), rows, scratch);
}

#define HK_PRODUCTS(T)                                                                              \
  template XOperand<T> make_x_operand(const ClassProblem<T>&, Row<Accumulate<T>>*, Accumulate<T>*); \
  template std::unique_ptr<Products<T>> make_products(const ClassProblem<T>&, const XOperand<T>&,   \
                                                      const Row<Accumulate<T>>*, const ProductScratch<T>&);
HK_PRODUCTS(double)
HK_PRODUCTS(float)
HK_PRODUCTS(simd::Bfloat16)
HK_PRODUCTS(simd::Half)

}  // namespace hyperkernels::margin_softmax
