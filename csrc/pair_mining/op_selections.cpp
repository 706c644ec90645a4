// The ops that return pairs, on the CPU.

#include "../common/op.h"
#include "bins.h"
#include "inputs.h"
#include "selections.h"

namespace hyperkernels::pair_mining {

namespace {

std::tuple<Tensor, Tensor> top_k(const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label,
                                 const Tensor& id, const Tensor& ref_id, const Optional& lower, const Optional& upper,
                                 std::string_view select, std::string_view similarity, int64_t k, int64_t row_tile,
                                 int64_t column_tile) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  HK_CHECK_VALUE(k >= 0, "k must not be negative; got ", k);
  HK_CHECK_VALUE(in.m <= int64_t(1) << 32, "at most 2^32 columns; got ", in.m);
  const Tensor values = in.numbers({in.n, k}), indices = in.indices({in.n, k});
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    pair_top_k<T>({in.problem<T>(), k, mutable_data<Accumulate<T>>(values), mutable_data<int64_t>(indices)});
  });
  return {values, indices};
}

Tensor count(const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label, const Tensor& id,
             const Tensor& ref_id, const Optional& lower, const Optional& upper, std::string_view select,
             std::string_view similarity, int64_t row_tile, int64_t column_tile) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const Tensor counts = in.indices({in.n});
  with_storage(in.dtype, "x",
               [&](auto storage) { pair_count(in.problem<decltype(storage)>(), mutable_data<int64_t>(counts)); });
  return counts;
}

// Where the entries of every row begin and end, [n + 1].
std::vector<int64_t> checked_offsets(const Tensor& offsets, int64_t n, int64_t total) {
  check_dtype(offsets, Dtype::Long, "offsets");
  HK_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) == n + 1, "offsets must be [", n + 1, "]; got ",
                 sizes_of(offsets));
  check_cpu(offsets, "offsets");
  std::vector<int64_t> offset = own_copy(offsets);
  HK_CHECK_VALUE(offset[0] == 0 && std::is_sorted(offset.begin(), offset.end()) && offset[n] == total,
                 "offsets must rise from 0 to ", total);
  return offset;
}

std::tuple<Tensor, Tensor> list(const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label,
                                const Tensor& id, const Tensor& ref_id, const Optional& lower, const Optional& upper,
                                std::string_view select, std::string_view similarity, const Tensor& offsets,
                                int64_t total, int64_t row_tile, int64_t column_tile) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const std::vector<int64_t> offset = checked_offsets(offsets, in.n, total);
  const Tensor columns = in.indices({total}), similarities = in.numbers({total});
  const bool fits = with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    return pair_list<T>(
        {in.problem<T>(), offset.data(), mutable_data<int64_t>(columns), mutable_data<Accumulate<T>>(similarities)});
  });
  HK_CHECK_VALUE(fits, "offsets must be those of pair_count over the same problem");
  return {columns, similarities};
}

Tensor sample(const Tensor& x, const Optional& ref, const Tensor& label, const Tensor& ref_label, const Tensor& id,
              const Tensor& ref_id, const Optional& lower, const Optional& upper, std::string_view select,
              std::string_view similarity, int64_t draws, int64_t seed, std::string_view weights, double p0, double p1,
              double temperature, int64_t row_tile, int64_t column_tile) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  HK_CHECK_VALUE(draws >= 0, "draws must not be negative; got ", draws);
  HK_CHECK_VALUE(weights == "distance" || weights == "exponential", "weights must be distance or exponential; got ",
                 weights);
  HK_CHECK_VALUE(temperature > 0, "temperature must be greater than 0; got ", temperature);
  const SampleWeights by{weights == "distance", p0, p1, temperature};
  const Tensor drawn = in.indices({in.n, draws});
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    pair_sample<T>({in.problem<T>(), draws, uint64_t(seed), by, mutable_data<int64_t>(drawn)});
  });
  return drawn;
}

// The edges of all rows.
struct BinTensors {
  Tensor edges;
  std::vector<int64_t> offsets;

  BinTensors(const PairInputs& in, const Tensor& given, const Tensor& given_offsets)
      : edges(checked_edges(given, in.accumulate)), offsets(checked_offsets(given_offsets, in.n, edges.size(0))) {
    if (in.accumulate == Dtype::Double) {
      check_rise(data<double>(edges), in.n);
    } else {
      check_rise(data<float>(edges), in.n);
    }
  }

  int64_t count() const { return edges.size(0) + int64_t(offsets.size()) - 1; }

  template <class A>
  Bins<A> bins() const {
    return {data<A>(edges), offsets.data()};
  }

 private:
  static Tensor checked_edges(const Tensor& given, Dtype dtype) {
    HK_CHECK_VALUE(given.dim() == 1, "edges must be [E]; got ", sizes_of(given));
    return checked("edges", given, dtype, given.size(0));
  }

