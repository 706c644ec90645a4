#include "products.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "gemm_bf16.h"

namespace hyperkernels::margin_softmax {

namespace {

// x^ (x where it is not normalised) in dtype A, and |x|; zeros where the row is ignored.
struct UnitRows {
  template <class T, class A>
  static HK_INLINE void run(const T* x, const Row<A>* row, int64_t rows, int64_t dim, double eps, bool normalize,
                            A* unit, A* norm) {
    for (int64_t i = 0; i < rows; ++i, x += dim, unit += dim) {
      if (!row[i].active) {
        norm[i] = 0;
        for (int64_t k = 0; k < dim; ++k) unit[k] = 0;
        continue;
      }
      const double length = simd::length(x, dim);
      norm[i] = A(length);
      const A inverse = normalize ? A(1 / (length < eps ? eps : length)) : A(1);
#pragma omp simd
      for (int64_t k = 0; k < dim; ++k) unit[k] = A(simd::load(x + k)) * inverse;
    }
  }
};

struct Widen {
  template <class T, class A>
  static HK_INLINE void run(const T* from, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] = A(simd::load(from + k));
  }
};

// to += g * from.
struct AddScaled {
  template <class T, class A>
  static HK_INLINE void run(const T* from, int64_t count, A g, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += g * A(simd::load(from + k));
  }
};

// Through ATen's GEMM in dtype A; 16-bit centres are widened a tile at a time.
template <class T>
class DenseProducts : public Products<T> {
 public:
  using A = Accumulate<T>;

  DenseProducts(const Problem& problem, const at::Tensor& x) : problem_(problem), x_(x) {
    if (!std::is_same_v<T, A>) widened_ = at::empty({problem.tile_width(), problem.d}, x.options());
  }

  void take_centres(const T* centres, int64_t count) override {
    if constexpr (std::is_same_v<T, A>) {
      centres_ = matrix(const_cast<A*>(centres), count, problem_.d, problem_.d);
    } else {
      centres_ = widened_.narrow(0, 0, count);
      simd::run<Widen>(centres, count * problem_.d, widened_.data_ptr<A>());
    }
  }

  void take_rows(const int64_t* index, int64_t begin, int64_t count) override {
    if (index == nullptr) {
      rows_ = x_.narrow(0, begin, count);
      return;
    }
    const int64_t d = problem_.d;
    if (!gathered_.defined()) gathered_ = at::empty({std::min(kRows, problem_.n), d}, x_.options());
    rows_ = gathered_.narrow(0, 0, count);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(gathered_.data_ptr<A>() + i * d, data<A>(x_) + index[i] * d, d * sizeof(A));
    }
  }

  void multiply(A* z, int64_t ld) override {
    at::Tensor out = matrix(z, rows_.size(0), centres_.size(0), ld);
    at::mm_out(out, rows_, centres_.t());
  }

  void row_gradients(const A* h, int64_t ld, A* dx, bool add) override {
    at::Tensor out = matrix(dx, rows_.size(0), problem_.d, problem_.d);
    at::addmm_out(out, out, gradient(h, ld), centres_, add ? 1 : 0, 1);
  }

  void centre_gradients(const A* h, int64_t ld, A* dw, bool add) override {
    at::Tensor out = matrix(dw, centres_.size(0), problem_.d, problem_.d);
    at::addmm_out(out, out, gradient(h, ld).t(), rows_, add ? 1 : 0, 1);
  }

  void add_pair(int64_t row, int64_t centre, A g, A* dx, A* dw) override {
    const int64_t d = problem_.d;
    if (dx != nullptr) simd::run<AddScaled>(data<A>(centres_) + centre * d, d, g, dx);
    if (dw != nullptr) simd::run<AddScaled>(data<A>(x_) + row * d, d, g, dw);
  }

 private:
  at::Tensor matrix(A* p, int64_t rows, int64_t columns, int64_t ld) const {
    return at::from_blob(p, {rows, columns}, {ld, 1}, x_.options());
  }
  at::Tensor gradient(const A* h, int64_t ld) const {
    return matrix(const_cast<A*>(h), rows_.size(0), centres_.size(0), ld);
  }

  const Problem& problem_;
  const at::Tensor x_;
  at::Tensor widened_, gathered_, centres_, rows_;
};

// Rows of x times a power of two that makes their norm about one: exact, and products neither overflow nor vanish.
struct PackedRows {
  static HK_INLINE void run(const simd::Bfloat16* x, Row<float>* row, int64_t rows, int64_t dim, int64_t ld, double eps,
                            bool normalize, simd::Bfloat16* packed, float* norm) {
    for (int64_t i = 0; i < rows; ++i, x += dim, packed += ld) {
      for (int64_t k = row[i].active ? dim : 0; k < ld; ++k) packed[k].bits = 0;
      norm[i] = 0;
      if (!row[i].active) continue;
      const double length = simd::length(x, dim);
      norm[i] = float(length);
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
  PackedProducts(const Problem& problem, const at::Tensor& x, const std::vector<Row<float>>& rows)
      : problem_(problem), all_rows_(rows), x_(data<simd::Bfloat16>(x)), ld_(x.size(1)) {}

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
    selected_ = x_ + begin * ld_;
    factors_.resize(count);
    for (int64_t i = 0; i < count; ++i) factors_[i] = all_rows_[all_ ? begin + i : index[i]].factor;
    if (all_) return;
    gathered_.resize(count * ld_);
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(gathered_.data() + i * ld_, x_ + index[i] * ld_, ld_ * sizeof(simd::Bfloat16));
    }
    selected_ = gathered_.data();
  }

