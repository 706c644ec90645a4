"""How an op is declared: once, by two NamedTuples, its call and its result.

    class UnitNormCall(NamedTuple):
        x: Tensor  # [N, D]
        eps: float

    UNIT_NORM = Operation("unit_norm", UnitNormCall, Tensor, results=..., triton="...:unit_norm", gradient=...)
    y = UNIT_NORM(UnitNormCall(x, eps), backend)

From it come the schema, the shapes for the compiler and for meta tensors, two entries in the dispatcher (the name
itself for the C++ kernels and `..._triton`, so that a forced backend holds in the backward too), the import of the
Triton launcher at its first call, autograd, and the refusal of derivatives that the kernels do not have. A launcher is
handed the call, not its pieces, and a backward names its gradients.

Autograd stands three times, for one reason each. The plain Function costs half of the others a call. torch.func asks
for one with setup_context and a rule for vmap. A compiler asks for what is registered with the dispatcher.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.autograd import forward_ad

from ._fake import is_dry, register_fake
from ._schema import Layout

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")
OPERATIONS: dict[str, Operation[Any, Any]] = {}

Call = TypeVar("Call", bound=tuple[Any, ...])
Result = TypeVar("Result")


class Gradient(NamedTuple):
    """How an op is differentiated.

    `backward(call, result, incoming, needs, backend)` returns the gradients by the names of the call's fields. `result`
    holds the fields named in `saved`, and None for the others; `incoming` has the gradient of each field of the result,
    None where there is none; `needs` has the names of the inputs whose gradient is wanted.
    """

    inputs: tuple[str, ...]
    backward: Callable[[Any, Any, Any, frozenset[str], str], dict[str, torch.Tensor | None]]
    outputs: Callable[[Any], tuple[str, ...]] | None = None  # of a call: the results that have one; None: all
    saved: tuple[str, ...] = ()
    twice: bool = False  # the backward is made of what can be differentiated itself


class Operation(Generic[Call, Result]):
    """An op with kernels in C++ and in Triton."""

    def __init__(
        self,
        name: str,
        call: type[Call],
        result: type[Result] | None,
        *,
        results: Callable[[Any], Any],  # of a call: the tensors that it returns, not yet written
        triton: str,  # "module:function" of the launcher, the module from the package on
        gradient: Gradient | None = None,
    ) -> None:
        self.name, self.gradient, self.returns, self.results = name, gradient, result is not None, results
        self._call, self.single = Layout(call), result is torch.Tensor
        self._result = Layout(result) if result is not None and not self.single else None
        self._written = tuple(i for i, field in enumerate(self._call.fields) if "written" in field.marks)
        said = "()" if result is None else "Tensor" if self._result is None else self._result.arguments()
        self._triton = triton
        # The dispatcher hands None on for a tensor that must be there.
        self._required = tuple((i, field.name) for i, field in enumerate(self._call.fields) if field.word == "Tensor")
        for suffix in ("", "_triton"):
            LIBRARY.define(f"{name}{suffix}{self._call.arguments()} -> {said}")
            register_fake(LIBRARY, name + suffix, self._fake)
        for device in ("CPU", "CUDA"):  # on the CPU in Triton's interpreter
            LIBRARY.impl(f"{name}_triton", self.launch, device)
        inputs, saved = ((), ()) if gradient is None else (gradient.inputs, gradient.saved)
        fields, named = self._call.fields, () if self._result is None else self._result.names
        self._differentiable = tuple(i for i, field in enumerate(fields) if field.name in inputs)
        # What the backward finds again: the tensors of the call, and the results that it asks for.
        self._saved_inputs = tuple(i for i, f in enumerate(fields) if f.is_tensor() and "report" not in f.marks)
        self._saved_results = tuple(named.index(name) for name in saved)
        cpp, kernel = _Kernels(self, "cpp"), _Kernels(self, "triton")
        self._kernels = {"cpp": cpp, "cuda": cpp, "triton": kernel}
        OPERATIONS[name] = self

    def __call__(self, call: Call, backend: str) -> Result:
        kernels, flat = self._kernels[backend], self._call.flat(call)
        if torch.compiler.is_compiling():
            out = kernels.overload(*flat)
        elif torch._C._are_functorch_transforms_active():
            out = kernels.transformed.apply(*flat)
        elif self._is_recorded(flat):
            out = kernels.plain.apply(*flat)
        else:
            out = kernels.run(flat)
        if self._written:
            _mark_written(flat[i] for i in self._written)
        return self.built(out)

    def _is_recorded(self, flat: tuple[Any, ...]) -> bool:
        """Whether the Function is applied: a gradient is wanted, or forward mode is on, which it refuses."""
        if not self._differentiable:
            return False
        if forward_ad._current_level >= 0:
            return True
        return torch.is_grad_enabled() and any(
            flat[i] is not None and flat[i].requires_grad for i in self._differentiable
        )

    def flat(self, call: Call) -> tuple[Any, ...]:
        """The arguments of the dispatcher's op."""
        return self._call.flat(call)

    def call(self, flat: tuple[Any, ...]) -> Call:
        """The call with these arguments of the dispatcher's op."""
        return self._call.built(flat)  # type: ignore[no-any-return]

    def built(self, out: Any) -> Any:
        """The result of what the dispatcher's op returned, or the gradients of each part of it."""
        return out if self._result is None else self._result.built(out)

    def run(self, flat: tuple[Any, ...], backend: str) -> Any:
        """The kernels, without autograd."""
        return self._kernels[backend].run(flat)

    def _packed(self, out: Any) -> Any:
        return out if self._result is None else self._result.flat(out)

    def _fake(self, *flat: Any) -> Any:
        return self._packed(self.results(self._call.built(flat)))

    def launch(self, *flat: Any) -> Any:
        """The Triton launcher, which is imported at its first call."""
        for i, name in self._required:
            if flat[i] is None:
                raise TypeError(f"{name} must be a tensor; got None")
        module, function = self._triton.split(":")
        run = getattr(importlib.import_module(f"hyperkernels.{module}"), function)
        return self._packed(run(self._call.built(flat)))

    def save(self, ctx: Any, flat: tuple[Any, ...], out: Any) -> None:
        """Keep in ctx what `restored` takes out again."""
        if self.gradient is None:
            return
        ctx.flat = list(flat)
        for i in self._saved_inputs:
            ctx.flat[i] = None
        ctx.save_for_backward(*(flat[i] for i in self._saved_inputs), *(out[i] for i in self._saved_results))
        if self.gradient.outputs is not None:
            assert self._result is not None
            named, reached = self._result.names, self.gradient.outputs(self._call.built(flat))
            ctx.mark_non_differentiable(*(o for name, o in zip(named, out, strict=True) if name not in reached))
        if self._result is not None:  # of several results some may have no gradient
            ctx.set_materialize_grads(False)

    def restored(self, ctx: Any) -> tuple[Any, Any]:
        """The call and the saved part of its result."""
        assert self.gradient is not None
        flat, saved = list(ctx.flat), ctx.saved_tensors
        for place, tensor in zip(self._saved_inputs, saved, strict=False):
            flat[place] = tensor
        kept = dict(zip(self.gradient.saved, saved[len(self._saved_inputs) :], strict=True))
        result = None if self._result is None else self._result.built(map(kept.get, self._result.names))
        return self._call.built(flat), result

    def needs(self, wanted: tuple[bool, ...]) -> frozenset[str]:
        """The names of the inputs whose gradient is wanted, from what autograd says of each argument."""
        return frozenset(self._call.names[i] for i in self._differentiable if wanted[i])

    def by_position(self, found: dict[str, Any], needs: frozenset[str]) -> tuple[torch.Tensor | None, ...]:
        """Gradients by name as autograd takes them, one for each argument."""
        assert {*found} <= {*self._call.names}, found.keys()
        return tuple(found.get(name) if name in needs else None for name in self._call.names)

    def backward(self, ctx: Any, grads: tuple[Any, ...], backend: str) -> tuple[torch.Tensor | None, ...]:
        if self.gradient is None:
            raise RuntimeError(self._no_second_derivative)
        again, twice = torch.is_grad_enabled(), self.gradient.twice
        call, result = self.restored(ctx)
        needs = self.needs(ctx.needs_input_grad)
        incoming = grads[0] if self._result is None else self.built(grads)
        with torch.set_grad_enabled(again and twice):
            found = self.by_position(self.gradient.backward(call, result, incoming, needs, backend), needs)
        return found if twice or not again else self._once(call, grads, found)

    def _once(self, call: Any, grads: tuple[Any, ...], gradients: tuple[Any, ...]) -> tuple[torch.Tensor | None, ...]:
        """The gradients, which raise where they are differentiated again."""
        depends = [t for t in (*self._call.flat(call), *grads) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        return tuple(g if g is None else _Once.apply(self._no_second_derivative, g, *depends) for g in gradients)

    @property
    def _no_second_derivative(self) -> str:
        return f"{self.name} has no second derivative in its kernels; use hyperkernels.backend('reference') for one"

    @property
    def no_forward_mode(self) -> str:
        return f"{self.name} has no forward-mode derivative in its kernels; use hyperkernels.backend('reference')"


class _Kernels:
    """One kernel set of an operation: its entry in the dispatcher, and autograd around that."""

    def __init__(self, operation: Operation[Any, Any], backend: str) -> None:
        self.operation, self.backend = operation, backend
        self.name = operation.name + ("_triton" if backend == "triton" else "")
        self.overload = getattr(torch.ops.hyperkernels, self.name).default
        if operation.returns:
            torch.library.register_autograd(
                f"hyperkernels::{self.name}", self._backward, setup_context=self._setup, lib=LIBRARY
            )

    def run(self, flat: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            # The launcher itself allocates what a run would, so that a memory tracker sees the scratch too.
            if self.backend == "triton" and is_dry():
                return self.operation.launch(*flat)
            try:
                return self.overload(*flat)
            except RuntimeError as error:
                if str(error) == "interrupted":  # Ctrl-C in the middle of a kernel; from 2.15 on torch drops the cause
                    raise error.__cause__ or KeyboardInterrupt() from None
                raise

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self.operation.save(ctx, inputs, output)

    def _backward(self, ctx: Any, *grads: Any) -> Any:
        return self.operation.backward(ctx, grads, self.backend)

    def _jvp(self, ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(self.operation.no_forward_mode)

    def _function(self, **methods: Any) -> Any:
        shared = {"backward": self._backward, "jvp": self._jvp, **methods}
        return type(self.name, (torch.autograd.Function,), {k: staticmethod(v) for k, v in shared.items()})

    @cached_property
    def plain(self) -> Any:
        def forward(ctx: Any, *flat: Any) -> Any:
            out = self.run(flat)
            self.operation.save(ctx, flat, out)
            return out

        return self._function(forward=forward)

    @cached_property
    def transformed(self) -> Any:
        """For torch.func: a batch of calls is one call after the other."""

        def forward(*flat: Any) -> Any:
            return self.overload(*flat)

        def vmap(info: Any, in_dims: tuple[int | None, ...], *flat: Any) -> Any:
            calls = (
                self.transformed.apply(
                    *(v if d is None else v.select(d, i) for v, d in zip(flat, in_dims, strict=True))
                )
                for i in range(info.batch_size)
            )
            if self.operation.single:
                return torch.stack(list(calls)), 0
            outs = tuple(torch.stack(out) for out in zip(*calls, strict=True))
            return outs, (0,) * len(outs)

        return self._function(forward=forward, setup_context=self._setup, vmap=vmap)


class _Once(torch.autograd.Function):
    """A gradient as a function of all that it was made of, which has no derivative."""

    @staticmethod
    def forward(message: str, gradient: torch.Tensor, *depends: torch.Tensor) -> torch.Tensor:
        return gradient.view_as(gradient) if gradient.layout == torch.strided else gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(ctx.message)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], message: str, gradient: torch.Tensor, *depends: torch.Tensor) -> Any:
        return _Once.apply(message, gradient, *depends), in_dims[1]


def _mark_written(arguments: Any) -> None:
    """The dispatcher leaves the version counter of a custom op's argument alone; autograd needs it to refuse what is
    stale."""
    if torch.compiler.is_compiling():
        return
    for argument in arguments:
        for tensor in argument if isinstance(argument, list) else (argument,):
            if tensor is not None and not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
