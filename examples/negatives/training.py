"""Training an embedder on batches of a few images of many classes, with pairs that are mined or drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

import hyperkernels as hk
from examples.recognizer.data import Dataset
from examples.recognizer.distort import Distortion, to_float
from examples.recognizer.model import Embedder
from examples.recognizer.training import rate_at

ALPHA, BETA, BASE, EPSILON = 2.0, 50.0, 0.5, 0.1

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mined_pairs(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The multi-similarity loss over all pairs of the batch that its miner keeps, in one pass."""
    return hk.losses.multi_similarity(x, labels, alpha=ALPHA, beta=BETA, base=BASE, epsilon=EPSILON)


def random_pairs(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same loss over one positive and one negative of every row, drawn at random."""
    unit, seed = hk.unit_norm(x), int(torch.randint(2**62, ()))
    same = labels[:, None] == labels
    # A random order of the others puts one positive and one negative in front.
    order = torch.rand(same.shape, generator=torch.Generator().manual_seed(seed))
    positive = order.masked_fill(~same, 2).fill_diagonal_(2).argmin(1)
    negative = order.masked_fill(same, 2).argmin(1)
    pull = F.softplus(-ALPHA * ((unit * unit[positive]).sum(1) - BASE)) / ALPHA
    push = F.softplus(BETA * ((unit * unit[negative]).sum(1) - BASE)) / BETA
    return (pull + push).mean()


@dataclass(frozen=True)
class Plan:
    """``classes`` of a batch with ``images`` each, for ``steps`` steps."""

    steps: int
    classes: int
    images: int
    embedding_size: int
    rate: float
    seed: int


def train(data: Dataset, plan: Plan, loss_of: Loss, distortion: Distortion, name: str) -> tuple[Embedder, list[float]]:
    """The embedder and the loss of every step. Both kinds of pairs see the same images from the same start."""
    torch.manual_seed(plan.seed)
    embedder = Embedder(data.train.shape[-1], plan.embedding_size)
    optimizer = torch.optim.AdamW(embedder.parameters(), lr=plan.rate, weight_decay=1e-4, fused=True)
    images, labels = torch.from_numpy(data.train), torch.from_numpy(data.labels)
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels, minlength=data.num_classes)
    starts = counts.cumsum(0) - counts
    draw = torch.Generator().manual_seed(plan.seed)
    losses = []
    for step in tqdm(range(plan.steps), desc=name, unit="step", mininterval=0.5):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * rate_at(step, plan.steps)
        chosen = torch.randperm(data.num_classes, generator=draw)[: plan.classes]
        within = torch.rand(len(chosen), plan.images, generator=draw) * counts[chosen, None]
        rows = order[(starts[chosen, None] + within.long()).flatten()]
        x = embedder(distortion(to_float(images[rows]), draw))
        loss = loss_of(x, labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return embedder, losses
