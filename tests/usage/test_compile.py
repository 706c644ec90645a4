"""torch.compile and torch.export: one graph with the numbers of the eager call, also for batches of other sizes."""

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from hyperkernels.distributed.head import ShardedHead
from hyperkernels.heads import losses

from .cases import FUNCTIONS, LISTED, MODULES, SIZE, N, Net, case_of, same, sample

TRACED = [name for name in FUNCTIONS if name not in (*LISTED, "sampled classes")]  # whose classes are checked
COMPILED = [name for name in FUNCTIONS if name not in LISTED]
COMPILED_MODULES = [name for name in MODULES if name not in LISTED]
# The number of their blocks depends on that of the rows, which is therefore a constant of the compiled function.
IN_BLOCKS = ("CalibratedUniformityLoss", "SoftTripleLoss")
# A sum of its options is a symbol for torch.compile with dynamic=True, whose guard on the rounded sum fails.
ROUNDED = ("RankedListLoss",)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def named_tuples(cls=tuple):
    for subclass in cls.__subclasses__():
        if subclass.__module__.startswith("hyperkernels."):
            yield subclass
            yield from named_tuples(subclass)


def test_no_named_tuple_has_a_property():
    """torch.compile of torch 2.10 traces its methods, and no property."""
    found = [c for c in named_tuples() if any(isinstance(value, property) for value in vars(c).values())]
    assert {losses.Head, ShardedHead} <= set(named_tuples()) and not found


def compiled(function, **options):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True, **options)


@pytest.mark.parametrize("name", sample(COMPILED, ("slerp",)))
def test_compiled(name):
    case = case_of(name)
    same(case.run(compiled(case.function, dynamic=False)), case.plain, **TOLERANCE)


@pytest.mark.parametrize(
    "name", sample([name for name in (*COMPILED, *COMPILED_MODULES) if name not in ROUNDED], ("slerp",))
)
def test_compiled_for_any_batch(name):
    """The second size compiles nothing anew."""
    case = case_of(name)
    dynamic = compiled(case.function, dynamic=True)
    same(case.run(dynamic), case.plain, **TOLERANCE)
    for n in (7, 5):
        leaves = [torch.randn(n, SIZE, dtype=torch.float64), *case.leaves[1:]]
        with torch.compiler.set_stance("default" if name in IN_BLOCKS else "fail_on_recompile"):
            found = case.run(dynamic, leaves)
        same(found, case.run(leaves=leaves), **TOLERANCE)


@pytest.mark.parametrize("name", sample(TRACED, ("unit_norm", "fast_ap")))
def test_a_traced_gradient(name):
    """make_fx of torch.func.grad, run on other numbers."""
    case = case_of(name)
    upstream, every = case.upstream[: len(case.plain[0])], tuple(range(len(case.leaves)))
    gradient = torch.func.grad(lambda *leaves: (case.function(*leaves) * upstream).sum(), every)
    traced = make_fx(gradient)(*case.leaves)
    same(traced(*case.leaves), case.plain[1:], **TOLERANCE)
    leaves = [torch.randn_like(v) for v in case.leaves]
    same(traced(*leaves), case.run(leaves=leaves)[1:], **TOLERANCE)


@pytest.mark.parametrize("name", sample(COMPILED_MODULES, ("MarginSoftmax", "PartialFC")))
def test_a_module_is_exported_for_any_batch(name):
    net = Net(name)
    rows = torch.export.Dim("rows", min=1)
    exported = torch.export.export(net, (torch.randn(N, SIZE, dtype=torch.float64),), dynamic_shapes=({0: rows},))
    for n in (1, 2, N, 19, 300):
        x = torch.randn(n, SIZE, dtype=torch.float64)
        same(exported.module()(x), net(x), **TOLERANCE)


@pytest.mark.parametrize("name", sample(COMPILED_MODULES, ()))
def test_a_training_step_of_a_compiled_module(name):
    net = Net(name)
    other = copy.deepcopy(net)
    fast = compiled(other)
    for _ in range(2):
        x = torch.randn(N, SIZE, dtype=torch.float64)
        for each, of in ((net, net), (fast, other)):
            of.zero_grad()
            each(x).backward()
            torch.optim.SGD(of.parameters(), lr=0.1).step()
    same(dict(other.named_parameters()), dict(net.named_parameters()), **TOLERANCE)
