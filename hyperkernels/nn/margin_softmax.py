from __future__ import annotations

import torch

from .. import _check
from ..margin_softmax.functional import margin_softmax_loss
from ..margin_softmax.margins import ArcFace, Margin


class MarginSoftmax(torch.nn.Module):
    """A classification head on the hypersphere: class centres, a margin and the softmax loss.

    Args:
        embedding_size: D, at least 1.
        num_classes: C, at least 1.
        margin: a callable of ``hk.margins`` or the user's own, ``(target_cos [N], x_norm [N]) -> target logit / scale
            [N]``; where it is a module, its parameters and buffers are part of this one.
        scale: inverse temperature s, above 0.
        reduction, ignore_index, label_smoothing, workspace, eps: as in ``hk.margin_softmax_loss``.
        device, dtype: of the weight.

    Attributes:
        weight: centres [C, D], drawn from N(0, 1/D), so that their norms start at one. Only their directions matter.

    Shape: ``forward(x [N, D], target [N] int64) -> loss``, a scalar or [N] as ``reduction`` says.

    Raises:
        TypeError, ValueError: a wrong argument, named.

    ArcFace, Deng et al., 2019 (arXiv 1801.07698); CosFace, Wang et al., 2018 (arXiv 1801.09414).
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        margin: Margin = ArcFace(0.5),
        scale: float = 64.0,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        workspace: int | None = None,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embedding_size = _check.integer("embedding_size", embedding_size, minimum=1)
        self.num_classes = _check.integer("num_classes", num_classes, minimum=1)
        self.margin = margin
        self.scale = _check.number("scale", scale, above=0.0)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.workspace = workspace
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(num_classes, embedding_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=self.embedding_size**-0.5)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return margin_softmax_loss(
            x,
            self.weight,
            target,
            margin=self.margin,
            scale=self.scale,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            workspace=self.workspace,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        sizes = f"embedding_size={self.embedding_size}, num_classes={self.num_classes}"
        return f"{sizes}, margin={self.margin}, scale={self.scale}"