  template <class A>
  void check_rise(const A* edge, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      HK_CHECK_VALUE(offsets[i + 1] - offsets[i] <= std::numeric_limits<int32_t>::max(),
                     "at most 2^31 - 1 edges in a row");
      for (int64_t e = offsets[i] + 1; e < offsets[i + 1]; ++e) {
        HK_CHECK_VALUE(!(edge[e] < edge[e - 1]), "edges must rise; those of row ", i, " do not");
      }
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> bins(const Tensor& x, const Optional& ref, const Tensor& label,
                                                const Tensor& ref_label, const Tensor& id, const Tensor& ref_id,
                                                const Optional& lower, const Optional& upper, std::string_view select,
                                                std::string_view similarity, const Tensor& edges, const Tensor& offsets,
                                                int64_t row_tile, int64_t column_tile) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const BinTensors bins(in, edges, offsets);
  const Sizes sizes{bins.count()};
  const Tensor count = in.indices(sizes), sum = in.numbers(sizes), max = in.numbers(sizes), argmax = in.indices(sizes);
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    pair_bins<T>({in.problem<T>(), bins.bins<A>(), mutable_data<int64_t>(count), mutable_data<A>(sum),
                  mutable_data<A>(max), mutable_data<int64_t>(argmax)});
  });
  return {count, sum, max, argmax};
}

std::tuple<Tensor, Tensor> bins_backward(const Tensor& x, const Optional& ref, const Tensor& label,
                                         const Tensor& ref_label, const Tensor& id, const Tensor& ref_id,
                                         const Optional& lower, const Optional& upper, std::string_view select,
                                         std::string_view similarity, const Tensor& edges, const Tensor& offsets,
                                         const Tensor& d_sum, int64_t row_tile, int64_t column_tile, bool need_x,
                                         bool need_ref) {
  const PairInputs in(x, ref, label, ref_label, id, ref_id, lower, upper, select, similarity, row_tile, column_tile);
  const BinTensors bins(in, edges, offsets);
  const Tensor given = checked("d_sum", d_sum, in.accumulate, bins.count());
  const Tensor dx = in.x_gradient(need_x), dref = in.ref_gradient(need_ref);
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    pair_bins_backward<T>(
        {in.problem<T>(), bins.bins<A>(), data<A>(given), mutable_data<T>(dx), mutable_data<T>(dref)});
  });
  return {dx, dref};
}

// Indices of rows of one side, [K].
std::vector<int64_t> checked_indices(const char* name, const Tensor& indices, int64_t n) {
  check_dtype(indices, Dtype::Long, name);
  HK_CHECK_VALUE(indices.dim() == 1, name, " must be [K]; got ", sizes_of(indices));
  check_cpu(indices, name);
  std::vector<int64_t> index = own_copy(indices);
  for (size_t k = 0; k < index.size(); ++k) {
    HK_CHECK_INDEX(index[k] >= 0 && index[k] < n, name, "[", k, "] is ", index[k], "; it must be in [0, ", n, ")");
  }
  return index;
}

struct ListedInputs : PairVectors {
  Similarity similarity;
  std::vector<int64_t> rows, columns;

  ListedInputs(const Tensor& x, const Optional& ref, const Tensor& rows, const Tensor& columns,
               std::string_view similarity)
      : PairVectors(x, ref),
        similarity(parse_similarity(similarity)),
        rows(checked_indices("rows", rows, n)),
        columns(checked_indices("columns", columns, m)) {
    HK_CHECK_VALUE(count() == int64_t(this->columns.size()), "rows and columns must be equally long; got ", count(),
                   " and ", this->columns.size());
  }

  int64_t count() const { return int64_t(rows.size()); }

  template <class T>
  ListedPairs<T> pairs() const {
    return {data<T>(x), data<T>(ref), n, m, d, self, similarity, rows.data(), columns.data(), count()};
  }
};

Tensor values(const Tensor& x, const Optional& ref, const Tensor& rows, const Tensor& columns,
              std::string_view similarity) {
  const ListedInputs in(x, ref, rows, columns, similarity);
  const Tensor out = in.numbers({in.count()});
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    pair_values(in.pairs<T>(), mutable_data<Accumulate<T>>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> values_backward(const Tensor& d, const Tensor& x, const Optional& ref, const Tensor& rows,
                                           const Tensor& columns, std::string_view similarity, bool need_x,
                                           bool need_ref) {
  const ListedInputs in(x, ref, rows, columns, similarity);
  const Tensor given = checked("d", d, in.accumulate, in.count());
  const Tensor dx = in.x_gradient(need_x), dref = in.ref_gradient(need_ref);
  with_storage(in.dtype, "x", [&](auto storage) {
    using T = decltype(storage);
    pair_values_backward(in.pairs<T>(), data<Accumulate<T>>(given), mutable_data<T>(dx), mutable_data<T>(dref));
  });
  return {dx, dref};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperkernels, CPU, m) {
  HK_OP(m, "pair_top_k", top_k);
  HK_OP(m, "pair_count", count);
  HK_OP(m, "pair_list", list);
  HK_OP(m, "pair_sample", sample);
  HK_OP(m, "pair_bins", bins);
  HK_OP(m, "pair_bins_backward", bins_backward);
  HK_OP(m, "pair_values", values);
  HK_OP(m, "pair_values_backward", values_backward);
}

}  // namespace hyperkernels::pair_mining
