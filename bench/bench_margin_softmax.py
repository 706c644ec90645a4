"""The heads, forward and backward, against what a user writes in PyTorch, eager and compiled, and against the peers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

import hyperkernels as hk

from . import heads
from .harness import Contender, Row, measure
from .heads import Head
from .memory import peak_bytes

OURS = "hyperkernels"
ARCFACE = hk.margins.ArcFace(heads.MARGIN)


def rows(device: str = "cpu", quick: bool = False) -> Iterator[list[Row]]:
    """One list of rows a comparison, as each is done."""
    if device == "cuda":
        yield from _on_cuda(quick)
    elif quick:
        yield _arcface(64, 10_000, 128, torch.float32, device, 5)
        yield _skip(64, 10_000, 128, device, 5)
    else:
        for c in (1_000, 10_000, 100_000):
            yield _arcface(256, c, 512, torch.float32, device, 11)
        yield _arcface(256, 100_000, 512, torch.bfloat16, device, 7)
        yield _skip(256, 100_000, 512, device, 11)
        yield _cosface(256, 100_000, 512, device, 5)
        yield _sub_centers(256, 30_000, 512, device, 5)
        yield _plain(256, 100_000, 512, torch.float32, device, 5)
        for c in (10_000, 100_000, 1_000_000):
            yield _scaling(128, c, 256, device)


def _on_cuda(quick: bool) -> Iterator[list[Row]]:
    if quick:
        yield _arcface(1024, 10_000, 128, torch.bfloat16, "cuda", 5)
        return
    for c in (10_000, 100_000, 1_000_000):
        yield _arcface(1024, c, 512, torch.bfloat16, "cuda", 21)
    yield _arcface(1024, 100_000, 512, torch.float32, "cuda", 11)
    yield _plain(1024, 1_000_000, 512, torch.bfloat16, "cuda", 11)
    yield _skip(1024, 1_000_000, 512, "cuda", 21, torch.bfloat16)
    yield _scaling(1024, 10_000_000, 512, "cuda", torch.bfloat16)


class Problem:
    """Input sets in rotation, so that caches are as cold as the sizes make them."""

    def __init__(self, n: int, rows: int, d: int, dtype: torch.dtype, device: str, classes: int | None = None) -> None:
        torch.manual_seed(0)
        self.weight = torch.randn(rows, d, dtype=dtype, device=device).mul_(0.05).requires_grad_()
        self.xs = [torch.randn(n, d, dtype=dtype, device=device).requires_grad_() for _ in range(3)]
        self.targets = [torch.randint(classes or rows, (n,), device=device) for _ in range(3)]
        self.device = device
        self.flops = 6.0 * n * rows * d
        self.gradient_bytes = (n + rows) * d * dtype.itemsize

    def step(self, head: Head, i: int) -> tuple[torch.Tensor, ...]:
        loss = head(self.xs[i], self.weight, self.targets[i])
        return loss.detach(), *torch.autograd.grad(loss, (self.xs[i], self.weight))

    def three_gemms(self, i: int) -> tuple[torch.Tensor, ...]:
        x, w = self.xs[i].detach(), self.weight.detach()
        logits = x @ w.T
        return logits @ w, logits.T @ x

    def truth(self, head: Head) -> tuple[torch.Tensor, ...]:
        leaves = [v.detach().double().requires_grad_() for v in (self.xs[0], self.weight)]
        loss = head(*leaves, self.targets[0])
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    def peak_mb(self, head: Head) -> float:
        """Beyond inputs and gradients."""
        return (peak_bytes(lambda: self.step(head, 1), self.device) - self.gradient_bytes) / 1e6


def _error(got: tuple[torch.Tensor, ...], truth: tuple[torch.Tensor, ...]) -> float:
    """Largest relative error, in Euclidean norm, of loss, dx and dweight."""
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, truth, strict=True))


def _compare(
    op: str,
    shape: str,
    problem: Problem,
    contenders: dict[str, Head],
    truth: Head,
    samples: int,
    others: list[Contender] | None = None,
) -> list[Row]:
    """Loss and both gradients of every head, beside the three products that any of them must do."""
    right = problem.truth(truth)
    peaks, errors = {}, {}
    for name, head in contenders.items():
        errors[name] = _error(problem.step(head, 0), right)
        peaks[name] = problem.peak_mb(head)
    del right
    runs = [Contender(name, lambda i, h=head: problem.step(h, i)) for name, head in contenders.items()]
    runs += others or []
    runs.append(Contender("floor: three bare GEMMs", problem.three_gemms, is_floor=True))
    return measure(
        runs,
        op=f"margin_softmax {op}",
        shape=shape,
        dtype=str(problem.weight.dtype).removeprefix("torch."),
        work=problem.flops,
        unit="GFLOP/s",
        device=problem.device,
        samples=samples,
        peaks=peaks,
        errors=errors,
    )


def _arcface(n: int, c: int, d: int, dtype: torch.dtype, device: str, samples: int) -> list[Row]:
    problem = Problem(n, c, d, dtype, device)
    contenders = {OURS: heads.fused(ARCFACE)}
    if device == "cpu":
        everything = n * (c + 512) * 4
        contenders["  workspace=0"] = heads.fused(ARCFACE, workspace=0)
        contenders["  workspace=all"] = heads.fused(ARCFACE, workspace=everything)
    contenders["torch.compile"] = torch.compile(heads.arcface)
    contenders["eager PyTorch"] = heads.arcface
    others = []
    if dtype == torch.float32:
        contenders |= heads.metric_learning("ArcFaceLoss", margin=math.degrees(heads.MARGIN))
    else:
        single = Problem(n, c, d, torch.float32, device)
        others.append(Contender("  in float32", lambda i: single.step(heads.fused(ARCFACE), i)))
    return _compare(
        "ArcFace forward+backward", f"N={n} C={c} D={d}", problem, contenders, heads.arcface, samples, others
    )


def _cosface(n: int, c: int, d: int, device: str, samples: int) -> list[Row]:
    contenders = {
        OURS: heads.fused(hk.margins.CosFace(0.35)),
        "torch.compile": torch.compile(heads.cosface),
        "eager PyTorch": heads.cosface,
        **heads.metric_learning("CosFaceLoss", margin=0.35),
    }
    problem = Problem(n, c, d, torch.float32, device)
    return _compare("CosFace forward+backward", f"N={n} C={c} D={d}", problem, contenders, heads.cosface, samples)


def _sub_centers(n: int, c: int, d: int, device: str, samples: int) -> list[Row]:
    contenders = {
        OURS: heads.fused(ARCFACE, sub_centers=3),
        "torch.compile": torch.compile(heads.sub_center_arcface),
        "eager PyTorch": heads.sub_center_arcface,
        **heads.metric_learning("SubCenterArcFaceLoss", margin=math.degrees(heads.MARGIN), sub_centers=3),
    }
    problem = Problem(n, 3 * c, d, torch.float32, device, classes=c)
    return _compare(
        "sub-centre ArcFace forward+backward",
        f"N={n} C={c} K=3 D={d}",
        problem,
        contenders,
        heads.sub_center_arcface,
        samples,
    )


def _plain(n: int, c: int, d: int, dtype: torch.dtype, device: str, samples: int) -> list[Row]:
    """Plain linear cross-entropy, nothing normalised, and our ArcFace beside it."""
    contenders = {
        OURS: heads.fused_plain,
        "torch.compile": torch.compile(heads.plain),
        "eager PyTorch": heads.plain,
        **heads.linear_cross_entropy(),
    }
    if device == "cuda":
        contenders |= heads.gpu_cross_entropies()
    problem = Problem(n, c, d, dtype, device)
    ours = Contender("  with normalisation and ArcFace", lambda i: problem.step(heads.fused(ARCFACE), i))
    return _compare(
        "linear cross-entropy forward+backward",
        f"N={n} C={c} D={d}",
        problem,
        contenders,
        heads.plain,
        samples,
        [ours],
    )


def trained(n: int, c: int, d: int, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and target late in training: 19 samples in 20 within 37 degrees of their centre, one at 72."""
    torch.manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(c, d, device=device))
    target = torch.randint(c, (n,), device=device)
    cos = torch.full((n, 1), 0.8, device=device)
    cos[::20] = 0.3
    aside = torch.nn.functional.normalize(torch.randn(n, d, device=device))
    x = cos * weight[target] + (1 - cos * cos).sqrt() * aside
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def _skip(n: int, c: int, d: int, device: str, samples: int, dtype: torch.dtype = torch.float32) -> list[Row]:
    """The backward alone, in the trained regime, under budgets for what it may leave out."""
    x, weight, target = trained(n, c, d, device, dtype)
    losses: dict[str, torch.Tensor] = {}
    names = {0.0: OURS, 1e-3: "  skip_budget=1e-3", 1e-2: "  skip_budget=1e-2"}
    gradients: dict[str, tuple[torch.Tensor, ...]] = {}
    for budget, name in names.items():
        report = torch.zeros(2, dtype=torch.float64, device=device)
        options = {"skip_budget": budget, "skip_report": report, "workspace": 0}
        losses[name] = heads.fused(ARCFACE, **options)(x, weight, target)
        gradients[name] = torch.autograd.grad(losses[name], (x, weight), retain_graph=True)
        if budget:
            print(
                f"{name.strip()}: {report[0].item():.1e} of the gradient dropped, {report[1].item():.1%} of the tiles"
            )
    exact = tuple(g.double() for g in gradients[OURS])
    errors = {name: _error(got, exact) for name, got in gradients.items()}
    gradients.clear()

    def backward(name: str) -> Contender:
        return Contender(name, lambda i: torch.autograd.grad(losses[name], (x, weight), retain_graph=True))

    fill = Contender("floor: zeros for the gradients", lambda i: (torch.zeros_like(x), torch.zeros_like(weight)), True)
    return measure(
        [*map(backward, names.values()), fill],
        op="margin_softmax ArcFace backward, trained",
        shape=f"N={n} C={c} D={d}",
        dtype=str(dtype).removeprefix("torch."),
        work=6.0 * n * c * d,
        unit="GFLOP/s",
        device=device,
        samples=samples,
        errors=errors,
    )


