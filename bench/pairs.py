"""The miners and pair losses under comparison: ours, what a user writes, and the peers that are installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import hyperkernels as hk

from .peers import present

Embeddings, Labels = torch.Tensor, torch.Tensor
Loss = Callable[[Embeddings, Labels], torch.Tensor]
Miner = Callable[[Embeddings, Labels], tuple[torch.Tensor, ...]]

TEMPERATURE = 0.1


def eager_batch_hard(x: Embeddings, labels: Labels) -> tuple[torch.Tensor, ...]:
    """As it is usually written: the matrix, two masks, two reductions."""
    unit = F.normalize(x)
    s = unit @ unit.T
    same = labels[:, None] == labels
    positive = torch.where(same, s, torch.inf).fill_diagonal_(torch.inf)
    negative = torch.where(same, -torch.inf, s)
    return positive.argmin(1), negative.argmax(1)


def chunked_batch_hard(x: Embeddings, labels: Labels) -> tuple[torch.Tensor, ...]:
    """The same, a few thousand rows of the matrix at a time: what a careful user writes where it does not fit."""
    unit = F.normalize(x)
    chunk = max(1, 2**26 // len(x))
    hardest = []
    for begin in range(0, len(x), chunk):
        s = unit[begin : begin + chunk] @ unit.T
        same = labels[begin : begin + chunk, None] == labels
        negative = s.masked_fill(same, -torch.inf).argmax(1)
        positive = s.masked_fill_(~same, torch.inf)
        positive.diagonal(begin).fill_(torch.inf)
        hardest.append((positive.argmin(1), negative))
    return tuple(torch.cat(part) for part in zip(*hardest, strict=True))


def eager_supcon(x: Embeddings, labels: Labels) -> torch.Tensor:
    """SupCon as its authors write it, rows without a positive left out of the mean."""
    unit = F.normalize(x)
    logits = (unit @ unit.T) / TEMPERATURE
    logits = logits - logits.max(1, keepdim=True).values.detach()
    other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    positive = (labels[:, None] == labels) & other
    log_share = logits - torch.log((torch.exp(logits) * other).sum(1, keepdim=True))
    count = positive.sum(1)
    rows = -(log_share * positive).sum(1) / count.clamp_min(1)
    return rows.sum() / (count > 0).sum().clamp_min(1)


def eager_multi_similarity(x: Embeddings, labels: Labels) -> torch.Tensor:
    """Multi-similarity with its mining as masks over the whole matrix."""
    unit = F.normalize(x)
    s = unit @ unit.T
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device), ~same
    hardest_positive = torch.where(positive, s, torch.inf).amin(1, keepdim=True).detach()
    hardest_negative = torch.where(negative, s, -torch.inf).amax(1, keepdim=True).detach()
    positive = positive & (s - 0.1 < hardest_negative)
    negative = negative & (s + 0.1 > hardest_positive)
    pull = torch.log1p((torch.exp(-2 * (s - 0.5)) * positive).sum(1)) / 2
    push = torch.log1p((torch.exp(50 * (s - 0.5)) * negative).sum(1)) / 50
    return (pull + push).mean()


def fused_supcon(x: Embeddings, labels: Labels) -> torch.Tensor:
    return hk.losses.supcon(x, labels, temperature=TEMPERATURE)


def batch_hard_miners() -> dict[str, Miner]:
    miners: dict[str, Miner] = {"eager PyTorch": eager_batch_hard}
    if present("pytorch_metric_learning"):
        from pytorch_metric_learning import distances
        from pytorch_metric_learning import miners as pml

        miners["pytorch-metric-learning"] = pml.BatchHardMiner(distance=distances.CosineSimilarity())
    return miners


def multi_similarity_losses() -> dict[str, Loss]:
    losses: dict[str, Loss] = {"eager PyTorch": eager_multi_similarity}
    if present("pytorch_metric_learning"):
        from pytorch_metric_learning import losses as pml_losses
        from pytorch_metric_learning import miners as pml_miners

        miner, loss = pml_miners.MultiSimilarityMiner(epsilon=0.1), pml_losses.MultiSimilarityLoss(2, 50, 0.5)
        losses["pytorch-metric-learning"] = lambda x, y: loss(x, y, miner(x, y))
    return losses


def supcon_losses() -> dict[str, Loss]:
    losses: dict[str, Loss] = {"eager PyTorch": eager_supcon}
    if present("pytorch_metric_learning"):
        from pytorch_metric_learning import losses as pml

        losses["pytorch-metric-learning"] = pml.SupConLoss(temperature=TEMPERATURE)
    return losses


def chunked_top_k(x: Embeddings, ref: Embeddings, k: int, rows: int, same: tuple[Labels, Labels] | None = None):
    """The k best columns of every row, a chunk of rows of the matrix at a time; with labels: negatives alone."""
    found = []
    for begin in range(0, len(x), rows):
        s = x[begin : begin + rows] @ ref.T
        if same is not None:
            s.masked_fill_(same[0][begin : begin + rows, None] == same[1], -torch.inf)
        found.append(s.topk(k).indices)
    return torch.cat(found)


def searches(sets: list[tuple[Embeddings, Embeddings]], k: int) -> dict[str, Callable[[int], object]]:
    """The k best of the references for every query by the packages that are installed, by input set; none can filter.
    faiss' indices are filled here, outside the time."""
    found: dict[str, Callable[[int], object]] = {}
    on_cpu = sets[0][0].device.type == "cpu"
    if present("faiss") and on_cpu:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        indices = []
        for _, ref in sets:
            index = faiss.IndexFlatIP(ref.shape[1])
            index.add(ref.numpy())
            indices.append(index)
        found["faiss IndexFlatIP"] = lambda i: indices[i].search(sets[i][0].numpy(), k)
    if present("pykeops") and (not on_cpu or len(sets[0][0]) <= 2_048):  # beyond, a call takes minutes on a CPU
        from pykeops.torch import LazyTensor

        def keops(i: int) -> object:
            x, ref = sets[i]
            return (-(LazyTensor(x[:, None]) | LazyTensor(ref[None]))).argKmin(k, dim=1)

        found["pykeops argKmin"] = keops
    return found
