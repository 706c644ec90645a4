#include "schedule.h"

namespace hyperkernels::pair_mining {

namespace {

constexpr int64_t kChunks = 64;  // at most, of one side
constexpr int64_t kItems = 32;   // wanted in a round

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Chunks {
  int64_t n, size, count;

  Chunks(int64_t n, int64_t tile) : n(n) {
    size = ceil_div(std::max<int64_t>(1, ceil_div(n, tile)), kChunks) * tile;
    count = ceil_div(n, size);
  }
  int64_t begin(int64_t k) const { return std::min(n, k * size); }
};

Item make_item(const Chunks& rows, int64_t a, const Chunks& columns, int64_t b) {
  return {rows.begin(a), rows.begin(a + 1), columns.begin(b), columns.begin(b + 1), 0, 0};
}

// Every chunk against every other, a <= b, by the circle method: one chunk stays, the others go round.
std::vector<std::vector<Item>> tournament(const Chunks& chunks) {
  std::vector<std::vector<Item>> rounds(1);
  for (int64_t a = 0; a < chunks.count; ++a) rounds[0].push_back(make_item(chunks, a, chunks, a));
  const int64_t teams = chunks.count + chunks.count % 2, circle = teams - 1;
  for (int64_t r = 0; r < circle; ++r) {
    std::vector<Item>& round = rounds.emplace_back();
    for (int64_t k = 0; k < teams / 2; ++k) {
      const int64_t a = k == 0 ? circle : (r + k) % circle, b = (r - k + circle) % circle;
      if (std::max(a, b) < chunks.count) round.push_back(make_item(chunks, std::min(a, b), chunks, std::max(a, b)));
    }
  }
  return rounds;
}

}  // namespace

Schedule::Schedule(const PairOptions& options, bool rows, bool columns) {
  if (options.self) {
    rounds_ = tournament(Chunks(options.n, options.column_tile));
    return;
  }
  const Chunks of_rows(options.n, options.row_tile), of_columns(options.m, options.column_tile);
  if ((!rows && !columns) || of_rows.count == 0 || of_columns.count == 0) return;
  // The planes are those of `own`: the side with fewer chunks, or the only one that is written to.
  const bool own_rows = rows && columns ? of_rows.count <= of_columns.count : rows;
  const Chunks &own = own_rows ? of_rows : of_columns, &other = own_rows ? of_columns : of_rows;
  const int64_t most = rows && columns ? other.count / own.count : other.count;
  const int64_t group = ceil_div(other.count, std::clamp<int64_t>(ceil_div(kItems, own.count), 1, most));
  const int64_t planes = ceil_div(other.count, group);
  (own_rows ? row_planes_ : column_planes_) = planes;
  const auto add = [&](std::vector<Item>& round, int64_t a, int64_t b, int64_t b_end, int64_t plane) {
    Item item = own_rows ? make_item(of_rows, a, of_columns, b) : make_item(of_rows, b, of_columns, a);
    (own_rows ? item.column_end : item.row_end) = other.begin(b_end);
    (own_rows ? item.row_plane : item.column_plane) = plane;
    round.push_back(item);
  };
  rounds_.resize(rows && columns ? group : 1);
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int64_t first = plane * group, last = std::min(other.count, first + group);
    for (int64_t a = 0; a < own.count; ++a) {
      if (!rows || !columns) add(rounds_[0], a, first, last, plane);
      for (int64_t r = 0; rows && columns && r < group; ++r) {
        const int64_t b = first + (a + r) % group;
        if (b < last) add(rounds_[r], a, b, b + 1, plane);
      }
    }
  }
}

}  // namespace hyperkernels::pair_mining
