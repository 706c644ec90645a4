"""Public functions of the class softmax. Arguments are checked here; the op and `losses` do the work."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from .. import _check
from .._autocast import autocast_dtype
from .._dtypes import accumulate_dtype, widest_dtype
from .._order import spread
from ..kernels.margin_softmax.negatives import Negatives
from ..kernels.margin_softmax.problem import OUTSIDE, Options
from ..kernels.margin_softmax.receivers import receiver_of
from ..margins.additive import ArcFace
from ..margins.base import Callback, Margin, as_margin
from . import losses
from .sampled import check_classes, positions

LARGEST_SCALE = 1e30  # float32 must hold its products
REDUCTIONS = ("none", "mean", "sum")
SMOOTHING = ("all", "others")


class ClassStatistics(NamedTuple):
    """Per-row statistics of the class cosines, [N] each; ``hk.class_statistics`` says what each is."""

    neg_lse: torch.Tensor
    target_cos: torch.Tensor
    x_norm: torch.Tensor
    hardest_cos: torch.Tensor
    hardest_class: torch.Tensor
    neg_cos_sum: torch.Tensor
    target_center: torch.Tensor
    hard_cos_sum: torch.Tensor
    hard_count: torch.Tensor
    correct: torch.Tensor


def _per_class(name: str, value: Any, classes: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    if value is None:
        return None
    _check.tensor(name, value, _check.FLOAT_DTYPES, dim=1)
    _check.same_device(name, value, "x", like)
    if value.shape[0] != classes:
        raise ValueError(f"{name} must have one entry per class ({classes}); got shape {tuple(value.shape)}")
    return value.to(dtype)


def _per_row(value: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale, [N]."""
    n = x.shape[0]
    if not isinstance(value, torch.Tensor):
        return torch.full(
            (n,), _check.number("scale", value, above=0.0, maximum=LARGEST_SCALE), dtype=dtype, device=x.device
        )
    _check.tensor("scale", value, _check.FLOAT_DTYPES)
    _check.same_device("scale", value, "x", x)
    if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, n)):
        raise ValueError(f"scale must be a number, a scalar or [N] with N = {n}; got shape {tuple(value.shape)}")
    value = value.to(dtype)
    return value if value.shape == (n,) else spread(value, n)


