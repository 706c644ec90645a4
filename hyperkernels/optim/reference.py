"""The updates in plain PyTorch, without the row's own loop: what the kernels are compared with."""

import torch

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
    _put(step, rows, count + 1, found_inf)


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
    w, count = _take(weight, rows).to(dtype), _take(step, rows) + 1
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
