// The k best pairs of every row.
//
// A row keeps the best seen so far: in order where k is small; else in no order and up to twice as many, cut back to k
// when its buffer is full. The smallest of k is the bar that a pair must beat, and most of a tile is turned away 32
// pairs at a time.

#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "sweep.h"

namespace hyperkernels::pair_mining {

namespace {

constexpr int64_t kSorted = 128;  // up to this k rows are kept in order

// A similarity and its column as one integer, the larger the better: by value, NaN above all, then by falling column.
template <class A>
struct Candidate {
  using Bits = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
  using Word = std::conditional_t<sizeof(A) == 8, unsigned __int128, uint64_t>;
  static constexpr int kWidth = 8 * sizeof(A);
  static constexpr Bits kSign = Bits(1) << (kWidth - 1);

  static Word pack(A u, int64_t column) {
    const Bits bits = simd::bits<Bits>(u != u ? std::numeric_limits<A>::quiet_NaN() : u + A(0));  // -0 equals 0
    const Bits rising = (bits & kSign) != 0 ? ~bits : bits | kSign;
    return Word(rising) << kWidth | Bits(~Bits(column));
  }
  static A value(Word word) {
    const Bits rising = Bits(word >> kWidth);
    return simd::bits<A>((rising & kSign) != 0 ? rising ^ kSign : Bits(~rising));
  }
  static int64_t column(Word word) { return int64_t(Bits(~Bits(word))); }
};

template <class A>
class TopK {
 public:
  using Word = typename Candidate<A>::Word;

  // most: how many candidates a row can have at all.
  TopK(int64_t rows, int64_t k, int64_t most)
      : k_(k), sorted_(k <= kSorted), capacity_(sorted_ ? k + 1 : std::min(most, 2 * k)), rows_(rows) {
    words_.reset(new Word[rows * capacity_]);
    for (int64_t i = 0; sorted_ && i < rows; ++i) {
      Word* words = words_.get() + i * capacity_;
      words[0] = ~Word(0);  // above every candidate
      std::fill(words + 1, words + capacity_, Word(0));
    }
  }

  void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    if (!rows_[i].closed) simd::run<Gather>(this, i, first, count, u, mask);
  }

  const Word* begin(int64_t i) const { return words_.get() + i * capacity_ + (sorted_ ? 1 : 0); }
  const Word* end(int64_t i) const { return begin(i) + rows_[i].size; }

 private:
  struct Row {
    A bar = std::numeric_limits<A>::quiet_NaN();  // which everything beats
    bool closed = false;                          // k NaNs, which nothing does
    int64_t size = 0;

    void raise(Word kth) {
      bar = Candidate<A>::value(kth);
      closed = bar != bar;
    }
  };

  struct Gather {
    static HK_INLINE void run(TopK* self, int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
      Row& row = self->rows_[i];
      for (int64_t j = 0; j < count; j += 32) {
        const A bar = row.bar;
        uint32_t bits = count - j < 32 ? beating(u + j, mask + j, bar, count - j) : beating(u + j, mask + j, bar, 32);
        for (; bits != 0; bits &= bits - 1) {
          const int64_t at = j + __builtin_ctz(bits);
          const Word word = Candidate<A>::pack(u[at], first + at);
          Word* words = self->words_.get() + i * self->capacity_;
          if (self->sorted_) {
            insert(word, words + 1, self->k_);
            row.size = std::min(row.size + 1, self->k_);
            if (row.size == self->k_) row.raise(words[self->k_]);
          } else {
            self->append(row, word, words);
          }
        }
      }
    }
  };

  // Keeps the order: every place takes the middle one of the word, its own and the one before.
  static HK_INLINE void insert(Word word, Word* words, int64_t k) {
    Word moved[kSorted];
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) {
      const Word before = words[j - 1] < word ? words[j - 1] : word;
      moved[j] = words[j] > before ? words[j] : before;
    }
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) words[j] = moved[j];
  }

  __attribute__((noinline)) void append(Row& row, Word word, Word* words) const {
    words[row.size++] = word;
    if (row.size < capacity_ || row.size <= k_) return;
    std::nth_element(words, words + k_ - 1, words + row.size, std::greater<>());
    row.size = k_;
    row.raise(words[k_ - 1]);
  }

  const int64_t k_;
  const bool sorted_;
  const int64_t capacity_;
  std::vector<Row> rows_;
  std::unique_ptr<Word[]> words_;
};

template <class T>
std::tuple<at::Tensor, at::Tensor> top_k(const Problem& p, int64_t k) {
  using A = Accumulate<T>;
  at::Tensor values = at::empty({p.rows.n, k}, p.accumulate()), indices = at::empty({p.rows.n, k}, p.integers());
  if (k == 0) return {values, indices};
  const Lanes lanes = lanes_of(p, p.rows.n * 2 * std::min(k, p.columns.n));
  const int64_t lane_columns = std::min(p.columns.n, (p.column_tiles() / lanes.count + 1) * p.column_tile);
  const auto make = [&](int64_t, int64_t rows, int64_t) { return std::make_unique<TopK<A>>(rows, k, lane_columns); };
  const auto merge = [&](int64_t row, int64_t rows, const std::unique_ptr<TopK<A>>* parts) {
    std::vector<typename TopK<A>::Word> best;
    for (int64_t i = 0; i < rows; ++i) {
      best.clear();
      for (int64_t lane = 0; lane < lanes.count; ++lane) {
        best.insert(best.end(), parts[lane]->begin(i), parts[lane]->end(i));
      }
      const int64_t found = std::min<int64_t>(k, best.size());
      std::nth_element(best.begin(), best.begin() + found, best.end(), std::greater<>());
      std::sort(best.begin(), best.begin() + found, std::greater<>());
      A* value = mutable_data<A>(values) + (row + i) * k;
      int64_t* index = mutable_data<int64_t>(indices) + (row + i) * k;
      for (int64_t j = 0; j < found; ++j) {
        value[j] = Candidate<A>::value(best[j]);
        index[j] = Candidate<A>::column(best[j]);
      }
      std::fill(value + found, value + k, -std::numeric_limits<A>::infinity());
      std::fill(index + found, index + k, int64_t(-1));
    }
  };
  sweep<T>(p, lanes, make, merge);
  return {values, indices};
}

std::tuple<at::Tensor, at::Tensor> pair_top_k(const at::Tensor& x, const std::optional<at::Tensor>& ref,
                                              const at::Tensor& label, const at::Tensor& ref_label,
                                              const at::Tensor& id, const at::Tensor& ref_id,
                                              const std::optional<at::Tensor>& lower,
                                              const std::optional<at::Tensor>& upper, c10::string_view select,
                                              c10::string_view similarity, int64_t k, int64_t row_tile,
                                              int64_t column_tile) {
  const Problem p =
      make_problem(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  TORCH_CHECK_VALUE(k >= 0, "k must not be negative; got ", k);
  TORCH_CHECK_VALUE(p.columns.n <= int64_t(1) << 32, "at most 2^32 columns; got ", p.columns.n);
  return with_storage(p, [&](auto t) { return top_k<decltype(t)>(p, k); });
}

}  // namespace

TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) { m.impl("pair_top_k", pair_top_k); }

}  // namespace hyperkernels::pair_mining
