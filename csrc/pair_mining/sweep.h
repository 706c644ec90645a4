// One pass over all pairs, for the ops whose results belong to rows.
//
// A unit of work is a tile of rows by a lane, a run of whole column tiles. There is one lane where the tiles of rows
// alone keep the threads busy; where few rows meet many columns there are several, as many as the sizes say, and the
// unit that comes last to a tile of rows merges their parts in the order of the lanes. So the results do not depend on
// the threads.
#pragma once

#include <atomic>
#include <memory>

#include "../indices.h"
#include "../interrupt.h"
#include "problem.h"

namespace hyperkernels::pair_mining {

constexpr int64_t kUnits = 64;                      // enough for the threads of most machines
constexpr int64_t kLaneNumbers = int64_t(1) << 25;  // numbers that the lanes' parts may take together

// Runs of whole column tiles.
struct Lanes {
  int64_t count, tiles;

  int64_t begin(int64_t lane) const { return tiles * lane / count; }
};

// `numbers`: how many of them one lane's part takes for all rows.
inline Lanes lanes_of(const Problem& p, int64_t numbers) {
  const int64_t wanted = kUnits / std::max<int64_t>(1, p.row_tiles());
  const int64_t most = std::min(p.column_tiles(), kLaneNumbers / std::max<int64_t>(1, numbers));
  return {std::max<int64_t>(1, std::min(wanted, most)), p.column_tiles()};
}

// A tile's similarities and one row of its mask.
template <class T>
class TileMemory {
 public:
  using A = Accumulate<T>;

  explicit TileMemory(const Problem& p)
      : ld(std::min(p.column_tile, p.columns.n)),
        u_(at::empty({std::min(p.row_tile, p.rows.n) * ld}, p.accumulate())),
        mask_(ld) {}

  A* u() { return mutable_data<A>(u_); }
  Mask<A>* mask() { return mask_.data(); }

  const int64_t ld;

 private:
  at::Tensor u_;  // aligned, as the GEMM likes it
  std::vector<Mask<A>> mask_;
};

// make(first row, rows, lane) gives a std::unique_ptr to a part; its take(i, first column, count, u, mask) gets row i
// of the tile of rows, the columns of a lane in rising order; merge(first row, rows, parts) gets the parts of all
// lanes.
template <class T, class Make, class Merge>
void sweep(const Problem& p, const Lanes& lanes, Make make, Merge merge) {
  using Part = decltype(make(int64_t(), int64_t(), int64_t()));
  const at::Tensor row_squares = squared_norms(p, p.rows);
  const at::Tensor column_squares = p.self ? row_squares : squared_norms(p, p.columns);
  std::vector<Part> parts(p.row_tiles() * lanes.count);
  std::vector<std::atomic<int64_t>> missing(p.row_tiles());
  for (auto& lanes_missing : missing) lanes_missing = lanes.count;
  Interrupt interrupt;
  in_parallel(int64_t(parts.size()), [&](int64_t unit) {
    const int64_t tile = unit / lanes.count, lane = unit % lanes.count;
    const int64_t row = tile * p.row_tile, rows = std::min(p.row_tile, p.rows.n - row);
    Part part = make(row, rows, lane);
    TileMemory<T> memory(p);
    Tiles<T> tiles(p, row_squares, column_squares);
    tiles.take_rows(row, rows);
    for (int64_t b = lanes.begin(lane); b < lanes.begin(lane + 1); ++b) {
      const int64_t first = b * p.column_tile, count = std::min(p.column_tile, p.columns.n - first);
      if (!may_count(p, row, rows, first, count)) continue;
      if (interrupt.called()) return;
      tiles.take_columns(first, count);
      tiles.similarities(memory.u(), memory.ld);
      for (int64_t i = 0; i < rows; ++i) {
        const auto* u = memory.u() + i * memory.ld;
        counting_pairs(p, row + i, first, count, u, memory.mask());
        part->take(i, first, count, u, memory.mask());
      }
    }
    parts[unit] = std::move(part);
    if (missing[tile].fetch_sub(1) > 1) return;
    merge(row, rows, parts.data() + tile * lanes.count);
    for (int64_t k = 0; k < lanes.count; ++k) parts[tile * lanes.count + k].reset();
  });
  interrupt.rethrow();
}

// Where the entries of every row begin and end, [n + 1], checked; a copy.
inline at::Tensor checked_offsets(const at::Tensor& offsets, int64_t n, int64_t total) {
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong, "offsets must be int64; got ", offsets.scalar_type());
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) == n + 1, "offsets must be [", n + 1, "]; got ",
                    offsets.sizes());
  TORCH_CHECK_VALUE(offsets.device().is_cpu(), "offsets must be on the cpu; got ", offsets.device());
  const at::Tensor kept = own_copy(offsets);
  const int64_t* offset = data<int64_t>(kept);
  TORCH_CHECK_VALUE(offset[0] == 0 && std::is_sorted(offset, offset + n + 1) && offset[n] == total,
                    "offsets must rise from 0 to ", total);
  return kept;
}

// Bit j tells whether u[j] counts and beats `bar`: it is larger, or NaN, or the bar is NaN. At most 32 pairs.
template <class A>
HK_INLINE uint32_t beating(const A* u, const Mask<A>* mask, A bar, int64_t count) {
  Mask<A> bits = 0;
#pragma omp simd reduction(| : bits)
  for (int64_t j = 0; j < count; ++j) bits |= u[j] <= bar ? Mask<A>(0) : mask[j] & Mask<A>(uint32_t(1) << j);
  return uint32_t(bits);
}

}  // namespace hyperkernels::pair_mining
