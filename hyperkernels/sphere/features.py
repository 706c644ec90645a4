"""Alignment, the grounding index and residuals to the nearest reference row."""

from __future__ import annotations

import torch

from .. import _check
from .._dtypes import accumulate_dtype
from ..pairs.pairs import Pairs
from .functional import _rows, angle

MEASURES = ("angle", "euclidean")


def alignment(x: torch.Tensor, y: torch.Tensor, alpha: float = 2.0) -> torch.Tensor:
    """Alignment (Wang and Isola, arXiv 2005.10242): the mean of |x^ - y^|^alpha. (Uniformity is
    ``hk.losses.uniformity``.)

    Args:
        x, y: [..., D], of one dtype, float64, float32, bfloat16 or float16, broadcastable; rows of any length.
        alpha: above 0.

    Returns:
        A scalar; float32, float64 for float64. The distance is computed as 2 sin(angle / 2), which is accurate also
        where rows nearly coincide; the gradient is 0 where they coincide. 0 without rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    alpha = _check.number("alpha", alpha, above=0.0)
    chord = 2 * torch.sin(angle(x, y) / 2)
    apart = chord != 0
    power = torch.where(apart, torch.where(apart, chord, 1) ** alpha, 0)
    return power.sum() / max(power.numel(), 1)


def grounding_index(
    response: torch.Tensor,
    question: torch.Tensor,
    context: torch.Tensor,
    eps: float = 1e-8,
    *,
    measure: str = "angle",
) -> torch.Tensor:
    """The semantic grounding index (arXiv 2512.13771): the angle from the response to the question over that from the
    response to the context,

        SGI = angle(r, q) / (angle(r, c) + eps)

    Above 1 the response is nearer to the context; the paper calls it grounded. (Comments in the authors' code say the
    opposite about the same ratio.)

    Args:
        response, question, context: [..., D], of one dtype, float64, float32, bfloat16 or float16; question and context
            each broadcast with response: [N, 1, D] and [M, D] give all contexts. Rows of any length.
        eps: above 0; 1e-10 in the authors' code.
        measure: "angle", as in the paper; "euclidean": distances of the rows without normalisation instead of angles,
            as in later code.

    Returns:
        [...]; float32, float64 for float64. Its gradient grows towards 1 / eps as the response approaches the context,
        and is 0 where they coincide.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    eps = _check.number("eps", eps, above=0.0)
    _check.choice("measure", measure, MEASURES)
    apart = angle if measure == "angle" else _distance
    of_context = apart(response, context)
    index = apart(response, question) / (of_context + eps)
    return torch.where(of_context == 0, index.detach(), index)


def _distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    _rows("x", x, "y", y)
    wide = accumulate_dtype(x.dtype)
    return torch.linalg.vector_norm(x.to(wide) - y.to(wide), dim=-1)


def nearest_residual(
    x: torch.Tensor,
    ref: torch.Tensor,
    labels: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual features of ResAD (Yao et al., arXiv 2410.20047): every row minus the reference row with the largest
    cosine, x_i - ref_j with j = argmax cos(x_i, ref_j). The N x M cosines are never stored.

    Args:
        x: features [N, D]; float64, float32, bfloat16 or float16.
        ref: features of normal samples [M, D], of the dtype of x.
        labels, ref_labels: [N] and [M] int64: a row is compared with reference rows of its own label only. None: with
            all.

    Returns:
        (residuals [N, D] in the dtype of x, of the rows without normalisation; index j [N], int64, the lowest where
        cosines are equal). A row without a reference row of its label is returned unchanged, with index -1. The
        residual is differentiable to x and to ref, the choice is not.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """
    _check.tensor("ref", ref, _check.FLOAT_DTYPES, dim=2)
    with torch.no_grad():
        pairs = Pairs(x, labels, ref, ref_labels)
        index = pairs.statistics("all" if labels is None else "positive", extremes=True).argmax
    if not len(ref):
        return x - ref.sum(), index
    at = index.clamp_min(0)
    rows = ref.to(accumulate_dtype(ref.dtype)) if ref.requires_grad else ref  # the gradient is a sum of rows
    # Of the two, the one whose gradient adds up in a fixed order on that device.
    nearest = rows[at] if ref.is_cuda else rows.index_select(0, at)
    return torch.where((index >= 0)[:, None], (x - nearest).to(x.dtype), x), index
