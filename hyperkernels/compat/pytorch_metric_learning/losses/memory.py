"""A loss of the batch against the embeddings of past batches."""

from __future__ import annotations

from typing import Any

import torch

from ..batches import Indices, batch_of, listed_tuple, on_device, pairs_of_tuple, triplets_of_tuple
from ..distances import CosineSimilarity, space_of
from ..miners import BaseMiner
from .base import BaseLoss


class CrossBatchMemory(torch.nn.Module):
    """``memory(embeddings, labels, indices_tuple=None, enqueue_mask=None)``: writes the batch into a ring of the last
    embeddings, and returns the loss of the batch against the ring (arXiv 1912.06798).

    A row of the batch and its own copy in the ring are no pair: neither positive nor negative, and no miner sees it.
    Pairs of ``indices_tuple`` are added to the mined ones; positives and negatives number the ring. Where
    ``enqueue_mask`` is given, only those rows are written, and only the others have a loss.

    Args:
        loss: of the names in ``supported_losses()``, a class of this package or of pytorch-metric-learning.
        embedding_size: D.
        memory_size: how many embeddings the ring holds, a batch at least.
        miner: None: all pairs count.
    """

    embedding_memory: torch.Tensor
    label_memory: torch.Tensor

    def __init__(
        self,
        loss: torch.nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: torch.nn.Module | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.check_loss_support(type(loss).__name__)
        self.loss, self.miner, self.embedding_size, self.memory_size = loss, miner, embedding_size, memory_size
        self.reset_queue()

    @staticmethod
    def supported_losses() -> list[str]:
        return [
            "AngularLoss",
            "CircleLoss",
            "ContrastiveLoss",
            "GeneralizedLiftedStructureLoss",
            "IntraPairVarianceLoss",
            "LiftedStructureLoss",
            "MarginLoss",
            "MultiSimilarityLoss",
            "NCALoss",
            "NTXentLoss",
            "SignalToNoiseRatioContrastiveLoss",
            "SupConLoss",
            "TripletMarginLoss",
            "TupletMarginLoss",
        ]

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        if loss_name not in cls.supported_losses():
            raise ValueError(f"loss must be one of {', '.join(cls.supported_losses())}; got {loss_name}")

    def reset_queue(self) -> None:
        device = self.embedding_memory.device if hasattr(self, "embedding_memory") else None
        memory = torch.zeros(self.memory_size, self.embedding_size, device=device)
        self.register_buffer("embedding_memory", memory)
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.int64, device=device))
        self.has_been_filled = False
        self.queue_idx = 0

    @torch.no_grad()
    def add_to_memory(self, embeddings: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
        places = torch.arange(self.queue_idx, self.queue_idx + batch_size, device=labels.device) % self.memory_size
        self.curr_batch_idx = places
        self.embedding_memory[places] = embeddings.detach()
        self.label_memory[places] = labels.detach()
        self.has_been_filled |= self.queue_idx + batch_size >= self.memory_size
        self.queue_idx = (self.queue_idx + batch_size) % self.memory_size

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: Any = None,
        enqueue_mask: torch.Tensor | None = None,
    ) -> Any:
        if indices_tuple is not None and enqueue_mask is not None:
            raise ValueError("indices_tuple must be None where enqueue_mask is given")
        if enqueue_mask is not None and len(enqueue_mask) != len(embeddings):
            raise ValueError(f"enqueue_mask must have one entry per embedding ({len(embeddings)})")
        labels = labels.to(embeddings.device)
        self.embedding_memory = self.embedding_memory.to(embeddings)
        self.label_memory = self.label_memory.to(labels)
        written = slice(None) if enqueue_mask is None else enqueue_mask
        count = len(embeddings[written])
        if count > self.memory_size:
            raise ValueError(f"memory_size must be at least that of what is written ({count}); got {self.memory_size}")
        self.add_to_memory(embeddings[written], labels[written], count)
        filled = self.memory_size if self.has_been_filled else self.queue_idx
        ref, ref_labels = self.embedding_memory[:filled], self.label_memory[:filled]
        if enqueue_mask is not None:
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
        among = enqueue_mask is None  # the ring holds the batch itself
        mined = None  # all pairs, which need not be listed
        if self.miner is not None or indices_tuple is not None or not isinstance(self.loss, BaseLoss):
            mined = self.create_indices_tuple(embeddings, labels, ref, ref_labels, indices_tuple, among)
        own = self._own(ref) if among and isinstance(self.loss, BaseLoss) else {}
        return self.loss(embeddings, labels, mined, ref, ref_labels, **own)

    def _own(self, ref: torch.Tensor) -> dict[str, torch.Tensor]:
        """Ids by the place in the ring."""
        return {"ids": self.curr_batch_idx, "ref_ids": torch.arange(len(ref), device=ref.device)}

    def create_indices_tuple(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        E_mem: torch.Tensor,
        L_mem: torch.Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Indices:
        """The mined pairs of the batch and the ring, or all of them, and those of ``input_indices_tuple``."""
        own = self._own(E_mem) if do_remove_self_comparisons else {}
        mined = self._mined(embeddings, labels, E_mem, L_mem, own)
        if input_indices_tuple is None:
            return mined
        given = on_device(input_indices_tuple, embeddings.device)
        given = triplets_of_tuple(given) if len(mined) == 3 else pairs_of_tuple(given)
        return tuple(torch.cat(v) for v in zip(mined, given, strict=True))

    def _mined(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        ref: torch.Tensor,
        ref_labels: torch.Tensor,
        own: dict[str, torch.Tensor],
    ) -> Indices:
        if self.miner is None:
            batch = batch_of(embeddings.detach(), labels, ref, ref_labels, **own)
            return listed_tuple(batch.pairs(space_of(CosineSimilarity(), type(self).__name__)))
        if isinstance(self.miner, BaseMiner):
            return self.miner(embeddings, labels, ref, ref_labels, **own)
        found = self.miner(embeddings, labels, ref, ref_labels)
        if not own:
            return found
        keep = self.curr_batch_idx[found[0]] != found[1]
        return tuple(v[keep] if len(found) == 3 or k < 2 else v for k, v in enumerate(found))
