"""The training loop: epochs that can be interrupted and resumed, with the head's time kept apart.

Over several ranks every one of them has all images and the same random numbers, so that it distorts the same batch as
the others, takes its share, and sees what one process would. The head is then ``hk.nn.PartialFC``.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import hyperkernels as hk
from hyperkernels.distributed import files

from .data import DataError, Dataset
from .distort import Distortion, to_float
from .heads import Head, Loss, backend_of, loss_of, make_margin
from .model import Embedder
from .ranks import Ranks

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
    sample_rate: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "distortion": dict(vars(self.distortion))}


@dataclass
class History:
    """``loss`` and ``rate`` for every step; for every epoch seconds, seconds in the head, images, held-out TAR and the
    mean share of the head's tiles that the backward skipped. Of several ranks, rank 0 says."""

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

    def __init__(self, data: Dataset, settings: Settings, ranks: Ranks | None = None) -> None:
        self.data, self.settings, self.ranks = data, settings, ranks or Ranks()
        self.images, self.labels = torch.from_numpy(data.train), torch.from_numpy(data.labels)
        self.batch = min(settings.batch, len(self.labels))
        if self.batch < 2 * self.ranks.size:
            raise DataError(f"a batch of {self.batch} images leaves some of {self.ranks.size} ranks fewer than two")
        self.steps_per_epoch = len(self.labels) // self.batch
        torch.manual_seed(settings.seed)
        self.embedder = Embedder(data.train.shape[-1], settings.embedding_size).to(self.ranks.device)
        self.network = self.ranks.wrap(self.embedder)
        self.head = self.make_head(settings.skip_budget)
        self.head_loss: Loss = loss_of(settings.head, self.head)
        groups = [
            {"params": list(self.embedder.parameters()), "weight_decay": WEIGHT_DECAY, "factor": 1.0},
            {"params": list(self.head.parameters()), "weight_decay": 0.0, "factor": settings.head_rate},
        ]
        momentum = {"momentum": MOMENTUM, "nesterov": True}
        self.optimizer: torch.optim.Optimizer = (
            hk.optim.SGD(groups, lr=settings.rate, **momentum)  # moves the sampled rows alone
            if self.sharded
            else torch.optim.SGD(groups, lr=settings.rate, **momentum, fused=True)
        )
        self.history = History()
        self.calibrate()

    @property
    def sharded(self) -> bool:
        """Whether the head is ``hk.nn.PartialFC``."""
        return self.ranks.launched or self.settings.sample_rate < 1

    def make_head(self, skip_budget: float = 0.0) -> Head:
        settings, classes = self.settings, self.data.num_classes
        margin = make_margin(settings.margin, settings.m)
        options: dict[str, Any] = {"margin": margin, "scale": settings.scale, "skip_budget": skip_budget}
        if not self.sharded:
            return hk.nn.MarginSoftmax(settings.embedding_size, classes, **options)
        options |= {"sample_rate": settings.sample_rate, "seed": settings.seed, "device": self.ranks.device}
        return hk.nn.PartialFC(settings.embedding_size, classes, **options)

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
            self.embedder(self.settings.distortion(to_float(self.images[rows])).to(self.ranks.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def warm_up_head(self) -> None:
        """One forward and backward of the head that changes nothing, so that no compilation is counted as training."""
        before = [buffer.clone() for buffer in self.head.buffers()]
        labels = self.ranks.share(self.labels[: self.batch]).to(self.ranks.device)
        embeddings = torch.randn(len(labels), self.settings.embedding_size, device=labels.device, requires_grad=True)
        with backend_of(self.settings.head):
            loss = self.head_loss(embeddings, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        self.head.zero_grad(set_to_none=True)
        for buffer, value in zip(self.head.buffers(), before, strict=True):
            buffer.copy_(value)

    def set_rate(self, step: int) -> float:
        """Set the learning rates of step number ``step`` of the run; the embedder's."""
        rate = self.settings.rate * rate_at(step, self.settings.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def clock(self) -> float:
        """The time when all that was begun is done."""
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        return time.perf_counter()

    def step(self, rows: torch.Tensor) -> tuple[float, float]:
        """One optimiser step on the images ``rows`` [batch]; (loss, seconds in the head)."""
        images = self.ranks.share(self.settings.distortion(to_float(self.images[rows]))).to(self.ranks.device)
        labels = self.ranks.share(self.labels[rows]).to(self.ranks.device)
        embeddings = self.network(images)
        # The graph is cut at the embeddings so that the head's own forward and backward can be timed.
        leaf = embeddings.detach().requires_grad_()
        start = self.clock()
        with backend_of(self.settings.head):
            loss = self.head_loss(leaf, labels)
            loss.backward()  # type: ignore[no-untyped-call]
        seconds = self.clock() - start
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
        self.ranks.agree_on_buffers(self.embedder)
        self.history.loss += losses
        self.history.rate += rates
        self.history.head_seconds.append(head_seconds)
        self.history.skipped.append(skipped / self.steps_per_epoch)
        self.history.images.append(self.steps_per_epoch * self.batch)
        self.history.seconds.append(time.perf_counter() - start)

    def run(self, checkpoint: Path | None, judge: Callable[[Embedder], float], until: int | None = None) -> None:
        """Train to epoch ``until`` (all of them by default), saving ``checkpoint`` after each. All ranks run alike.

        Args:
            judge: gives the held-out TAR for the training curves, on rank 0; nothing else depends on it.
        """
        last = self.settings.epochs if until is None else until
        total = self.settings.epochs * self.steps_per_epoch
        self.warm_up_head()
        options: dict[str, Any] = {"desc": "training", "unit": "step", "mininterval": 0.5}
        done = len(self.history.loss)
        with tqdm(total=total, initial=done, disable=not self.ranks.first, **options) as bar:
            while self.epoch < last:
                self.train_epoch(bar)
                if self.ranks.first:
                    self.history.heldout_tar.append(judge(self.embedder))
                self.history = self.ranks.agree(self.history)
                if checkpoint is not None:
                    self.save(checkpoint)

    def centres(self) -> torch.Tensor:
        """Those of all classes, on rank 0."""
        return self.ranks.gather(self.head.weight.detach())

    def save(self, path: Path) -> None:
        """Write the checkpoint beside ``path`` and rename it, so that ``path`` is always whole; where the head is
        sharded, into a folder of ``path``, from which those before go when it is whole."""
        if self.sharded:
            self._save_sharded(path)
            return
        state = {
            "settings": self.settings.as_dict(),
            "embedder": self.embedder.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": vars(self.history),
        }
        with files.whole(path) as file:
            torch.save(state, file)

    def _save_sharded(self, folder: Path) -> None:
        path = folder / f"epoch-{self.epoch}"
        if self.ranks.first:
            shutil.rmtree(path, ignore_errors=True)  # of a run before, whole or not
        self.ranks.agree(None)
        extra = {"settings": self.settings.as_dict(), "history": vars(self.history)}
        hk.distributed.save(path, self._model(), self.optimizer, extra)
        if self.ranks.first:
            for other in folder.iterdir():
                if other != path:
                    shutil.rmtree(other)

    def _model(self) -> torch.nn.Module:
        return torch.nn.ModuleDict({"embedder": self.embedder, "head": self.head})

    def find(self, path: Path) -> Path | None:
        """What ``load`` goes on from where ``save`` was given ``path``; None where there is nothing."""
        if self.sharded:
            return hk.distributed.latest(path)
        return path if path.exists() else None

    def load(self, path: Path) -> None:
        """Take up the run that wrote ``path``.

        Raises:
            CheckpointError: it is no checkpoint, or one of a run with other settings.
        """
        try:
            # With no module, what is stored beside it.
            found = hk.distributed.load(path, torch.nn.Module()) if self.sharded else None
            state = found or torch.load(path, weights_only=True)
            theirs = state["settings"]
        except Exception as error:
            raise CheckpointError(f"{path} is not a checkpoint of this script: {error}") from error
        ours = self.settings.as_dict()
        differing = [f"{k}: {theirs.get(k)} there, {ours.get(k)} here" for k in ours if theirs.get(k) != ours.get(k)]
        if differing:
            raise CheckpointError(f"{path} belongs to a run with other settings ({'; '.join(differing)})")
        if self.sharded:
            hk.distributed.load(path, self._model(), self.optimizer)
        else:
            self.embedder.load_state_dict(state["embedder"])
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
