"""What a row of docs/methods.md is, and how what the page computes is compared with the paper's formula.

A section of the page has blocks of Python; each is run as it stands there, on the inputs of its `Method`, and must
give the values and gradients of `truth`, the formula in plain PyTorch. Constants and conventions of a truth are its
keyword-only parameters: altering any one of them must be seen.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import hyperkernels as hk
from tests.support import ROOT

PAGE = ROOT / "docs" / "methods.md"
CASES = range(4)  # of inputs; the last two are hard
TOLERANCE = 1e-10
SEEN = 1e-9


class Draw:
    """Random inputs of a case, float64, the same whenever they are drawn."""

    def __init__(self, case: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 + case)
        self.hard = case >= 2

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def leaf(self, value: torch.Tensor) -> torch.Tensor:
        """An input whose gradient is compared."""
        return value.detach().clone().requires_grad_()

    def rows(self, n: int, d: int, norms: bool = True) -> torch.Tensor:
        """[n, d] leaf. Hard: in tight clusters. Norms vary, by six orders of magnitude where it is hard; or are 1."""
        x = self.normal(n, d)
        if self.hard:
            x = x[self.integers(0, max(1, n // 4), n)] + 0.05 * self.normal(n, d)
        x = F.normalize(x)
        if norms:
            x = x * 10 ** (self.uniform(n, 1, low=-1, high=1) * (3.0 if self.hard else 0.5))
        return self.leaf(x)

    def labels(self, n: int, classes: int) -> torch.Tensor:
        """[n] int64. Hard: one class has a single row, and one has none."""
        if not self.hard:
            return self.integers(0, classes, n)
        labels = self.integers(1, classes - 1, n)
        labels[n // 2] = 0
        return labels


class Method(NamedTuple):
    """A block of the page. Blocks of one section belong to the methods of its number in their order."""

    number: str  # of the section
    name: str
    inputs: Callable[[Draw], dict[str, Any]]  # what the block finds; gradients of its leaves are compared
    truth: Callable[..., Any]  # takes inputs by name; constants and conventions are keyword-only
    results: tuple[str, ...] = ("loss",)  # what the block defines and the truth returns, one or a tuple
    altered: Mapping[str, Any] = MappingProxyType({})  # other values than a few percent more, one more, the other bool

    def arguments(self, inputs: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self.truth).parameters.values()
        return {p.name: inputs[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY}

    def constants(self) -> dict[str, Any]:
        """Keyword-only parameters of the truth, and another value for each."""
        parameters = inspect.signature(self.truth).parameters.values()
        constants = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {name: self.altered.get(name, _another(value)) for name, value in constants.items()}

    def on_page(self, block: str, case: int) -> dict[str, torch.Tensor]:
        inputs = self.inputs(Draw(case))
        names = {"torch": torch, "F": F, "hk": hk} | inputs
        exec(compile(block, f"docs/methods.md, section {self.number}, {self.name}", "exec"), names)
        return self._outcome([names[name] for name in self.results], inputs)

    def in_paper(self, case: int, **constants: Any) -> dict[str, torch.Tensor]:
        inputs = self.inputs(Draw(case))
        found = self.truth(**self.arguments(inputs), **constants)
        return self._outcome(found if isinstance(found, tuple) else (found,), inputs)

    def _outcome(self, results: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The results, and the gradients of a random combination of them."""
        outcome = {name: torch.as_tensor(value) for name, value in zip(self.results, results, strict=True)}
        leaves = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.requires_grad}
        roots = [value for value in outcome.values() if value.requires_grad]
        if roots:
            seeds = torch.Generator().manual_seed(7)
            total = sum((r * torch.randn(r.shape, dtype=r.dtype, generator=seeds)).sum() for r in roots)
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            outcome |= {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
        return {name: value.detach() for name, value in outcome.items()}


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.03 if value else 0.03
    return NotImplemented


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest error of each result and gradient, relative to its largest entry; infinite where it is no number."""
    assert found.keys() == wanted.keys(), f"of {sorted(found)}, not of {sorted(wanted)}, there are results or gradients"
    return {name: _difference(found[name], wanted[name]) for name in wanted}


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    if not wanted.numel():
        return 0.0
    error = torch.where(found == wanted, 0, found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)
    return float(error.nan_to_num(nan=float("inf")))


def sections() -> dict[str, list[str]]:
    """The blocks of Python of every section of the page, by its number."""
    parts = re.split(r"^### (\w+)\. ", PAGE.read_text(), flags=re.MULTILINE)
    block = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    numbers = parts[1::2]
    assert len(set(numbers)) == len(numbers), f"a number has two sections: {numbers}"
    return dict(zip(numbers, map(block.findall, parts[2::2]), strict=True))


def table() -> dict[str, list[str]]:
    """The cells of every row of the page's summary, by its number."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {number: cells.split(" | ") for number, cells in rows}


def anchors() -> set[str]:
    """What links within the page may name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", PAGE.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
