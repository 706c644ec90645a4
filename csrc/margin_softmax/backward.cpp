// The gradient of the class softmax on the CPU, one tile of cosines at a time. problem.h says how the work is cut.
//
// With h = g / |w_j|, where g is the gradient of the cosines, the gradient of x^ is H W with the raw centres, and the
// one of the centres is H^T x^ without its part along each centre.

#include <cstring>

#include "products.h"
#include "statistics.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hyperkernels::margin_softmax {

namespace {

// Asks for large pages behind memory that is about to be written for the first time. Where most tiles are skipped,
// handing out the gradient's memory in the usual 4 KiB is most of the time; where none are, large pages gain nothing.
void use_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  // Advice only: where it is refused nothing changes.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

template <class T, class A = Accumulate<T>>
std::vector<Row<A>> gradient_rows(const ClassProblem<T>& p, const Saved<A>& s) {
  std::vector<Row<A>> rows = make_rows(p);
  for (int64_t i = 0; i < p.n; ++i) {
    Row<A>& row = rows[i];
    row.own_center = s.target_center[i];
    row.slope = p.negatives.sum ? A(0) : s.d_neg_lse[i];
    row.constant = s.d_neg_cos_sum[i];
    row.target = s.d_target_cos[i];
    row.top = s.top[i];
    row.log_sum = s.log_sum[i];
    // Nothing reaches a row into which nothing flows, nor anyone through it, whatever it holds.
    const bool reached = row.slope != 0 || row.constant != 0 || row.target != 0 || s.d_x_norm[i] != 0;
    row.active = row.active && reached;
    if (!row.active) row.own = -1;
  }
  return rows;
}

// What the lanes share.
template <class T>
struct Shared {
  using A = Accumulate<T>;

  const ClassProblem<T>& problem;
  const Saved<A>& saved;
  const Gradients<T>& out;
  const XOperand<T>& x;
  const Row<A>* rows;

  bool skips() const { return saved.skip != nullptr; }
  ProductUse use() const { return {out.x != nullptr, out.weight != nullptr, skips()}; }
};

// A lane's memory.
template <class T>
struct BackwardScratch {
  using A = Accumulate<T>;
  static constexpr bool kInPlace = std::is_same_v<T, A>;  // dweight itself takes the sums over rows

  TileScratch<A> tile;
  ProductScratch<T> products;
  T* centres;                // gathered
  A* h;                      // of a chunk of rows
  A* class_sums;             // [2, block]: of class_scale and of bias, over a few rows
  double* class_totals;      // [2, block]: over all rows
  A* centre_sums = nullptr;  // [tile_width, D]
  // Where rows skip tiles:
  int64_t* live = nullptr;    // the rows that take part in the tile
  Pair<A>* strays = nullptr;  // the others that have their target there
  int64_t* lonely = nullptr;  // the centres of these
  Row<A>* rows = nullptr;     // the live ones of a chunk
  A* row_sums = nullptr;      // [chunk, D]: their gradients

  template <class Memory>
  BackwardScratch(const Shared<T>& shared, Memory& memory)
      : BackwardScratch(shared.problem, shared.x.is_packed, shared.use(), memory) {}

 private:
  template <class Memory>
  BackwardScratch(const ClassProblem<T>& p, bool is_packed, ProductUse use, Memory& memory)
      : tile(p, memory),
        products(p, is_packed, use, memory),
        centres(memory.template take<T>(p.copy_size())),
        h(memory.template take<A>(p.chunk() * p.tile_width())),
        class_sums(memory.template take<A>(2 * p.block)),
        class_totals(memory.template take<double>(2 * p.block)) {
    if (use.centre_gradients && !kInPlace) centre_sums = memory.template take<A>(p.tile_width() * p.d);
    if (!use.selects_rows) return;
    live = memory.template take<int64_t>(p.n);
    lonely = memory.template take<int64_t>(p.n);
    strays = memory.template take<Pair<A>>(p.n);
    rows = memory.template take<Row<A>>(p.chunk());
    if (use.row_gradients) row_sums = memory.template take<A>(p.chunk() * p.d);
  }
};

// One lane's work, a tile at a time.
template <class T>
class LaneBackward {
 public:
  using A = Accumulate<T>;

  // part [N, D] takes the lane's share of the gradient of x^, where that is wanted.
  LaneBackward(const Shared<T>& shared, A* part, const BackwardScratch<T>& scratch)
      : p_(shared.problem),
        s_(shared.saved),
        out_(shared.out),
        rows_(shared.rows),
        part_(part),
        scratch_(scratch),
        products_(make_products(p_, shared.x, rows_, scratch.products)) {}

