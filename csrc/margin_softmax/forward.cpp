// The class softmax on the CPU: log-sum-exp over the other classes and its companions, one tile of cosines at a time.
// problem.h says how the work is cut.

#include "products.h"
#include "statistics.h"

namespace hyperkernels::margin_softmax {

namespace {

constexpr int64_t kStateCost = 64;  // numbers to read that cost as much as merging two states

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
  static HK_INLINE void run(const ClassProblem<T>* problem, const Row<A>* rows, int64_t begin, int64_t end,
                            double* cosine, int64_t* center) {
    const ClassProblem<T>& p = *problem;
    const double eps = p.eps;
    for (int64_t i = begin; i < end; ++i) {
      cosine[i] = 0;
      center[i] = 0;
      if (rows[i].own < 0) continue;
      const T* x = p.x + i * p.d;
      const double length = p.normalize_x ? long_length(x, p.d) : 1;
      const double inverse = 1 / (p.normalize_x && length < eps ? eps : length);
      double best = 0;
      for (int64_t k = 0; k < p.sub_centers; ++k) {
        const T* w = p.centres_of(rows[i].own) + k * p.d;
        const double norm = p.normalize_weight ? long_length(w, p.d) : 1;
        const double over = 1 / (p.normalize_weight && norm < eps ? eps : norm);
        // In doubles either factor goes in with its divisor: the product of two long rows may overflow.
        const double candidate = std::is_same_v<T, double> ? scaled_dot(x, inverse, w, over, p.d)
                                                           : simd::dot<double>(x, w, p.d) * inverse * over;
        if (k > 0 && !(candidate > best || candidate != candidate)) continue;
        best = candidate;
        center[i] = k;
      }
      cosine[i] = best;
    }
  }
};

// A lane's memory.
template <class T>
struct ForwardScratch {
  using A = Accumulate<T>;

  TileScratch<A> tile;
  ProductScratch<T> products;
  T* centres;  // gathered
  A* cosines;  // of a chunk of rows that is not kept

  template <class Memory>
  ForwardScratch(const ClassProblem<T>& p, bool is_packed, Memory& memory)
      : tile(p, memory),
        products(p, is_packed, {}, memory),
        centres(memory.template take<T>(p.copy_size())),
        cosines(memory.template take<A>(p.chunk() * p.tile_width())) {}
};

template <class T, class A = Accumulate<T>>
void forward_lane(const ClassProblem<T>& p, int64_t lane, const XOperand<T>& x, const Row<A>* rows,
                  const ForwardScratch<T>& scratch, RowState* states, const Statistics<A>& out, Interrupt& interrupt) {
  const auto products = make_products(p, x, rows, scratch.products);
  const int64_t blocks = p.blocks(), end = p.lane_begin(lane + 1);
  for (int64_t b = p.lane_begin(lane); b < end; ++b) {
    const T* w = p.centres_of_tile(b, scratch.centres);
    A* norms = out.w_norm + p.first_class(b) * p.sub_centers;
    const int64_t centres = p.classes_in(b) * p.sub_centers;
    simd::run<CentreNorms>(w, centres, p.d, norms);
    const Tile<A> tile = make_tile(p, b, norms, scratch.tile);
    products->take_centres(w, centres);
    const bool keeps = p.keeps(b);
    for (int64_t r = 0; r < p.n; r += kRows) {
      if (interrupt.called()) return;
      const int64_t count = std::min(kRows, p.n - r);
      A* z = keeps ? out.kept + p.kept_at(b, r) : scratch.cosines;
      // What is kept is a result: a short tile's rows are filled up.
      for (int64_t i = 0; keeps && i < count; ++i) {
        std::fill(z + i * tile.ld + centres, z + (i + 1) * tile.ld, A(0));
      }
      products->take_rows(nullptr, r, count);
      products->multiply(z, tile.ld);
      simd::run<ScaleTile>(z, count, tile, rows + r);
      A* lse = out.block_lse == nullptr ? nullptr : out.block_lse + r * blocks + b;
      fold_tile(p.loops(), z, count, tile, scratch.tile.loops, rows + r, states + r, lse, blocks);
    }
  }
}

// The final statistics of row i, merged over the lanes' states [lanes, N].
template <class A>
void finish_row(const Plan& p, const RowState* states, int64_t lanes, const Row<A>& row, int64_t i,
                const Statistics<A>& out) {
  RowState state;
  for (int64_t lane = 0; lane < lanes && row.active; ++lane) state.merge(states[lane * p.n + i], double(row.s));
  // A row of NaN has a NaN sum and no maximum.
  const double top = std::isnan(state.sum) ? state.sum : state.max;
  const double log_sum = state.sum > 0 ? std::log(state.sum) : 0;
  const double lse = p.negatives.sum ? 0 : double(row.s) * top + log_sum;
  out.neg_lse[i] = A(lse);
  out.top[i] = A(top);
  out.log_sum[i] = A(log_sum);
  out.scale_slope[i] = A(state.sum != 0 ? state.weighted / state.sum : 0);
  out.hardest_cos[i] = A(state.hardest_cos);
  out.hardest_class[i] = state.hardest;
  out.neg_cos_sum[i] = A(state.neg_sum);
  out.hard_cos_sum[i] = A(state.hard_sum);
  out.hard_count[i] = A(state.hard_count);
}

}  // namespace

template <class T>
void forward(const ClassProblem<T>& p, const Statistics<Accumulate<T>>& out) {
  using A = Accumulate<T>;
  std::vector<Row<A>> own_rows = make_rows(p);
  const XOperand<T> x = make_x_operand(p, own_rows.data(), out.x_norm);
  const Row<A>* rows = own_rows.data();
  p.over_rows([&](int64_t begin, int64_t end) {
    simd::run<TargetCosines>(&p, rows, begin, end, out.target_cos, out.target_center);
  });
  const int64_t lanes = p.lanes(), bytes = measured<ForwardScratch<T>>(p, x.is_packed);
  std::vector<RowState> states(lanes * p.n);
  p.over_lanes([&](int64_t lane, Interrupt& interrupt) {
    Workspace memory(bytes);
    const ForwardScratch<T> scratch(p, x.is_packed, memory);
    forward_lane(p, lane, x, rows, scratch, states.data() + lane * p.n, out, interrupt);
  });
  parallel_for(0, p.n, grain(kStateCost * lanes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish_row(p, states.data(), lanes, rows[i], i, out);
  });
}

template void forward(const ClassProblem<double>&, const Statistics<double>&);
template void forward(const ClassProblem<float>&, const Statistics<float>&);
template void forward(const ClassProblem<simd::Bfloat16>&, const Statistics<float>&);
template void forward(const ClassProblem<simd::Half>&, const Statistics<float>&);

}  // namespace hyperkernels::margin_softmax
