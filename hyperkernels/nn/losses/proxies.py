"""Modules of ``hyperkernels.losses.proxies``. Written by tools/modules.py from its functions."""

from __future__ import annotations

import torch

from ... import losses
from ..loss_module import LossModule, ProxyLoss


class NBCSoftmaxLoss(LossModule):
    """The block term of NBC-Softmax (arXiv 2212.08184), which keeps the means of the batch's classes apart,

        loss = 1/C sum over the classes k of the batch of log(1 + sum_{l != k} e^{scale * cos(mu_k, mu_l)})

    to be added to a softmax over the classes. (The authors' program adds 1e-10 within the logarithm.)

    The module of ``hk.losses.nbc_softmax``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        scale: multiplies the cosines (tau in the paper); a number, or a tensor of one element, which may be learned.
        num_classes: C; None: the number of classes in the batch.

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16. The means are of the rows as they are.
        labels: [N] int64.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 where there are fewer than two classes.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    scale: torch.Tensor | float
    num_classes: int | None
    _options = ("scale", "num_classes")

    def __init__(self, *, scale: torch.Tensor | float = 0.2, num_classes: int | None = None) -> None:
        super().__init__(scale=scale, num_classes=num_classes)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses.nbc_softmax(x, labels, scale=self.scale, num_classes=self.num_classes)


class ProxyAnchorLoss(ProxyLoss):
    """Proxy-Anchor (Kim et al., arXiv 2003.13911): the proxies are the rows, the batch the columns,

        loss = 1/C+ sum_c log(1 + sum_{i of c} e^{-alpha (s_ci - margin)})
             + 1/C  sum_c log(1 + sum_{i not of c} e^{alpha (s_ci + margin)})

    with the cosine s_ci and C+ proxies that have a row of their label in the batch.

    The module of ``hk.losses.proxy_anchor``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        num_classes: C, at least 1.
        embedding_size: D, at least 1.
        margin: a cosine.
        alpha: a number, or a tensor of one element, which may be learned.
        device, dtype: of ``proxies``.

    Attributes:
        proxies: the centres of the classes, [C, D], or [C * centers_per_class, D] with row = class * centers_per_class
            + centre. Drawn from N(0, 1/D).

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.

    Returns:
        A scalar; float32, float64 for float64 inputs. 0 where there is no pair.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    proxies: torch.nn.Parameter
    margin: float
    alpha: torch.Tensor | float
    _options = ("margin", "alpha")

    _centers = "proxies"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        margin: float = 0.1,
        alpha: torch.Tensor | float = 32.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_classes, embedding_size, device, dtype, margin=margin, alpha=alpha)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses.proxy_anchor(x, labels, self.proxies, margin=self.margin, alpha=self.alpha)


class ProxyNCALoss(ProxyLoss):
    """Proxy-NCA (Movshovitz-Attias et al., arXiv 1703.07464): ``nca`` with the proxies of the classes as neighbours,

        loss_i = log sum over all proxies of e^{softmax_scale * s} - log sum over the proxies of y_i

    The sum is over all proxies, as in Proxy-NCA++ and pytorch-metric-learning; the paper leaves the own one out.

    The module of ``hk.losses.proxy_nca``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        num_classes: C, at least 1.
        embedding_size: D, at least 1.
        similarity: "cosine", "dot", "euclidean" or "squared_euclidean" (minus the distance).
        normalize: unit rows first, whatever the similarity.
        softmax_scale: a number, or a tensor of one element, which may be learned.
        reduction: "mean" over the rows that have a proxy, "sum", or "none": [N], 0 for rows without one.
        device, dtype: of ``proxies``.

    Attributes:
        proxies: the centres of the classes, [C, D], or [C * centers_per_class, D] with row = class * centers_per_class
            + centre. Drawn from N(0, 1/D).

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    proxies: torch.nn.Parameter
    similarity: str
    normalize: bool
    softmax_scale: torch.Tensor | float
    reduction: str
    _options = ("similarity", "normalize", "softmax_scale", "reduction")

    _centers = "proxies"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        similarity: str = "squared_euclidean",
        normalize: bool = True,
        softmax_scale: torch.Tensor | float = 1.0,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            device,
            dtype,
            similarity=similarity,
            normalize=normalize,
            softmax_scale=softmax_scale,
            reduction=reduction,
        )

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses.proxy_nca(
            x,
            labels,
            self.proxies,
            similarity=self.similarity,
            normalize=self.normalize,
            softmax_scale=self.softmax_scale,
            reduction=self.reduction,
        )


class SoftTripleLoss(ProxyLoss):
    """SoftTriple (Qian et al., arXiv 1909.05235): a softmax over classes of several centres,

        S_ic = sum_k softmax_k(s_ick / gamma) s_ick,   loss_i = cross-entropy of la * (S_ic - margin * [c = y_i])

    with the cosine s_ick. This is plain PyTorch over blocks of classes, whose similarities are computed again for the
    gradient: N x C * K of them are never stored, but in a program that torch.export made, which takes all classes as
    one block.

    The module of ``hk.losses.soft_triple``. A Parameter among the options is learned, a tensor is a buffer.

    Args:
        num_classes: C, at least 1.
        embedding_size: D, at least 1.
        centers_per_class: K.
        la: scale of the logits (lambda in the paper).
        gamma: temperature among the centres of a class, above 0.
        margin: a cosine.
        reduction: "mean" over the rows that count, "sum", or "none": [N].
        device, dtype: of ``centers``.

    Attributes:
        centers: the centres of the classes, [C, D], or [C * centers_per_class, D] with row = class * centers_per_class
            + centre. Drawn from N(0, 1/D).

    Forward:
        x: embeddings [N, D]; float64, float32, bfloat16 or float16.
        labels: [N] int64, classes 0 to C - 1; rows of another label do not count.

    Returns:
        float32, float64 for float64 inputs.

    Raises:
        TypeError, ValueError: a wrong argument, named.
    """

    centers: torch.nn.Parameter
    centers_per_class: int
    la: float
    gamma: float
    margin: float
    reduction: str
    _options = ("centers_per_class", "la", "gamma", "margin", "reduction")

    _centers = "centers"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        centers_per_class: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            device,
            dtype,
            centers_per_class=centers_per_class,
            la=la,
            gamma=gamma,
            margin=margin,
            reduction=reduction,
        )

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return losses.soft_triple(
            x,
            labels,
            self.centers,
            centers_per_class=self.centers_per_class,
            la=self.la,
            gamma=self.gamma,
            margin=self.margin,
            reduction=self.reduction,
        )
