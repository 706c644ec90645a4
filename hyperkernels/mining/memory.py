"""A queue of the embeddings of past batches, to be mined."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check


class CrossBatchMemory(torch.nn.Module):
    """A ring buffer of the last embeddings with their labels and ids (arXiv 1912.06798), to be given to miners and
    losses as ``ref``.

    ``ids = memory.enqueue(x, labels)`` and then ``miner(x, labels, memory.embeddings, memory.labels, ids=ids,
    ref_ids=memory.ids)``: the batch is in the memory, as its newest part, and by its ids no row is paired with itself,
    neither as a positive nor as a negative.

    Args:
        embedding_size: D.
        memory_size: the number of embeddings that are kept.
        dtype: of the embeddings; None: torch's default. Miners need the dtype of their x.
        device: where the memory lies; it moves with the module.

    The state_dict is complete: a memory that loads it continues where the saved one stopped. Under
    ``DistributedDataParallel`` set ``broadcast_buffers=False``, or every rank gets the memory of rank 0.
    """

    _embeddings: torch.Tensor
    _labels: torch.Tensor
    _ids: torch.Tensor

    def __init__(
        self, embedding_size: int, memory_size: int, dtype: torch.dtype | None = None, device: Any = None
    ) -> None:
        super().__init__()
        self.embedding_size = _check.integer("embedding_size", embedding_size, 1)
        self.memory_size = _check.integer("memory_size", memory_size, 1)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in _check.FLOAT_DTYPES:
            raise TypeError(f"dtype must be float64, float32, bfloat16 or float16; got {dtype}")
        self.register_buffer("_embeddings", torch.zeros(memory_size, embedding_size, dtype=dtype, device=device))
        self.register_buffer("_labels", torch.zeros(memory_size, dtype=torch.int64, device=device))
        self.register_buffer("_ids", torch.zeros(memory_size, dtype=torch.int64, device=device))
        # On the host, so that neither writing nor the size of the filled part waits for a GPU.
        self._pointer = self._filled = self._next_id = 0

    @property
    def filled(self) -> int:
        """The number of embeddings in the memory."""
        return self._filled

    @property
    def embeddings(self) -> torch.Tensor:
        """[filled, embedding_size], a view: the next ``enqueue`` changes it."""
        return self._embeddings[: self._filled]

    @property
    def labels(self) -> torch.Tensor:
        """[filled] int64, a view."""
        return self._labels[: self._filled]

    @property
    def ids(self) -> torch.Tensor:
        """[filled] int64, a view."""
        return self._ids[: self._filled]

    @torch.no_grad()
    def enqueue(self, x: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Write a batch over the oldest embeddings. Of a batch larger than the memory the last rows are kept.

        Args:
            x: [N, embedding_size]; detached, and rounded to the dtype of the memory.
            labels: [N] int64.
            ids: [N] int64; None: consecutive numbers from 0, continued from batch to batch. Give ids in every call or
                in none.

        Returns:
            The ids of the batch, [N].

        Raises:
            TypeError, ValueError: a wrong argument, named.
        """
        _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
        if x.shape[1] != self.embedding_size:
            raise ValueError(f"x must be [N, {self.embedding_size}]; got shape {tuple(x.shape)}")
        n = x.shape[0]
        if ids is None:
            ids = torch.arange(self._next_id, self._next_id + n, device=x.device)
        for name, value in (("labels", labels), ("ids", ids)):
            _check.tensor(name, value, (torch.int64,), dim=1)
            if value.shape[0] != n:
                raise ValueError(f"{name} must have one entry per row of x ({n}); got shape {tuple(value.shape)}")
        for name, value in (("x", x), ("labels", labels), ("ids", ids)):
            _check.same_device(name, value, "the memory", self._embeddings)
        self._next_id += n
        kept = min(n, self.memory_size)
        first = min(kept, self.memory_size - self._pointer)
        for ring, batch in ((self._embeddings, x), (self._labels, labels), (self._ids, ids)):
            batch = batch[n - kept :]
            ring[self._pointer : self._pointer + first].copy_(batch[:first])
            ring[: kept - first].copy_(batch[first:])
        self._pointer = (self._pointer + kept) % self.memory_size
        self._filled = min(self._filled + kept, self.memory_size)
        return ids

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *messages: list[str]
    ) -> None:
        """Load a state as a whole. If a part does not fit, load nothing: the write position is meaningless for another
        buffer."""
        faults = self._faults(state_dict, prefix)
        if faults:
            messages[-1].extend(faults)
        else:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *messages)

    def _faults(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        """The reasons why the state cannot be loaded. A state without any entry of a memory leaves the memory
        unchanged."""
        own = {**self._buffers, "_extra_state": self.get_extra_state()}
        if not any(prefix + name in state_dict for name in own):
            return []
        faults = []
        for name, value in own.items():
            given, shape = state_dict.get(prefix + name), list(value.shape)  # type: ignore[union-attr]
            if not isinstance(given, torch.Tensor) or list(given.shape) != shape:
                what = list(given.shape) if isinstance(given, torch.Tensor) else given
                faults.append(f"{prefix}{name} must be a tensor of shape {shape}; got {what}")
        if not faults:
            pointer, filled, _ = state_dict[f"{prefix}_extra_state"].tolist()
            if not (0 <= pointer < self.memory_size and 0 <= filled <= self.memory_size):
                faults.append(
                    f"{prefix}_extra_state must be of a memory of {self.memory_size}; got {[pointer, filled]}"
                )
        return faults

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor([self._pointer, self._filled, self._next_id])

    def set_extra_state(self, state: torch.Tensor) -> None:
        self._pointer, self._filled, self._next_id = state.tolist()

    def extra_repr(self) -> str:
        return f"embedding_size={self.embedding_size}, memory_size={self.memory_size}, filled={self._filled}"