def check_head(
    x: Any,
    weight: Any,
    target: Any,
    *,
    scale: Any,
    classes: Any = None,
    class_scale: Any = None,
    bias: Any = None,
    sub_centers: Any = 1,
    normalize_x: bool = True,
    normalize_weight: bool = True,
    ignore_index: Any = -100,
    absent_index: Any = None,
    workspace: Any = None,
    skip_budget: Any = 0.0,
    skip_report: Any = None,
    eps: Any = 1e-12,
) -> losses.Head:
    """Check the arguments that all heads share, and bring them into the form that the op takes."""
    _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("weight", weight, _check.FLOAT_DTYPES, dim=2)
    _check.tensor("target", target, (torch.int64,), dim=1)
    receiver = receiver_of(weight)  # of the parameter itself, not of a copy in another dtype
    dtype = None if weight.dtype == torch.float64 else autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        # Of sampled classes the head casts their own rows.
        weight = weight.to(x.dtype) if classes is None else weight
    if weight.dtype != x.dtype and (classes is None or dtype is None):
        raise TypeError(f"weight must have the dtype of x ({x.dtype}); got {weight.dtype}")
    _check.same_device("weight", weight, "x", x)
    _check.same_device("target", target, "x", x)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight must have the embedding size of x ({x.shape[1]}); got shape {tuple(weight.shape)}")
    if weight.shape[0] == 0:
        raise ValueError("weight must have at least one row (class); got none")
    if target.shape[0] != x.shape[0]:
        raise ValueError(f"target must have one entry per row of x ({x.shape[0]}); got shape {tuple(target.shape)}")
    _check.integer("sub_centers", sub_centers, minimum=1)
    if weight.shape[0] % sub_centers:
        raise ValueError(f"weight must have sub_centers={sub_centers} rows per class; got {weight.shape[0]} rows")
    count = weight.shape[0] // sub_centers
    if classes is not None:
        classes = check_classes(classes, count, x)
    _check.integer("ignore_index", ignore_index)
    if absent_index is not None and _check.integer("absent_index", absent_index) == ignore_index:
        raise ValueError(f"absent_index must differ from ignore_index; both are {ignore_index}")
    for name, index in (("ignore_index", ignore_index), ("absent_index", absent_index)):
        if name == "absent_index" and index is not None and 0 <= index < count:
            raise ValueError(f"{name} must not be a class (0 to {count - 1}); got {index}")
    if workspace is not None:
        _check.integer("workspace", workspace, minimum=0)
    skip_budget = _check.number("skip_budget", skip_budget, minimum=0.0, maximum=1.0)
    if skip_report is not None:
        _check.tensor("skip_report", skip_report, (widest_dtype(skip_report.device),), dim=1)
        _check.same_device("skip_report", skip_report, "x", x)
        if skip_report.shape[0] != 2 or skip_report.requires_grad:
            raise ValueError(f"skip_report must be [2] without gradient; got shape {tuple(skip_report.shape)}")
    options = Options(
        sub_centers=sub_centers,
        normalize_x=bool(normalize_x),
        normalize_weight=bool(normalize_weight),
        eps=_check.number("eps", eps, above=0.0),
        ignore_index=ignore_index,
        absent_index=ignore_index if absent_index is None else absent_index,
    )
    if target.device.type != "cpu" and os.environ.get("HYPERKERNELS_CHECK") == "1":
        elsewhere = (target == options.ignore_index) | (target == options.absent_index)
        outside = (target < 0) | (target >= count)
        known = f"lie in [0, {count})"
        if classes is not None:
            outside = positions(classes, target, ignore_index, ignore_index) == OUTSIDE
            known = "be among classes"
        if bool((~elsewhere & outside).any()):
            raise IndexError(f"target must {known} or equal ignore_index={ignore_index}")
    dtype = accumulate_dtype(x.dtype)
    return losses.Head(
        x,
        weight,
        target,
        _per_row(scale, x, dtype),
        _per_class("class_scale", class_scale, count, x, dtype),
        _per_class("bias", bias, count, x, dtype),
        options,
        classes,
        workspace,
        skip_budget,
        skip_report,
        receiver,
    )


