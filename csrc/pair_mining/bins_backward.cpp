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

#include "bins.h"
#include "products.h"
#include "sweep.h"

namespace hyperkernels::pair_mining {

namespace {

constexpr int64_t kChunkRows = 1024;

// u becomes the factors of a row's pairs.
template <class A>
HK_INLINE void pair_factors(A* u, const Mask<A>* mask, const Mask<A>* bin, const A* d_sum, int64_t count,
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

// A tile becomes its factors. row_sums, of its rows, are added to; column_sums, of its columns, are set.
struct TileFactors {
  template <class A>
  static HK_INLINE void run(const PairTile<A>* tile, const Bins<A>* bins, const A* d_sum, Similarity similarity,
                            Mask<A>* bin, double* row_sums, double* column_sums) {
    const int64_t count = tile->columns;
    std::fill_n(column_sums, count, 0.0);
    for (int64_t i = 0; i < tile->rows; ++i) {
      const int64_t row = tile->row + i;
      A* u = tile->u + i * tile->ld;
      tile->mask_row(i);
      bins->find(row, u, count, bin);
      pair_factors(u, static_cast<const Mask<A>*>(tile->mask), static_cast<const Mask<A>*>(bin),
                   d_sum + bins->first_bin(row), count, similarity, row_sums + i, column_sums);
    }
  }
};

// Sums over the pairs of one side's rows.
template <class A>
struct PairSums {
  Buffer<A> products;      // [n, D], of the factors and the other ends
  Buffer<double> factors;  // [n]

  PairSums(int64_t n, int64_t d) : products(n * d), factors(n) {
    fill_zero(products.data(), n * d);
    fill_zero(factors.data(), n);
  }
};

// The pieces of a lane.
template <class T>
struct LanePieces {
  using A = Accumulate<T>;

  template <class Memory>
  LanePieces(Memory& memory, const PairProblem<T>& p, const SideNumbers<A>& squared_norms)
      : tiles(memory, p, squared_norms),
        bin(memory.template take<Mask<A>>(tiles.ld)),
        column_sums(memory.template take<double>(tiles.ld)) {}

  MaskedTiles<T> tiles;
  Mask<A>* const bin;
  double* const column_sums;
  Buffer<A> tame;  // seldom needed
};

template <class T>
class BinsBackward {
 public:
  using A = Accumulate<T>;

  explicit BinsBackward(const BinsBackwardCall<T>& call)
      : call_(call),
        p_(call.problem),
        lanes_{std::max<int64_t>(1, std::min(kUnits / 2, p_.column_tiles())), p_.column_tiles()},
        chunk_(chunk_of(p_, lanes_)),
        squares_(squared_norms(p_)),
        finite_(finite_rows(p_)),
        of_rows_(call.dx != nullptr ? p_.n : 0, p_.d),
        of_columns_(call.dref != nullptr ? p_.m : 0, p_.d),
        parts_(lanes_.count * (call.dx != nullptr ? chunk_ : 0) * p_.d),
        part_factors_(lanes_.count * chunk_) {}

  void run() {
    for (int64_t first = 0; first < p_.n; first += chunk_) {
      const int64_t rows = std::min(chunk_, p_.n - first);
      in_parallel(lanes_.count, [&](int64_t lane) { run_lane(lane, first, rows); });
      interrupt_.rethrow();
      if (call_.dx != nullptr) add_parts(first, rows);
    }
    if (call_.dx != nullptr) finish(p_.x, p_.n, of_rows_, call_.dx);
    if (call_.dref != nullptr) finish(p_.ref, p_.m, of_columns_, call_.dref);
  }

 private:
  // Whole tiles of rows, as many as the lanes' parts have room for.
  static int64_t chunk_of(const PairOptions& p, const Lanes& lanes) {
    const int64_t affordable = std::min(kChunkRows, kLaneNumbers / std::max<int64_t>(1, lanes.count * p.d));
    return std::min(p.n, std::max<int64_t>(1, affordable / p.row_tile) * p.row_tile);
  }

  void run_lane(int64_t lane, int64_t chunk, int64_t chunk_rows) {
    A* part = parts_.data() + (call_.dx != nullptr ? lane * chunk_ * p_.d : 0);
    double* row_sums = part_factors_.data() + lane * chunk_;
    if (call_.dx != nullptr) std::fill_n(part, chunk_rows * p_.d, A(0));
    std::fill_n(row_sums, chunk_rows, 0.0);
    // Where x meets itself the columns are rows of x.
    PairSums<A>* const columns = !p_.self              ? call_.dref != nullptr ? &of_columns_ : nullptr
                                 : call_.dx != nullptr ? &of_rows_
                                                       : nullptr;
    InWorkspace<LanePieces<T>> memory(p_, squares_);
    MaskedTiles<T>& tiles = memory->tiles;
    for (int64_t row = chunk; row < chunk + chunk_rows; row += p_.row_tile) {
      const int64_t rows = std::min(p_.row_tile, p_.n - row);
      tiles.take_rows(row, rows);
      for (int64_t b = lanes_.begin(lane); b < lanes_.begin(lane + 1); ++b) {
        const int64_t first = b * p_.column_tile, count = std::min(p_.column_tile, p_.m - first);
        if (!may_count(p_, row, rows, first, count)) continue;
        if (interrupt_.called()) return;
        tiles.take_columns(first, count);
        const PairTile<A> tile = tiles.tile(row, first);
        simd::run<TileFactors>(&tile, &call_.bins, call_.d_sum, p_.similarity, memory->bin, row_sums + row - chunk,
                               memory->column_sums);
        const Matrix<A> factors = matrix<A>(tile.u, rows, count, tile.ld);
        if (call_.dx != nullptr) {
          add_product(factors, tiles.columns(), finite_.columns() + first, part + (row - chunk) * p_.d, memory->tame);
        }
        if (columns == nullptr) continue;
        add_product(factors.transposed(), tiles.rows(), finite_.rows() + row, columns->products.data() + first * p_.d,
                    memory->tame);
        simd::run<Add>(static_cast<const double*>(memory->column_sums), count, columns->factors.data() + first);
      }
    }
  }

  // The lanes' shares of a chunk's rows.
  void add_parts(int64_t first, int64_t rows) {
    parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t lane = 0; lane < lanes_.count; ++lane) {
        const int64_t at = lane * chunk_ + begin;
        simd::run<Add>(static_cast<const A*>(parts_.data() + at * p_.d), (end - begin) * p_.d,
                       of_rows_.products.data() + (first + begin) * p_.d);
        simd::run<Add>(static_cast<const double*>(part_factors_.data() + at), end - begin,
                       of_rows_.factors.data() + first + begin);
      }
    });
  }

  void finish(const T* side, int64_t n, PairSums<A>& sums, T* out) const {
    parallel_for(0, n, 16, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * p_.d;
      simd::run<FinishGradient>(sums.products.data() + first, static_cast<const double*>(sums.factors.data() + begin),
                                side + first, int64_t(1), n, p_.d, end - begin, out + first);
    });
  }

  const BinsBackwardCall<T>& call_;
  const PairProblem<T>& p_;
  const Lanes lanes_;
  const int64_t chunk_;
  const SideNumbers<A> squares_;
  const SideNumbers<uint8_t> finite_;
  PairSums<A> of_rows_, of_columns_;
  Buffer<A> parts_;  // [lanes, chunk, D]
  Buffer<double> part_factors_;
  Interrupt interrupt_;
};

}  // namespace

template <class T>
void pair_bins_backward(const BinsBackwardCall<T>& call) {
  BinsBackward<T>(call).run();
}

template void pair_bins_backward(const BinsBackwardCall<double>&);
template void pair_bins_backward(const BinsBackwardCall<float>&);
template void pair_bins_backward(const BinsBackwardCall<simd::Bfloat16>&);
template void pair_bins_backward(const BinsBackwardCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