  void run(int64_t lane, Interrupt& interrupt) {
    const int64_t first_tile = p_.lane_begin(lane), end = p_.lane_begin(lane + 1);
    if (out_.x != nullptr && skips()) std::fill_n(part_, p_.n * p_.d, A(0));
    for (int64_t b = first_tile; b < end; ++b) {
      tile_ = make_tile(p_, b, s_.w_norm + p_.first_class(b) * p_.sub_centers, scratch_.tile);
      select(b);
      std::fill_n(scratch_.class_totals, 2 * tile_.classes, 0.0);
      // The centres of a tile that no row takes part in are not even read.
      if (selected_ > 0 || strays_ > 0) {
        centres_ = p_.centres_of_tile(b, scratch_.centres);
        products_->take_centres(centres_, tile_.centres());
      }
      for (int64_t r = 0; r < selected_; r += kRows) {
        if (interrupt.called()) return;
        add_rows(b, r, b == first_tile);
      }
      if (selected_ > 0) {
        products_->add_pairs(scratch_.strays, strays_, part_, centre_sums());
        finish_centres(nullptr, tile_.centres());
      } else {
        add_strays_alone();
      }
      store_class_sums();
    }
  }

 private:
  static constexpr int64_t kSummedRows = 32;

  bool skips() const { return s_.skip != nullptr; }

  // Which rows take part in tile b. Strays are those that only have their target there: they keep the gradient that
  // flows through its cosine. They are ordered by centre.
  void select(int64_t b) {
    strays_ = 0;
    selected_ = p_.n;
    if (!skips()) return;
    selected_ = 0;
    const int64_t blocks = p_.blocks();
    for (int64_t i = 0; i < p_.n; ++i) {
      if (s_.skip[i * blocks + b] == 0) {
        scratch_.live[selected_++] = i;
        continue;
      }
      const Row<A>& row = rows_[i];
      const int64_t own = tile_.own(row);
      if (own == tile_.classes) continue;
      const int64_t centre = own * p_.sub_centers + row.own_center;
      scratch_.strays[strays_++] = {i, centre, row.target * tile_.inverse[centre]};
    }
    std::sort(scratch_.strays, scratch_.strays + strays_, [](const Pair<A>& one, const Pair<A>& other) {
      return one.centre != other.centre ? one.centre < other.centre : one.row < other.row;
    });
  }

  // The gradients that selected rows r .. r + kRows give to x^ and the centres.
  void add_rows(int64_t b, int64_t r, bool first_tile) {
    const int64_t count = std::min(kRows, selected_ - r), ld = tile_.ld;
    const bool all = selected_ == p_.n;
    const int64_t* index = all ? nullptr : scratch_.live + r;
    const Row<A>* row = all ? rows_ + r : scratch_.rows;
    for (int64_t i = 0; !all && i < count; ++i) scratch_.rows[i] = rows_[index[i]];
    products_->take_rows(index, r, count);
    A* h = scratch_.h;
    const A* cosines = h;
    // A kept tile serves whole: the cosines of a few rows alone may round differently, and the result must not depend
    // on what was kept.
    if (all && p_.keeps(b)) {
      cosines = s_.kept + p_.kept_at(b, r);
    } else {
      products_->multiply(h, ld);
      simd::run<ScaleTile>(h, count, tile_, row);
    }
    fill_gradients(cosines, count, row);
    if (out_.x != nullptr && all) products_->row_gradients(h, ld, part_ + r * p_.d, skips() || !first_tile);
    if (out_.x != nullptr && !all) {
      products_->row_gradients(h, ld, scratch_.row_sums, false);
      simd::run<AddRows>(static_cast<const A*>(scratch_.row_sums), index, count, p_.d, part_);
    }
    if (out_.weight != nullptr) products_->centre_gradients(h, ld, centre_sums(), r > 0);
  }

  // h from the cosines of `count` rows, and the totals of the classes.
  void fill_gradients(const A* cosines, int64_t count, const Row<A>* row) {
    const Loops loops = p_.loops();
    const int64_t ld = tile_.ld, sums = loops.plain ? 0 : 2 * tile_.classes;
    // Few rows at a time, where sums over them are wanted: float partial sums go into double ones.
    const int64_t at_once = loops.plain ? count : kSummedRows;
    for (int64_t i = 0; i < count; i += at_once) {
      std::fill_n(scratch_.class_sums, sums, A(0));
      gradient_tile(loops, cosines + i * ld, scratch_.h + i * ld, std::min(at_once, count - i), tile_,
                    scratch_.tile.loops, row + i, scratch_.class_sums);
      for (int64_t k = 0; k < sums; ++k) scratch_.class_totals[k] += double(scratch_.class_sums[k]);
    }
  }

