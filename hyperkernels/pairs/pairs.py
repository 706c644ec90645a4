"""What every miner and every pair loss works on: two sets of checked embeddings, and the ops on their pairs."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._autocast import autocast_dtype
from .._dtypes import accumulate_dtype, filled
from ..kernels.pair_mining import op, selections
from ..kernels.pair_mining.ordered import moved
from ..kernels.pair_mining.problem import Columns, PairProblem, PairRowStatistics, Tile, Transform
from ..unit_norm import unit_norm
from .codes import codes
from .source import Bound, Listed, LocalPairSource

SIMILARITIES = ("cosine", "dot", "euclidean", "squared_euclidean")
SELECT = ("positive", "negative", "all")
LINEAR, SOFTPLUS = Transform("linear"), Transform("softplus")
SORTED_TILE = Tile(32, 32)  # small, so that few pairs beside the positives are looked at


class _GradientOfRows(torch.autograd.Function):
    """v itself, of which only the rows that are 1 rather than 0 in `some` [N, 1] have a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        return v.view_as(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor, None]:
        return d * ctx.saved_tensors[0], None


def unit_rows(v: torch.Tensor, eps: float) -> torch.Tensor:
    """Unit rows; one shorter than eps is a constant for the gradient, which 1 / eps would blow up."""
    unit = unit_norm(v, eps=eps)
    if not (v.requires_grad and torch.is_grad_enabled()):
        return unit
    long = ~(torch.linalg.vector_norm(v.detach(), dim=1, keepdim=True, dtype=accumulate_dtype(v.dtype)) < eps)
    return _GradientOfRows.apply(unit, long.to(unit.dtype))


