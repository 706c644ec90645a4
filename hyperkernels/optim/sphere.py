from __future__ import annotations

import math
from typing import Any

import torch

from .. import _check
from .._dtypes import accumulate_dtype
from ..kernels.optim import op
from ..kernels.optim.problem import PointGradients, SphereAdamCall, SphereSgdCall
from .optimizer import RowOptimizer, Scaling, check_moments, check_momentum, numbers_on

# A parameter, the gradient of some of its vectors, and which these are.
Entry = tuple[torch.Tensor, torch.Tensor, slice | None]
OF_VECTORS = ("step", "exp_avg_sq", "max_exp_avg_sq")  # state that has one number for each vector


def _vectors(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The tensor as [vectors, D], contiguous: a view if the vectors along `dim` are contiguous."""
    moved = tensor.detach().movedim(dim, -1).contiguous()
    return moved.view(math.prod(moved.shape[:-1]), moved.shape[-1])


class SphereOptimizer(RowOptimizer):
    """A RowOptimizer whose rows are the vectors along ``dim``, each a point of the unit sphere. All parameters of a
    group are updated in one call."""

    def _check_options(self, group: dict[str, Any]) -> None:
        _check.integer("dim", group["dim"])

    def _apply_to_all(self, lists: dict[str, list[torch.Tensor]], numbers: tuple[Any, ...], group: Any) -> None:
        """Update the points and states of all parameters in place."""
        raise NotImplementedError

    def _count(self, parameter: torch.Tensor, group: dict[str, Any]) -> int:
        dim = group["dim"]
        if not -parameter.dim() <= dim < parameter.dim():
            raise ValueError(
                f"dim must be a dimension of every parameter; got {dim} with a parameter of shape "
                f"{tuple(parameter.shape)}"
            )
        return math.prod(parameter.detach().movedim(dim, -1).shape[:-1])

    def _new_state(self, name: str, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        dim, dtype = group["dim"], accumulate_dtype(parameter.dtype)
        if name in OF_VECTORS:
            return torch.zeros(self._count(parameter, group), dtype=dtype, device=parameter.device)
        shape = parameter.movedim(dim, -1).shape
        return torch.zeros(shape, dtype=dtype, device=parameter.device).movedim(-1, dim)

    def _step_group(self, group: dict[str, Any], scaling: Scaling) -> None:
        entries: dict[torch.device, list[Entry]] = {}
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"a gradient must be dense for {type(self).__name__}; got {gradient.layout} of shape "
                    f"{tuple(gradient.shape)}"
                )
            entries.setdefault(parameter.device, []).append((parameter, gradient, None))
        for device, of_device in entries.items():
            self._move(of_device, group, *numbers_on(device, group["lr"], scaling))

    def _update(
        self,
        parameter: torch.Tensor,
        group: dict[str, Any],
        gradient: torch.Tensor,
        rows: torch.Tensor | slice | None,
        scaling: Scaling,
    ) -> None:
        """Update a part of the rows of a parameter of two dimensions, whose vectors must be its rows."""
        assert not isinstance(rows, torch.Tensor)
        if group["dim"] % parameter.dim() != 1:
            raise ValueError(f"dim must be -1 for a weight that is updated in its backward; got {group['dim']}")
        self._move([(parameter, gradient, rows)], group, *numbers_on(parameter.device, group["lr"], scaling))

    def _move(
        self, entries: list[Entry], group: dict[str, Any], lr_tensor: torch.Tensor | None, scaling: Scaling, lr: float
    ) -> None:
        names = ("points", "step", *self._state_names(group))
        lists: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, "gradients")}
        copies = []
        for parameter, gradient, rows in entries:
            whole = {"points": parameter, **self._state_of(parameter, group)}
            for name in names:
                tensor = whole[name]
                matrix = tensor if name in OF_VECTORS else _vectors(tensor, group["dim"])
                if name not in OF_VECTORS and not tensor.movedim(group["dim"], -1).is_contiguous():
                    copies.append((tensor.movedim(group["dim"], -1), matrix))
                lists[name].append(matrix if rows is None else matrix[rows])
            lists["gradients"].append(_vectors(gradient, group["dim"]))
        self._apply_to_all(lists, (lr_tensor, *scaling, lr), group)
        for tensor, matrix in copies:
            tensor.copy_(matrix.view(tensor.shape))


class SphereSGD(SphereOptimizer):
    """Riemannian stochastic gradient descent: every vector along ``dim`` of every parameter is a point of the unit
    sphere, and stays one.

    With x such a vector, g its gradient and P_x the projection to the tangents of the sphere at x,

        b = momentum b + (1 - dampening) P_x g
        x' = (x - lr b) / |x - lr b|
        b' = P_x' b

    as ``geoopt.optim.RiemannianSGD`` on ``geoopt.Sphere``; as there, b starts as g itself. A vector that is not on the
    sphere is projected first. One shorter than 1e-12 has no direction: it moves to that of its negative gradient, or
    stays if that is 0 too.

    Args:
        params: parameters, named parameters or parameter groups; float64, float32, bfloat16 or float16.
        lr: learning rate, a number or a tensor of one element, which is never waited for on a GPU.
        momentum: factor of the momentum, at least 0.
        dampening: 1 - dampening is the factor of the gradient in the momentum.
        weight_decay: at least 0. It pulls towards the centre of the sphere, orthogonal to every tangent: any value
            gives the same steps.
        nesterov: look ahead by one momentum; needs a momentum and no dampening.
        dim: the dimension that holds the vectors; a group may have its own.
        maximize: ascend instead.

    State of a parameter: ``step`` [vectors] int32; with momentum ``momentum_buffer``, of the parameter's shape, in
    float32 (float64 for float64 parameters).

    Raises:
        TypeError, ValueError: a wrong argument, named; in ``step``, a gradient that is not dense.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        dim: int = -1,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**options, "nesterov": nesterov, "dim": dim, "maximize": maximize})

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_momentum(group)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _apply_to_all(self, lists: dict[str, list[torch.Tensor]], numbers: tuple[Any, ...], group: Any) -> None:
        call = SphereSgdCall(
            lists["points"],
            lists.get("momentum_buffer", []),
            lists["step"],
            PointGradients(lists["gradients"], *numbers),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
        )
        op.update(op.SPHERE_SGD, call)