def class_statistics(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    scale: float | torch.Tensor = 64.0,
    negatives: Negatives | None = None,
    classes: torch.Tensor | None = None,
    class_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sub_centers: int = 1,
    normalize_x: bool = True,
    normalize_weight: bool = True,
    ignore_index: int = -100,
    absent_index: int | None = None,
    workspace: int | None = None,
    eps: float = 1e-12,
) -> ClassStatistics:
    """Statistics of the cosines between each row of ``x`` and every class centre, without the N x C matrix.

    With c_ij = cos(x_i, weight_j), y = target and the logits z_ij = scale_i * class_scale_j * c_ij + bias_j, for every
    row i:

    - ``neg_lse``: log sum over j != y_i of exp(z_ij); -inf with a single class. Differentiable.
    - ``target_cos``: c_i,y_i. Differentiable.
    - ``x_norm``: the norm of x_i. Differentiable.
    - ``hardest_cos``, ``hardest_class``: the largest class_scale_j * c_ij + bias_j / scale_i over j != y_i (the cosine
      itself where there is neither) and its j (int64, lowest on ties); -inf and -1 where there is none.
    - ``neg_cos_sum``: sum over j != y_i of class_scale_j * c_ij. Differentiable.
    - ``target_center``: which of the sub-centres of y_i is the nearest, int64; 0 without sub-centres.
    - ``hard_cos_sum``, ``hard_count``: of the negatives above the threshold of quadratic ``negatives``; 0 without.
    - ``correct``: bool, the target has the largest logit.

    Args:
        x: embeddings [N, D] in float64, float32, bfloat16 or float16, any norm.
        weight: class centres [C * sub_centers, D] of the same dtype, any norm; row = class * sub_centers + centre.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index`` or ``absent_index``.
        scale: inverse temperature s, above 0: a number of at most 1e30, a scalar tensor, or one a row, [N].
            Differentiable.
        negatives: a transform of the negatives' cosines (``hyperkernels.heads.negatives``).
        classes: the sampled classes [R], int64, strictly increasing, in [0, C): these alone exist for the call
            ("Partial FC", arXiv 2203.15565). Their rows of ``weight`` are read where they stand, its gradient is a
            coalesced sparse tensor of these rows, and the targets must be among them. Everything else keeps its [C]
            entries and global indices, ``hardest_class`` too. None: all classes.
        class_scale, bias: one a class, [C], or None. Differentiable.
        sub_centers: K >= 1 centres a class; the cosine of a class is that of its nearest centre (lowest on ties).
        normalize_x, normalize_weight: False takes the rows as they are: c_ij is then a product, not a cosine.
        ignore_index: rows with this target take no part: neg_lse and hardest_cos are -inf, target_cos, x_norm and
            neg_cos_sum 0, hardest_class -1, and their gradient is zero, whatever they hold.
        absent_index: rows with this target have their class in another shard: every class here is a negative, and their
            target_cos is 0. None: there are no such rows.
        workspace: bytes the forward may keep for the backward; None grants a quarter of the bytes of ``weight``, at
            least 4 MiB. Cosines that fit are kept, the others are computed again: more bytes make the backward faster
            and change no bit of the result. On CUDA nothing is kept.
        eps: floor of the norms that divide. A row shorter than eps gets a zero gradient.

    Returns:
        ClassStatistics, a named tuple of [N] tensors; the floating ones are float32, or float64 for float64 inputs.

    Under autocast ``x`` and ``weight`` are cast as for a matrix product; statistics stay in float32.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target that is no class, or not among ``classes``, on the CPU. Elsewhere such a row is NaN, and
            wrong ``classes`` give wrong numbers, unless HYPERKERNELS_CHECK=1 asks for the error at the price of a
            synchronisation.
    """
    head = check_head(
        x,
        weight,
        target,
        scale=scale,
        classes=classes,
        class_scale=class_scale,
        bias=bias,
        sub_centers=sub_centers,
        normalize_x=normalize_x,
        normalize_weight=normalize_weight,
        ignore_index=ignore_index,
        absent_index=absent_index,
        workspace=workspace,
        eps=eps,
    )
    if negatives is not None and not isinstance(negatives, Negatives):
        raise TypeError(f"negatives must be a Negatives or None; got {type(negatives).__name__}")
    statistics = (head.statistics() if negatives is None else head.statistics(negatives)).rounded()
    return ClassStatistics(*statistics, head.correct(statistics))


