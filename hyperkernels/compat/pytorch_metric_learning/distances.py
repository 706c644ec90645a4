"""Distance objects, and what the kernels compute for one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ...kernels.pair_mining.similarities import similarities
from ...pairs.pairs import unit_rows

_EPS = 1e-12


class BaseDistance(torch.nn.Module):
    """A similarity or distance of rows; called with tensors it gives the matrix."""

    def __init__(
        self,
        normalize_embeddings: bool = True,
        p: float = 2,
        power: float = 1,
        is_inverted: bool = False,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.normalize_embeddings, self.p, self.power, self.is_inverted = normalize_embeddings, p, power, is_inverted

    def forward(self, query_emb: torch.Tensor, ref_emb: torch.Tensor | None = None) -> torch.Tensor:
        space = space_of(self, "forward")
        x, ref = (
            torch.nn.functional.normalize(v) if space.normalize else v
            for v in (query_emb, query_emb if ref_emb is None else ref_emb)
        )
        if space.sign == 1:
            return x @ ref.T
        return -similarities(x, ref, space.similarity)


class DotProductSimilarity(BaseDistance):
    """Of the normalised rows unless ``normalize_embeddings`` is False, as in pytorch-metric-learning."""

    def __init__(self, **options: Any) -> None:
        super().__init__(is_inverted=True, **options)


class CosineSimilarity(DotProductSimilarity):
    def __init__(self, **options: Any) -> None:
        super().__init__(normalize_embeddings=True, **options)


class LpDistance(BaseDistance):
    """||x - y||_2 to the power of 1 or 2."""


class Space(NamedTuple):
    """A distance object as the engine has it."""

    similarity: str
    sign: int  # times a number of the object it is a similarity, larger for what is closer
    normalize: bool

    def rows(self, v: torch.Tensor) -> torch.Tensor:
        """Embeddings as the engine wants them; it normalises for "cosine" itself."""
        return unit_rows(v, _EPS) if self.normalize and self.similarity != "cosine" else v


def space_of(distance: Any, owner: str) -> Space:
    """By the name of its class, so that those of pytorch-metric-learning are recognised without importing it."""
    name = type(distance).__name__
    normalize, p, power = (getattr(distance, k, None) for k in ("normalize_embeddings", "p", "power"))
    if p == 2:
        if name in ("CosineSimilarity", "DotProductSimilarity") and power == 1:
            return Space("cosine" if normalize else "dot", 1, bool(normalize))
        if name == "LpDistance" and power in (1, 2):
            return Space("euclidean" if power == 1 else "squared_euclidean", -1, bool(normalize))
    raise ValueError(
        f"{owner}: no kernel computes the distance {name}(p={p}, power={power}); use CosineSimilarity(), "
        "DotProductSimilarity() or LpDistance(p=2, power=1 or 2)"
    )


def require_space(space: Space, owner: str, allowed: tuple[str, ...], normalized: bool, advice: str) -> None:
    if space.similarity not in allowed or (normalized and not space.normalize):
        raise ValueError(f"{owner} must have distance={advice}; got that of {space.similarity} similarity")
