from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .. import _check
from ..heads.sum_functional import sface_loss, sphereface2_loss, uniface_loss
from .loss_module import LossModule

SHARED = ("sub_centers", "reduction", "ignore_index", "workspace", "eps")


class _SumHead(LossModule):
    """Class centres, and the options of the loss."""

    _loss: Callable[..., torch.Tensor]

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        sub_centers: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        scale: float,
        **options: Any,
    ) -> None:
        scale = _check.number("scale", scale, above=0.0)
        super().__init__(scale=scale, **options, sub_centers=_check.integer("sub_centers", sub_centers, minimum=1))
        self.embedding_size = _check.integer("embedding_size", embedding_size, minimum=1)
        self.num_classes = _check.integer("num_classes", num_classes, minimum=1)
        shape = (num_classes * sub_centers, embedding_size)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=self.embedding_size**-0.5)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        learned = (self.weight, target, self.bias) if hasattr(self, "bias") else (self.weight, target)
        return type(self)._loss(x, *learned, **{name: getattr(self, name) for name in self._options})

    def extra_repr(self) -> str:
        return f"embedding_size={self.embedding_size}, num_classes={self.num_classes}, {super().extra_repr()}"


class SFace(_SumHead):
    """Class centres and the SFace loss (Zhong et al., 2021, arXiv 2205.12010; see ``hk.sface_loss``).

    Args:
        embedding_size: D, at least 1.
        num_classes: C, at least 1.
        scale, k, a, b: of the loss.
        sub_centers, reduction, ignore_index, workspace, eps: as in ``hk.sface_loss``.
        device, dtype: of the weight.

    Attributes:
        weight: centres [C * sub_centers, D], drawn from N(0, 1/D). Only their directions matter.

    Shape: ``forward(x [N, D], target [N] int64) -> loss``, a scalar or [N] as ``reduction`` says.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    scale: float
    k: float
    a: float
    b: float
    _loss = staticmethod(sface_loss)
    _options = ("scale", "k", "a", "b", *SHARED)

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        scale: float = 64.0,
        k: float = 80.0,
        a: float = 0.8,
        b: float = 1.23,
        sub_centers: int = 1,
        reduction: str = "mean",
        ignore_index: int = -100,
        workspace: int | None = None,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embedding_size, num_classes, sub_centers, device, dtype, scale=scale, k=k, a=a, b=b, reduction=reduction,
            ignore_index=ignore_index, workspace=workspace, eps=eps,
        )  # fmt: skip
        self.reset_parameters()


class SphereFace2(_SumHead):
    """Class centres, a bias and the SphereFace2 loss (Wen et al., 2022, arXiv 2108.01513; see ``hk.sphereface2_loss``).

    Args:
        embedding_size: D, at least 1.
        num_classes: C, at least 2.
        alpha: as in ``hk.sphereface2_loss``, but within (0, 1), which the start of the bias needs.
        scale, m, t, loss_weight, gradient: of the loss.
        sub_centers, reduction, ignore_index, workspace, eps: as in ``hk.sphereface2_loss``.
        device, dtype: of the weight and the bias.

    Attributes:
        weight: centres [C * sub_centers, D], drawn from N(0, 1/D). Only their directions matter.
        bias: scalar. It starts where, with all cosines 0, the gradients of the target's term and of the others' to it
            cancel, as the paper has it.

    Shape: ``forward(x [N, D], target [N] int64) -> loss``, a scalar or [N] as ``reduction`` says.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    alpha: float
    scale: float
    m: float
    t: int
    _loss = staticmethod(sphereface2_loss)
    _options = ("alpha", "scale", "m", "t", "loss_weight", "gradient", *SHARED)

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        alpha: float = 0.7,
        scale: float = 40.0,
        m: float = 0.4,
        t: int = 3,
        loss_weight: float = 50.0,
        gradient: str = "straight_through",
        sub_centers: int = 1,
        reduction: str = "mean",
        ignore_index: int = -100,
        workspace: int | None = None,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check.integer("num_classes", num_classes, minimum=2)
        if _check.number("alpha", alpha, above=0.0) >= 1:
            raise ValueError(f"alpha must be below 1; got {alpha}")
        m, t = _check.number("m", m), _check.integer("t", t, minimum=1)
        super().__init__(
            embedding_size, num_classes, sub_centers, device, dtype, scale=scale, alpha=alpha, m=m, t=t,
            loss_weight=loss_weight, gradient=gradient, reduction=reduction, ignore_index=ignore_index,
            workspace=workspace, eps=eps,
        )  # fmt: skip
        self.bias = torch.nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        # alpha sigmoid(-z_y) = (1 - alpha) (C - 1) sigmoid(z_j) is a quadratic in exp(bias): its positive root.
        ratio = self.alpha / ((1 - self.alpha) * (self.num_classes - 1))
        own = self.scale * (2 * 0.5**self.t - 1 - self.m)
        other = self.scale * (2 * 0.5**self.t - 1 + self.m)
        root = math.sqrt((1 - ratio) ** 2 + 4 * ratio * math.exp(own - other))
        if ratio > 1:  # the same number, written so that nothing cancels
            start = math.log((ratio - 1 + root) / 2) - own
        else:
            start = math.log(2 * ratio / (1 - ratio + root)) - other
        torch.nn.init.constant_(self.bias, start)


class UniFace(_SumHead):
    """Class centres, a bias and the unified cross-entropy (Zhou et al., ICCV 2023; see ``hk.uniface_loss``).

    Args:
        embedding_size: D, at least 1.
        num_classes: C, at least 1.
        m, scale, l: of the loss.
        sub_centers, reduction, ignore_index, workspace, eps: as in ``hk.uniface_loss``.
        device, dtype: of the weight and the bias.

    Attributes:
        weight: centres [C * sub_centers, D], drawn from N(0, 1/D). Only their directions matter.
        bias: scalar; it starts at log(10 C), as the authors'.

    Shape: ``forward(x [N, D], target [N] int64) -> loss``, a scalar or [N] as ``reduction`` says.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    m: float
    scale: float
    l: float  # noqa: E741
    _loss = staticmethod(uniface_loss)
    _options = ("m", "scale", "l", *SHARED)

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        m: float = 0.4,
        scale: float = 64.0,
        l: float = 1.0,  # noqa: E741
        sub_centers: int = 1,
        reduction: str = "mean",
        ignore_index: int = -100,
        workspace: int | None = None,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embedding_size, num_classes, sub_centers, device, dtype, scale=scale, m=m, l=l, reduction=reduction,
            ignore_index=ignore_index, workspace=workspace, eps=eps,
        )  # fmt: skip
        self.bias = torch.nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        torch.nn.init.constant_(self.bias, math.log(10 * self.num_classes))
