"""What users differentiate: functions that call each op with a gradient, and every module of hk.nn."""

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

import hyperkernels as hk
from tests.support import combinations

N, SIZE, CLASSES = 8, 6, 9


def y(x: torch.Tensor) -> torch.Tensor:
    """Labels of three kinds for the rows of x."""
    return torch.arange(x.shape[0], device=x.device) % 3


def t(x: torch.Tensor) -> torch.Tensor:
    """The class of each row of x."""
    return (5 * torch.arange(x.shape[0], device=x.device) + 2) % CLASSES


def chosen(x: torch.Tensor) -> torch.Tensor:
    """The classes that take part: all but one, which is no row's."""
    return torch.tensor([0, 1, 2, 3, 4, 5, 7, 8], device=x.device)


# Each of rows x [N, SIZE] and others w [CLASSES, SIZE] with both of which its values [N] change.
FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "unit_norm": lambda x, w: (hk.unit_norm(x) * w[: x.shape[0]]).sum(1),
    "margin_softmax_loss": lambda x, w: hk.margin_softmax_loss(x, w, t(x), scale=8.0, reduction="none"),
    "sampled classes": lambda x, w: hk.margin_softmax_loss(x, w, t(x), scale=8.0, classes=chosen(x), reduction="none"),
    "learned logits": lambda x, w: hk.margin_softmax_loss(
        x, w, t(x), scale=w[0, 0].exp(), class_scale=w[:, 1] + 2, bias=w[:, 2], label_smoothing=0.2, reduction="none"
    ),
    "sphereface2_loss": lambda x, w: hk.sphereface2_loss(x, w, t(x), w[0, 0], scale=4.0, reduction="none"),
    "pair_statistics": lambda x, w: hk.pair_statistics(x, y(x), w, y(w), scale=x[:, 0].exp()).lse,
    "supcon": lambda x, w: hk.losses.supcon(x, y(x), reduction="none") * w[: x.shape[0], 0],
    "info_nce": lambda x, w: hk.losses.info_nce(x, ref=w[: x.shape[0]], reduction="none"),
    "siglip": lambda x, w: hk.losses.siglip(x, w[: x.shape[0]], t=w[0, 0].exp(), b=w[0, 1], reduction="none"),
    "contrastive": lambda x, w: hk.losses.contrastive(x, y(x), w, y(w), reduction="none"),
    "circle": lambda x, w: hk.losses.circle(x, y(x), w, y(w), gamma=8.0, reduction="none"),
    "fast_ap": lambda x, w: hk.losses.fast_ap(x, y(x), w, y(w), reduction="none"),
    "triplet": lambda x, w: hk.losses.triplet(x, y(x), w, y(w), margin=0.5, reduction="none")[: x.shape[0]],
    "slerp": lambda x, w: (hk.sphere.slerp(x, w[: x.shape[0]], 0.3) * w[: x.shape[0]].roll(1, 1)).sum(1),
    "exp_map": lambda x, w: (hk.sphere.exp_map(x, w[: x.shape[0]]) * w[: x.shape[0]].roll(1, 1)).sum(1),
    "residual": lambda x, w: (hk.sphere.residual(x, w[: x.shape[0]], w[0].exp()) * w[: x.shape[0]].roll(1, 1)).sum(1),
    "scaled_unit_norm": lambda x, w: (hk.sphere.scaled_unit_norm(x, w[0]) * w[: x.shape[0]]).sum(1),
    "segment_mean": lambda x, w: (hk.sphere.segment_mean(x, y(x), 3)[0] * w[:3]).sum(1),
    "riesz_energy": lambda x, w: hk.sphere.riesz_energy(x) * w[: x.shape[0], 0],
}

