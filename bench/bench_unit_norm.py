"""unit_norm against F.normalize, F.cosine_similarity and geoopt, beside the copy of the same array."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import hyperkernels as hk

from . import peers
from .harness import OURS, Case, Comparison, Contender, Settings
from .plots import Figure, Panel

SETS = 3
FORWARD, STEP, COSINE = "unit_norm forward", "unit_norm forward+backward", "cosine of rows forward"
FIGURES = (
    Figure(
        "unit_norm",
        "unit_norm of rows of 512",
        (Panel(FORWARD, "N", "rows", title="forward"), Panel(STEP, "N", "rows", title="forward + backward")),
    ),
)


def cases(settings: Settings) -> Iterator[Case]:
    if settings.cuda:
        shapes = [(1_000_000, 512)] if not settings.quick else [(100_000, 512)]
        shapes += [(1_000_000, 129), (10_000, 512), (100_000, 512)] if settings.full else []
        dtypes = [torch.float32, torch.bfloat16]
    else:
        shapes = [(4_000, 512)] if settings.quick else [(100_000, 512)]
        shapes += [(256, 512), (4_096, 512), (100_000, 128)] if settings.full else []
        dtypes = [torch.float32, torch.bfloat16] if settings.full else [torch.float32]
    samples = 21 if settings.cuda or settings.full else 11
    for n, d in sorted(shapes):
        for dtype in dtypes:
            for op, build in ((FORWARD, forward), (STEP, step), (COSINE, cosine)):
                if build is cosine and not (settings.full or settings.quick or settings.cuda):
                    continue
                yield Case(op, f"N={n} D={d}", dtype, lambda b=build, a=(n, d, dtype, settings.device): b(*a), samples)


def test_unit_norm(case: Case, compare: Callable[[], None]) -> None:
    compare()


def _inputs(n: int, d: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    return [torch.randn(n, d, device=device).to(dtype) for _ in range(SETS)]


def _ours(run: Callable[[int], object], device: str) -> list[Contender]:
    """Ours on the device's own backend and, on a GPU, in Triton."""

    def triton(i: int) -> object:
        with hk.backend("triton"):
            return run(i)

    return [Contender(OURS, run), *([Contender("  Triton", triton)] if device == "cuda" else [])]


def _far(right: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """The relative error, in Euclidean norm."""
    return lambda got: float((got.double() - right).norm() / right.norm())


def forward(n: int, d: int, dtype: torch.dtype, device: str) -> Comparison:
    xs = _inputs(n, d, dtype, device)
    compiled = torch.compile(F.normalize)
    contenders = _ours(lambda i: hk.unit_norm(xs[i]), device)
    contenders += [
        Contender("F.normalize", lambda i: F.normalize(xs[i])),
        Contender("torch.compile", lambda i: compiled(xs[i])),
    ]
    if peers.present("geoopt"):
        import geoopt

        sphere = geoopt.Sphere()
        contenders.append(Contender("geoopt Sphere.projx", lambda i: sphere.projx(xs[i])))
    contenders.append(Contender("floor: copy", lambda i: xs[i].clone(), is_floor=True))
    size = n * d * dtype.itemsize
    return Comparison(contenders, 2.0 * size, "GB/s", SETS, size, _far(F.normalize(xs[0].double())))


def step(n: int, d: int, dtype: torch.dtype, device: str) -> Comparison:
    xs = [x.requires_grad_() for x in _inputs(n, d, dtype, device)]
    gradients = _inputs(n, d, dtype, device)

    def of(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], torch.Tensor]:
        return lambda i: torch.autograd.grad(f(xs[i]), xs[i], gradients[i])[0]

    right = xs[0].detach().double().requires_grad_()
    truth = torch.autograd.grad(F.normalize(right), right, gradients[0].double())[0]
    contenders = _ours(of(hk.unit_norm), device)
    contenders += [
        Contender("F.normalize", of(F.normalize)),
        Contender("torch.compile", of(torch.compile(F.normalize))),
        Contender("floor: copy and add", lambda i: (xs[i].clone(), xs[i] + gradients[i]), is_floor=True),
    ]
    size = n * d * dtype.itemsize
    return Comparison(contenders, 5.0 * size, "GB/s", SETS, size, _far(truth))


def cosine(n: int, d: int, dtype: torch.dtype, device: str) -> Comparison:
    """Cosines of pairs of rows, for which there is no kernel of ours yet: two projections and a product."""
    xs, ys = _inputs(n, d, dtype, device), _inputs(n, d, dtype, device)
    compiled = torch.compile(F.cosine_similarity)
    contenders = _ours(lambda i: (hk.unit_norm(xs[i]) * hk.unit_norm(ys[i])).sum(1), device)
    contenders += [
        Contender("F.cosine_similarity", lambda i: F.cosine_similarity(xs[i], ys[i])),
        Contender("torch.compile", lambda i: compiled(xs[i], ys[i])),
        Contender("floor: two sums", lambda i: (xs[i].sum(), ys[i].sum()), is_floor=True),
    ]
    truth = F.cosine_similarity(xs[0].double(), ys[0].double())
    return Comparison(contenders, 2.0 * n * d * dtype.itemsize, "GB/s", SETS, 0, _far(truth))
