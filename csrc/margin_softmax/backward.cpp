// The gradient of the class softmax on the CPU, one tile of cosines at a time. problem.h says how the work is cut.
//
// With h = g / |w_j|, where g is the gradient of the cosines, the gradient of x^ is H W with the raw centres, and the
// one of the centres is H^T x^ without its part along each centre.

#include <torch/library.h>

#include <cstring>
#include <tuple>

#include "../indices.h"
#include "products.h"

namespace hyperkernels::margin_softmax {

namespace {

// What the backward is handed beside the problem, contiguous.
struct Saved {
  at::Tensor d_neg_lse, d_target_cos, d_x_norm, d_neg_cos_sum, x_norm, target_center, top, log_sum, w_norm, kept, skip;
};

struct Needs {
  bool x, weight, class_scale, bias;
};

struct Gradients {
  at::Tensor x, weight, class_scale, bias;
};

void check_saved(const Problem& p, const Saved& s) {
  for (const at::Tensor* rows :
       {&s.d_neg_lse, &s.d_target_cos, &s.d_x_norm, &s.d_neg_cos_sum, &s.x_norm, &s.top, &s.log_sum}) {
    TORCH_CHECK_VALUE(
        rows->numel() == p.n && rows->scalar_type() == p.scale.scalar_type(),
        "incoming gradients and saved statistics must have one entry per row of x, in the dtype of scale");
  }
  TORCH_CHECK_VALUE(s.w_norm.numel() == p.centres() && s.w_norm.scalar_type() == p.scale.scalar_type(),
                    "w_norm must have one entry per centre, in the dtype of scale");
  TORCH_CHECK_VALUE(
      s.kept.numel() == p.kept_blocks * p.n * p.tile_width() && s.kept.scalar_type() == p.scale.scalar_type(),
      "kept must hold kept_blocks tiles, in the dtype of scale");
  TORCH_CHECK_VALUE(s.skip.scalar_type() == at::kByte && (s.skip.numel() == 0 || s.skip.numel() == p.n * p.blocks()),
                    "skip must be empty or uint8 with one entry per row of x and tile");
  TORCH_CHECK_VALUE(s.target_center.numel() == p.n && s.target_center.scalar_type() == at::kLong,
                    "target_center must have one int64 per row of x");
  for (int64_t i = 0; i < p.n; ++i) {
    const int64_t center = data<int64_t>(s.target_center)[i];
    TORCH_CHECK_VALUE(center >= 0 && center < p.sub_centers, "target_center must lie in [0, ", p.sub_centers, ")");
  }
}

template <class A>
std::vector<Row<A>> gradient_rows(const Problem& p, const Saved& s) {
  std::vector<Row<A>> rows = make_rows<A>(p);
  for (int64_t i = 0; i < p.n; ++i) {
    Row<A>& row = rows[i];
    row.own_center = data<int64_t>(s.target_center)[i];
    row.slope = p.negatives.sum ? A(0) : data<A>(s.d_neg_lse)[i];
    row.constant = data<A>(s.d_neg_cos_sum)[i];
    row.target = data<A>(s.d_target_cos)[i];
    row.top = data<A>(s.top)[i];
    row.log_sum = data<A>(s.log_sum)[i];
    // Nothing reaches a row into which nothing flows, nor anyone through it, whatever it holds.
    const bool reached = row.slope != 0 || row.constant != 0 || row.target != 0 || data<A>(s.d_x_norm)[i] != 0;
    row.active = row.active && reached;
    if (!row.active) row.own = -1;
  }
  return rows;
}

struct Add {
  template <class A>
  static HK_INLINE void run(const A* from, int64_t count, A* to) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) to[k] += from[k];
  }
};

template <class A>
void fill_gradients(const Problem& p, const A* cosines, A* h, int64_t rows, const Tile<A>& tile,
                    const Scratch<A>& scratch, const Row<A>* row, A* class_sums) {
  with_kernel<A>(p, [&](auto tag, auto plain) {
    using K = typename decltype(tag)::type;
    simd::run<GradientTile<K, decltype(plain)::value>>(cosines, h, rows, tile, scratch, row, class_sums);
  });
}

