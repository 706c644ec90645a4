"""The updates in plain PyTorch, without the row's own loop: what the kernels are compared with."""

import torch

from ..sphere.reference import EPS, direction

Rows = torch.Tensor | None


def _inside(weight: torch.Tensor, gradient: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, Rows]:
    """The gradient and its rows; what lies outside the weight is an error, or left out where data cannot raise."""
    if rows is None:
        return gradient, rows
    inside = (rows >= 0) & (rows < weight.shape[0])
    if rows.device.type == "cpu" and not bool(inside.all()):
        raise IndexError(f"rows must lie in [0, {weight.shape[0]}); got {rows[~inside][0].item()}")
    return gradient[inside], rows[inside]


def _take(tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
    return tensor if rows is None else tensor[rows]


def _put(tensor: torch.Tensor, rows: Rows, value: torch.Tensor, found_inf: Rows) -> None:
    value = value.to(tensor.dtype)
    if found_inf is not None:
        value = torch.where(found_inf != 0, _take(tensor, rows), value)
    if rows is None:
        tensor.copy_(value)
    else:
        tensor.index_copy_(0, rows, value)


def _next(step: torch.Tensor) -> torch.Tensor:
    """The count after one more update. It stays at its maximum, where the corrections of the moments are long 1."""
    return step + (step < torch.iinfo(step.dtype).max).to(step.dtype)


def _descent(
    gradient: torch.Tensor, dtype: torch.dtype, grad_scale: torch.Tensor | None, maximize: bool
) -> torch.Tensor:
    gradient = gradient.to(dtype)
    if grad_scale is not None:
        gradient = gradient / grad_scale.to(dtype)
    return -gradient if maximize else gradient


def sgd_rows_(
    weight: torch.Tensor,  # [R, D]
    momentum_buffer: torch.Tensor | None,  # [R, D]
    step: torch.Tensor,  # [R] int32
    gradient: torch.Tensor,  # [n, D]
    rows: torch.Tensor | None,  # [n] int64, distinct; None: n = R
    lr_tensor: torch.Tensor | None,  # one number, taken instead of lr
    grad_scale: torch.Tensor | None,  # one number, which the gradient is divided by
    found_inf: torch.Tensor | None,  # one number: where it is not 0 nothing changes
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    gradient, rows = _inside(weight, gradient, rows)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    w, count = _take(weight, rows).to(dtype), _take(step, rows)
    change = _descent(gradient, dtype, grad_scale, maximize) + weight_decay * w
    if momentum_buffer is not None:
        moved = momentum * _take(momentum_buffer, rows) + (1 - dampening) * change
        moved = torch.where((count == 0)[:, None], change, moved)
        _put(momentum_buffer, rows, moved, found_inf)
        change = change + momentum * moved if nesterov else moved
    rate = lr if lr_tensor is None else lr_tensor.to(dtype)
    _put(weight, rows, w - rate * change, found_inf)
    _put(step, rows, _next(count), found_inf)


def adamw_rows_(
    weight: torch.Tensor,
    exp_avg: torch.Tensor,  # [R, D]
    exp_avg_sq: torch.Tensor,  # [R, D]
    step: torch.Tensor,
    gradient: torch.Tensor,
    rows: torch.Tensor | None,
    lr_tensor: torch.Tensor | None,
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    gradient, rows = _inside(weight, gradient, rows)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    w, count = _take(weight, rows).to(dtype), _next(_take(step, rows))
    change = _descent(gradient, dtype, grad_scale, maximize)
    mean = beta1 * _take(exp_avg, rows) + (1 - beta1) * change
    square = beta2 * _take(exp_avg_sq, rows) + (1 - beta2) * change * change
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    correction1, correction2 = (1 - beta ** count.to(wide) for beta in (beta1, beta2))
    rate = lr if lr_tensor is None else lr_tensor.to(wide)
    size = (rate / correction1).to(dtype)[:, None]
    denominator = square.sqrt() / correction2.sqrt().to(dtype)[:, None] + eps
    kept = 1 - (rate.to(dtype) if isinstance(rate, torch.Tensor) else rate) * weight_decay
    _put(exp_avg, rows, mean, found_inf)
    _put(exp_avg_sq, rows, square, found_inf)
    _put(weight, rows, w * kept - size * mean / denominator, found_inf)
    _put(step, rows, count, found_inf)


def _length(v: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _tangent(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v - (x * v).sum(-1, keepdim=True) * x


def _retraction(x: torch.Tensor, change: torch.Tensor, moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The direction of x + change, and moved projected to its tangents; x and 0 where there is no direction."""
    end = x + change
    stays = _length(end) < EPS
    end = direction(torch.where(stays, x, end))
    return end, torch.where(stays, 0, _tangent(end, moved))


def sphere_sgd_(
    points: list[torch.Tensor],  # [R, D] each
    momentum_buffers: list[torch.Tensor],  # [R, D] each; empty: no momentum
    steps: list[torch.Tensor],  # [R] int32 each
    gradients: list[torch.Tensor],  # [R, D] each
    lr_tensor: torch.Tensor | None,
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """x the direction of a row of points and P the projection to its tangents: b = momentum b + (1 - dampening) P g,
    where b before the first step is g, x' the direction of x - lr b, and b is projected to the tangents of x'. Where
    x - lr b has no direction, x stays and b is 0."""
    for i, point in enumerate(points):
        dtype = torch.float64 if point.dtype == torch.float64 else torch.float32
        x = direction(point.to(dtype))
        slope = _descent(gradients[i], dtype, grad_scale, maximize)
        change = _tangent(x, slope)
        rate = lr if lr_tensor is None else lr_tensor.to(dtype)
        moved = change
        if momentum_buffers:
            before = torch.where((steps[i] == 0)[:, None], slope, momentum_buffers[i])
            moved = momentum * before + (1 - dampening) * change
        change = change + momentum * moved if nesterov else moved
        x, moved = _retraction(x, -rate * change, moved)
        if momentum_buffers:
            _put(momentum_buffers[i], None, moved, found_inf)
        _put(point, None, x, found_inf)
        _put(steps[i], None, _next(steps[i]), found_inf)


def sphere_adam_(
    points: list[torch.Tensor],  # [R, D] each
    exp_avgs: list[torch.Tensor],  # [R, D] each
    exp_avg_sqs: list[torch.Tensor],  # [R] each
    max_exp_avg_sqs: list[torch.Tensor],  # [R] each; empty: no amsgrad
    steps: list[torch.Tensor],  # [R] int32 each
    gradients: list[torch.Tensor],  # [R, D] each
    lr_tensor: torch.Tensor | None,
    grad_scale: torch.Tensor | None,
    found_inf: torch.Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    maximize: bool,
) -> None:
    """Adam whose second moment is that of |P g|, one number for each row; the first moment goes along as the momentum
    of `sphere_sgd_` does. No step where its divisor is 0."""
    for i, point in enumerate(points):
        dtype = torch.float64 if point.dtype == torch.float64 else torch.float32
        wide = torch.float32 if point.device.type == "mps" else torch.float64
        x, count = direction(point.to(dtype)), _next(steps[i])
        change = _tangent(x, _descent(gradients[i], dtype, grad_scale, maximize))
        mean = beta1 * exp_avgs[i] + (1 - beta1) * change
        square = beta2 * exp_avg_sqs[i] + (1 - beta2) * (change * change).sum(-1)
        _put(exp_avg_sqs[i], None, square, found_inf)
        if max_exp_avg_sqs:
            square = torch.maximum(max_exp_avg_sqs[i], square)
            _put(max_exp_avg_sqs[i], None, square, found_inf)
        correction1, correction2 = (1 - beta ** count.to(wide) for beta in (beta1, beta2))
        size = ((lr if lr_tensor is None else lr_tensor.to(wide)) / correction1).to(dtype)
        divisor = square.sqrt() / correction2.sqrt().to(dtype) + eps
        size = torch.where(divisor == 0, 0, size / torch.where(divisor == 0, 1, divisor))
        x, mean = _retraction(x, -size[:, None] * mean, mean)
        _put(exp_avgs[i], None, mean, found_inf)
        _put(point, None, x, found_inf)
        _put(steps[i], None, count, found_inf)
