"""Problems, and the head as a user writes it, for the tests of the class softmax."""

import torch
import torch.nn.functional as F

import hyperkernels as hk
from hyperkernels._dtypes import accumulate_dtype
from hyperkernels.kernels.margin_softmax import reference
from hyperkernels.kernels.margin_softmax.problem import Options

BACKENDS = ("cpp", "reference")
MARGINS = (hk.margins.NormFace(), hk.margins.CosFace(0.35), hk.margins.ArcFace(0.5))


def problem(n, c, d, dtype=torch.float32, ignored=0, near=0.0):
    """x, weight with norms far from one, target; `near` pulls every sample to its centre."""
    weight = torch.randn(c, d, dtype=torch.float64) * torch.rand(c, 1, dtype=torch.float64).add(0.2)
    target = torch.randint(c, (n,))
    x = torch.randn(n, d, dtype=torch.float64) * 3 + near * weight[target]
    target[:ignored] = -100
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def loss_and_gradients(x, weight, target, **options):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = hk.margin_softmax_loss(x, weight, target, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (x, weight))


def textbook_head(x, weight, target, margin, scale, smoothing=0.0):
    """What a user writes: normalise, multiply, replace the target's cosine, cross-entropy."""
    cos = F.linear(F.normalize(x), F.normalize(weight))
    psi = margin(cos.gather(1, target[:, None])[:, 0], x.norm(dim=1))
    logits = scale * cos.scatter(1, target[:, None], psi[:, None])
    return F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")


def textbook_loss_and_gradients(x, weight, target, margin, scale=64.0):
    leaves = [v.detach().requires_grad_() for v in (x, weight)]
    loss = textbook_head(*leaves, target, margin, scale)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)


def op_arguments(
    x,
    weight,
    target,
    scale,
    block,
    kept_blocks,
    *,
    transform=None,
    class_scale=None,
    bias=None,
    classes=None,
    **options,
):
    """All arguments of the dispatcher op, in order; ``scale`` is a number or [N]."""
    dtype = accumulate_dtype(x.dtype)
    if not isinstance(scale, torch.Tensor):
        scale = torch.full((len(x),), float(scale), dtype=dtype)
    constants = Options(**options)
    return (x, weight, target, scale, class_scale, bias, transform, classes, *constants, block, kept_blocks, 0.0, None)


def reference_statistics(x, weight, target, scale, **options):
    return reference.class_statistics(*op_arguments(x, weight, target, scale, 0, 0, **options)[:15])


def backward_arguments(forward_arguments, outputs, incoming, needs=(True, True, False, False)):
    """The arguments of the backward op, from those of the forward and what it returned."""
    (x_norm, target_center, top, log_sum, w_norm, kept) = (outputs[i] for i in (2, 6, 9, 10, 12, 14))
    skip = torch.empty(0, dtype=torch.uint8)
    saved = (x_norm, target_center, top, log_sum, w_norm, kept, skip)
    return (*incoming, *forward_arguments[:8], *saved, *forward_arguments[8:17], *needs)
