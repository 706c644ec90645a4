"""The heads, forward and backward, against what a user writes in PyTorch, eager and compiled, and against the peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

import hyperkernels as hk

from . import heads
from .harness import OURS, Case, Comparison, Contender, Settings
from .heads import Head
from .plots import Figure, Panel, time_and_memory

SETS = 3
ARCFACE = hk.margins.ArcFace(heads.MARGIN)
STEP = "ArcFace forward+backward"
BY_CLASSES, BY_ROWS, BY_SIZE, BY_CENTRES = (f"ArcFace by {name}" for name in ("classes", "rows", "size", "sub-centres"))
BACKWARD = "ArcFace backward, trained"
FIGURES = (
    time_and_memory("margin_softmax", BY_CLASSES, "C", "classes C"),
    Figure(
        "margin_softmax_sweeps",
        "ArcFace forward + backward",
        (
            Panel(BY_ROWS, "N", "rows N", title="C = 20,000, D = 256"),
            Panel(BY_SIZE, "D", "embedding size D", title="N = 128, C = 20,000"),
            Panel(BY_CENTRES, "K", "sub-centres K", title="N = 128, C = 10,000, D = 256"),
        ),
    ),
    Figure(
        "skip_budget",
        "ArcFace backward, N = 256, C = 100,000, D = 512",
        (Panel(BACKWARD, "trained", "share of the batch near its centre", log=False),),
    ),
)


def cases(settings: Settings) -> Iterator[Case]:
    f32, bf16 = torch.float32, torch.bfloat16
    if settings.checkpoint is not None:
        from .trained_head import case

        yield case(settings.checkpoint)
        return
    if settings.quick:
        n, c, d, dtype = (1_024, 10_000, 128, bf16) if settings.cuda else (64, 10_000, 128, f32)
        yield _arcface(STEP, n, c, d, dtype, settings)
        yield _skip(n, c, d, 0.95, dtype, settings)
        return
    if settings.cuda:
        n, d, half = 1_024, 512, bf16
        headline = [(c, bf16) for c in (10_000, 100_000, 1_000_000)] + [(100_000, f32)]
        classes, by_classes = (1_000, 10_000, 100_000, 1_000_000, 10_000_000), (1_024, 512)
        skip, plain_classes = 1_000_000, 1_000_000
    else:
        n, d, half = 256, 512, f32
        headline = [(1_000, f32), (10_000, f32)]
        headline += [(100_000, bf16), (100_000, f32)] if settings.full else []
        classes, by_classes = (1_000, 10_000, 100_000, 1_000_000, 10_000_000), (128, 128)
        skip, plain_classes = 100_000 if settings.full else 20_000, 30_000
    for c, dtype in headline:
        yield _arcface(STEP, n, c, d, dtype, settings, variants=True)
    for c in classes if settings.full else classes[: 3 if settings.cuda else 2]:
        yield _arcface(BY_CLASSES, by_classes[0], c, by_classes[1], half, settings)
    for trained in (0.0, 0.5, 0.95, 1.0) if settings.full else (0.95,):
        yield _skip(n, skip, d, trained, half, settings)
    if not settings.full:
        return
    for rows in (16, 128, 1_024):
        yield _arcface(BY_ROWS, rows, 20_000, 256, half, settings)
    for size in (64, 256, 1_024):
        yield _arcface(BY_SIZE, 128, 20_000, size, half, settings)
    for centres in (1, 3, 8):
        yield _sub_centers(128, 10_000, centres, 256, half, settings)
    for dtype in (torch.float64, bf16, torch.float16):
        yield _arcface("ArcFace by dtype", 128, 20_000, 256, dtype, settings)
    yield _cosface(n, plain_classes, d, settings)
    yield _plain(n, plain_classes, d, half, settings)


def test_margin_softmax(case: Case, compare: Callable[[], None]) -> None:
    compare()


class Problem:
    """Input sets in rotation, so that caches are as cold as the sizes make them."""

    def __init__(self, n: int, rows: int, d: int, dtype: torch.dtype, device: str, classes: int | None = None) -> None:
        torch.manual_seed(0)
        self.weight = torch.randn(rows, d, dtype=dtype, device=device).mul_(0.05).requires_grad_()
        self.xs = [torch.randn(n, d, dtype=dtype, device=device).requires_grad_() for _ in range(SETS)]
        self.targets = [torch.randint(classes or rows, (n,), device=device) for _ in range(SETS)]
        self.flops = 6.0 * n * rows * d
        self.gradient_bytes = (n + rows) * d * dtype.itemsize

    def step(self, head: Head, i: int) -> tuple[torch.Tensor, ...]:
        loss = head(self.xs[i], self.weight, self.targets[i])
        return loss.detach(), *torch.autograd.grad(loss, (self.xs[i], self.weight))

    def contender(self, name: str, head: Head, judged: bool = True) -> Contender:
        return Contender(name, lambda i: self.step(head, i), judged=judged)

    def three_gemms(self, i: int) -> tuple[torch.Tensor, ...]:
        x, w = self.xs[i].detach(), self.weight.detach()
        logits = x @ w.T
        return logits @ w, logits.T @ x

    def compare(self, contenders: dict[str, Head], truth: Head, others: tuple[Contender, ...] = ()) -> Comparison:
        """Loss and both gradients of every head, beside the three products that any of them must do."""
        runs = [self.contender(name, head) for name, head in contenders.items()]
        runs += [*others, Contender("floor: three bare GEMMs", self.three_gemms, is_floor=True)]
        return Comparison(runs, self.flops, "GFLOP/s", SETS, self.gradient_bytes, self._judge(truth))

    def _judge(self, truth: Head) -> Callable[[tuple[torch.Tensor, ...]], float] | None:
        """The largest relative error, in Euclidean norm, of loss, dx and dweight on input set 0; None where the truth
        in float64, with its logits, is beyond what a machine holds."""
        if self.weight.numel() > 2**27 or self.xs[0].shape[0] * self.weight.shape[0] > 2**28:
            return None
        leaves = [v.detach().double().requires_grad_() for v in (self.xs[0], self.weight)]
        loss = truth(*leaves, self.targets[0])
        right = (loss.detach(), *torch.autograd.grad(loss, leaves))
        return lambda got: max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, right, strict=True))


def _arcface(op: str, n: int, c: int, d: int, dtype: torch.dtype, settings: Settings, variants: bool = False) -> Case:
    def build() -> Comparison:
        problem = Problem(n, c, d, dtype, settings.device)
        contenders = {OURS: heads.fused(ARCFACE)}
        if variants and not settings.cuda:
            contenders["  workspace=0"] = heads.fused(ARCFACE, workspace=0)
            contenders["  workspace=all"] = heads.fused(ARCFACE, workspace=n * (c + 512) * 4)
        contenders["torch.compile"] = torch.compile(heads.arcface)
        contenders["eager PyTorch"] = heads.arcface
        others: tuple[Contender, ...] = ()
        if dtype == torch.float32:
            contenders |= heads.metric_learning("ArcFaceLoss", margin=math.degrees(heads.MARGIN))
        elif variants:
            single = Problem(n, c, d, torch.float32, settings.device)
            others = (single.contender("  the same in float32", heads.fused(ARCFACE), judged=False),)
        return problem.compare(contenders, heads.arcface, others)

    return Case(op, f"N={n} C={c} D={d}", dtype, build, samples=11 if c <= 1_000_000 or settings.cuda else 3)


def _cosface(n: int, c: int, d: int, settings: Settings) -> Case:
    def build() -> Comparison:
        contenders = {
            OURS: heads.fused(hk.margins.CosFace(0.35)),
            "torch.compile": torch.compile(heads.cosface),
            "eager PyTorch": heads.cosface,
            **heads.metric_learning("CosFaceLoss", margin=0.35),
        }
        return Problem(n, c, d, torch.float32, settings.device).compare(contenders, heads.cosface)

    return Case("CosFace forward+backward", f"N={n} C={c} D={d}", torch.float32, build)


def _sub_centers(n: int, c: int, k: int, d: int, dtype: torch.dtype, settings: Settings) -> Case:
    def build() -> Comparison:
        eager = heads.sub_center_arcface(k)
        contenders = {
            OURS: heads.fused(ARCFACE, sub_centers=k),
            "torch.compile": torch.compile(eager),
            "eager PyTorch": eager,
        }
        if dtype == torch.float32:
            options = {"margin": math.degrees(heads.MARGIN), "sub_centers": k}
            contenders |= heads.metric_learning("SubCenterArcFaceLoss", **options)
        return Problem(n, k * c, d, dtype, settings.device, classes=c).compare(contenders, eager)

    return Case(BY_CENTRES, f"N={n} C={c} K={k} D={d}", dtype, build)


def _plain(n: int, c: int, d: int, dtype: torch.dtype, settings: Settings) -> Case:
    """Plain linear cross-entropy, nothing normalised, and our ArcFace beside it."""

    def build() -> Comparison:
        contenders = {
            OURS: heads.fused_plain,
            "torch.compile": torch.compile(heads.plain),
            "eager PyTorch": heads.plain,
            **heads.linear_cross_entropy(),
        }
        if settings.cuda:
            contenders |= heads.gpu_cross_entropies()
        problem = Problem(n, c, d, dtype, settings.device)
        arcface = problem.contender("  with normalisation and ArcFace", heads.fused(ARCFACE), judged=False)
        return problem.compare(contenders, heads.plain, (arcface,))

    return Case("linear cross-entropy forward+backward", f"N={n} C={c} D={d}", dtype, build)


def in_training(
    n: int, c: int, d: int, trained: float, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and target: the share ``trained`` of the samples within 37 degrees of their centre, the rest at 72."""
    torch.manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(c, d, device=device))
    target = torch.randint(c, (n,), device=device)
    cos = torch.full((n, 1), 0.8, device=device)
    cos[torch.randperm(n, device=device)[: round((1 - trained) * n)]] = 0.3
    aside = torch.nn.functional.normalize(torch.randn(n, d, device=device))
    x = cos * weight[target] + (1 - cos * cos).sqrt() * aside
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def _skip(n: int, c: int, d: int, trained: float, dtype: torch.dtype, settings: Settings) -> Case:
    """The backward alone under budgets for what it may leave out; the error is against the exact gradient."""

    def build() -> Comparison:
        x, weight, target = in_training(n, c, d, trained, dtype, settings.device)

        def backward(name: str, budget: float) -> Contender:
            report = torch.zeros(2, dtype=torch.float64, device=settings.device)
            head = heads.fused(ARCFACE, skip_budget=budget, skip_report=report, workspace=0)
            loss = head(x, weight, target)
            return Contender(name, lambda i: torch.autograd.grad(loss, (x, weight), retain_graph=True))

        budgets = {OURS: 0.0, "  skip_budget=1e-3": 1e-3, "  skip_budget=1e-2": 1e-2}
        contenders = [backward(name, budget) for name, budget in budgets.items()]
        exact = [g.double() for g in contenders[0].run(0)]
        zeros = Contender(
            "floor: zeros for the gradients", lambda i: (torch.zeros_like(x), torch.zeros_like(weight)), True
        )
        return Comparison(
            [*contenders, zeros],
            6.0 * n * c * d,
            "GFLOP/s",
            1,
            (n + c) * d * dtype.itemsize,
            lambda got: max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)),
        )

    return Case(BACKWARD, f"N={n} C={c} D={d} trained={trained:g}", dtype, build)
