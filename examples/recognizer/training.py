"""The training loop: epochs that can be interrupted and resumed, with the head's time kept apart."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hyperkernels as hk

from .data import Dataset
from .distort import Distortion, to_float
from .heads import Loss, backend_of, loss_of, make_margin
from .model import Embedder

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
WARM_UP = 0.2  # share of the steps in which the learning rate rises
CALIBRATION_BATCHES = 10


class CheckpointError(Exception):
    """The checkpoint cannot be taken up; the message says why."""


@dataclass(frozen=True)
class Settings:
    """Everything that the weights depend on; a checkpoint belongs to exactly one of these.

    ``head_rate`` multiplies the learning rate for the class centres. A centre sees its class once in thousands of
    samples and its direction is all that counts, so it must move much faster than the embedder for the two to find each
    other early.
    """

    data: str
    head: str
    margin: str
    m: float | None
    scale: float
    skip_budget: float
    embedding_size: int
    epochs: int
    batch: int
    rate: float
    head_rate: float
    seed: int
    distortion: Distortion

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "distortion": dict(vars(self.distortion))}


@dataclass
class History:
    """``loss`` and ``rate`` for every step; for every epoch seconds, seconds in the head, images, held-out TAR and the
    mean share of the head's tiles that the backward skipped."""

    loss: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    head_seconds: list[float] = field(default_factory=list)
    skipped: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    heldout_tar: list[float] = field(default_factory=list)


def rate_at(step: int, steps: int) -> float:
    """Share of the highest learning rate at ``step`` of ``steps``: a straight rise, then half a cosine down to zero."""
    rise = WARM_UP * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - rise))


class Trainer:
    """Owns embedder, head, optimiser and history; ``run`` trains what is left of the epochs.

    Every epoch seeds its own random numbers from (seed, epoch), so that an epoch after a resume is the epoch without
    one.
    """

    def __init__(self, data: Dataset, settings: Settings) -> None:
        self.data, self.settings = data, settings
        self.images, self.labels = torch.from_numpy(data.train), torch.from_numpy(data.labels)
        self.batch = min(settings.batch, len(self.labels))
        self.steps_per_epoch = len(self.labels) // self.batch
        torch.manual_seed(settings.seed)
        self.embedder = Embedder(data.train.shape[-1], settings.embedding_size)
        self.head = hk.nn.MarginSoftmax(
            settings.embedding_size,
            data.num_classes,
            margin=make_margin(settings.margin, settings.m),
            scale=settings.scale,
            skip_budget=settings.skip_budget,
        )
        self.head_loss: Loss = loss_of(settings.head, self.head)
        groups = [
            {"params": list(self.embedder.parameters()), "weight_decay": WEIGHT_DECAY, "factor": 1.0},
            {"params": list(self.head.parameters()), "weight_decay": 0.0, "factor": settings.head_rate},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=settings.rate, momentum=MOMENTUM, nesterov=True, fused=True)
        self.history = History()
        self.calibrate()

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return len(self.history.seconds)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Give the batch norms the statistics of real images, so that the untrained embedder is judged at its best."""
        self.embedder.train()
        norms = [
            module for module in self.embedder.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the plain mean over all batches
        order = torch.randperm(len(self.labels))
        for i in range(min(CALIBRATION_BATCHES, self.steps_per_epoch)):
            rows = order[i * self.batch : (i + 1) * self.batch]
            self.embedder(self.settings.distortion(to_float(self.images[rows])))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def warm_up_head(self) -> None:
        """One forward and backward of the head that changes nothing, so that no compilation is counted as training."""
        embeddings = torch.randn(self.batch, self.settings.embedding_size, requires_grad=True)
        with backend_of(self.settings.head):
            loss = self.head_loss(embeddings, self.labels[: self.batch])
            loss.backward()  # type: ignore[no-untyped-call]
        self.head.zero_grad(set_to_none=True)

    def set_rate(self, step: int) -> float:
        """Set the learning rates of step number ``step`` of the run; the embedder's."""
        rate = self.settings.rate * rate_at(step, self.settings.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def step(self, rows: torch.Tensor) -> tuple[float, float]:
        """One optimiser step on the images ``rows`` [batch]; (loss, seconds in the head)."""
        images = self.settings.distortion(to_float(self.images[rows]))
        embeddings = self.embedder(images)
        # The graph is cut at the embeddings so that the head's own forward and backward can be timed.
        leaf = embeddings.detach().requires_grad_()
        start = time.perf_counter()
        with backend_of(self.settings.head):
            loss = self.head_loss(leaf, self.labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - start
        embeddings.backward(leaf.grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), seconds

    def train_epoch(self, bar: tqdm[Any]) -> None:
        """One epoch. The history changes at its end only, so that an interrupted epoch leaves no trace in it."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.epoch + 1)
        self.embedder.train()
        order = torch.randperm(len(self.labels))
        losses, rates, head_seconds, skipped = [], [], 0.0, 0.0
        start = time.perf_counter()
        for i in range(self.steps_per_epoch):
            rates.append(self.set_rate(self.epoch * self.steps_per_epoch + i))
            loss, seconds = self.step(order[i * self.batch : (i + 1) * self.batch])
            losses.append(loss)
            head_seconds += seconds
            skipped += self.head.skipped_tiles.item()
            bar.set_postfix(epoch=f"{self.epoch + 1}/{self.settings.epochs}", loss=f"{loss:.3f}", refresh=False)
            bar.update()
        self.history.loss += losses
        self.history.rate += rates
        self.history.head_seconds.append(head_seconds)
        self.history.skipped.append(skipped / self.steps_per_epoch)
        self.history.images.append(self.steps_per_epoch * self.batch)
        self.history.seconds.append(time.perf_counter() - start)

    def run(self, checkpoint: Path | None, judge: Callable[[Embedder], float], until: int | None = None) -> None:
        """Train to epoch ``until`` (all of them by default), saving ``checkpoint`` after each.

        Args:
            judge: gives the held-out TAR for the training curves; nothing else depends on it.
        """
        last = self.settings.epochs if until is None else until
        total = self.settings.epochs * self.steps_per_epoch
        self.warm_up_head()
        with tqdm(total=total, initial=len(self.history.loss), desc="training", unit="step", mininterval=0.5) as bar:
            while self.epoch < last:
                self.train_epoch(bar)
                self.history.heldout_tar.append(judge(self.embedder))
                if checkpoint is not None:
                    self.save(checkpoint)

    def save(self, path: Path) -> None:
        """Write the checkpoint beside ``path`` and rename it, so that ``path`` is always whole."""
        state = {
            "settings": self.settings.as_dict(),
            "embedder": self.embedder.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": vars(self.history),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            torch.save(state, unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Take up the run that wrote ``path``.

        Raises:
            CheckpointError: the file is no checkpoint, or one of a run with other settings.
        """
        try:
            state = torch.load(path, weights_only=True)
            theirs = state["settings"]
        except Exception as error:
            raise CheckpointError(f"{path} is not a checkpoint of this script: {error}") from error
        ours = self.settings.as_dict()
        differing = [f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in ours if theirs.get(k) != ours.get(k)]
        if differing:
            raise CheckpointError(f"{path} belongs to a run with other settings ({'; '.join(differing)})")
        self.embedder.load_state_dict(state["embedder"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
