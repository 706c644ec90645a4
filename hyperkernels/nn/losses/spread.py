"""Modules of ``hyperkernels.losses.spread``. Written by tools/modules.py from its functions."""

from __future__ import annotations

from typing import Any

import torch

from ... import losses
from ..loss_module import LossModule


class CalibratedUniformityLoss(LossModule):
    """Calibrated uniformity of CM3 (arXiv 2508.01226): items that are alike may lie closer,

        log of the mean over i < j of e^{-t (|x_i - x_j|^2 - 2 + 2 sim_ij)},   sim = clamp(cos(f_i, f_j), min, max)

    of unit rows. The clamp needs both similarities of a pair at once: this is plain PyTorch over blocks of rows, whose
    similarities are computed again for the gradient. N x N of them are never stored, but in a program that torch.export
    made, which takes all rows as one block.

    The module of ``hk.losses.calibrated_uniformity``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        t: above 0.
        min_sim, max_sim: range of the calibration, min_sim <= max_sim.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16; made unit rows.
        fused: [N, E] features f of the same items; made unit rows. The gradient flows to both.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 for fewer than two rows.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    t: float
    min_sim: float
    max_sim: float
    _options = ("t", "min_sim", "max_sim")

    def __init__(self, *, t: float = 2.0, min_sim: float = 0.0, max_sim: float = 0.8) -> None:
        super().__init__(t=t, min_sim=min_sim, max_sim=max_sim)

    def forward(self, x: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
        return losses.calibrated_uniformity(x, fused, t=self.t, min_sim=self.min_sim, max_sim=self.max_sim)


class MEOWLoss(LossModule):
    """The contrastive term of MEOW (arXiv 2212.13847): a negative weighs as much as clusterings tell it apart,

        loss_i = log sum_j W_ij e^{s_ij / t} - s_ii / t,   W_ij = number of clusterings k with c_k(i) != c_k(j)

    with the cosine s_ij of row i of x and row j of ref, two views. (Its prototype term is
    ``hk.margin_softmax_loss`` with a ``class_scale``.)

    The module of ``hk.losses.meow``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        temperature: above 0; a tensor of one element may be learned.
        reduction: "mean" over the rows, "sum", or "none": [N]. A row that no clustering tells from any other has 0.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N, K] int64: K clusterings of the rows.
        ref: [M, D] of the dtype of x, M at least N; row i is the other view of row i.
        ref_labels: [M, K]; None: labels, M = N.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    temperature: torch.Tensor | float
    reduction: str
    _options = ("temperature", "reduction")

    def __init__(self, *, temperature: torch.Tensor | float = 0.5, reduction: str = "mean") -> None:
        super().__init__(temperature=temperature, reduction=reduction)

    def forward(
        self, x: torch.Tensor, labels: torch.Tensor, ref: torch.Tensor, ref_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        return losses.meow(x, labels, ref, ref_labels, temperature=self.temperature, reduction=self.reduction)


class NearestPairPackingLoss(LossModule):
    """The packing of HyperFace (arXiv 2411.08470): drives the closest pair of points apart, and the points towards the
    gallery,

        loss = -min_{i != j} d(x_i, x_j) + alpha * mean_i min_g d(x_i, g),   d = 1 - cosine

    The gradient reaches the closest pair (the lowest indices on ties) and the nearest of the gallery of every row.

    The module of ``hk.losses.nearest_pair_packing``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        alpha: weight of the second term.

    Forward:
        x: points [N, D]; float64, float32, bfloat16 or float16.
        gallery: [M, D] of the dtype of x; None: no second term.

    Returns:
        A scalar; float32, float64 for float64 inputs. A term without a pair is 0.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    alpha: float
    _options = ("alpha",)

    def __init__(self, *, alpha: float = 0.5) -> None:
        super().__init__(alpha=alpha)

    def forward(self, x: torch.Tensor, gallery: torch.Tensor | None = None) -> torch.Tensor:
        return losses.nearest_pair_packing(x, gallery, alpha=self.alpha)


class SigLIPLoss(LossModule):
    """Sigmoid loss (Zhai et al., arXiv 2303.15343): every pair is a classification of its own,

        loss_i = sum_P softplus(-(t s + b)) + sum_N softplus(t s + b)

    The module of ``hk.losses.siglip``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        t: scale of the cosines (the exponential of the paper's t'); a tensor of one element may be learned.
        b: bias; a tensor of one element may be learned.
        reduction: "mean" over the rows, "sum", or "none": [N].
        process_group: the ranks whose batches make one, or None: this process alone. Every rank gives its own rows, as
            many as it has; the loss, the same number on all of them, is that of the ranks' arguments put together, and
            labels and ids are to be understood among all ranks. The positive in row i of ref is on the same rank, and
            queue is the same on all ranks. What else is learned (temperature, queue) gets the whole of its gradient on
            every rank. With reduction "none": the rows of this rank; their gradients are those of the sum over ranks of
            what each makes of its own.
        communication: "gather": every rank has the rows of ref (None: of x) of all ranks in memory. "ring": they travel
            from rank to rank, each rank having a few ranks' of them at a time, in its backward once more.
        gradient_reduction: how the wrapper of the backbone reduces its gradients over ranks: "mean", as
            DistributedDataParallel and ``fully_shard`` do, or "sum". The loss is one of the global batch already, so
            for "mean" the gradients of x, ref and positive are multiplied by the number of ranks.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        ref: [M, D] of the dtype of x.
        labels, ref_labels: [N] and [M] int64; positives are the pairs of equal labels. None: row i of ref is the
            positive of row i, M at least N.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count, but for the positive in row i of
            ref.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    t: torch.Tensor | float
    b: torch.Tensor | float
    reduction: str
    process_group: Any
    communication: str
    gradient_reduction: str
    _options = ("t", "b", "reduction", "process_group", "communication", "gradient_reduction")

    def __init__(
        self,
        *,
        t: torch.Tensor | float = 10.0,
        b: torch.Tensor | float = -10.0,
        reduction: str = "mean",
        process_group: Any = None,
        communication: str = "gather",
        gradient_reduction: str = "mean",
    ) -> None:
        super().__init__(
            t=t,
            b=b,
            reduction=reduction,
            process_group=process_group,
            communication=communication,
            gradient_reduction=gradient_reduction,
        )

    def forward(
        self,
        x: torch.Tensor,
        ref: torch.Tensor,
        labels: torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return losses.siglip(
            x,
            ref,
            labels,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            t=self.t,
            b=self.b,
            reduction=self.reduction,
            process_group=self.process_group,
            communication=self.communication,
            gradient_reduction=self.gradient_reduction,
        )


class UniformityLoss(LossModule):
    """Uniformity (Wang and Isola, arXiv 2005.10242): log of the mean of e^{-t |x_i - x_j|^2} over all pairs i < j.

    The module of ``hk.losses.uniformity``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        t: above 0.
        similarity: "cosine": the rows are made unit rows first, and the gradient is tangent to the sphere.
            "squared_euclidean": they are taken as they are, as in the authors' program.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        ref: [M, D] of the dtype of x: the mean is over its pairs with x instead.
        ids, ref_ids: int64 numbers of the samples; pairs of equal ids do not count.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 where there is no pair.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    t: float
    similarity: str
    _options = ("t", "similarity")

    def __init__(self, *, t: float = 2.0, similarity: str = "cosine") -> None:
        super().__init__(t=t, similarity=similarity)

    def forward(
        self,
        x: torch.Tensor,
        ref: torch.Tensor | None = None,
        *,
        ids: torch.Tensor | None = None,
        ref_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return losses.uniformity(x, ref, ids=ids, ref_ids=ref_ids, t=self.t, similarity=self.similarity)
