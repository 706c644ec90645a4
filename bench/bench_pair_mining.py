"""Miners and pair losses against pytorch-metric-learning, faiss, eager PyTorch, and the bare products of matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import hyperkernels as hk

from . import pairs
from .harness import Contender, Row, measure
from .memory import peak_bytes

OURS = "hyperkernels"
DIM = 512
SETS = 2  # input sets that rotate
Inputs = list[tuple[torch.Tensor, torch.Tensor]]


def rows(device: str = "cpu", quick: bool = False) -> Iterator[list[Row]]:
    """One list of rows a comparison."""
    if device == "cuda":
        n = 8_192 if quick else 65_536
        dtypes, sizes = (torch.bfloat16,), {"hard": n, "loss": n, "supcon": n, "top": n}
        sweep = () if quick else (4_096, 16_384)
    else:
        dtypes = (torch.float32,)
        sizes = {"hard": 8_192, "loss": 4_096, "supcon": 8_192, "top": 20_000}
        sweep = (1_024, 2_048, 8_192)
        if quick:
            sizes, sweep = dict.fromkeys(sizes, 2048), ()

    def samples(n: int) -> int:
        return 11 if device == "cuda" else 5 if n < 4_096 else 3

    for dtype in dtypes:
        yield batch_hard(sizes["hard"], dtype, device, samples(sizes["hard"]))
        for n in sorted({*sweep, sizes["loss"]}):
            yield loss_step("multi_similarity", n, dtype, device, samples(n))
        yield loss_step("multi_similarity", sizes["loss"], dtype, device, samples(sizes["loss"]), forming=True)
        yield loss_step("supcon", sizes["supcon"], dtype, device, samples(sizes["supcon"]))
        yield top_k(sizes["top"], dtype, device, samples(sizes["top"]))


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


def fits(n: int, device: str, matrices: float) -> bool:
    """Whether `matrices` float32 matrices of N x N fit into the machine's memory, with room to spare."""
    have = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 16e9
    return matrices * 4 * n * n < 0.8 * have


def measured(
    op: str, contenders: list[Contender], n: int, dtype: torch.dtype, device: str, samples: int, flops: float,
    errors: dict[str, float], shape: str | None = None,
) -> list[Row]:  # fmt: skip
    peaks = {}
    for c in contenders:
        c.run(0)
        if not c.is_floor:
            peaks[c.name] = peak_bytes(lambda c=c: c.run(0), device) / 1e6
    return measure(
        contenders,
        op=op,
        shape=shape or f"N={n} D={DIM}",
        dtype=str(dtype).removeprefix("torch."),
        work=flops,
        unit="GFLOP/s",
        device=device,
        samples=samples,
        input_sets=SETS,
        peaks=peaks,
        errors=errors,
    )


def batch_hard(n: int, dtype: torch.dtype, device: str, samples: int) -> list[Row]:
    """Hardest positive and hardest negative of every row. The error is how much less hard the chosen negatives are."""
    sets = inputs(n, dtype, device)
    miners: dict[str, pairs.Miner] = {OURS: hk.mining.batch_hard, "chunked eager PyTorch": pairs.chunked_batch_hard}
    if fits(n, device, 8):
        miners |= pairs.batch_hard_miners()
    errors = {}
    x, labels = sets[0][0], sets[0][1]
    best = _hardest(x, labels)
    for name, miner in miners.items():
        found = miner(x, labels)
        anchors = torch.arange(n, device=device) if len(found) == 2 else found[0]
        unit = torch.nn.functional.normalize(x.double())
        errors[name] = float((best[anchors] - (unit[anchors] * unit[found[-1]]).sum(1)).max())
    contenders = [Contender(name, lambda i, f=f: f(*sets[i])) for name, f in miners.items()]
    contenders.append(Contender("floor: one bare GEMM", bare(sets, 1), is_floor=True))
    return measured("batch_hard", contenders, n, dtype, device, samples, 2.0 * n * n * DIM, errors)