// One lane's work, a tile at a time.
template <class T>
class LaneBackward {
 public:
  using A = Accumulate<T>;

  // part [N, D] takes the lane's share of the gradient of x^.
  LaneBackward(const Problem& p, const Saved& s, const Needs& needs, const XOperand& x, const std::vector<Row<A>>& rows,
               A* part, Gradients& out)
      : p_(p),
        s_(s),
        needs_(needs),
        rows_(rows),
        part_(part),
        out_(out),
        memory_(p),
        weight_(p),
        products_(make_products<T>(p, x, rows)),
        h_(std::min(kRows, p.n) * p.tile_width()),
        class_sums_(2 * p.block),
        class_totals_(2 * p.block),
        lonely_(p.d) {
    if (needs.weight && !kInPlace) centre_sums_.resize(p.tile_width() * p.d);
  }

  void run(int64_t lane, Interrupt& interrupt) {
    if (needs_.x && skips()) std::fill(part_, part_ + p_.n * p_.d, A(0));
    for (int64_t b = p_.lane_begin(lane); b < p_.lane_begin(lane + 1); ++b) {
      select(b);
      const int64_t first = p_.first_class(b) * p_.sub_centers;
      tile_ = memory_.tile(b, data<A>(s_.w_norm) + first);
      std::fill(class_totals_.begin(), class_totals_.end(), 0);
      if (selected_ > 0 || !strays_.empty()) {
        centres_ = weight_.of_tile(b);
        products_->take_centres(centres_, tile_.centres());
      }
      for (int64_t r = 0; r < selected_; r += kRows) {
        if (interrupt.called()) return;
        add_rows(b, r, b == p_.lane_begin(lane));
      }
      // A tile that no row takes part in is written once, and its centres are not even read.
      if (needs_.weight && selected_ == 0) {
        std::memset(static_cast<void*>(mutable_data<T>(out_.weight) + first * p_.d), 0,
                    tile_.centres() * p_.d * sizeof(T));
      }
      add_strays(first);
      if (needs_.weight && selected_ > 0) finish_centres(centre_sums(), 0, tile_.centres());
      store_class_sums();
    }
  }

 private:
  static constexpr int64_t kSummedRows = 32;
  static constexpr bool kInPlace = std::is_same_v<T, A>;  // dweight itself takes the sums over rows

  bool skips() const { return s_.skip.numel() > 0; }

  // Which rows take part in tile b; strays are those that only have their target there.
  void select(int64_t b) {
    live_.clear();
    strays_.clear();
    selected_ = p_.n;
    if (!skips()) return;
    const uint8_t* skip = data<uint8_t>(s_.skip) + b;
    const int64_t first = p_.first_class(b), last = first + p_.classes_in(b);
    for (int64_t i = 0; i < p_.n; ++i) {
      if (skip[i * p_.blocks()] == 0) {
        live_.push_back(i);
      } else if (rows_[i].own >= first && rows_[i].own < last) {
        strays_.push_back(i);
      }
    }
    selected_ = live_.size();
  }

  // The gradients that selected rows r .. r + kRows give to x^ and the centres.
  void add_rows(int64_t b, int64_t r, bool first_tile) {
    const int64_t count = std::min(kRows, selected_ - r), ld = tile_.ld;
    const bool all = selected_ == p_.n;
    const int64_t* index = all ? nullptr : live_.data() + r;
    const Row<A>* row = rows_.data() + r;
    if (!all) {
      gathered_.resize(count);
      for (int64_t i = 0; i < count; ++i) gathered_[i] = rows_[index[i]];
      row = gathered_.data();
    }
    products_->take_rows(index, r, count);
    const A* cosines = h_.data();
    // A kept tile serves whole: the cosines of a few rows alone may round differently, and the result must not depend
    // on what was kept.
    if (all && p_.keeps(b)) {
      cosines = data<A>(s_.kept) + p_.kept_at(b, r);
    } else {
      products_->multiply(h_.data(), ld);
      simd::run<ScaleTile>(h_.data(), count, tile_, row);
    }
    // Few rows at a time, where sums over them are wanted: float partial sums go into double ones.
    const int64_t at_once = p_.plain() ? count : kSummedRows;
    for (int64_t i = 0; i < count; i += at_once) {
      std::fill(class_sums_.begin(), class_sums_.end(), A(0));
      fill_gradients(p_, cosines + i * ld, h_.data() + i * ld, std::min(at_once, count - i), tile_, memory_.scratch(),
                     row + i, class_sums_.data());
      for (int64_t k = 0; k < 2 * tile_.classes && !p_.plain(); ++k) class_totals_[k] += double(class_sums_[k]);
    }
    if (needs_.x && all) products_->row_gradients(h_.data(), ld, part_ + r * p_.d, skips() || !first_tile);
    if (needs_.x && !all) scatter_row_gradients(index, count);
    if (needs_.weight) products_->centre_gradients(h_.data(), ld, centre_sums(), r > 0);
  }