# The required arguments of modules and of their forwards, by name: a new module whose arguments have other names needs
# an entry here. Those of a forward are made of the batch x.
ARGUMENTS: dict[str, Any] = {"embedding_size": SIZE, "num_classes": CLASSES, "margin": 0.4, "Tn": 10.0}
INPUTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "x": lambda x: x,
    "labels": y,
    "target": t,
    "ref": lambda x: x.roll(1, 1),
    "fused": lambda x: x.roll(1, 1),
}
SETTINGS = {name: {"scale": 8.0} for name in ("MarginSoftmax", "PartialFC", "SFace")}
OWN_INPUTS: dict[str, dict[str, Callable[[torch.Tensor], Any]]] = {
    "InfoNCELoss": {"labels": y},
    "MEOWLoss": {"labels": lambda x: torch.stack([y(x), y(x) // 2], 1)},
}


def learned(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values).squeeze())


VARIANTS: dict[str, Callable[[], torch.nn.Module]] = {
    "MarginSoftmax, all learned": lambda: hk.nn.MarginSoftmax(
        SIZE, CLASSES, hk.margins.ClassMargin(learned(*[0.1 * k for k in range(CLASSES)])), 8.0, 2,
        learn_scale=True, class_scale=True, bias=True,
    ),
    "SigLIPLoss, learned": lambda: hk.nn.SigLIPLoss(t=learned(10.0), b=learned(-5.0)),
    "MarginLoss, learned": lambda: hk.nn.MarginLoss(beta=learned(1.1, 1.2, 1.3), nu=0.1),
}  # fmt: skip
# How many pairs these have is read from the data.
LISTED = ("triplet", "LiftedLoss", "NPairsLoss", "NTXentLoss", "TripletLoss", "TupletMarginLoss")
JUMPS = (
    "contrastive", "fast_ap", "triplet", "ContrastiveLoss", "FastAPLoss", "MarginLoss", "MarginLoss, learned",
    "MultiSimilarityLoss", "NearestPairPackingLoss", "RankedListLoss", "TripletLoss",
)  # fmt: skip
HALF = {torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of a result, relative to its largest number


def required(function: Callable[..., Any]) -> list[str]:
    """The arguments without a default."""
    (*given,) = inspect.signature(function).parameters.values()
    return [p.name for p in given if p.name != "self" and p.default is p.empty]


def kind(name: str) -> tuple[list[str], list[str]]:
    """What a module is made of and called with."""
    module = getattr(hk.nn, name)
    return required(module), required(module.forward)


def first_of_each_kind(names: Iterable[str]) -> set[str]:
    firsts: dict[Any, str] = {}
    for name in names:
        firsts.setdefault(str(kind(name)), name)
    return {*firsts.values()}


MODULES = [*hk.nn.__all__, *VARIANTS]
EVERYDAY_MODULES = {*VARIANTS, "PartialFC", *first_of_each_kind(hk.nn.__all__)}


def sample(names: Iterable[str], everyday: Collection[str]) -> list[Any]:
    """The names as parameters of a test: `make test` takes those that are named."""
    return combinations(names, everyday=lambda name: name in everyday)


def missing(name: str) -> list[str]:
    """Arguments of a module of which nothing above says what to give."""
    made_of, called_with = kind(name)
    return sorted({*made_of} - {*ARGUMENTS} | {*called_with} - {*INPUTS})


def module_of(name: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    if name in VARIANTS:
        return VARIANTS[name]().to(dtype)
    module = getattr(hk.nn, name)
    return module(**{key: ARGUMENTS[key] for key in required(module)}, **SETTINGS.get(name, {})).to(dtype)


def inputs_of(module: torch.nn.Module, x: torch.Tensor) -> dict[str, Any]:
    name = type(module).__name__
    inputs = {key: INPUTS[key] for key in required(type(module).forward)} | OWN_INPUTS.get(name, {})
    return {key: make(x) for key, make in inputs.items()}


class Net(torch.nn.Module):
    """A layer before the loss, so that there is something to train whichever module it is."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(SIZE, SIZE, dtype=dtype)
        self.loss = module_of(name, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loss(**inputs_of(self.loss, self.layer(x)))


@dataclass
class Case:
    """A function of leaves, the first of which is a batch of rows, and what it gives without further ado."""

    name: str
    function: Callable[..., torch.Tensor]
    leaves: tuple[torch.Tensor, ...]
    module: torch.nn.Module | None = None

    def __post_init__(self) -> None:
        self.upstream = torch.randn(N, dtype=torch.float64)
        self.plain = self.run()

    def run(self, function: Callable[..., torch.Tensor] | None = None, leaves: Any = None) -> tuple[torch.Tensor, ...]:
        """The values of a function of the leaves, and a gradient of each."""
        leaves = [v.detach().clone().requires_grad_() for v in leaves or self.leaves]
        values = (function or self.function)(*leaves)
        found = torch.autograd.grad(values, leaves, self.upstream[: len(values)].to(values.dtype))
        return values.detach(), *(gradient.to_dense() for gradient in found)

    def cast(self, dtype: torch.dtype) -> list[torch.Tensor]:
        return [v.to(dtype) for v in self.leaves]


def case_of(name: str) -> Case:
    """That function, or that module as a function of a batch and of its parameters."""
    x = torch.randn(N, SIZE, dtype=torch.float64)
    if name in FUNCTIONS:
        return Case(name, FUNCTIONS[name], (x, torch.randn(CLASSES, SIZE, dtype=torch.float64)))
    module = module_of(name)
    return Case(name, function_of(module), (x, *(p.detach() for p in module.parameters())), module)


def function_of(module: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """The module as a function of a batch and of its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, parameters, strict=True))
        return functional_call(module, named, args=(), kwargs=inputs_of(module, x)).reshape(1)

    return function


def same(found: Any, wanted: Any, **tolerance: Any) -> None:
    """To the last bit, unless a tolerance is given."""
    torch.testing.assert_close(found, wanted, **(tolerance or {"rtol": 0, "atol": 0}), equal_nan=True)


def near(name: str, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], tolerance: float) -> None:
    """The values and gradients of a case, whose numbers were rounded otherwise, by the largest of each. A gradient that
    jumps where rounding puts a pair on the other side of a hinge or an edge has about the same direction."""
    for i, (mine, right) in enumerate(zip(found, wanted, strict=True)):
        mine, right = mine.double(), right.double()
        if i and name in JUMPS:
            assert (mine - right).norm() <= 0.7 * right.norm()
        else:
            same(mine, right, rtol=tolerance, atol=tolerance * right.abs().max().item())