def _hardest(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(x.double())
    parts = [
        torch.where(labels[b : b + 1024, None] == labels, -torch.inf, unit[b : b + 1024] @ unit.T).amax(1)
        for b in range(0, len(x), 1024)
    ]
    return torch.cat(parts)


LOSSES: dict[str, tuple[pairs.Loss, pairs.Loss, Callable[[], dict[str, pairs.Loss]], float]] = {
    # ours, the formula, the peers, N x N matrices that the peers hold
    "multi_similarity": (
        lambda x, y: hk.losses.multi_similarity(x, y),
        pairs.eager_multi_similarity,
        pairs.multi_similarity_losses,
        14,
    ),
    "supcon": (pairs.fused_supcon, pairs.eager_supcon, pairs.supcon_losses, 8),
}


def loss_step(op: str, n: int, dtype: torch.dtype, device: str, samples: int, forming: bool = False) -> list[Row]:
    """Loss and gradient. The error is the larger of the relative errors of the two, against float64."""
    sets = [(x.requires_grad_(), y) for x, y in inputs(n, dtype, device, 1.5 if forming else 6.0)]
    ours, formula, peers, matrices = LOSSES[op]
    losses: dict[str, pairs.Loss] = {OURS: ours}
    errors = {}
    if fits(n, device, matrices):
        losses["torch.compile"] = torch.compile(formula)
    slow = op == "multi_similarity" and n > 4_096  # a step of a peer takes 5 to 16 s there
    if fits(n, device, matrices) and not slow:
        losses |= peers()
        x, labels = sets[0]
        truth = _step(formula, x.detach().double().requires_grad_(), labels)
        for name, loss in losses.items():
            got = _step(loss, x, labels)
            errors[name] = max(
                float((mine.double() - right).norm() / right.norm()) for mine, right in zip(got, truth, strict=True)
            )
        del truth
    contenders = [Contender(name, lambda i, f=f: _step(f, *sets[i])) for name, f in losses.items()]
    detached = [(x.detach(), y) for x, y in sets]
    contenders.append(Contender("floor: two bare GEMMs", bare(detached, 2), is_floor=True))
    name = f"{op} forward+backward" + (", classes forming" if forming else "")
    return measured(name, contenders, n, dtype, device, samples, 4.0 * n * n * DIM, errors)


def _step(loss: pairs.Loss, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = loss(x, labels)
    return value.detach(), torch.autograd.grad(value, x)[0]


def top_k(n: int, dtype: torch.dtype, device: str, samples: int, k: int = 10) -> list[Row]:
    """The k hardest negatives of N queries among N others. The peers that cannot filter are named so."""
    sets = inputs(n, dtype, device)
    refs = inputs(n, dtype, device)
    chunk = max(1, 2**27 // n)

    def ours(i: int) -> object:
        return hk.mining.topk_negatives(*sets[i], *refs[i], k=k)

    def chunked(i: int, filtered: bool) -> object:
        (x, y), (ref, ref_y) = sets[i], refs[i]
        return pairs.chunked_top_k(x, ref, k, chunk, (y, ref_y) if filtered else None)

    contenders = [
        Contender(OURS, ours),
        Contender("chunked mm + topk", lambda i: chunked(i, True)),
        Contender("chunked mm + topk, no filter", lambda i: chunked(i, False)),
    ]
    if device == "cpu":
        indices = [pairs.flat_index(ref) for ref, _ in refs]
        if indices[0] is not None:
            search = lambda i: indices[i].search(sets[i][0].numpy(), k)  # noqa: E731
            contenders.append(Contender("faiss IndexFlatIP, no filter", search))

    def floor(i: int) -> None:
        for begin in range(0, n, chunk):
            sets[i][0][begin : begin + chunk] @ refs[i][0].T

    contenders.append(Contender("floor: one bare GEMM", floor, is_floor=True))
    return measured(
        f"topk_negatives k={k}", contenders, n, dtype, device, samples, 2.0 * n * n * DIM, {}, f"N={n} M={n} D={DIM}"
    )