  void scatter_row_gradients(const int64_t* index, int64_t count) {
    row_sums_.resize(count * p_.d);
    products_->row_gradients(h_.data(), tile_.ld, row_sums_.data(), false);
    for (int64_t i = 0; i < count; ++i) {
      simd::run<Add>(row_sums_.data() + i * p_.d, p_.d, part_ + index[i] * p_.d);
    }
  }

  // Where the sums over rows of the tile's centres gather.
  A* centre_sums() {
    if constexpr (kInPlace) {
      return mutable_data<A>(out_.weight) + tile_.first * p_.sub_centers * p_.d;
    } else {
      return centre_sums_.data();
    }
  }

  int64_t own_centre(int64_t i) const { return rows_[i].own * p_.sub_centers + rows_[i].own_center; }

  // Skipped rows keep the gradient that flows through their target's cosine.
  void add_strays(int64_t first) {
    std::stable_sort(strays_.begin(), strays_.end(),
                     [this](int64_t i, int64_t j) { return own_centre(i) < own_centre(j); });
    for (size_t e = 0; e < strays_.size(); ++e) {
      const int64_t i = strays_[e], centre = own_centre(i) - first;
      const A g = rows_[i].target * tile_.inverse[centre];
      A* dw = selected_ > 0 ? centre_sums() + centre * p_.d : lonely_.data();
      if (selected_ == 0 && (e == 0 || own_centre(strays_[e - 1]) != own_centre(i))) {
        std::fill(lonely_.begin(), lonely_.end(), A(0));
      }
      products_->add_pair(i, centre, g, needs_.x ? part_ + i * p_.d : nullptr, needs_.weight ? dw : nullptr);
      const bool last = e + 1 == strays_.size() || own_centre(strays_[e + 1]) != own_centre(i);
      if (selected_ == 0 && last && needs_.weight) finish_centres(lonely_.data(), centre, 1);
    }
  }

  // dweight of `count` of the tile's centres from their sums over rows.
  void finish_centres(const A* sums, int64_t centre, int64_t count) {
    const int64_t at = tile_.first * p_.sub_centers + centre;
    simd::run<FinishCentres>(sums, centres_ + centre * p_.d, data<A>(s_.w_norm) + at, count, p_.d, p_.eps,
                             p_.normalize_weight, mutable_data<T>(out_.weight) + at * p_.d);
  }

  void store_class_sums() {
    const double* sums = class_totals_.data();
    if (needs_.class_scale) {
      std::copy(sums, sums + tile_.classes, mutable_data<A>(out_.class_scale) + tile_.first);
    }
    if (needs_.bias) {
      std::copy(sums + tile_.classes, sums + 2 * tile_.classes, mutable_data<A>(out_.bias) + tile_.first);
    }
  }

  const Problem& p_;
  const Saved& s_;
  const Needs needs_;
  const std::vector<Row<A>>& rows_;
  A* part_;
  Gradients& out_;
  LaneMemory<A> memory_;
  Centres<T> weight_;
  const T* centres_ = nullptr;  // the tile's
  std::unique_ptr<Products<T>> products_;
  Tile<A> tile_;
  std::vector<A> h_, class_sums_;
  std::vector<double> class_totals_;
  std::vector<A> lonely_, centre_sums_, row_sums_;
  std::vector<Row<A>> gathered_;
  std::vector<int64_t> live_, strays_;
  int64_t selected_ = 0;
};

