from __future__ import annotations

import math

import torch

from .. import _check
from ..heads.sum_functional import sface_loss, sphereface2_loss, uniface_loss


class _SumHead(torch.nn.Module):
    """Class centres, and the arguments that the losses share."""

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        sub_centers: int,
        reduction: str,
        ignore_index: int,
        workspace: int | None,
        eps: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.embedding_size = _check.integer("embedding_size", embedding_size, minimum=1)
        self.num_classes = _check.integer("num_classes", num_classes, minimum=1)
        self.sub_centers = _check.integer("sub_centers", sub_centers, minimum=1)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.workspace = workspace
        self.eps = eps
        shape = (num_classes * sub_centers, embedding_size)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=self.embedding_size**-0.5)

    def extra_repr(self) -> str:
        return f"embedding_size={self.embedding_size}, num_classes={self.num_classes}"


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
            embedding_size, num_classes, sub_centers, reduction, ignore_index, workspace, eps, device, dtype
        )
        self.scale = _check.number("scale", scale, above=0.0)
        self.k, self.a, self.b = k, a, b
        self.reset_parameters()

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return sface_loss(
            x,
            self.weight,
            target,
            scale=self.scale,
            k=self.k,
            a=self.a,
            b=self.b,
            sub_centers=self.sub_centers,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            workspace=self.workspace,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}, k={self.k}, a={self.a}, b={self.b}"


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
        super().__init__(
            embedding_size, num_classes, sub_centers, reduction, ignore_index, workspace, eps, device, dtype
        )
        self.alpha = _check.number("alpha", alpha, above=0.0)
        if self.alpha >= 1:
            raise ValueError(f"alpha must be below 1; got {alpha}")
        self.scale = _check.number("scale", scale, above=0.0)
        self.m = _check.number("m", m)
        self.t = _check.integer("t", t, minimum=1)
        self.loss_weight = loss_weight
        self.gradient = gradient
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

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return sphereface2_loss(
            x,
            self.weight,
            target,
            self.bias,
            alpha=self.alpha,
            scale=self.scale,
            m=self.m,
            t=self.t,
            loss_weight=self.loss_weight,
            gradient=self.gradient,
            sub_centers=self.sub_centers,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            workspace=self.workspace,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}, scale={self.scale}, m={self.m}, t={self.t}"


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
            embedding_size, num_classes, sub_centers, reduction, ignore_index, workspace, eps, device, dtype
        )
        self.m, self.l = m, l
        self.scale = _check.number("scale", scale, above=0.0)
        self.bias = torch.nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        torch.nn.init.constant_(self.bias, math.log(10 * self.num_classes))

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return uniface_loss(
            x,
            self.weight,
            target,
            self.bias,
            m=self.m,
            scale=self.scale,
            l=self.l,
            sub_centers=self.sub_centers,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            workspace=self.workspace,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, m={self.m}, scale={self.scale}, l={self.l}"
