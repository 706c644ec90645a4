// The gradient of the bins' sums. A pair gives w, the gradient of its bin's sum, times that of its similarity:
//
//   dot:               dx_i += w y_j
//   squared_euclidean: dx_i += 2 w (y_j - x_i)
//   euclidean:         dx_i += w / d (y_j - x_i), nothing where d = 0
//
// and the same to y_j with x and y exchanged: matrix products with the factors of y and x, and sums of factors.
//
// Rows are taken a chunk at a time. Within a chunk a lane of columns is a unit of work: it owns the gradients of its
// columns, and its share of the rows' gradients is added to that of the others afterwards, in the order of the lanes.
// Tiles are those of the forward pass, so that every pair falls into the same bin.

#include <torch/library.h>

#include <tuple>

#include "bins.h"
#include "weights.h"

namespace hyperkernels::pair_mining {

namespace {

constexpr int64_t kChunkRows = 1024;

// u becomes the factors of a row's pairs.
struct PairFactors {
  template <class A>
  static HK_INLINE void run(A* u, const Mask<A>* mask, const Mask<A>* bin, const A* d_sum, int64_t count,
                            Similarity similarity, double* row_sum, double* column_sums) {
    if (similarity == Similarity::kDot) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) u[j] = mask[j] ? d_sum[bin[j]] : A(0);
      return;
    }
    if (similarity == Similarity::kEuclidean) {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) u[j] = mask[j] && u[j] != 0 ? d_sum[bin[j]] / -u[j] : A(0);
    } else {
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) u[j] = mask[j] ? 2 * d_sum[bin[j]] : A(0);
    }
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) {
      sum += double(u[j]);
      column_sums[j] += double(u[j]);
    }
    *row_sum += sum;
  }
};

// to += from.
struct Add {
  template <class A>
  static HK_INLINE void run(const A* from, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += from[k];
  }
};

// Sums over the pairs of one side's rows.
struct Sums {
  at::Tensor products;  // [n, D], of the factors and the other ends
  at::Tensor factors;   // [n] float64

  Sums(const Problem& p, int64_t n)
      : products(at::zeros({n, p.d}, p.accumulate())), factors(at::zeros({n}, p.accumulate().dtype(at::kDouble))) {}
};

template <class T>
class BinsBackward {
 public:
  using A = Accumulate<T>;

  BinsBackward(const Problem& p, const Bins& bins, const at::Tensor& d_sum, bool need_rows, bool need_columns)
      : p_(p),
        bins_(bins),
        d_sum_(data<A>(d_sum)),
        need_rows_(need_rows),
        need_columns_(need_columns),
        lanes_(lanes_of(p)),
        chunk_(chunk_of(p, lanes_)),
        row_squares_(squared_norms(p, p.rows)),
        column_squares_(p.self ? row_squares_ : squared_norms(p, p.columns)),
        row_finite_(finite_rows<T>(p, p.rows)),
        column_finite_(p.self ? row_finite_ : finite_rows<T>(p, p.columns)),
        rows_(p, need_rows ? p.rows.n : 0),
        columns_(p.self ? rows_ : Sums(p, need_columns ? p.columns.n : 0)),
        parts_(at::empty({lanes_.count, need_rows ? chunk_ : 0, p.d}, p.accumulate())),
        part_factors_(at::empty({lanes_.count, chunk_}, p.accumulate().dtype(at::kDouble))) {}

  std::tuple<at::Tensor, at::Tensor> run() {
    for (int64_t first = 0; first < p_.rows.n; first += chunk_) {
      const int64_t rows = std::min(chunk_, p_.rows.n - first);
      in_parallel(lanes_.count, [&](int64_t lane) { run_lane(lane, first, rows); });
      interrupt_.rethrow();
      if (need_rows_) add_parts(first, rows);
    }
    const at::Tensor none = at::empty({0}, p_.rows.values.options());
    return {need_rows_ ? finish(p_.rows, rows_) : none,
            need_columns_ && !p_.self ? finish(p_.columns, columns_) : none};
  }

 private:
  static Lanes lanes_of(const Problem& p) {
    return {std::max<int64_t>(1, std::min(kUnits / 2, p.column_tiles())), p.column_tiles()};
  }
  // Whole tiles of rows, as many as the lanes' parts have room for.
  static int64_t chunk_of(const Problem& p, const Lanes& lanes) {
    const int64_t affordable = std::min(kChunkRows, kLaneNumbers / std::max<int64_t>(1, lanes.count * p.d));
    return std::min(p.rows.n, std::max<int64_t>(1, affordable / p.row_tile) * p.row_tile);
  }

