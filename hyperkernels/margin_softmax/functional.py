"""Public functions of the family: arguments are checked here, the work is done by the op and the losses."""

from __future__ import annotations

import os
from typing import Any

import torch

from .. import _check
from . import losses, op
from .margins import ArcFace, Margin
from .op import ClassStatistics as ClassStatistics

_DTYPES = (torch.float64, torch.float32)
_LARGEST_SCALE = 1e30  # float32 must hold its products
_REDUCTIONS = ("none", "mean", "sum")


def _check_inputs(x: Any, weight: Any, target: Any, ignore_index: Any, workspace: Any) -> None:
    _check.tensor("x", x, _DTYPES, dim=2)
    _check.tensor("weight", weight, _DTYPES, dim=2)
    _check.tensor("target", target, (torch.int64,), dim=1)
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must have the dtype of x ({x.dtype}); got {weight.dtype}")
    _check.same_device("weight", weight, "x", x)
    _check.same_device("target", target, "x", x)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have the embedding size of x ({x.shape[1]}); got shape {tuple(weight.shape)}")
    if weight.shape[0] == 0:
        raise ValueError("weight must have at least one row (class); got none")
    if target.shape[0] != x.shape[0]:
        raise ValueError(f"target must have one entry per row of x ({x.shape[0]}); got shape {tuple(target.shape)}")
    _check.integer("ignore_index", ignore_index)
    if workspace is not None:
        _check.integer("workspace", workspace, minimum=0)
    if target.device.type != "cpu" and os.environ.get("HYPERKERNELS_CHECK") == "1":
        wrong = (target != ignore_index) & ((target < 0) | (target >= weight.shape[0]))
        if bool(wrong.any()):
            raise IndexError(f"target must lie in [0, {weight.shape[0]}) or equal ignore_index={ignore_index}")


def class_statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    scale: float = 64.0,
    ignore_index: int = -100,
    workspace: int | None = None,
    eps: float = 1e-12,
) -> ClassStatistics:
    """Statistics of the cosines between each row of ``x`` and every class centre, without the N x C matrix.

    With c_ij = cos(x_i, weight_j) and y = target, for every row i:

    - ``neg_lse``: log sum over j != y_i of exp(scale * c_ij); -inf with a single class. Differentiable.
    - ``target_cos``: c_i,y_i. Differentiable.
    - ``x_norm``: the norm of x_i. Differentiable.
    - ``hardest_cos``, ``hardest_class``: the largest c_ij over j != y_i and its j (int64, lowest on ties); -inf and -1
      where there is none. Not differentiable.
    - ``neg_cos_sum``: sum over j != y_i of c_ij. Differentiable.

    Args:
        x: embeddings [N, D], float32 or float64, any norm.
        weight: class centres [C, D] of the same dtype, any norm.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        scale: inverse temperature s, above 0, at most 1e30.
        ignore_index: rows with this target take no part: neg_lse and hardest_cos are -inf, target_cos, x_norm and
            neg_cos_sum 0, hardest_class -1, and their gradient is zero, whatever they hold.
        workspace: bytes the forward may keep for the backward; None grants a quarter of the bytes of ``weight``, at
            least 4 MiB. Cosines that fit are kept, the rest are computed again, so more bytes buy speed and never
            change the result's meaning.
        eps: floor of the norms that divide. A row shorter than eps gets a zero gradient.

    Returns:
        ClassStatistics, a named tuple of [N] tensors.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target out of range, on the CPU. Elsewhere such a row is NaN, unless HYPERKERNELS_CHECK=1 asks for
            the error at the price of a synchronisation.
    """
    _check_inputs(x, weight, target, ignore_index, workspace)
    return op.class_statistics(
        x,
        weight,
        target,
        _check.number("scale", scale, above=0.0, maximum=_LARGEST_SCALE),
        _check.number("eps", eps, above=0.0),
        ignore_index,
        workspace,
    )


def margin_softmax_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    margin: Margin = ArcFace(0.5),
    scale: float = 64.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    eps: float = 1e-12,
) -> torch.Tensor:
    """Softmax cross-entropy over scaled cosines with a margin on the target, without the logits.

    The loss of row i is -log p_y for logits z_y = scale * margin(cos(x_i, w_y), |x_i|) and z_j = scale * cos(x_i, w_j),
    j != y. It equals ``F.cross_entropy`` of those logits exactly; nothing is approximated. See ArcFace (arXiv
    1801.07698), CosFace (1801.09414), NormFace (1704.06369).

    Args:
        x: embeddings [N, D], float32 or float64, any norm: they are normalised inside.
        weight: class centres [C, D] of the same dtype, normalised inside as well.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        margin: a callable ``(target_cos [N], x_norm [N]) -> target logit / scale [N]``; ``hk.margins`` has the usual
            ones.
        scale: inverse temperature s, above 0, at most 1e30.
        reduction: ``"mean"`` over the rows that are not ignored (0 if all are), ``"sum"``, or ``"none"`` for [N].
        ignore_index: rows with this target have zero loss and zero gradient.
        label_smoothing: in [0, 1], the convention of ``F.cross_entropy``: every class gets label_smoothing / C of the
            target mass.
        workspace: bytes the forward may keep for the backward (see ``class_statistics``).
        eps: floor of the norms that divide. A row of x or weight shorter than eps gets a zero gradient.

    Returns:
        A scalar, or [N] for ``reduction="none"``, in the dtype of x.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target out of range, on the CPU. Elsewhere such a row is NaN, unless HYPERKERNELS_CHECK=1 asks for
            the error at the price of a synchronisation.
    """
    _check_inputs(x, weight, target, ignore_index, workspace)
    if not callable(margin):
        raise TypeError(f"margin must be callable as margin(target_cos, x_norm); got {type(margin).__name__}")
    return losses.margin_softmax(
        x,
        weight,
        target,
        margin,
        _check.number("scale", scale, above=0.0, maximum=_LARGEST_SCALE),
        _check.choice("reduction", reduction, _REDUCTIONS),
        ignore_index,
        _check.number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0),
        workspace,
        _check.number("eps", eps, above=0.0),
    )
