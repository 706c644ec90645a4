"""Miners and pair losses against pytorch-metric-learning, faiss, pykeops, eager PyTorch, and the bare products."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import hyperkernels as hk

from . import pairs
from .harness import OURS, Case, Comparison, Contender, Settings
from .plots import Figure, Panel, time_and_memory

DIM = 512
SETS = 2  # input sets that rotate
TRUTH_LIMIT = 8_192  # embeddings up to which the formula in float64 fits beside the rest
Inputs = list[tuple[torch.Tensor, torch.Tensor]]
HARD, STEP, FORMING = "batch_hard", "multi_similarity forward+backward", "multi_similarity, classes forming"
SUPCON, TOP = "supcon forward+backward", "topk_negatives k=10"
FIGURES = (
    time_and_memory("pair_mining", STEP, "N", "embeddings N"),
    time_and_memory("batch_hard", HARD, "N", "embeddings N"),
    Figure("topk_negatives", TOP, (Panel(TOP, "N", "queries and references N = M", title="Time"),)),
)


def cases(settings: Settings) -> Iterator[Case]:
    dtype = torch.bfloat16 if settings.cuda else torch.float32
    if settings.quick:
        sizes = {op: [8_192 if settings.cuda else 1_024] for op in (HARD, STEP, FORMING, SUPCON, TOP)}
    elif settings.cuda:
        sweep = [4_096, 16_384] if settings.full else []
        sizes = {HARD: [*sweep, 65_536], STEP: [*sweep, 65_536], SUPCON: [65_536], TOP: [*sweep, 65_536], FORMING: []}
    elif settings.full:
        miner = [1_024, 2_048, 4_096, 8_192, 16_384]
        sizes = {HARD: miner, STEP: miner[:4], FORMING: [4_096], SUPCON: [8_192], TOP: [4_096, 20_000]}
    else:
        sizes = {HARD: [1_024, 4_096], STEP: [1_024, 2_048], FORMING: [], SUPCON: [2_048], TOP: [4_096]}
    for n in sizes[HARD]:
        yield _case(HARD, n, dtype, settings, batch_hard)
    for n in sizes[STEP]:
        yield _case(STEP, n, dtype, settings, lambda *a: loss_step("multi_similarity", *a))
    for n in sizes[FORMING]:
        yield _case(FORMING, n, dtype, settings, lambda *a: loss_step("multi_similarity", *a, spread=1.5))
    for n in sizes[SUPCON]:
        yield _case(SUPCON, n, dtype, settings, lambda *a: loss_step("supcon", *a))
    for n in sizes[TOP]:
        yield _case(TOP, n, dtype, settings, top_k, f"N={n} M={n} D={DIM}")


def test_pair_mining(case: Case, compare: Callable[[], None]) -> None:
    compare()


def _case(
    op: str,
    n: int,
    dtype: torch.dtype,
    settings: Settings,
    build: Callable[[int, torch.dtype, str], Comparison],
    shape: str | None = None,
) -> Case:
    # Where a round takes a minute, three rounds; the rows say how many.
    samples = 11 if settings.cuda or n <= 8_192 else 3
    return Case(op, shape or f"N={n} D={DIM}", dtype, lambda: build(n, dtype, settings.device), samples)


def inputs(n: int, dtype: torch.dtype, device: str, spread: float = 6.0, images: int = 16) -> Inputs:
    """Embeddings of classes of about `images` each, in random order. Two of one class have a mean cosine of 1 / (1 +
    spread^2): classes that are hardly there (0.03), as early in training, or that form (1.5: 0.31)."""
    sets = []
    for _ in range(SETS):
        labels = torch.randint(max(2, n // images), (n,), device=device)
        centres = torch.randn(int(labels.max()) + 1, DIM, device=device)
        x = centres[labels] + spread * torch.randn(n, DIM, device=device)
        sets.append((torch.nn.functional.normalize(x).to(dtype), labels))
    return sets


def bare(sets: Inputs, products: int) -> Callable[[int], object]:
    """The floor: `products` of N x D by D x N or N x N by N x D, in blocks whose output is not kept."""
    n = len(sets[0][0])
    chunk = min(n, 8_192)

    def run(i: int) -> None:
        x = sets[i][0]
        for begin in range(0, n, chunk):
            s = x[begin : begin + chunk] @ x.T
            if products == 2:
                s @ x

    return run


def batch_hard(n: int, dtype: torch.dtype, device: str) -> Comparison:
    """Hardest positive and hardest negative of every row. The error is how much less hard the chosen negatives are."""
    sets = inputs(n, dtype, device)
    miners: dict[str, pairs.Miner] = {
        OURS: hk.mining.batch_hard,
        "chunked eager PyTorch": pairs.chunked_batch_hard,
        **pairs.batch_hard_miners(),
    }
    contenders = [Contender(name, lambda i, f=f: f(*sets[i])) for name, f in miners.items()]
    contenders.append(Contender("floor: one bare GEMM", bare(sets, 1), is_floor=True))
    x, labels = sets[0]
    best = _hardest(x, labels)

    def less_hard(found: tuple[torch.Tensor, ...]) -> float:
        anchors = torch.arange(n, device=device) if len(found) == 2 else found[0]
        unit = torch.nn.functional.normalize(x.double())
        return float((best[anchors] - (unit[anchors] * unit[found[-1]]).sum(1)).max())

    return Comparison(contenders, 2.0 * n * n * DIM, "GFLOP/s", SETS, 0, less_hard)


def _hardest(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(x.double())
    parts = [
        torch.where(labels[b : b + 1024, None] == labels, -torch.inf, unit[b : b + 1024] @ unit.T).amax(1)
        for b in range(0, len(x), 1024)
    ]
    return torch.cat(parts)


LOSSES: dict[str, tuple[pairs.Loss, pairs.Loss, Callable[[], dict[str, pairs.Loss]]]] = {
    # ours, the formula, the peers
    "multi_similarity": (
        lambda x, y: hk.losses.multi_similarity(x, y),
        pairs.eager_multi_similarity,
        pairs.multi_similarity_losses,
    ),
    "supcon": (pairs.fused_supcon, pairs.eager_supcon, pairs.supcon_losses),
}


def loss_step(name: str, n: int, dtype: torch.dtype, device: str, spread: float = 6.0) -> Comparison:
    """Loss and gradient. The error is the larger of the relative errors of the two, against float64."""
    sets = [(x.requires_grad_(), y) for x, y in inputs(n, dtype, device, spread)]
    ours, formula, peers = LOSSES[name]
    losses: dict[str, pairs.Loss] = {OURS: ours, "torch.compile": torch.compile(formula), **peers()}
    contenders = [Contender(name, lambda i, f=f: _step(f, *sets[i])) for name, f in losses.items()]
    detached = [(x.detach(), y) for x, y in sets]
    contenders.append(Contender("floor: two bare GEMMs", bare(detached, 2), is_floor=True))
    error = None
    if n <= TRUTH_LIMIT:
        x, labels = sets[0]
        truth = _step(formula, x.detach().double().requires_grad_(), labels)
        error = lambda got: max(  # noqa: E731
            float((mine.double() - right).norm() / right.norm()) for mine, right in zip(got, truth, strict=True)
        )
    size = n * DIM * dtype.itemsize
    return Comparison(contenders, 4.0 * n * n * DIM, "GFLOP/s", SETS, size, error)


def _step(loss: pairs.Loss, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = loss(x, labels)
    return value.detach(), torch.autograd.grad(value, x)[0]


def top_k(n: int, dtype: torch.dtype, device: str, k: int = 10) -> Comparison:
    """The k hardest negatives of N queries among N others. The peers that cannot filter are named so, and not judged.
    The error is the largest cosine missed."""
    sets, refs = inputs(n, dtype, device), inputs(n, dtype, device)
    chunk = max(1, 2**27 // n)

    def ours(i: int) -> torch.Tensor:
        return hk.mining.topk_negatives(*sets[i], *refs[i], k=k)[1]

    def chunked(i: int, filtered: bool) -> torch.Tensor:
        (x, y), (ref, ref_y) = sets[i], refs[i]
        return pairs.chunked_top_k(x, ref, k, chunk, (y, ref_y) if filtered else None)

    contenders = [
        Contender(OURS, ours),
        Contender("chunked mm + topk", lambda i: chunked(i, True)),
        Contender("chunked mm + topk, no filter", lambda i: chunked(i, False), judged=False),
    ]
    for name, search in pairs.searches([(x, ref) for (x, _), (ref, _) in zip(sets, refs, strict=True)], k).items():
        contenders.append(Contender(f"{name}, no filter", search, judged=False))

    def floor(i: int) -> None:
        for begin in range(0, n, chunk):
            sets[i][0][begin : begin + chunk] @ refs[i][0].T

    contenders.append(Contender("floor: one bare GEMM", floor, is_floor=True))
    (x, labels), (ref, ref_labels) = sets[0], refs[0]

    def missed(found: torch.Tensor) -> float:
        worst = 0.0
        for begin in range(0, n, 1024):
            rows = slice(begin, begin + 1024)
            s = x[rows].double() @ ref.double().T
            s.masked_fill_(labels[rows, None] == ref_labels, -torch.inf)
            worst = max(worst, float((s.topk(k).values - s.gather(1, found[rows])).abs().max()))
        return worst

    return Comparison(contenders, 2.0 * n * n * DIM, "GFLOP/s", SETS, n * k * 16, missed)