  // Where the sums over rows of the tile's centres gather; null: they are not wanted.
  A* centre_sums() const {
    if constexpr (BackwardScratch<T>::kInPlace) {
      return out_.weight == nullptr ? nullptr : out_.weight + tile_.first * p_.sub_centers * p_.d;
    } else {
      return scratch_.centre_sums;
    }
  }

  // A tile that no row takes part in: its gradient is 0 but for the strays' centres.
  void add_strays_alone() {
    A* sums = centre_sums();
    int64_t lonely = 0;
    if (out_.weight != nullptr) {
      std::memset(static_cast<void*>(out_.weight + tile_.first * p_.sub_centers * p_.d), 0,
                  tile_.centres() * p_.d * sizeof(T));
      for (int64_t e = 0; e < strays_; ++e) {
        const int64_t centre = scratch_.strays[e].centre;
        if (e > 0 && centre == scratch_.strays[e - 1].centre) continue;
        scratch_.lonely[lonely++] = centre;
        std::fill_n(sums + centre * p_.d, p_.d, A(0));
      }
    }
    products_->add_pairs(scratch_.strays, strays_, part_, sums);
    finish_centres(scratch_.lonely, lonely);
  }

  // dweight of `count` of the tile's centres, those that index lists where it is not null, from their sums over rows.
  void finish_centres(const int64_t* index, int64_t count) {
    if (out_.weight == nullptr || count == 0) return;
    const int64_t at = tile_.first * p_.sub_centers;
    simd::run<FinishCentres>(static_cast<const A*>(centre_sums()), centres_, s_.w_norm + at, index, count, p_.d, p_.eps,
                             p_.normalize_weight, out_.weight + at * p_.d);
  }

  void store_class_sums() {
    const double* sums = scratch_.class_totals;
    if (out_.class_scale != nullptr) std::copy_n(sums, tile_.classes, out_.class_scale + tile_.first);
    if (out_.bias != nullptr) std::copy_n(sums + tile_.classes, tile_.classes, out_.bias + tile_.first);
  }

  const ClassProblem<T>& p_;
  const Saved<A>& s_;
  const Gradients<T>& out_;
  const Row<A>* const rows_;
  A* const part_;
  const BackwardScratch<T>& scratch_;
  const std::unique_ptr<Products<T>> products_;
  const T* centres_ = nullptr;  // the tile's
  Tile<A> tile_;
  int64_t selected_ = 0, strays_ = 0;
};

}  // namespace

template <class T>
void backward(const ClassProblem<T>& p, const Saved<Accumulate<T>>& s, const Gradients<T>& out) {
  using A = Accumulate<T>;
  std::vector<Row<A>> own_rows = gradient_rows(p, s);
  const XOperand<T> x = make_x_operand<T>(p, own_rows.data(), nullptr);
  const Row<A>* rows = own_rows.data();
  const int64_t lanes = p.lanes(), numbers = p.n * p.d;  // of a lane's part of dx
  Buffer<A> parts(out.x == nullptr ? 0 : lanes * numbers);
  A* sums = parts.data();
  if (s.skip != nullptr && out.weight != nullptr) use_large_pages(out.weight, p.centres() * p.d * sizeof(T));
  const Shared<T> shared{p, s, out, x, rows};
  const int64_t bytes = measured<BackwardScratch<T>>(shared);
  p.over_lanes([&](int64_t lane, Interrupt& interrupt) {
    Workspace memory(bytes);
    const BackwardScratch<T> scratch(shared, memory);
    A* part = out.x == nullptr ? nullptr : sums + lane * numbers;
    LaneBackward<T>(shared, part, scratch).run(lane, interrupt);
  });
  if (out.x == nullptr) return;
  p.over_rows([&](int64_t begin, int64_t end) {
    simd::run<FinishRows>(sums + begin * p.d, lanes, numbers, p.x + begin * p.d, rows + begin, s.x_norm + begin,
                          s.d_x_norm + begin, end - begin, p.d, p.eps, p.normalize_x, out.x + begin * p.d);
  });
}

template void backward(const ClassProblem<double>&, const Saved<double>&, const Gradients<double>&);
template void backward(const ClassProblem<float>&, const Saved<float>&, const Gradients<float>&);
template void backward(const ClassProblem<simd::Bfloat16>&, const Saved<float>&, const Gradients<simd::Bfloat16>&);
template void backward(const ClassProblem<simd::Half>&, const Saved<float>&, const Gradients<simd::Half>&);

}  // namespace hyperkernels::margin_softmax
