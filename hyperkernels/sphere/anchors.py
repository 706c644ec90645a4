"""Densely anchored sampling: embeddings made from others of their class."""

from __future__ import annotations

import torch

from .. import _check
from .._dtypes import accumulate_dtype
from ..kernels.sphere.problem import EPS
from ..pairs.pairs import unit_rows


class AnchorMemory(torch.nn.Module):
    """The memory of ``perturb_anchors``. For every class it counts how often each dimension was among the largest of an
    embedding, and keeps the latest differences of two embeddings of a batch. Both are buffers: they move with the
    module and are in its state dict.

    Args:
        num_classes: C, at least 1.
        embedding_size: D, at least 1.
        largest: the number of largest dimensions of an embedding that are counted, in [1, D].
        transformations: the number of differences that are kept for each class, at least 1.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    frequency: torch.Tensor
    shifts: torch.Tensor
    seen: torch.Tensor

    def __init__(self, num_classes: int, embedding_size: int, *, largest: int = 4, transformations: int = 10) -> None:
        super().__init__()
        _check.integer("num_classes", num_classes, 1)
        _check.integer("embedding_size", embedding_size, 1)
        self.largest = _check.integer("largest", largest, 1)
        if largest > embedding_size:
            raise ValueError(f"largest must be at most the embedding size ({embedding_size}); got {largest}")
        _check.integer("transformations", transformations, 1)
        self.register_buffer("frequency", torch.zeros(num_classes, embedding_size, dtype=torch.int64))
        self.register_buffer("shifts", torch.zeros(num_classes, transformations, embedding_size))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.int64))  # differences, ever

    @torch.no_grad()
    def update(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: x [N, D] and its labels [N] in [0, C). If it has more differences than are kept, the last in the
        order of rows and columns are kept."""
        self._check(x, labels)
        classes, size = self.frequency.shape
        wide = x.to(self.shifts.dtype)
        best = wide.sort(dim=1, descending=True, stable=True).indices[:, : self.largest]
        self.frequency.view(-1).index_add_(
            0, (labels[:, None] * size + best).flatten(), torch.ones_like(best).flatten()
        )
        if not len(x):
            return
        # Row by row, the class's newest differences are those of the pairs numbered last, of its members' ordered pairs
        # of two. All rows of a class write the same numbers to the same places.
        order = labels.argsort(stable=True)
        members = torch.zeros(classes, dtype=torch.int64, device=x.device).index_add_(
            0, labels, torch.ones_like(labels)
        )
        first = (members.cumsum(0) - members)[labels, None]
        kept = self.shifts.shape[1]
        count = members[labels, None]
        pairs = count * (count - 1)
        number = pairs - 1 - torch.arange(kept, device=x.device)
        new, place = number >= 0, (self.seen[labels, None] + number) % kept
        number = number.clamp_min(0)
        others = (count - 1).clamp_min(1)
        i, j = number // others, number % others
        j = torch.where(count > 1, j + (j >= i), j)
        shift = wide[order[first + i]] - wide[order[first + j]]
        old = self.shifts[labels[:, None], place]
        self.shifts[labels[:, None], place] = torch.where(new[..., None], shift, old)
        self.seen += members * (members - 1)

    def _check(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        size = self.frequency.shape[1]
        _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
        _check.tensor("labels", labels, (torch.int64,), dim=1)
        _check.same_device("x", x, "the memory", self.frequency)
        _check.same_device("labels", labels, "x", x)
        if x.shape[1] != size:
            raise ValueError(f"x must have the embedding size of the memory ({size}); got shape {tuple(x.shape)}")
        if len(labels) != len(x):
            raise ValueError(f"labels must have one entry per row of x ({len(x)}); got shape {tuple(labels.shape)}")


def perturb_anchors(
    x: torch.Tensor,
    labels: torch.Tensor,
    memory: AnchorMemory,
    *,
    copies: int = 3,
    scale: tuple[float, float] = (0.5, 2.0),
    shift: float = 0.01,
    normalize: bool = True,
    detach: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Densely anchored sampling (DAS; Liu et al., arXiv 2208.00119): further embeddings near those of the batch, for a
    pair loss. In each copy of a row the dimensions that were most often among the largest of its class are multiplied
    by random factors, and a random one of the kept differences of its class is added.

        memory.update(x, labels)
        more, more_labels = perturb_anchors(x, labels, memory)
        loss = hk.losses.multi_similarity(torch.cat([x, more]), torch.cat([labels, more_labels]))

    Args:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64, in [0, C).
        memory: an ``AnchorMemory``; it is only read here.
        copies: the number of copies of every row, at least 0.
        scale: (low, high), the range of the uniform factors.
        shift: the factor of the difference. A class without differences is not shifted.
        normalize: whether the result is normalised to unit rows.
        detach: whether the result has no gradient to x, as in the authors' code.
        generator: a torch.Generator on the device of x; None: torch's default one.

    Returns:
        (embeddings [copies * N, D] in the dtype of x, copy after copy; their labels).

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    if not isinstance(memory, AnchorMemory):
        raise TypeError(f"memory must be an AnchorMemory; got {type(memory).__name__}")
    memory._check(x, labels)
    _check.integer("copies", copies, 0)
    if not isinstance(scale, (tuple, list)) or len(scale) != 2:
        raise TypeError(f"scale must be two numbers; got {scale!r}")
    low = _check.number("scale[0]", scale[0])
    high = _check.number("scale[1]", scale[1], minimum=low)
    shift = _check.number("shift", shift)
    _check.boolean("normalize", normalize)
    _check.boolean("detach", detach)
    wide = accumulate_dtype(x.dtype)
    rows = (x.detach() if detach else x).to(wide)
    n, size = x.shape
    # Frequencies and dimensions in one number, so that the lowest dimension wins ties.
    ranked = memory.frequency * size - torch.arange(size, device=x.device)
    best = ranked[labels].topk(memory.largest, dim=1).indices

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=x.device, dtype=wide)

    factors = low + (high - low) * uniform(copies, n, memory.largest)
    factor = rows.new_ones(copies, n, size).scatter(2, best.expand(copies, -1, -1), factors)
    known = memory.seen[labels].clamp_max(memory.shifts.shape[1])
    drawn = torch.minimum((uniform(copies, n) * known).long(), (known - 1).clamp_min(0))
    made = rows * factor + shift * memory.shifts[labels, drawn].to(wide)
    made = made.reshape(-1, size)
    if normalize:
        made = unit_rows(made, EPS)
    return made.to(x.dtype), labels.repeat(copies)
