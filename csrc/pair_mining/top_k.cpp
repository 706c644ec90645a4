// The k best pairs of every row.
//
// A row keeps the best seen so far: in order where k is small; else in no order and up to twice as many, cut back to k
// when its buffer is full. The smallest of k is the bar that a pair must beat, and most of a tile is turned away 32
// pairs at a time.

#include <functional>

#include "selections.h"
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

// The candidates of a tile of rows.
template <class A>
class TopK {
 public:
  using Word = typename Candidate<A>::Word;

  // most: how many candidates a row can have at all.
  template <class Memory>
  TopK(Memory& memory, int64_t rows, int64_t k, int64_t most)
      : row_count_(rows),
        k_(k),
        sorted_(k <= kSorted),
        capacity_(sorted_ ? k + 1 : std::min(most, 2 * k)),
        rows_(memory.template take<Row>(rows)),
        words_(memory.template take<Word>(rows * capacity_)) {}

  void start() {
    std::fill_n(rows_, row_count_, Row());
    for (int64_t i = 0; sorted_ && i < row_count_; ++i) {
      Word* words = words_ + i * capacity_;
      words[0] = ~Word(0);  // above every candidate
      std::fill(words + 1, words + capacity_, Word(0));
    }
  }

  HK_INLINE void take(int64_t i, int64_t first, int64_t count, const A* u, const Mask<A>* mask) {
    Row& row = rows_[i];
    if (row.closed) return;
    for (int64_t j = 0; j < count; j += 32) {
      const A bar = row.bar;
      uint32_t bits = count - j < 32 ? beating(u + j, mask + j, bar, count - j) : beating(u + j, mask + j, bar, 32);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t at = j + __builtin_ctz(bits);
        const Word word = Candidate<A>::pack(u[at], first + at);
        Word* words = words_ + i * capacity_;
        if (sorted_) {
          insert(word, words + 1, k_);
          row.size = std::min(row.size + 1, k_);
          if (row.size == k_) row.raise(words[k_]);
        } else {
          append(row, word, words);
        }
      }
    }
  }

  int64_t capacity() const { return capacity_; }
  Word* begin(int64_t i) const { return words_ + i * capacity_ + (sorted_ ? 1 : 0); }
  Word* end(int64_t i) const { return begin(i) + rows_[i].size; }

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

  const int64_t row_count_, k_;
  const bool sorted_;
  const int64_t capacity_;
  Row* const rows_;
  Word* const words_;
};

// The candidates of row i, best first. Those of several lanes are brought together in `all`.
template <class A>
struct BestOfRow {
  using Word = typename Candidate<A>::Word;

  BestOfRow(const std::optional<InWorkspace<TopK<A>>>* parts, int64_t lanes, int64_t i, int64_t k, Buffer<Word>& all) {
    Word* end;
    if (lanes == 1) {
      words = (*parts[0])->begin(i);
      end = (*parts[0])->end(i);
    } else {
      all.reserve(lanes * (*parts[0])->capacity());
      words = end = all.data();
      for (int64_t lane = 0; lane < lanes; ++lane)
        end = std::copy((*parts[lane])->begin(i), (*parts[lane])->end(i), end);
    }
    found = std::min<int64_t>(k, end - words);
    std::nth_element(words, words + found, end, std::greater<>());
    std::sort(words, words + found, std::greater<>());
  }

  Word* words;
  int64_t found;
};

}  // namespace

template <class T>
void pair_top_k(const TopKCall<T>& call) {
  using A = Accumulate<T>;
  using Part = TopK<A>;
  const PairProblem<T>& p = call.problem;
  const int64_t k = call.k;
  if (k == 0) return;
  const Lanes lanes = lanes_of(p, p.n * 2 * std::min(k, p.m));
  const int64_t lane_columns = std::min(p.m, (p.column_tiles() / lanes.count + 1) * p.column_tile);
  const auto make = [&](int64_t, int64_t rows, int64_t) { return InWorkspace<Part>(rows, k, lane_columns); };
  const auto merge = [&](int64_t row, int64_t rows, const std::optional<InWorkspace<Part>>* parts) {
    Buffer<typename Part::Word> all;
    for (int64_t i = 0; i < rows; ++i) {
      const BestOfRow<A> best(parts, lanes.count, i, k, all);
      A* value = call.values + (row + i) * k;
      int64_t* index = call.indices + (row + i) * k;
      for (int64_t j = 0; j < best.found; ++j) {
        value[j] = Candidate<A>::value(best.words[j]);
        index[j] = Candidate<A>::column(best.words[j]);
      }
      std::fill(value + best.found, value + k, -std::numeric_limits<A>::infinity());
      std::fill(index + best.found, index + k, int64_t(-1));
    }
  };
  sweep<Part>(p, lanes, make, merge);
}

template void pair_top_k(const TopKCall<double>&);
template void pair_top_k(const TopKCall<float>&);
template void pair_top_k(const TopKCall<simd::Bfloat16>&);
template void pair_top_k(const TopKCall<simd::Half>&);

}  // namespace hyperkernels::pair_mining