class Pairs(LocalPairSource):
    """Pairs of the rows of x [N, D] and of ref [M, D] (None: x itself, where no row is a pair with itself).

    Similarities are larger for what is closer: "cosine", "dot", or minus the "euclidean" or "squared_euclidean"
    distance. Selections are "positive", "negative" and "all", by labels; pairs of equal ids belong to none.
    """

    def __init__(
        self,
        x: Any,
        labels: Any = None,
        ref: Any = None,
        ref_labels: Any = None,
        *,
        ids: Any = None,
        ref_ids: Any = None,
        similarity: Any = "cosine",
        ignore_label: Any = None,
        multi_hot: Any = False,
        eps: Any = 1e-12,
    ) -> None:
        _check.choice("similarity", similarity, SIMILARITIES)
        eps = _check.number("eps", eps, above=0.0)
        self.x = _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
        self.ref = ref
        if ref is not None:
            _check.tensor("ref", ref, _check.FLOAT_DTYPES, dim=2)
            if ref.dtype != x.dtype:
                raise TypeError(f"ref must have the dtype of x ({x.dtype}); got {ref.dtype}")
            _check.same_device("ref", ref, "x", x)
            if ref.shape[1] != x.shape[1]:
                raise ValueError(f"ref must have the embedding size of x ({x.shape[1]}); got {tuple(ref.shape)}")
        self.similarity = "dot" if similarity == "cosine" else similarity
        self.n, self.m = self.x.shape[0], (self.x if self.ref is None else self.ref).shape[0]
        self.multi_hot = _check.boolean("multi_hot", multi_hot)
        self.dtype, self.device = accumulate_dtype(self.x.dtype), self.x.device
        self.labels = self._integers("labels", labels, self.n)
        self.ref_labels = self._integers("ref_labels", ref_labels, self.m)
        self._check_sides("labels", self.labels, self.ref_labels)
        if labels is None and (self.multi_hot or ignore_label is not None):
            raise ValueError(f"labels must be given where {'multi_hot' if self.multi_hot else 'ignore_label'} is")
        ids = self._integers("ids", ids, self.n)
        ref_ids = self._integers("ref_ids", ref_ids, self.m)
        self._check_sides("ids", ids, ref_ids)
        if ignore_label is not None:
            _check.integer("ignore_label", ignore_label)
            if self.multi_hot:
                raise ValueError(
                    "ignore_label must be None where labels are multi-hot; a row of no bits has no positive"
                )
        # Nothing is computed before all is checked.
        self.x = self.embeddings("x", x, similarity, eps)
        self.ref = None if ref is None else self.embeddings("ref", ref, similarity, eps)
        self._label, self._ref_label = self._label_codes(ignore_label)
        self._id, self._ref_id = self._id_codes(ids, ref_ids)
        self._order: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @staticmethod
    def embeddings(name: str, v: Any, similarity: str, eps: float) -> torch.Tensor:
        _check.tensor(name, v, _check.FLOAT_DTYPES, dim=2)
        if similarity == "cosine":
            v = unit_rows(v, eps)
        dtype = autocast_dtype(v)
        return v if dtype is None else v.to(dtype)

    def _integers(self, name: str, value: Any, n: int) -> torch.Tensor | None:
        if value is None:
            return None
        _check.tensor(name, value, (torch.int64,), dim=1)
        _check.same_device(name, value, "x", self.x)
        if value.shape[0] != n:
            raise ValueError(f"{name} must have one entry per embedding ({n}); got shape {tuple(value.shape)}")
        return value

    def _check_sides(self, name: str, first: torch.Tensor | None, second: torch.Tensor | None) -> None:
        if self.ref is None and second is not None:
            raise ValueError(f"ref_{name} must be None where ref is")
        if self.ref is not None and (first is None) != (second is None):
            missing, given = (name, f"ref_{name}") if first is None else (f"ref_{name}", name)
            raise ValueError(f"{missing} must be given where {given} and ref are")

    def _label_codes(self, ignore_label: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.labels is None:
            none = self.x.new_empty(0, dtype=torch.int32)
            return none, none
        if self.multi_hot:
            return self.labels, self.labels if self.ref_labels is None else self.ref_labels
        code, ref_code = codes(self.labels, self.ref_labels)
        if ignore_label is not None:
            code = torch.where(self.labels == ignore_label, -1, code)
            ref_code = code if self.ref_labels is None else torch.where(self.ref_labels == ignore_label, -1, ref_code)
        return code, ref_code

    def _id_codes(self, ids: torch.Tensor | None, ref_ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if ids is not None:
            return codes(ids, ref_ids)
        n = self.n if self.ref is None else 0
        own = torch.arange(n, dtype=torch.int32, device=self.x.device)
        return own, own

    @property
    def keys(self) -> torch.Tensor:
        """The rows that columns number."""
        return self.x if self.ref is None else self.ref

    def row_numbers(self, name: str, value: Bound, n: int | None = None) -> torch.Tensor | None:
        n = self.n if n is None else n
        if value is None:
            return None
        if not isinstance(value, torch.Tensor):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number or a tensor; got {type(value).__name__}")
            return filled((n,), float(value), self.dtype, self.x.device)
        _check.tensor(name, value, _check.FLOAT_DTYPES)
        _check.same_device(name, value, "x", self.x)
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, n)):
            raise ValueError(f"{name} must be a number, a scalar or [{n}]; got shape {tuple(value.shape)}")
        return value.to(self.dtype).expand(n)

    def problem(self, select: str, lower: Bound = None, upper: Bound = None) -> PairProblem:
        if select != "all" and self.labels is None:
            raise ValueError(f"labels must be given for select={select!r}")
        bounds = (self.row_numbers(name, v) for name, v in (("lower", lower), ("upper", upper)))
        low, high = (v if v is None else v.detach().contiguous() for v in bounds)
        return PairProblem(
            self.x, self.ref, self._label, self._ref_label, self._id, self._ref_id, low, high, select, self.similarity
        )

    def _in_order(self, select: str) -> bool:
        """Whether a pass goes over rows and columns in the order of their labels."""
        return select == "positive" and not self.multi_hot

    def _by_label(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows and columns in the order of their labels, and where each row went. Sorted, the tiles without a positive
        pair are known by their labels, and skipped: a pass over the positives costs next to nothing."""
        if self._order is None:
            order = self._label.argsort(stable=True)
            place = torch.empty_like(order).scatter_(0, order, torch.arange(self.n, device=order.device))
            self._order = order, order if self.ref is None else self._ref_label.argsort(stable=True), place
        return self._order

    def _sorted(self, problem: PairProblem) -> PairProblem:
        order, ref_order, _ = self._by_label()

        def take(v: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
            return v.index_select(0, by) if v.numel() else v

        p = problem
        return p._replace(
            x=p.x.index_select(0, order),
            ref=None if p.ref is None else p.ref.index_select(0, ref_order),
            label=take(p.label, order),
            ref_label=take(p.ref_label, ref_order),
            id=take(p.id, order),
            ref_id=take(p.ref_id, ref_order),
            lower=None if p.lower is None else p.lower[order],
            upper=None if p.upper is None else p.upper[order],
        )  # fmt: skip

    def _columns(self, index: torch.Tensor) -> torch.Tensor:
        """The columns that had these numbers in the order of the labels; -1 stays."""
        if not self.m:
            return index
        return torch.where(index >= 0, self._by_label()[1][index.clamp_min(0)], -1)

    def statistics(
        self,
        select: str,
        *,
        moments: bool = False,
        extremes: bool = False,
        transform: Transform = Transform(),
        scale: Bound = None,
        offset: Bound = None,
        lower: Bound = None,
        upper: Bound = None,
    ) -> PairRowStatistics:
        problem = self.problem(select, lower, upper)
        given = (self.row_numbers(name, v) for name, v in (("scale", scale), ("offset", offset)))
        a, b = (v if v is None else v.contiguous() for v in given)
        if not self._in_order(select):
            return op.pair_statistics(problem, a, b, moments, extremes, transform)[0]
        order, _, place = self._by_label()
        a, b = (v if v is None else v.index_select(0, order) for v in (a, b))
        rows, _ = op.pair_statistics(self._sorted(problem), a, b, moments, extremes, transform, tile=SORTED_TILE)
        rows = PairRowStatistics(*(v.index_select(0, place) if v.numel() else v for v in rows))
        return rows._replace(argmin=self._columns(rows.argmin), argmax=self._columns(rows.argmax))

    def statistics_of_both(
        self,
        select: str,
        *,
        moments: bool = False,
        extremes: bool = False,
        transform: Transform = Transform(),
        scale: Bound = None,
        ref_scale: Bound = None,
    ) -> tuple[PairRowStatistics, PairRowStatistics]:
        if self.ref is None:
            rows = self.statistics(select, moments=moments, extremes=extremes, transform=transform, scale=scale)
            return rows, rows
        row_scale = self.row_numbers("scale", scale)
        column_scale = self.row_numbers("scale", scale if ref_scale is None else ref_scale, self.m)
        rows, columns = op.pair_statistics(
            self.problem(select),
            None if row_scale is None else row_scale.contiguous(),
            None,
            moments,
            extremes,
            transform,
            Columns(scale=None if column_scale is None else column_scale.contiguous()),
        )
        assert columns is not None
        return rows, columns

    def values(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return selections.values(self.x, self.ref, rows, columns, self.similarity)

    def values_at(self, columns: torch.Tensor, missing: float = 0.0) -> torch.Tensor:
        if not self.m:
            none = columns.new_empty(0)  # its sum of nothing keeps the result in the graph
            return self.x.new_full((self.n,), missing, dtype=self.dtype) + self.values(none, none).sum()
        rows = torch.arange(self.n, device=columns.device)
        return torch.where(columns >= 0, self.values(rows, columns.clamp_min(0)), missing)

    def top_k(self, select: str, k: int, lower: Bound = None, upper: Bound = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The k largest similarities of every row, [N, k], falling, and their columns; -inf and -1 where there are
        fewer."""
        return selections.top_k(self.problem(select, lower, upper), k)

    def listed(self, select: str, lower: Bound = None, upper: Bound = None) -> Listed:
        problem = self.problem(select, lower, upper)
        if self._in_order(select):
            _, ref_order, place = self._by_label()
            offsets, columns, similarities = selections.listed(self._sorted(problem), SORTED_TILE)
            back, offsets = moved(offsets, place, columns.shape[0])
            columns, similarities = ref_order[columns[back]], similarities[back]
        else:
            offsets, columns, similarities = selections.listed(problem)
        rows = torch.repeat_interleave(offsets.diff(), output_size=columns.shape[0])
        return Listed(rows, columns, similarities, offsets)

    def sample(
        self,
        select: str,
        draws: int,
        seed: int,
        *,
        weights: str = "exponential",
        p0: float = 0.0,
        p1: float = 0.0,
        temperature: float = 1.0,
        lower: Bound = None,
        upper: Bound = None,
    ) -> torch.Tensor:
        """Columns drawn with replacement, [N, draws], -1 where no pair counts; see `reference.log_weights`."""
        return selections.sample(self.problem(select, lower, upper), draws, seed, weights, p0, p1, temperature)

    def binned(
        self, select: str, edges: torch.Tensor, offsets: torch.Tensor, lower: Bound = None, upper: Bound = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        problem = self.problem(select, lower, upper)
        if not self._in_order(select):
            return selections.binned(problem, edges, offsets)
        order, _, place = self._by_label()
        chosen, after = moved(offsets, order, edges.shape[0])
        found = selections.binned(self._sorted(problem), edges[chosen], after, SORTED_TILE)
        bins = after + torch.arange(self.n + 1, device=after.device)  # one more than edges in every row
        back, _ = moved(bins, place, edges.shape[0] + self.n)
        count, total, high, index = (v.index_select(0, back) for v in found)
        return count, total, high, self._columns(index)