def margin_softmax_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    margin: Margin | Callback = ArcFace(0.5),
    scale: float | torch.Tensor = 64.0,
    classes: torch.Tensor | None = None,
    class_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sub_centers: int = 1,
    normalize_x: bool = True,
    normalize_weight: bool = True,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    smoothing_over: str = "all",
    skip_budget: float = 0.0,
    skip_report: torch.Tensor | None = None,
    workspace: int | None = None,
    eps: float = 1e-12,
    return_statistics: bool = False,
) -> Any:  # a union would ask every caller for a cast
    """Softmax cross-entropy over scaled cosines with a margin on the target, without the logits.

    The loss of row i is -log p_y for logits z_y = scale * margin(cos(x_i, w_y), |x_i|) and z_j = scale * cos(x_i, w_j),
    j != y. It equals ``F.cross_entropy`` of those logits exactly; nothing is approximated unless ``skip_budget`` asks
    for it. See ArcFace (arXiv 1801.07698), CosFace (1801.09414), NormFace (1704.06369); ``hk.margins`` has the others.

    With ``margin=hk.margins.NormFace()``, ``normalize_x=False``, ``normalize_weight=False`` and ``scale=1.0`` it is the
    cross-entropy of ``F.linear(x, weight, bias)``.

    Args:
        x: embeddings [N, D] in float64, float32, bfloat16 or float16, any norm: they are normalised inside.
        weight: class centres [C * sub_centers, D] of the same dtype, normalised inside as well; row = class *
            sub_centers + centre.
        target: class indices [N], int64, in [0, C) or equal to ``ignore_index``.
        margin: one of ``hk.margins``, or a callable ``(target_cos [N], x_norm [N]) -> target logit / scale [N]``. The
            parameters and buffers of one that is a module must be on the device of x.
        scale: inverse temperature s, above 0: a number of at most 1e30, a scalar tensor, or one a row, [N]. A tensor
            may be learned.
        classes: the sampled classes [R], int64, strictly increasing, in [0, C), or None for all: these alone take part
            in the softmax (see ``class_statistics``), and the gradient of ``weight`` is a sparse tensor of their rows.
        class_scale: a factor of the logits a class, [C], or None; may be learned (nGPT's s_z, arXiv 2410.01131).
        bias: a term of the logits a class, [C], or None; may be learned.
        sub_centers: K >= 1 centres a class, the nearest counts (sub-center ArcFace, Deng et al., ECCV 2020).
        normalize_x, normalize_weight: False takes the rows as they are.
        reduction: ``"mean"`` over the rows that are not ignored (0 if all are), ``"sum"``, or ``"none"`` for [N].
        ignore_index: rows with this target have zero loss and zero gradient.
        label_smoothing: in [0, 1], the target mass that is spread.
        smoothing_over: ``"all"``, the convention of ``F.cross_entropy``: every class gets label_smoothing / C of it.
            ``"others"``: every class but the target gets label_smoothing / (C - 1).
        skip_budget: in [0, 1]; 0 is exact. Otherwise the backward leaves out tiles of classes whose gradient cannot
            matter: the L1 norm of what is dropped from the gradient of the negatives' logits is at most this share of
            the whole, which the forward knows beforehand. Not together with label_smoothing, which reaches every class.
        skip_report: None, or a tensor [2] that the backward fills with the share of the gradient dropped and the share
            of tiles skipped; float64, or float32 on a device without float64.
        workspace: bytes the forward may keep for the backward (see ``class_statistics``).
        eps: floor of the norms that divide. A row of x or weight shorter than eps gets a zero gradient.
        return_statistics: return ``(loss, ClassStatistics)``: hardest class, norms, whether each row is classified
            right.

    Returns:
        A scalar, or [N] for ``reduction="none"``, in float32 (float64 for float64 inputs).

    Under autocast ``x`` and ``weight`` are cast as for a matrix product; products are accumulated in float32 and never
    rounded.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target that is no class, or not among ``classes``, on the CPU. Elsewhere such a row is NaN, and
            wrong ``classes`` give wrong numbers, unless HYPERKERNELS_CHECK=1 asks for the error at the price of a
            synchronisation.
    """
    if not callable(margin) or isinstance(margin, type):
        raise TypeError(f"margin must be callable as margin(target_cos, x_norm); got {type(margin).__name__}")
    head = check_head(
        x,
        weight,
        target,
        scale=scale,
        classes=classes,
        class_scale=class_scale,
        bias=bias,
        sub_centers=sub_centers,
        normalize_x=normalize_x,
        normalize_weight=normalize_weight,
        ignore_index=ignore_index,
        workspace=workspace,
        skip_budget=skip_budget,
        skip_report=skip_report,
        eps=eps,
    )
    _check.state_on_device("margin", margin, "x", x)
    margin = as_margin(margin)
    margin.check(head.classes(), bool(normalize_x), bool(normalize_weight))
    if margin.own_scale is not None and head.scale.requires_grad:
        raise ValueError(f"scale must be a constant with margin {margin}, which sets the scale itself")
    label_smoothing = _check.number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
    if label_smoothing and skip_budget:
        raise ValueError("skip_budget must be 0 with label_smoothing, whose gradient reaches every class")
    loss, statistics, head = losses.margin_softmax(
        head,
        margin,
        _check.choice("reduction", reduction, REDUCTIONS),
        label_smoothing,
        _check.choice("smoothing_over", smoothing_over, SMOOTHING),
    )
    return (loss, ClassStatistics(*statistics, head.correct(statistics))) if return_statistics else loss