// dx from the lanes' parts [lanes, N, D].
template <class T>
void finish_rows(const Problem& p, const Saved& s, const std::vector<Row<Accumulate<T>>>& rows, const at::Tensor& parts,
                 at::Tensor& dx) {
  using A = Accumulate<T>;
  p.over_rows([&](int64_t begin, int64_t end) {
    std::vector<A> sum(p.d);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t lane = 0; lane < p.lanes(); ++lane) {
        simd::run<Add>(data<A>(parts) + (lane * p.n + i) * p.d, p.d, sum.data());
      }
      simd::run<FinishRows>(static_cast<const A*>(sum.data()), data<T>(p.x) + i * p.d, rows.data() + i,
                            data<A>(s.x_norm) + i, data<A>(s.d_x_norm) + i, int64_t(1), p.d, p.eps, p.normalize_x,
                            mutable_data<T>(dx) + i * p.d);
    }
  });
}

template <class T>
Gradients backward(const Problem& p, const Saved& s, const Needs& needs) {
  using A = Accumulate<T>;
  std::vector<Row<A>> rows = gradient_rows<A>(p, s);
  at::Tensor norm = at::empty_like(s.x_norm);
  const XOperand x = make_x_operand<T>(p, rows, mutable_data<A>(norm));
  Gradients out{at::empty({needs.x ? p.n * p.d : 0}, p.x.options()),
                at::empty({needs.weight ? p.centres() * p.d : 0}, p.x.options()),
                at::empty({needs.class_scale ? p.c : 0}, p.accumulate()),
                at::empty({needs.bias ? p.c : 0}, p.accumulate())};
  at::Tensor parts = at::empty({needs.x ? p.lanes() : 0, p.n, p.d}, p.accumulate());
  if (s.skip.numel() > 0) use_large_pages(out.weight);
  p.over_lanes([&](int64_t lane, Interrupt& interrupt) {
    A* part = needs.x ? mutable_data<A>(parts) + lane * p.n * p.d : nullptr;
    LaneBackward<T>(p, s, needs, x, rows, part, out).run(lane, interrupt);
  });
  if (needs.x) {
    finish_rows<T>(p, s, rows, parts, out.x);
    out.x = out.x.view({p.n, p.d});
  }
  if (needs.weight) out.weight = out.weight.view({p.centres(), p.d});
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> class_statistics_backward(
    const at::Tensor& d_neg_lse, const at::Tensor& d_target_cos, const at::Tensor& d_x_norm,
    const at::Tensor& d_neg_cos_sum, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
    const at::Tensor& scale, const std::optional<at::Tensor>& class_scale, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& transform, const std::optional<at::Tensor>& classes, const at::Tensor& x_norm,
    const at::Tensor& target_center, const at::Tensor& top, const at::Tensor& log_sum, const at::Tensor& w_norm,
    const at::Tensor& kept, const at::Tensor& skip, c10::string_view negatives, int64_t sub_centers, bool normalize_x,
    bool normalize_weight, double eps, int64_t ignore_index, int64_t absent_index, int64_t block, int64_t kept_blocks,
    bool need_x, bool need_weight, bool need_class_scale, bool need_bias) {
  const Problem p =
      make_problem(x, weight, target, scale, class_scale, bias, transform, classes, negatives, sub_centers, normalize_x,
                   normalize_weight, eps, ignore_index, absent_index, block, kept_blocks);
  const Saved s{d_neg_lse.contiguous(), d_target_cos.contiguous(), d_x_norm.contiguous(), d_neg_cos_sum.contiguous(),
                x_norm.contiguous(),    own_copy(target_center),   top.contiguous(),      log_sum.contiguous(),
                w_norm.contiguous(),    kept.contiguous(),         skip.contiguous()};
  check_saved(p, s);
  const Needs needs{need_x, need_weight, need_class_scale && p.class_scale.defined(), need_bias && p.bias.defined()};
  const Gradients g = with_storage(p, [&](auto t) { return backward<decltype(t)>(p, s, needs); });
  return {g.x, g.weight, g.class_scale, g.bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("class_statistics_backward", class_statistics_backward); }

}  // namespace hyperkernels::margin_softmax
