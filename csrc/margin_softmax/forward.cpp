// The class softmax on the CPU: log-sum-exp over the other classes and its companions, one tile of cosines at a time.
// problem.h says how the work is cut.

#include <torch/library.h>

#include <tuple>

#include "products.h"

namespace hyperkernels::margin_softmax {

namespace {

// cos(x_i, w_y) from the raw rows, in double throughout: the slope of an angular margin grows as the angle shrinks, and
// float cannot tell the cosine of a small angle from 1. Of several centres the largest cosine counts, the lowest centre
// on ties.
struct TargetCosines {
  // |v| in double whatever T is.
  template <class T>
  static HK_INLINE double long_length(const T* v, int64_t dim) {
    return std::is_same_v<T, double> ? simd::length(v, dim) : std::sqrt(simd::dot<double>(v, v, dim));
  }

  template <class T>
  static HK_INLINE double scaled_dot(const T* x, double of_x, const T* w, double of_w, int64_t dim) {
    return simd::sums<double>(
               dim, [&](int64_t k, double& sum, double&, double&, double&)
                        HK_LAMBDA { sum += double(simd::load(x + k)) * of_x * (double(simd::load(w + k)) * of_w); })
        .a;
  }

  template <class T, class A>
  static HK_INLINE void run(const T* x, const Centres<T>& centres, const Row<A>* row, int64_t rows, int64_t dim,
                            int64_t sub_centers, double eps, bool normalize_x, bool normalize_weight, double* cosine,
                            int64_t* center) {
    for (int64_t i = 0; i < rows; ++i, x += dim) {
      cosine[i] = 0;
      center[i] = 0;
      if (row[i].own < 0) continue;
      const double length = normalize_x ? long_length(x, dim) : 1;
      const double inverse = 1 / (normalize_x && length < eps ? eps : length);
      double best = 0;
      for (int64_t k = 0; k < sub_centers; ++k) {
        const T* w = centres.of_class(row[i].own) + k * dim;
        const double norm = normalize_weight ? long_length(w, dim) : 1;
        const double over = 1 / (normalize_weight && norm < eps ? eps : norm);
        // In doubles either factor goes in with its divisor: the product of two long rows may overflow.
        const double candidate = std::is_same_v<T, double> ? scaled_dot(x, inverse, w, over, dim)
                                                           : simd::dot<double>(x, w, dim) * inverse * over;
        if (k > 0 && !(candidate > best || candidate != candidate)) continue;
        best = candidate;
        center[i] = k;
      }
      cosine[i] = best;
    }
  }
};

struct Statistics {
  at::Tensor neg_lse, target_cos, x_norm, hardest_cos, hardest_class, neg_cos_sum, target_center, hard_cos_sum,
      hard_count, top, log_sum, scale_slope, w_norm, block_lse, kept;

  Statistics(const Problem& p, bool with_block_lse) {
    const at::TensorOptions numbers = p.accumulate();
    target_cos = at::empty({p.n}, numbers.dtype(at::kDouble));
    for (at::Tensor* rows :
         {&neg_lse, &x_norm, &hardest_cos, &neg_cos_sum, &hard_cos_sum, &hard_count, &top, &log_sum, &scale_slope}) {
      *rows = at::empty({p.n}, numbers);
    }
    hardest_class = at::empty({p.n}, p.target.options());
    target_center = at::empty({p.n}, p.target.options());
    w_norm = at::empty({p.centres()}, numbers);
    block_lse = at::empty({with_block_lse ? p.n : 0, with_block_lse ? p.blocks() : 0}, numbers);
    kept = at::empty({p.kept_blocks * p.n * p.tile_width()}, numbers);
  }

