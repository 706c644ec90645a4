"""The updates in plain PyTorch, without the row's own loop: what the kernels are compared with."""

import torch

from ..._dtypes import accumulate_dtype, widest_dtype
from ..sphere.problem import EPS
from ..sphere.reference import direction
from .problem import AdamWRowsCall, PointGradients, RowGradient, SgdRowsCall, SphereAdamCall, SphereSgdCall

Rows = torch.Tensor | None
Given = RowGradient | PointGradients
Adam = AdamWRowsCall | SphereAdamCall
Pair = tuple[torch.Tensor, torch.Tensor]


def _inside(weight: torch.Tensor, given: RowGradient) -> tuple[torch.Tensor, Rows]:
    """The gradient and its rows; what lies outside the weight is an error, or left out where data cannot raise."""
    gradient, rows = given.gradient, given.rows
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


def _descent(gradient: torch.Tensor, dtype: torch.dtype, given: Given, maximize: bool) -> torch.Tensor:
    gradient = gradient.to(dtype)
    if given.grad_scale is not None:
        gradient = gradient / given.grad_scale.to(dtype)
    return -gradient if maximize else gradient


def _rate(given: Given, dtype: torch.dtype) -> torch.Tensor | float:
    return given.lr if given.lr_tensor is None else given.lr_tensor.to(dtype)


def _corrected(rate: torch.Tensor | float, count: torch.Tensor, call: Adam, like: torch.Tensor) -> Pair:
    """(the rate of the first moment's direction, what the root of the second is divided by), for each row after `count`
    updates; in full precision, since the differences from 1 cancel."""
    wide = widest_dtype(like.device)
    correction1, correction2 = (1 - beta ** count.to(wide) for beta in (call.beta1, call.beta2))
    return (rate / correction1).to(like.dtype), correction2.sqrt().to(like.dtype)


def sgd_rows_(call: SgdRowsCall) -> None:
    weight, momentum_buffer, step, given, momentum, dampening, weight_decay, nesterov, maximize = call
    gradient, rows = _inside(weight, given)
    dtype = accumulate_dtype(weight.dtype)
    w, count = _take(weight, rows).to(dtype), _take(step, rows)
    change = _descent(gradient, dtype, given, maximize) + weight_decay * w
    if momentum_buffer is not None:
        moved = momentum * _take(momentum_buffer, rows) + (1 - dampening) * change
        moved = torch.where((count == 0)[:, None], change, moved)
        _put(momentum_buffer, rows, moved, given.found_inf)
        change = change + momentum * moved if nesterov else moved
    _put(weight, rows, w - _rate(given, dtype) * change, given.found_inf)
    _put(step, rows, _next(count), given.found_inf)


def adamw_rows_(call: AdamWRowsCall) -> None:
    weight, exp_avg, exp_avg_sq, step, given, beta1, beta2, eps, weight_decay, maximize = call
    gradient, rows = _inside(weight, given)
    dtype = accumulate_dtype(weight.dtype)
    w, count = _take(weight, rows).to(dtype), _next(_take(step, rows))
    change = _descent(gradient, dtype, given, maximize)
    mean = beta1 * _take(exp_avg, rows) + (1 - beta1) * change
    square = beta2 * _take(exp_avg_sq, rows) + (1 - beta2) * change * change
    rate = _rate(given, widest_dtype(weight.device))
    size, divisor = _corrected(rate, count, call, w)
    denominator = square.sqrt() / divisor[:, None] + eps
    kept = 1 - (rate.to(dtype) if isinstance(rate, torch.Tensor) else rate) * weight_decay
    _put(exp_avg, rows, mean, given.found_inf)
    _put(exp_avg_sq, rows, square, given.found_inf)
    _put(weight, rows, w * kept - size[:, None] * mean / denominator, given.found_inf)
    _put(step, rows, count, given.found_inf)


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


def sphere_sgd_(call: SphereSgdCall) -> None:
    """x the direction of a row of points and P the projection to its tangents: b = momentum b + (1 - dampening) P g,
    where b before the first step is g, x' the direction of x - lr b, and b is projected to the tangents of x'. Where
    x - lr b has no direction, x stays and b is 0."""
    points, momentum_buffers, steps, given, momentum, dampening, nesterov, maximize = call
    for i, point in enumerate(points):
        dtype = accumulate_dtype(point.dtype)
        x = direction(point.to(dtype))
        slope = _descent(given.gradients[i], dtype, given, maximize)
        change = _tangent(x, slope)
        moved = change
        if momentum_buffers:
            before = torch.where((steps[i] == 0)[:, None], slope, momentum_buffers[i])
            moved = momentum * before + (1 - dampening) * change
        change = change + momentum * moved if nesterov else moved
        x, moved = _retraction(x, -_rate(given, dtype) * change, moved)
        if momentum_buffers:
            _put(momentum_buffers[i], None, moved, given.found_inf)
        _put(point, None, x, given.found_inf)
        _put(steps[i], None, _next(steps[i]), given.found_inf)


def sphere_adam_(call: SphereAdamCall) -> None:
    """Adam whose second moment is that of |P g|, one number for each row; the first moment goes along as the momentum
    of `sphere_sgd_` does. No step where its divisor is 0."""
    points, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, given, beta1, beta2, eps, maximize = call
    for i, point in enumerate(points):
        dtype = accumulate_dtype(point.dtype)
        x, count = direction(point.to(dtype)), _next(steps[i])
        change = _tangent(x, _descent(given.gradients[i], dtype, given, maximize))
        mean = beta1 * exp_avgs[i] + (1 - beta1) * change
        square = beta2 * exp_avg_sqs[i] + (1 - beta2) * (change * change).sum(-1)
        _put(exp_avg_sqs[i], None, square, given.found_inf)
        if max_exp_avg_sqs:
            square = torch.maximum(max_exp_avg_sqs[i], square)
            _put(max_exp_avg_sqs[i], None, square, given.found_inf)
        size, divisor = _corrected(_rate(given, widest_dtype(point.device)), count, call, x)
        divisor = square.sqrt() / divisor + eps
        size = torch.where(divisor == 0, 0, size / torch.where(divisor == 0, 1, divisor))
        x, mean = _retraction(x, -size[:, None] * mean, mean)
        _put(exp_avgs[i], None, mean, given.found_inf)
        _put(point, None, x, given.found_inf)
        _put(steps[i], None, count, given.found_inf)
