"""The formulas in plain PyTorch, any dtype, with the N x C matrix in memory: what the kernels are compared with."""

from typing import Any

import torch
import torch.nn.functional as F

from ..._autocast import autocast
from .negatives import SUMS
from .problem import target_dtype
from .rows import rows_of_classes, take_rows, unit_rows


def target_cosines(
    x: torch.Tensor,  # [N, D]
    centre: torch.Tensor,  # [N, D], of each row's own class
    normalize_x: bool,
    normalize_weight: bool,
    eps: float,
) -> torch.Tensor:
    """The cosines [N] between rows and centres in float64, where the device has it."""
    dtype = torch.promote_types(x.dtype, target_dtype(x.device))
    x, centre = x.to(dtype), centre.to(dtype)
    x = unit_rows(x, eps)[0] if normalize_x else x
    return (x * (unit_rows(centre, eps)[0] if normalize_weight else centre)).sum(1)


def with_slope(value: torch.Tensor, slope: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """`value` with the gradient `slope` to `cos`."""
    return value.detach() + slope.detach() * (cos - cos.detach())


class Unknown(torch.autograd.Function):
    """0, and NaN for the rows of x that are not finite, which then stand for what follows from them.

    What flows into such a row makes the gradients of x there and of the other tensors NaN, unless it is zero: a row
    that is left out of a loss reaches no one.
    """

    generate_vmap_rule = True

    # Each input by its name: compilers of older torches cannot count those of *others.
    @staticmethod
    def forward(
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        class_scale: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        return torch.where(x.isfinite().all(1), 0, torch.nan).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor | None, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.like = [None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (output,) = ctx.saved_tensors
        hit = output.isnan() & (gradient != 0)
        (shape, dtype), *others = ctx.like
        of_x = torch.where(hit[:, None], torch.nan, 0).to(dtype).expand(shape)
        some = hit.any()
        return of_x, *(
            None if like is None else torch.where(some, torch.nan, 0).to(like[1]).expand(like[0]) for like in others
        )


class UnknownWithTangents(Unknown):
    """The same in forward mode. Compilers of older torches take no Function that knows it."""

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros_like(tangents[0].sum(1))


def transform_cosines(
    kind: str,  # of `negatives.KINDS`
    cos: torch.Tensor,  # [N, C]
    parameters: torch.Tensor | None,  # [N, P]
    scale: torch.Tensor,  # [N]
    bias: torch.Tensor | None,  # [C]
) -> torch.Tensor:
    """phi, or f, of `negatives`: [N, C]."""
    if kind == "cosine":
        return cos
    p = [] if parameters is None else [column[:, None] for column in parameters.unbind(1)]
    s, b, c = scale[:, None], 0 if bias is None else bias, cos.detach()
    if kind == "quadratic":
        threshold, q2, q1, q0, d1, d0, easy = p
        hard = c > threshold
        value = torch.where(hard, (q2 * c + q1) * c + q0, easy * c)
        return with_slope(value, torch.where(hard, d1 * c + d0, easy), cos)
    if kind == "gaussian":
        center, alpha, sigma = p
        r = alpha * torch.exp(-((c - center) ** 2) / sigma)
        return with_slope(r * c + r - 1, r, cos)
    theta = c.clamp(-1, 1).acos()
    if kind == "angle":
        divisor, straight = p
        sin = theta.sin()
        # The limits: 1 / divisor^2 at theta = 0; at pi the slope is infinite and its weight is not: it is taken as 0.
        exact = torch.where(theta < 1e-4, 1 / divisor**2, (theta / divisor).sin() / (divisor * sin))
        exact = torch.where((sin <= 1e-6) & (theta > 1), 0, exact)
        return with_slope((theta / divisor).cos(), torch.where(straight != 0, 1, exact), cos)
    if kind == "sface":
        steepness, angle = p
        weight = torch.sigmoid(-steepness * (theta - angle))
        return with_slope(s * weight * c, s * weight, cos)
    if kind == "sphereface2":
        margin, power, straight = p
        half = (c.clamp(-1, 1) + 1) / 2
        slope = torch.where(straight != 0, 1, power * half ** (power - 1))
        return F.softplus(s * with_slope(2 * half**power - 1 + margin, slope, cos) + b, threshold=60)
    if kind == "uniface":
        return F.softplus((s * cos + b).clamp(-s, s), threshold=60)
    raise ValueError(f"unknown kind of negatives: {kind!r}")


def class_statistics(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C*K, D]
    target: torch.Tensor,  # [N] int64, a position in `classes` where they are given
    scale: torch.Tensor,  # [N]
    class_scale: torch.Tensor | None,  # [C], or [R] of the R sampled classes, as the bias
    bias: torch.Tensor | None,  # [C]
    transform: torch.Tensor | None,  # [N, P]
    classes: torch.Tensor | None,  # [R] int64, increasing: the sampled classes, or None for all
    negatives: str,
    sub_centers: int,
    normalize_x: bool,
    normalize_weight: bool,
    eps: float,
    ignore_index: int,
    absent_index: int,
) -> tuple[torch.Tensor, ...]:
    """The nine statistics of `functional.class_statistics`, [N] each, in its order."""
    if classes is not None:
        weight = take_rows(weight, rows_of_classes(classes, sub_centers))
    x, weight = (v.float() if v.dtype.itemsize == 2 else v for v in (x, weight))
    count = len(weight) // sub_centers
    active = target != ignore_index
    here = active & (target != absent_index)
    outside = here & ((target < 0) | (target >= count))
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and bool(outside.any()):
        known = f"lie in [0, {count})" if classes is None else "be among classes"
        raise IndexError(f"target must {known} or equal ignore_index={ignore_index}")
    x = torch.where(active[:, None], x, 0)
    function = Unknown if torch.compiler.is_compiling() else UnknownWithTangents
    unknown = function.apply(x, weight, scale, class_scale, bias)
    x = torch.where(unknown.isnan()[:, None], 0, x)
    x_hat, x_norm = unit_rows(x, eps)
    w_hat = unit_rows(weight, eps)[0] if normalize_weight else weight
    with autocast(x, None):  # a cosine in half precision is no cosine
        cos = (x_hat if normalize_x else x) @ w_hat.T
    cos = cos.view(len(x), count, sub_centers)
    center = cos.detach().argmax(2) if sub_centers > 1 else torch.zeros_like(cos[..., 0], dtype=torch.int64)
    cos = cos.gather(2, center[..., None])[..., 0]  # [N, C]

    own = torch.where(here & ~outside, target, -1)
    is_target = torch.arange(count, device=x.device) == own[:, None]
    target_cos = torch.where(is_target, cos, 0).sum(1)
    target_center = torch.where(is_target, center, 0).sum(1)
    with torch.no_grad():
        centre = weight[own.clamp_min(0) * sub_centers + target_center]
        precise = target_cosines(x, centre, normalize_x, normalize_weight, eps).detach()  # of tangents, too
    target_cos = torch.where(own >= 0, precise, 0) + (target_cos - target_cos.detach())
    phi = transform_cosines(negatives, cos, transform, scale, bias)
    offset = 0 if bias is None else bias
    if class_scale is not None:
        phi = phi * class_scale
    neg_sum = torch.where(is_target, 0, phi).sum(1)
    if negatives in SUMS:
        neg_lse = torch.zeros_like(neg_sum)
    else:
        logits = (scale[:, None] * phi + offset).masked_fill(is_target, -torch.inf)
        alone = is_target.all(1)  # a row of nothing but -inf would have a gradient of NaN
        neg_lse = torch.logsumexp(torch.where(alone[:, None], 0, logits), dim=1)
        neg_lse = torch.where(alone, -torch.inf, neg_lse)
    plain = cos.detach() if class_scale is None else cos.detach() * class_scale.detach()
    if bias is not None:
        plain = plain + bias.detach() / scale.detach()[:, None]
    hardest_cos, hardest_class = plain.masked_fill(is_target, -torch.inf).max(dim=1)
    hard = torch.zeros_like(is_target)
    if negatives == "quadratic" and transform is not None:
        hard = (cos.detach() > transform[:, :1]) & ~is_target & active[:, None]
    nan = unknown + torch.where(outside, torch.nan, 0).to(cos)
    return (
        torch.where(active, neg_lse + nan, -torch.inf if negatives not in SUMS else 0),
        torch.where(active, target_cos + nan, 0),
        x_norm + unknown,
        torch.where(active, hardest_cos + unknown.detach(), -torch.inf),
        torch.where(~active | (hardest_cos == -torch.inf), -1, hardest_class),
        torch.where(active, neg_sum + unknown, 0),
        target_center,
        torch.where(hard, cos.detach(), 0).sum(1),
        hard.sum(1).to(cos.dtype),
    )