  auto tuple() const {
    return std::make_tuple(neg_lse, target_cos, x_norm, hardest_cos, hardest_class, neg_cos_sum, target_center,
                           hard_cos_sum, hard_count, top, log_sum, scale_slope, w_norm, block_lse, kept);
  }
};

template <class A>
void fold(const Problem& p, const A* z, int64_t rows, const Tile<A>& tile, const Scratch<A>& scratch, const Row<A>* row,
          RowState* state, A* tile_lse) {
  with_kernel<A>(p, [&](auto tag, auto plain) {
    using K = typename decltype(tag)::type;
    simd::run<FoldTile<K, decltype(plain)::value>>(z, rows, tile, scratch, row, state, tile_lse, p.blocks());
  });
}

template <class T>
void forward_lane(const Problem& p, int64_t lane, const XOperand& x, const std::vector<Row<Accumulate<T>>>& rows,
                  RowState* states, Statistics& out, Interrupt& interrupt) {
  using A = Accumulate<T>;
  LaneMemory<A> memory(p);
  Centres<T> weight(p);
  const auto products = make_products<T>(p, x, rows);
  std::vector<A> computed(std::min(kRows, p.n) * p.tile_width());
  A* norms = mutable_data<A>(out.w_norm);
  A* lse = out.block_lse.numel() > 0 ? mutable_data<A>(out.block_lse) : nullptr;
  for (int64_t b = p.lane_begin(lane); b < p.lane_begin(lane + 1); ++b) {
    const int64_t first = p.first_class(b) * p.sub_centers, centres = p.classes_in(b) * p.sub_centers;
    const T* w = weight.of_tile(b);
    simd::run<CentreNorms>(w, centres, p.d, norms + first);
    const Tile<A> tile = memory.tile(b, norms + first);
    products->take_centres(w, centres);
    for (int64_t r = 0; r < p.n; r += kRows) {
      if (interrupt.called()) return;
      const int64_t count = std::min(kRows, p.n - r);
      A* z = p.keeps(b) ? mutable_data<A>(out.kept) + p.kept_at(b, r) : computed.data();
      for (int64_t i = 0; centres < tile.ld && i < count; ++i) {
        std::fill(z + i * tile.ld + centres, z + (i + 1) * tile.ld, A(0));
      }
      products->take_rows(nullptr, r, count);
      products->multiply(z, tile.ld);
      simd::run<ScaleTile>(z, count, tile, rows.data() + r);
      fold<A>(p, z, count, tile, memory.scratch(), rows.data() + r, states + r,
              lse == nullptr ? nullptr : lse + r * p.blocks() + b);
    }
  }
}

// What row i says of itself, from its lanes' states.
template <class A>
void finish_row(const Problem& p, const std::vector<RowState>& states, const Row<A>& row, int64_t i, Statistics& out) {
  RowState state;
  for (int64_t lane = 0; lane < p.lanes() && row.active; ++lane) state.merge(states[lane * p.n + i], double(row.s));
  // A row of NaN has a NaN sum and no maximum.
  const double top = std::isnan(state.sum) ? state.sum : state.max;
  const double log_sum = state.sum > 0 ? std::log(state.sum) : 0;
  const double lse = p.negatives.sum ? 0 : double(row.s) * top + log_sum;
  mutable_data<A>(out.neg_lse)[i] = A(lse);
  mutable_data<A>(out.top)[i] = A(top);
  mutable_data<A>(out.log_sum)[i] = A(log_sum);
  mutable_data<A>(out.scale_slope)[i] = A(state.sum != 0 ? state.weighted / state.sum : 0);
  mutable_data<A>(out.hardest_cos)[i] = A(state.hardest_cos);
  mutable_data<int64_t>(out.hardest_class)[i] = state.hardest;
  mutable_data<A>(out.neg_cos_sum)[i] = A(state.neg_sum);
  mutable_data<A>(out.hard_cos_sum)[i] = A(state.hard_sum);
  mutable_data<A>(out.hard_count)[i] = A(state.hard_count);
}

template <class T>
Statistics forward(const Problem& p, bool with_block_lse) {
  using A = Accumulate<T>;
  Statistics out(p, with_block_lse);
  std::vector<Row<A>> rows = make_rows<A>(p);
  const XOperand x = make_x_operand<T>(p, rows, mutable_data<A>(out.x_norm));
  p.over_rows([&](int64_t begin, int64_t end) {
    simd::run<TargetCosines>(data<T>(p.x) + begin * p.d, Centres<T>(p), static_cast<const Row<A>*>(rows.data() + begin),
                             end - begin, p.d, p.sub_centers, p.eps, p.normalize_x, p.normalize_weight,
                             mutable_data<double>(out.target_cos) + begin,
                             mutable_data<int64_t>(out.target_center) + begin);
  });
  std::vector<RowState> states(p.lanes() * p.n);
  p.over_lanes([&](int64_t lane, Interrupt& interrupt) {
    forward_lane<T>(p, lane, x, rows, states.data() + lane * p.n, out, interrupt);
  });
  for (int64_t i = 0; i < p.n; ++i) finish_row<A>(p, states, rows[i], i, out);
  return out;
}

auto class_statistics(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target, const at::Tensor& scale,
                      const std::optional<at::Tensor>& class_scale, const std::optional<at::Tensor>& bias,
                      const std::optional<at::Tensor>& transform, const std::optional<at::Tensor>& classes,
                      c10::string_view negatives, int64_t sub_centers, bool normalize_x, bool normalize_weight,
                      double eps, int64_t ignore_index, int64_t absent_index, int64_t block, int64_t kept_blocks,
                      double skip_budget, const std::optional<at::Tensor>&) {
  const Problem p =
      make_problem(x, weight, target, scale, class_scale, bias, transform, classes, negatives, sub_centers, normalize_x,
                   normalize_weight, eps, ignore_index, absent_index, block, kept_blocks);
  TORCH_CHECK_VALUE(!(skip_budget > 0) || !p.negatives.sum, "negatives of kind ", negatives,
                    " have no log-sum-exp by which tiles could be skipped");
  return with_storage(p, [&](auto t) { return forward<decltype(t)>(p, skip_budget > 0); }).tuple();
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("class_statistics", class_statistics); }

}  // namespace hyperkernels::margin_softmax
