from __future__ import annotations

from typing import Any

import torch

from .. import _check
from .._dtypes import widest_dtype
from ..heads.functional import LARGEST_SCALE, REDUCTIONS, SMOOTHING, margin_softmax_loss
from ..margins import ArcFace, Margin
from ..margins.base import Callback


class MarginHead(torch.nn.Module):
    """What a head with a margin is apart from its centres: the options, checked, and the report of skipped tiles."""

    _skip_report: torch.Tensor | None

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        margin: Margin | Callback,
        scale: float,
        sub_centers: int,
        *,
        normalize_x: bool = True,
        normalize_weight: bool = True,
        ignore_index: int,
        label_smoothing: float,
        smoothing_over: str,
        skip_budget: float,
        workspace: int | None,
        eps: float,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        if not callable(margin) or isinstance(margin, type):
            raise TypeError(f"margin must be callable as margin(target_cos, x_norm); got {margin!r}")
        if isinstance(margin, Margin):
            margin.check(num_classes, normalize_x, normalize_weight)
        self.embedding_size = _check.integer("embedding_size", embedding_size, minimum=1)
        self.num_classes = _check.integer("num_classes", num_classes, minimum=1)
        self.sub_centers = _check.integer("sub_centers", sub_centers, minimum=1)
        self.margin = margin
        self.scale = _check.number("scale", scale, above=0.0, maximum=LARGEST_SCALE)
        self.normalize_x = normalize_x
        self.normalize_weight = normalize_weight
        self.ignore_index = _check.integer("ignore_index", ignore_index)
        self.label_smoothing = _check.number("label_smoothing", label_smoothing, minimum=0.0, maximum=1.0)
        self.smoothing_over = _check.choice("smoothing_over", smoothing_over, SMOOTHING)
        self.skip_budget = _check.number("skip_budget", skip_budget, minimum=0.0, maximum=1.0)
        self.workspace = None if workspace is None else _check.integer("workspace", workspace, minimum=0)
        self.eps = _check.number("eps", eps, above=0.0)
        report = torch.zeros(2, device=device) if self.skip_budget else None
        report = None if report is None else report.to(widest_dtype(report.device))
        self.register_buffer("_skip_report", report, persistent=False)

    @property
    def dropped_mass(self) -> torch.Tensor:
        """The share of the gradient that the last backward left out, at most ``skip_budget``: a scalar in float64,
        or in float32 on a device without float64."""
        return self._report()[0]

    @property
    def skipped_tiles(self) -> torch.Tensor:
        """The share of tiles of classes that the last backward left out: a scalar of the same dtype."""
        return self._report()[1]

    def _report(self) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.float64) if self._skip_report is None else self._skip_report

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # The report is moved in float32, which every device has. The op writes the widest dtype of the device, so it
        # is converted to that afterwards, also where `.half()` has converted all floating buffers.
        if self._skip_report is not None:
            self._skip_report = self._skip_report.float()
        super()._apply(fn, recurse)
        if self._skip_report is not None:
            self._skip_report = self._skip_report.to(widest_dtype(self._skip_report.device))
        return self

    def extra_repr(self) -> str:
        sizes = f"embedding_size={self.embedding_size}, num_classes={self.num_classes}"
        centers = f", sub_centers={self.sub_centers}" if self.sub_centers > 1 else ""
        # A module among the margins is printed below, as a child.
        margin = "" if isinstance(self.margin, torch.nn.Module) else f", margin={self.margin}"
        return f"{sizes}{centers}{margin}, scale={self.scale}"


class MarginSoftmax(MarginHead):
    """A classification head on the hypersphere: class centres, a margin and the softmax loss.

    Args:
        embedding_size: D, at least 1.
        num_classes: C, at least 1.
        margin: one of ``hk.margins`` or a callable of the user's own, ``(target_cos [N], x_norm [N]) -> target logit /
            scale [N]``; where it is a module, its parameters and buffers are part of this one.
        scale: inverse temperature s, above 0.
        sub_centers: K, at least 1.
        learn_scale: s is a parameter, ``log_scale``, so that it stays above 0.
        class_scale: learn one factor of the logits a class (nGPT's s_z); it starts at 1.
        bias: learn one term of the logits a class; it starts at 0.
        skip_budget: the share of the gradient that the backward may leave out (see ``hk.margin_softmax_loss``). After a
            backward ``dropped_mass`` and ``skipped_tiles`` say what was left out.
        normalize_x, normalize_weight, reduction, ignore_index, label_smoothing, smoothing_over, workspace, eps: as in
            ``hk.margin_softmax_loss``.
        device, dtype: of the weight.

    Attributes:
        weight: centres [C * K, D], row = class * K + centre, drawn from N(0, 1/D), so that their norms start at one.
            Only their directions matter where they are normalised.

    Shape: ``forward(x [N, D], target [N] int64) -> loss``, a scalar or [N] as ``reduction`` says; with
    ``return_statistics=True`` a pair of it and ``hk.ClassStatistics``.

    Raises:
        TypeError, ValueError: a wrong argument, named.

    ArcFace, Deng et al., 2019 (arXiv 1801.07698); CosFace, Wang et al., 2018 (arXiv 1801.09414); sub-centres, Deng et
    al., ECCV 2020.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        margin: Margin | Callback = ArcFace(0.5),
        scale: float = 64.0,
        sub_centers: int = 1,
        *,
        learn_scale: bool = False,
        class_scale: bool = False,
        bias: bool = False,
        normalize_x: bool = True,
        normalize_weight: bool = True,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        smoothing_over: str = "all",
        skip_budget: float = 0.0,
        workspace: int | None = None,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embedding_size,
            num_classes,
            margin,
            scale,
            sub_centers,
            normalize_x=normalize_x,
            normalize_weight=normalize_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            smoothing_over=smoothing_over,
            skip_budget=skip_budget,
            workspace=workspace,
            eps=eps,
            device=device,
        )
        if learn_scale and isinstance(margin, Margin) and margin.own_scale is not None:
            raise ValueError(f"learn_scale must be False with margin {margin}, which sets the scale itself")
        self.reduction = _check.choice("reduction", reduction, REDUCTIONS)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = parameter(num_classes * sub_centers, embedding_size)
        self.log_scale = parameter() if learn_scale else None
        self.class_scale = parameter(num_classes) if class_scale else None
        self.bias = parameter(num_classes) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=self.embedding_size**-0.5)
        with torch.no_grad():
            if self.log_scale is not None:
                self.log_scale.fill_(self.scale).log_()
            if self.class_scale is not None:
                self.class_scale.fill_(1.0)
            if self.bias is not None:
                self.bias.zero_()

    @staticmethod
    def _learned_scale(log_scale: torch.Tensor) -> torch.Tensor:
        # In half precision 64 would come back as 63.75.
        return (log_scale if log_scale.dtype == torch.float64 else log_scale.float()).exp()

    def forward(self, x: torch.Tensor, target: torch.Tensor, return_statistics: bool = False) -> Any:
        return margin_softmax_loss(
            x,
            self.weight,
            target,
            margin=self.margin,
            scale=self.scale if self.log_scale is None else self._learned_scale(self.log_scale),
            class_scale=self.class_scale,
            bias=self.bias,
            sub_centers=self.sub_centers,
            normalize_x=self.normalize_x,
            normalize_weight=self.normalize_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            smoothing_over=self.smoothing_over,
            skip_budget=self.skip_budget,
            skip_report=self._skip_report,
            workspace=self.workspace,
            eps=self.eps,
            return_statistics=return_statistics,
        )