  void multiply(float* z, int64_t ld) override {
    right_.resize(bf16::packed_size(problem_.d, count_));
    bf16::pack_transposed(centres_, problem_.d, count_, problem_.d, right_.data());
    const bf16::Left left{reinterpret_cast<const uint32_t*>(selected_), ld_ / 2, false};
    bf16::multiply(left, right_.data(), rows_, count_, problem_.d, z, ld, false);
  }

  void row_gradients(const float* h, int64_t ld, float* dx, bool add) override {
    if (!centres_packed_) {
      packed_centres_.resize(bf16::packed_size(count_, problem_.d));
      bf16::pack(centres_, problem_.d, count_, problem_.d, packed_centres_.data());
      centres_packed_ = true;
    }
    rounded_.resize(rows_ * bf16::padded(count_));
    bf16::round_rows(h, ld, rows_, count_, rounded_.data());
    bf16::multiply({rounded_.data(), bf16::padded(count_), false}, packed_centres_.data(), rows_, problem_.d, count_,
                   dx, problem_.d, add);
  }

  void centre_gradients(const float* h, int64_t ld, float* dw, bool add) override {
    if (!rows_packed_) {
      packed_rows_.resize(bf16::packed_size(rows_, problem_.d));
      bf16::pack(selected_, ld_, rows_, problem_.d, packed_rows_.data());
      rows_packed_ = true;
    }
    rounded_.resize(rows_ * bf16::padded(count_));
    bf16::round_columns(h, ld, factors_.data(), rows_, count_, rounded_.data());
    bf16::multiply({rounded_.data(), bf16::padded(count_), true}, packed_rows_.data(), count_, problem_.d, rows_, dw,
                   problem_.d, add);
  }

  void add_pair(int64_t row, int64_t centre, float g, float* dx, float* dw) override {
    const int64_t d = problem_.d;
    if (dx != nullptr) simd::run<AddScaled>(centres_ + centre * d, d, g, dx);
    if (dw != nullptr) simd::run<AddScaled>(x_ + row * ld_, d, g * all_rows_[row].factor, dw);
  }

 private:
  const Problem& problem_;
  const std::vector<Row<float>>& all_rows_;
  const simd::Bfloat16* x_;  // [N, ld_]
  const int64_t ld_;
  const simd::Bfloat16 *centres_ = nullptr, *selected_ = nullptr;
  int64_t count_ = 0, begin_ = 0, rows_ = 0;
  bool all_ = false, centres_packed_ = false, rows_packed_ = false;
  std::vector<float> factors_;
  std::vector<simd::Bfloat16> gathered_;
  std::vector<uint32_t> right_, packed_centres_, packed_rows_, rounded_;
};

}  // namespace

template <class T>
XOperand make_x_operand(const Problem& p, std::vector<Row<Accumulate<T>>>& rows, Accumulate<T>* norm) {
  using A = Accumulate<T>;
  if constexpr (std::is_same_v<T, simd::Bfloat16>) {
    if (simd::multiplies_bfloat16()) {
      at::Tensor packed = at::empty({p.n, bf16::padded(p.d)}, p.x.options());
      p.over_rows([&](int64_t begin, int64_t end) {
        simd::run<PackedRows>(data<T>(p.x) + begin * p.d, rows.data() + begin, end - begin, p.d, packed.size(1), p.eps,
                              p.normalize_x, mutable_data<T>(packed) + begin * packed.size(1), norm + begin);
      });
      return {packed, true};
    }
  }
  at::Tensor unit = at::empty({p.n, p.d}, p.accumulate());
  p.over_rows([&](int64_t begin, int64_t end) {
    simd::run<UnitRows>(data<T>(p.x) + begin * p.d, static_cast<const Row<A>*>(rows.data() + begin), end - begin, p.d,
                        p.eps, p.normalize_x, mutable_data<A>(unit) + begin * p.d, norm + begin);
  });
  return {unit, false};
}

template <class T>
std::unique_ptr<Products<T>> make_products(const Problem& problem, const XOperand& x,
                                           const std::vector<Row<Accumulate<T>>>& rows) {
  if constexpr (std::is_same_v<T, simd::Bfloat16>) {
    if (x.packed) return std::make_unique<PackedProducts>(problem, x.values, rows);
  }
  return std::make_unique<DenseProducts<T>>(problem, x.values);
}

#define HK_PRODUCTS(T)                                                                                   \
  template XOperand make_x_operand<T>(const Problem&, std::vector<Row<Accumulate<T>>>&, Accumulate<T>*); \
  template std::unique_ptr<Products<T>> make_products<T>(const Problem&, const XOperand&,                \
                                                         const std::vector<Row<Accumulate<T>>>&);
HK_PRODUCTS(double)
HK_PRODUCTS(float)
HK_PRODUCTS(simd::Bfloat16)
HK_PRODUCTS(simd::Half)

}  // namespace hyperkernels::margin_softmax
