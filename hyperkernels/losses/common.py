"""What the pair losses share: their pairs, arguments, thresholds in the units of a similarity, and sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .. import _check
from ..distributed.pairs import GatheredPairs, Group
from ..distributed.ring import RingPairs
from ..pairs.pairs import SIMILARITIES, Pairs, unit_rows
from ..pairs.source import PairSource

REDUCTIONS = ("mean", "sum", "none")
MEANS = ("nonzero", "all")
DISTANCES = ("euclidean", "squared_euclidean")
COMMUNICATIONS = {"gather": GatheredPairs, "ring": RingPairs}
GRADIENT_REDUCTIONS = ("mean", "sum")
EPS = 1e-12
Number = torch.Tensor | float


def pairs_of(
    x: Any,
    labels: Any,
    ref: Any,
    ref_labels: Any,
    ids: Any,
    ref_ids: Any,
    similarity: Any,
    normalize: bool = True,
    allowed: tuple[str, ...] = SIMILARITIES,
) -> Pairs:
    """The pairs that a loss is of; distances are those of unit rows where `normalize` says so."""
    _check.choice("similarity", similarity, allowed)
    _check.boolean("normalize", normalize)
    _check.tensor("labels", labels, (torch.int64,), dim=1)
    if similarity in DISTANCES and normalize:
        x, ref = (
            v if v is None else unit_rows(_check.tensor(name, v, _check.FLOAT_DTYPES, dim=2), EPS)
            for name, v in (("x", x), ("ref", ref))
        )
    return Pairs(x, labels, ref, ref_labels, ids=ids, ref_ids=ref_ids, similarity=similarity)


def group_of(process_group: Any, communication: Any, gradient_reduction: Any) -> Any:
    """The processes whose batches make one, or None: this one alone."""
    kind = COMMUNICATIONS[_check.choice("communication", communication, tuple(COMMUNICATIONS))]
    _check.choice("gradient_reduction", gradient_reduction, GRADIENT_REDUCTIONS)
    if process_group is None:
        return None
    return Group(process_group, kind, gradient_reduction)


def shared(group: Any, value: Any) -> Any:
    """A number or a tensor that all processes of a group hold alike."""
    return value if group is None or not isinstance(value, torch.Tensor) else group.shared(value)


def over_ranks(group: Any, several: Sequence[Pairs], ids: Any, ref_ids: Any, numbered: bool = False) -> list[Any]:
    """The pairs, which differ in their labels alone, with the columns of all processes of a group. `numbered`: the
    labels are the numbers of the rows."""
    return list(several) if group is None else group.pairs(several, ids, ref_ids, numbered)


def embeddings(name: str, v: Any, similarity: str) -> torch.Tensor:
    """Rows as Pairs takes them: those of unit length for "cosine"."""
    return Pairs.embeddings(name, v, similarity, EPS)


def normalized(name: str, v: Any) -> torch.Tensor:
    return embeddings(name, v, "cosine")


def own_columns(pairs: PairSource) -> torch.Tensor:
    return torch.arange(pairs.n, device=pairs.device)


def numbered(v: Any, name: str) -> torch.Tensor:
    """0, 1, ... for the rows of v."""
    _check.tensor(name, v, _check.FLOAT_DTYPES, dim=2)
    return torch.arange(v.shape[0], device=v.device)


def scalar(name: str, value: Any, dtype: torch.dtype) -> Number:
    """A number as it is, a tensor of one element as a scalar of that dtype, which keeps its gradient."""
    if not isinstance(value, torch.Tensor):
        return _check.number(name, value)
    _check.tensor(name, value, _check.FLOAT_DTYPES)
    if value.numel() != 1:
        raise ValueError(f"{name} must be a number or a tensor of one element; got shape {tuple(value.shape)}")
    return value.to(dtype).reshape(())


def inverse(name: str, temperature: Any, dtype: torch.dtype) -> Number:
    """The scale 1 / temperature."""
    if not isinstance(temperature, torch.Tensor):
        return 1 / _check.number(name, temperature, above=0.0)
    return 1 / scalar(name, temperature, dtype)


def in_similarity(similarity: str, value: float) -> float:
    """A threshold of what users of a distance call one, where similarities are minus the distance."""
    return -value if similarity in DISTANCES else value


def thresholds(similarity: str, pos_margin: Any, neg_margin: Any) -> tuple[float, float]:
    """Both margins as thresholds of the similarity."""
    given = (("pos_margin", pos_margin), ("neg_margin", neg_margin))
    near, far = (in_similarity(similarity, _check.number(name, value)) for name, value in given)
    return near, far


def softplus(z: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(z)); exact where `F.softplus` goes over to z, and 0 with a gradient of 0 at -inf."""
    some = z != -torch.inf
    return torch.where(some, -F.logsigmoid(-torch.where(some, z, 0)), 0)


def reduce(rows: torch.Tensor, reduction: str, count: torch.Tensor | int, group: Any = None) -> torch.Tensor:
    """`count` is what the mean divides by; the mean of nothing is 0. With a group sum and count are over its ranks."""
    if group is not None:
        rows = group.rows(rows)
    if reduction == "none":
        return rows
    total = rows.sum()
    if group is not None:
        total, count = group.sum(total, count)
    if reduction == "sum":
        return total
    return total / (count.clamp_min(1) if isinstance(count, torch.Tensor) else max(count, 1))


def reduce_counted(rows: torch.Tensor, counted: torch.Tensor, reduction: str, group: Any = None) -> torch.Tensor:
    """Over the entries that count; the others are 0."""
    return reduce(torch.where(counted, rows, 0), reduction, counted.sum(), group)


def nonzero(loss: torch.Tensor) -> torch.Tensor:
    """The entries over which an average of the losses above zero is taken; NaN is one of them."""
    return ~(loss <= 0)


def blocks(count: int, room: int, each: int) -> list[tuple[int, int]]:
    """(first, end) of each block of `count` items, where an item needs `each` numbers and a block may have `room`; at
    least one block. An exported program has a single block: it would keep the number of blocks of its sample."""
    if torch.compiler.is_exporting():
        return [(0, count)]
    size = max(1, room // max(1, each))
    return [(first, min(first + size, count)) for first in range(0, max(1, count), size)]


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result. Its intermediate tensors are not kept, but computed again in the backward."""
    if torch._C._are_functorch_transforms_active():  # which take no hooks of saved tensors
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
