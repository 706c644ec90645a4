from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from ... import _check
from ..._autocast import autocast
from ...distributed.draws import shared
from ...distributed.head import Shard
from ...heads import losses
from ...margins import Margin
from ...nn.partial_fc import PartialFC
from .losses import MarginLoss, class_labels

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LARGEST_LOSS = -math.log(1e-30)  # of a row


class _DenseGradient(torch.autograd.Function):
    """The weight itself; its gradient, which the head makes row-sparse, as a matrix with rows of zeros."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor]:  # type: ignore[override]
        return (gradient.to_dense(),)


class PartialFC_V2(PartialFC):
    """insightface's class-sharded head, with its numbers, in one process as well.

    Args:
        margin_loss: ``CombinedMarginLoss``, ``ArcFace`` or ``CosFace`` of this package, whose attributes are read at
            every step, or a margin of ``hk.margins``.
        embedding_size, num_classes: D, and C of all ranks together.
        sample_rate: in [0, 1]; below 1, every step takes int(sample_rate * num_local) of this rank's classes, those of
            the batch and others at random from the default generator of the CPU, or those of the batch alone where they
            are more. The gradient of the weight is a whole matrix all the same.
        fp16: the products are taken in float16. Otherwise in the dtype of the weight, whatever autocast says.
        scale: with a margin of ``hk.margins``; the classes of this package have their own.
        process_group, batch_size, ignore_index, workspace, device, dtype: as in ``hk.nn.PartialFC``.

    Attributes:
        weight: this rank's centres [num_local, D], drawn from N(0, 0.01^2) by the default generator: after one seed on
            all ranks, those of all ranks begin alike.
        rank, world_size, num_local, class_start, embedding_size, sample_rate: of this process and its classes.
        num_sample: int(sample_rate * num_local).
        weight_index: the classes of the last step, counted from class_start, increasing; None where all take part.

    Shape: ``forward(local_embeddings [b, D], local_labels [b] or [b, 1]) -> loss``, a scalar, the same on all ranks. A
    row's loss is at most 69.08, -log(1e-30), and its gradient goes on. The gradient of the embeddings, and of nothing
    else, is multiplied by the number of ranks, over which DistributedDataParallel takes the mean.

    The ``state_dict`` is that of insightface, ``{"weight": [num_local, D]}`` of this rank, and a margin's state if it
    has one.

    Raises:
        TypeError, ValueError: a wrong argument, named; a ``margin_loss`` that needs the matrix of logits.
        IndexError, RuntimeError: as ``hk.nn.PartialFC``.
    """

    _version = 2  # of the state_dict

    def __init__(
        self,
        margin_loss: MarginLoss | Margin,
        embedding_size: int,
        num_classes: int,
        sample_rate: float = 1.0,
        fp16: bool = False,
        *,
        scale: float = 64.0,
        process_group: ProcessGroup | None = None,
        batch_size: int | None = None,
        ignore_index: int = -100,
        workspace: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        own, margin = None, margin_loss
        if isinstance(margin_loss, MarginLoss) and type(margin_loss).forward is MarginLoss.forward:
            own, margin, scale = margin_loss, margin_loss.fused(), margin_loss.s
        if not isinstance(margin, Margin):
            raise TypeError(
                "margin_loss must be a CombinedMarginLoss, ArcFace or CosFace of hyperkernels.compat.insightface, or a "
                f"margin of hk.margins; got {margin_loss!r}. A function (logits, labels) -> logits needs the matrix of "
                "logits, which is never made: derive from hk.margins.Margin, or give hk.nn.PartialFC a function "
                "(target_cos [N], x_norm [N]) -> target logit / scale [N]"
            )
        super().__init__(
            embedding_size,
            num_classes,
            margin,
            scale,
            sample_rate=sample_rate,
            process_group=process_group,
            batch_size=batch_size,
            ignore_index=ignore_index,
            workspace=workspace,
            device=device,
            dtype=dtype,
        )
        self.margin_softmax = own
        self.fp16 = bool(fp16)
        self.num_sample = int(self.sample_rate * self.num_local)
        self.weight_index: torch.Tensor | None = None
        self.register_buffer("draws", self.draws, persistent=False)

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=0.01)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super(PartialFC, self)._save_to_state_dict(destination, prefix, keep_vars)  # not its DTensor

    def _sample(self, local: torch.Tensor, shard: Shard, step: torch.Tensor) -> torch.Tensor | None:
        if self.sample_rate == 1:
            return None
        positive = local[local >= 0].unique()
        self.weight_index = positive
        # insightface has no step of which neither batch nor sample holds a class of this shard: here it is one class.
        count = max(self.num_sample, 1 - len(positive))
        if count >= len(positive):
            order = torch.rand(self.num_local, device="cpu").to(positive.device)
            order[positive] = 2.0
            self.weight_index = order.topk(count).indices.sort().values
        return self.weight_index

    def forward(  # type: ignore[override]
        self, local_embeddings: torch.Tensor, local_labels: torch.Tensor
    ) -> torch.Tensor:
        x = _check.tensor("local_embeddings", local_embeddings, dim=2)
        labels = class_labels("local_labels", local_labels, len(x))
        margin, step = self.margin, self.draws.clone()
        if self.training:
            self.draws.add_(1)
        if self.margin_softmax is not None:
            margin, self.scale = self.margin_softmax.fused(), self.margin_softmax.s
        with autocast(x, torch.float16 if self.fp16 else None):
            head, _ = self.head(x, labels, step)
        if head.sampled is not None:
            if head.receiver is not None and torch.is_grad_enabled():
                raise RuntimeError(
                    "weight must not be updated in its backward with sample_rate < 1: its gradient is a whole matrix "
                    "then, as insightface's; hk.nn.PartialFC updates the sampled rows alone"
                )
            head = head._replace(weight=_DenseGradient.apply(head.weight))
        rows, _, head = losses.margin_softmax(head, shared(margin, ~self.seed, step), "none", 0.0, "all")
        rows = rows - (rows.detach() - LARGEST_LOSS).clamp_min(0)
        return losses.reduce(rows, head.counted(), "mean")