class SphereAdam(SphereOptimizer):
    """Riemannian Adam (Becigneul and Ganea, 2019): every vector along ``dim`` of every parameter is a point of the unit
    sphere, and stays one.

    With x such a vector, g its gradient and P_x the projection to the tangents of the sphere at x,

        m = beta1 m + (1 - beta1) P_x g
        v = beta2 v + (1 - beta2) |P_x g|^2, one number for each vector
        u = lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
        x' = (x - u) / |x - u|
        m' = P_x' m

    as ``geoopt.optim.RiemannianAdam`` on ``geoopt.Sphere``. A vector that is not on the sphere is projected first. One
    shorter than 1e-12 has no direction: it moves to that of its negative gradient, or stays if that is 0 too.

    Args:
        params: parameters, named parameters or parameter groups; float64, float32, bfloat16 or float16.
        lr: learning rate, a number or a tensor of one element, which is read on the device without synchronisation. A
            step has a length of about lr radians.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: at least 0. It pulls towards the centre of the sphere, orthogonal to every tangent: any value
            gives the same steps.
        amsgrad: divide by the largest second moment so far.
        dim: the dimension that holds the vectors; a group may have its own.
        maximize: ascend instead.

    State of a parameter: ``step`` [vectors] int32; ``exp_avg``, of the parameter's shape, and ``exp_avg_sq`` [vectors]
    (with amsgrad ``max_exp_avg_sq`` too), in float32 (float64 for float64 parameters).

    Raises:
        TypeError, ValueError: a wrong argument, named; in ``step``, a gradient that is not dense.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        dim: int = -1,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "amsgrad": amsgrad, "dim": dim, "maximize": maximize})

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_moments(group)
        _check.boolean("amsgrad", group["amsgrad"])

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _apply_to_all(self, lists: dict[str, list[torch.Tensor]], numbers: tuple[Any, ...], group: Any) -> None:
        beta1, beta2 = group["betas"]
        call = SphereAdamCall(
            lists["points"],
            lists["exp_avg"],
            lists["exp_avg_sq"],
            lists.get("max_exp_avg_sq", []),
            lists["step"],
            PointGradients(lists["gradients"], *numbers),
            beta1=float(beta1),
            beta2=float(beta2),
            eps=float(group["eps"]),
            maximize=bool(group["maximize"]),
        )
        op.update(op.SPHERE_ADAM, call)
