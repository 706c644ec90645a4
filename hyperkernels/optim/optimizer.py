"""The base class of the optimisers: the rows of a gradient, the state of each row, loss scaling, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import _check
from .._dtypes import accumulate_dtype, widest_dtype
from ..kernels.optim.problem import RowGradient


class Scaling(NamedTuple):
    """What a gradient scaler provides, one number each on the device of the weight, or None."""

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None


class Update(NamedTuple):
    """The arguments that the ops of both optimisers share."""

    weight: torch.Tensor
    state: dict[str, torch.Tensor]
    given: RowGradient


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as [rows, numbers in a row], contiguous: a view if the tensor is contiguous."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return tensor.detach().contiguous().view(rows, tensor.numel() // max(rows, 1))


def numbers_on(
    device: torch.device, lr: float | torch.Tensor, scaling: Scaling
) -> tuple[torch.Tensor | None, Scaling, float]:
    """lr_tensor, scaling and lr in the form of the ops. A learning rate on a GPU is not read on the host."""
    waits = isinstance(lr, torch.Tensor) and "cpu" not in (lr.device.type, device.type)
    moved = Scaling(*(None if t is None else t.to(device, non_blocking=True) for t in scaling))
    if waits:
        assert isinstance(lr, torch.Tensor)
        return lr.detach().to(device, widest_dtype(device)), moved, 0.0
    return None, moved, float(lr)


def check_momentum(group: dict[str, Any]) -> None:
    _check.number("momentum", group["momentum"], minimum=0.0)
    _check.number("dampening", group["dampening"])
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise ValueError(
            "nesterov needs a momentum above 0 and a dampening of 0; got momentum "
            f"{group['momentum']}, dampening {group['dampening']}"
        )


def check_moments(group: dict[str, Any]) -> None:
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers; got {betas!r}")
    for i, beta in enumerate(betas):
        if _check.number(f"betas[{i}]", beta, minimum=0.0) >= 1:
            raise ValueError(f"betas[{i}] must be below 1; got {beta}")
    _check.number("eps", group["eps"], minimum=0.0)


class RowOptimizer(torch.optim.Optimizer):
    """An optimiser whose parameters keep their state row by row (a row is an index of the first dimension).

    A sparse COO gradient, sparse in its first dimension, updates only the rows that it holds; a dense one updates all
    rows. ``state[p]["step"]`` [rows] is the number of updates of each row.
    """

    # With this set, GradScaler hands over grad_scale and found_inf, and does not wait for the device.
    _step_supports_amp_scaling = True

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise where an option of a group is not allowed."""
        raise NotImplementedError

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of the state tensors that have the shape of the parameter."""
        raise NotImplementedError

    def _apply(self, update: Update, group: dict[str, Any]) -> None:
        """Update weight and state in place."""
        raise NotImplementedError

    def _count(self, parameter: torch.Tensor, group: dict[str, Any]) -> int:
        """The number of rows of a parameter."""
        return parameter.shape[0] if parameter.dim() else 1

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        lr = group["lr"]
        if not isinstance(lr, torch.Tensor):
            _check.number("lr", lr, minimum=0.0)
        elif lr.numel() != 1:
            raise ValueError(f"lr must be a number or a tensor of one element; got shape {tuple(lr.shape)}")
        elif lr.device.type == "cpu":
            _check.number("lr", lr.item(), minimum=0.0)
        _check.number("weight_decay", group["weight_decay"], minimum=0.0)
        self._check_options(group)
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            _check.tensor("params", parameter, _check.FLOAT_DTYPES)
            self._count(parameter, self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a sparse gradient of a layout other than COO, or sparse in more than the first dimension.
            IndexError: a row out of range, on the CPU; elsewhere such a row is left out.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaling = Scaling(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        for group in self.param_groups:
            self._step_group(group, scaling)
        return loss

    def _step_group(self, group: dict[str, Any], scaling: Scaling) -> None:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout == torch.strided:
                self._update(parameter, group, gradient, None, scaling)
                continue
            if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
                raise ValueError(
                    "a sparse gradient must be COO, sparse in its first dimension alone; got "
                    f"{gradient.layout} of shape {tuple(gradient.shape)}"
                )
            gradient = gradient.coalesce()
            self._update(parameter, group, gradient.values(), gradient.indices()[0], scaling)

    def _update(
        self,
        parameter: torch.Tensor,
        group: dict[str, Any],
        gradient: torch.Tensor,  # one row for each of `rows`
        rows: torch.Tensor | slice | None,  # distinct indices, a range, or all
        scaling: Scaling,
    ) -> None:
        whole = {"weight": parameter, **self._state_of(parameter, group)}
        matrices = {name: _matrix(tensor) if name != "step" else tensor for name, tensor in whole.items()}
        state = (
            {name: tensor[rows] for name, tensor in matrices.items()} if isinstance(rows, slice) else matrices.copy()
        )
        weight = state.pop("weight")
        lr_tensor, scaling, lr = numbers_on(parameter.device, group["lr"], scaling)
        gradient = gradient.reshape(-1, weight.shape[1]) if weight.shape[1] else gradient.reshape(len(gradient), 0)
        given = RowGradient(gradient, None if isinstance(rows, slice) else rows, lr_tensor, *scaling, lr)
        self._apply(Update(weight, state, given), group)
        for name, tensor in whole.items():
            if name != "step" and not tensor.is_contiguous():
                tensor.copy_(matrices[name].view(tensor.shape))

    def _state_of(self, parameter: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The state for an update of the parameter, made of zeros the first time."""
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros(self._count(parameter, group), dtype=torch.int32, device=parameter.device)
        names = self._state_names(group)
        for name in names:
            if state.get(name) is None:
                state[name] = self._new_state(name, parameter, group)
        return {name: state[name] for name in ("step", *names)}

    def _new_state(self, name: str, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        dtype = accumulate_dtype(parameter.dtype)
        return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, except that state keeps its dtype where torch would round it to the parameter's. A state of the
        optimiser of the same name in ``torch.optim`` is taken as well: its step count becomes that of every row.

        Raises:
            ValueError: options or step counts that this optimiser does not allow.
        """
        given: dict[str, Any] = {}  # as the hooks of others leave it

        def before(_: torch.optim.Optimizer, found: dict[str, Any]) -> None:
            self._check_groups(found["param_groups"])
            given.update(found)

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(lambda _: self._keep(given), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _check_groups(self, groups: list[dict[str, Any]]) -> None:
        names = set(self.defaults) - {"differentiable"}  # torch adds it to the defaults itself
        for group in groups:
            lacking = sorted(names - set(group))
            if lacking:
                raise ValueError(f"state_dict must be that of {type(self).__name__}; it has no {', '.join(lacking)}")
            self._check_options(group)

    def _keep(self, given: dict[str, Any]) -> None:
        """Replace what torch has cast by what was given."""
        saved_ids = [i for group in given["param_groups"] for i in group["params"]]
        parameters = [(p, group) for group in self.param_groups for p in group["params"]]
        for i, (parameter, group) in zip(saved_ids, parameters, strict=True):
            saved = given["state"].get(i)
            if saved is None:
                continue
            state = self.state[parameter]
            for name, value in saved.items():
                if isinstance(value, torch.Tensor) and name != "step":
                    dtype = accumulate_dtype(parameter.dtype) if value.is_floating_point() else value.dtype
                    state[name] = value.to(parameter.device, dtype)
            rows = self._count(parameter, group)
            begun = any(isinstance(value, torch.Tensor) for value in saved.values())
            step = torch.as_tensor(saved.get("step", int(begun)), device=parameter.device)
            if step.dim() and len(step) != rows:
                raise ValueError(f"state_dict must have a step for each of the {rows} rows; got {len(step)}")
            state["step"] = step.to(torch.int32).expand(rows).contiguous()
