"""The processes that train one model together, as torchrun starts them, or this process alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process is ``rank`` of ``size``; rank 0 speaks and judges for all. ``launched`` tells one rank of one from a
    process that nobody launched. The methods that need the others are collectives: all ranks call them."""

    rank: int = 0
    size: int = 1
    launched: bool = False
    device: torch.device = CPU

    @classmethod
    def here(cls) -> Ranks:
        """What the launcher says; nothing is set up yet. Each rank has a GPU of its own, or all are on the CPU."""
        if not all(name in os.environ for name in ENVIRONMENT):
            return cls()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank, local_size = (int(os.environ.get(f"LOCAL_{name}", 0)) for name in ("RANK", "WORLD_SIZE"))
        on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= max(1, local_size)
        return cls(rank, size, True, torch.device("cuda", local_rank) if on_gpus else CPU)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self) -> None:
        if not self.launched:
            return
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")

    def leave(self, status: int) -> int:
        """The exit status; where ``join`` has set up a group, the process ends with it here. The group's threads live
        on while anything refers to it, and Python's own way out may abort on them: rank 0 would be ended with us."""
        if self.launched and dist.is_initialized():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    def say(self, text: str, **options: Any) -> None:
        if self.first:
            print(text, **options)

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This rank's rows of a batch that all of them have: as many as the others', or one more."""
        return batch.tensor_split(self.size)[self.rank]

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with the gradients of all ranks, and in every forward the buffers of rank 0."""
        return module if self.size == 1 else torch.nn.parallel.DistributedDataParallel(module)

    def agree_on_buffers(self, module: torch.nn.Module) -> None:
        """Those of rank 0."""
        for buffer in module.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, src=0)

    def agree(self, value: T) -> T:
        """The value of rank 0."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """On rank 0 the rows of all ranks; elsewhere these."""
        if self.size == 1:
            return rows
        parts: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(rows.cpu(), parts)
        return rows if parts is None else torch.cat(parts)

    def in_turn(self, make: Callable[[], T]) -> T:
        """``make()``, on rank 0 before the others, which find what it left on the disk; its error is everyone's."""
        made, error = None, None
        if self.first:
            try:
                made = make()
            except Exception as problem:
                error = problem
        error = self.agree(error)
        if error is not None:
            raise error
        return make() if made is None else made