  void run_lane(int64_t lane, int64_t chunk, int64_t chunk_rows) {
    A* part = mutable_data<A>(parts_) + lane * chunk_ * p_.d;
    double* row_factors = mutable_data<double>(part_factors_) + lane * chunk_;
    if (need_rows_) std::fill(part, part + chunk_rows * p_.d, A(0));
    std::fill(row_factors, row_factors + chunk_rows, 0.0);
    TileMemory<T> memory(p_);
    Tiles<T> tiles(p_, row_squares_, column_squares_);
    std::vector<Mask<A>> bin(memory.ld);
    std::vector<double> column_factors(memory.ld);
    for (int64_t row = chunk; row < chunk + chunk_rows; row += p_.row_tile) {
      const int64_t rows = std::min(p_.row_tile, p_.rows.n - row);
      const at::Tensor& x = tiles.take_rows(row, rows);
      for (int64_t b = lanes_.begin(lane); b < lanes_.begin(lane + 1); ++b) {
        const int64_t first = b * p_.column_tile, count = std::min(p_.column_tile, p_.columns.n - first);
        if (!may_count(p_, row, rows, first, count)) continue;
        if (interrupt_.called()) return;
        const at::Tensor& y = tiles.take_columns(first, count);
        tiles.similarities(memory.u(), memory.ld);
        std::fill(column_factors.begin(), column_factors.end(), 0.0);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t own = row + i;
          A* u = memory.u() + i * memory.ld;
          counting_pairs(p_, own, first, count, static_cast<const A*>(u), memory.mask());
          simd::run<FindBins>(data<A>(bins_.edges) + bins_.first_edge(own), bins_.edges_of(own),
                              static_cast<const A*>(u), count, bin.data());
          simd::run<PairFactors>(u, static_cast<const Mask<A>*>(memory.mask()), static_cast<const Mask<A>*>(bin.data()),
                                 d_sum_ + bins_.first_bin(own), count, p_.similarity, row_factors + own - chunk,
                                 column_factors.data());
        }
        const at::Tensor factors = matrix(memory.u(), rows, count, memory.ld);
        if (need_rows_) {
          const at::Tensor own = matrix(part + (row - chunk) * p_.d, rows, p_.d, p_.d);
          add_product<A>(own, factors, y, &column_finite_[first]);
        }
        if (!need_columns_) continue;
        add_product<A>(columns_.products.narrow(0, first, count), factors.t(), x, &row_finite_[row]);
        simd::run<Add>(static_cast<const double*>(column_factors.data()), count,
                       mutable_data<double>(columns_.factors) + first);
      }
    }
  }

  at::Tensor matrix(A* values, int64_t rows, int64_t columns, int64_t ld) const {
    return at::from_blob(values, {rows, columns}, {ld, 1}, p_.accumulate());
  }

  // The lanes' shares of a chunk's rows.
  void add_parts(int64_t first, int64_t rows) {
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t lane = 0; lane < lanes_.count; ++lane) {
        const int64_t at = lane * chunk_ + begin;
        simd::run<Add>(data<A>(parts_) + at * p_.d, (end - begin) * p_.d,
                       mutable_data<A>(rows_.products) + (first + begin) * p_.d);
        simd::run<Add>(data<double>(part_factors_) + at, end - begin,
                       mutable_data<double>(rows_.factors) + first + begin);
      }
    });
  }

  at::Tensor finish(const Side& side, const Sums& sums) const {
    at::Tensor out = at::empty({side.n, p_.d}, side.values.options());
    at::parallel_for(0, side.n, 16, [&](int64_t begin, int64_t end) {
      simd::run<FinishGradient>(mutable_data<A>(sums.products) + begin * p_.d, data<double>(sums.factors) + begin,
                                data<T>(side.values) + begin * p_.d, int64_t{1}, side.n, p_.d, end - begin,
                                mutable_data<T>(out) + begin * p_.d);
    });
    return out;
  }

  const Problem& p_;
  const Bins& bins_;
  const A* d_sum_;
  const bool need_rows_, need_columns_;
  const Lanes lanes_;
  const int64_t chunk_;
  const at::Tensor row_squares_, column_squares_;
  const std::vector<uint8_t> row_finite_, column_finite_;
  Sums rows_, columns_;  // the same ones where the columns are the rows
  at::Tensor parts_;     // [lanes, chunk, D]
  at::Tensor part_factors_;
  Interrupt interrupt_;
};

std::tuple<at::Tensor, at::Tensor> pair_bins_backward(
    const at::Tensor& x, const std::optional<at::Tensor>& ref, const at::Tensor& label, const at::Tensor& ref_label,
    const at::Tensor& id, const at::Tensor& ref_id, const std::optional<at::Tensor>& lower,
    const std::optional<at::Tensor>& upper, c10::string_view select, c10::string_view similarity,
    const at::Tensor& edges, const at::Tensor& offsets, const at::Tensor& d_sum, int64_t row_tile, int64_t column_tile,
    bool need_x, bool need_ref) {
  const Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const Bins bins(p, edges, offsets);
  const at::Tensor given = numbers_of(p, "d_sum", d_sum, bins.first_bin(p.rows.n));
  return with_storage(
      p, [&](auto t) { return BinsBackward<decltype(t)>(p, bins, given, need_x, p.self ? need_x : need_ref).run(); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("pair_bins_backward", pair_bins_backward); }

}  // namespace hyperkernels::pair_mining
