#include "products.h"

#include <cstring>
#include <type_traits>

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
      const double length = std::sqrt(simd::sum_squares(x, dim));
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
class DenseProducts : public Products<Accumulate<T>> {
 public:
  using A = Accumulate<T>;

  DenseProducts(const Problem& problem, const at::Tensor& x) : problem_(problem), x_(x) {
    if (!std::is_same_v<T, A>) widened_ = at::empty({problem.tile_width(), problem.d}, x.options());
  }

  void take_centres(int64_t first, int64_t count) override {
    if constexpr (std::is_same_v<T, A>) {
      centres_ = problem_.weight.narrow(0, first, count);
    } else {
      centres_ = widened_.narrow(0, 0, count);
      simd::run<Widen>(data<T>(problem_.weight) + first * problem_.d, count * problem_.d, widened_.data_ptr<A>());
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

}  // namespace

template <class T>
XOperand make_x_operand(const Problem& problem, std::vector<Row<Accumulate<T>>>& rows, Accumulate<T>* norm) {
  using A = Accumulate<T>;
  at::Tensor unit = at::empty({problem.n, problem.d}, problem.accumulate());
  problem.over_rows([&](int64_t begin, int64_t end) {
    simd::run<UnitRows>(data<T>(problem.x) + begin * problem.d, static_cast<const Row<A>*>(rows.data() + begin),
                        end - begin, problem.d, problem.eps, problem.normalize_x,
                        mutable_data<A>(unit) + begin * problem.d, norm + begin);
  });
  return {unit, false};
}

template <class T>
std::unique_ptr<Products<Accumulate<T>>> make_products(const Problem& problem, const XOperand& x,
                                                       const std::vector<Row<Accumulate<T>>>& rows) {
  return std::make_unique<DenseProducts<T>>(problem, x.values);
}

#define HK_PRODUCTS(T)                                                                                              \
  template XOperand make_x_operand<T>(const Problem&, std::vector<Row<Accumulate<T>>>&, Accumulate<T>*);            \
  template std::unique_ptr<Products<Accumulate<T>>> make_products<T>(const Problem&, const XOperand&,               \
                                                                     const std::vector<Row<Accumulate<T>>>&);
HK_PRODUCTS(double)
HK_PRODUCTS(float)
HK_PRODUCTS(simd::Bfloat16)
HK_PRODUCTS(simd::Half)

}  // namespace hyperkernels::margin_softmax