def _scaling(n: int, c: int, d: int, device: str, dtype: torch.dtype = torch.float32) -> list[Row]:
    """Ours alone, to a number of classes where the logits are a burden."""
    problem = Problem(n, c, d, dtype, device)
    head = heads.fused(ARCFACE)
    peaks = {OURS: problem.peak_mb(head)}
    runs = [Contender(OURS, lambda i: problem.step(head, i))]
    runs.append(Contender("floor: three bare GEMMs", problem.three_gemms, is_floor=True))
    return measure(
        runs,
        op="margin_softmax ArcFace scaling",
        shape=f"N={n} C={c} D={d}",
        dtype=str(dtype).removeprefix("torch."),
        work=problem.flops,
        unit="GFLOP/s",
        device=device,
        samples=5,
        peaks=peaks,
    )


def summary(found: list[Row]) -> str:
    """The exponent of time against C."""
    points = [
        (float(row.shape.split("C=")[1].split()[0]), row.median_ms)
        for row in found
        if row.op.endswith("scaling") and row.name == OURS
    ]
    if len(points) < 2:
        return ""
    (c0, t0), (c1, t1) = min(points), max(points)
    exponent = math.log(t1 / t0) / math.log(c1 / c0)
    return f"time grows with C to the power of {exponent:.2f} from {c0:,.0f} to {c1:,.0f} classes"
