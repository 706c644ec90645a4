"""Embed the test images and judge: open-set verification, closed-set identification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

import hyperkernels as hk

from .data import Dataset, Images, Pairs
from .distort import to_float
from .metrics import Verification, roc, tar_at_far, verify
from .model import Embedder

CHUNK = 512


@torch.no_grad()
def embed(embedder: Embedder, images: Images) -> torch.Tensor:
    """Unit embeddings [n, D] of images [n, H, W], on the CPU; the embedder is left in evaluation mode."""
    embedder.eval()
    device = embedder.project.weight.device
    if not len(images):
        return torch.empty(0, embedder.norm.num_features)
    chunks = (to_float(images[i : i + CHUNK]).to(device) for i in range(0, len(images), CHUNK))
    return torch.cat([hk.unit_norm(embedder(chunk)).cpu() for chunk in chunks])


def pair_scores(embeddings: torch.Tensor, pairs: Pairs) -> npt.NDArray[np.float32]:
    """Cosines [n] of the pairs."""
    first, second = torch.from_numpy(pairs.first), torch.from_numpy(pairs.second)
    scores: npt.NDArray[np.float32] = (embeddings[first] * embeddings[second]).sum(1).numpy()
    return scores


def rank1(probes: torch.Tensor, references: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Share of ``probes`` [p, D] whose nearest of the unit ``references`` [C, D] is their own class's."""
    if not len(probes):
        return None
    nearest = torch.cat([(part @ references.T).argmax(1) for part in torch.split(probes, 1024)])
    return float((nearest == labels).double().mean())


@dataclass(frozen=True)
class Evaluation:
    """What one embedder does on the test images; ``scores`` [pairs] by the name of the pair set."""

    verification: dict[str, Verification]
    scores: dict[str, npt.NDArray[np.float32]]
    rank1_template: float | None
    rank1_centre: float | None


def evaluate(embedder: Embedder, data: Dataset, centres: torch.Tensor | None) -> Evaluation:
    """Args: ``centres`` [C, D], the head's weight, or None for an embedder whose head means nothing yet."""
    heldout = embed(embedder, data.heldout)
    scores = {name: pair_scores(heldout, pairs) for name, pairs in data.pairs.items()}
    probes, labels = embed(embedder, data.probes), torch.from_numpy(data.probe_labels)
    return Evaluation(
        {name: verify(scores[name], pairs.same) for name, pairs in data.pairs.items()},
        scores,
        rank1(probes, embed(embedder, data.gallery), labels) if len(probes) else None,
        rank1(probes, hk.unit_norm(centres.detach().cpu()), labels) if centres is not None else None,
    )


def heldout_tar(embedder: Embedder, data: Dataset, far: float = 1e-2) -> float:
    """TAR at ``far`` on the first pair set, for the training curves."""
    pairs = next(iter(data.pairs.values()))
    scores = pair_scores(embed(embedder, data.heldout), pairs)
    return tar_at_far(roc(scores, pairs.same), far)[0]
