"""The collectives of heads and losses over several ranks, for any backend of torch.distributed.

Sums are computed by the receiver, in the order of the ranks and in float32 or wider, so that every rank gets the same
bits with every backend. The one exception is an all_reduce in which all terms but one are 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .._dtypes import accumulate_dtype

# torch 2.13 has given it another name.
_ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


@contextlib.contextmanager
def _blame(what: str, rank: int, size: int) -> Iterator[None]:
    """Add to an error of a collective that its cause may be on another rank."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{what} of {size} ranks failed on rank {rank}: another rank has died, raised an error or fallen out of "
            "step, and its own output says why. This process group cannot be used any more: start again from the last "
            f"checkpoint. ({error})"
        ) from error


class Ranks:
    """The ranks that work together: those of a process group, or this process alone."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        if self.rank < 0:
            raise ValueError("process_group must contain this process")
        # As torch.distributed numbers all processes.
        self.members = (0,) if group is None else tuple(dist.get_process_group_ranks(group))

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # a copy of a module works with the same processes

    def all_gather(self, value: torch.Tensor) -> torch.Tensor:
        """The values of all ranks, of one shape, stacked in their order."""
        if self.size == 1:
            return value[None]
        gathered = value.new_empty(self.size, *value.shape)
        if value.numel():
            with _blame("all_gather", self.rank, self.size):
                getattr(dist, _ALL_GATHER)(gathered.flatten(0, 1), value.contiguous(), group=self.group)
        return gathered

    def all_reduce(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.size > 1 and value.numel():
            with _blame("all_reduce", self.rank, self.size):
                dist.all_reduce(value, group=self.group)
        return value

    def to_owners(self, value: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Send to each rank the rows that it owns: value is [sum(rows), D], the result [size, rows[rank], D], the
        values of all ranks for the rows of this one."""
        mine = rows[self.rank]
        if self.size == 1:
            return value[None]
        received = value.new_empty(self.size * mine, value.shape[1])
        if value.numel():
            with _blame("all_to_all", self.rank, self.size):
                dist.all_to_all_single(received, value.contiguous(), [mine] * self.size, rows, group=self.group)
        return received.view(self.size, mine, value.shape[1])

    def from_owner(self, value: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """The inverse of `to_owners`: value is [size, rows[rank], D], the result [sum(rows), D]."""
        if self.size == 1:
            return value[0]
        received = value.new_empty(sum(rows), value.shape[2])
        if received.numel():
            sent = value.contiguous().flatten(0, 1)
            with _blame("all_to_all", self.rank, self.size):
                dist.all_to_all_single(received, sent, rows, [rows[self.rank]] * self.size, group=self.group)
        return received

    def sum_to_owners(self, value: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """As `to_owners`, summed over ranks: [rows[rank], D] in float32 or wider."""
        return self.to_owners(value, rows).sum(0, dtype=accumulate_dtype(value.dtype))

    def pass_on(self, value: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        """Send value to the next rank of the ring, in the background. Returns the tensor that arrives from the rank
        before, of the same shape, and a function that waits for both transfers. Do not change value before that."""
        if self.size == 1 or not value.numel():
            return value, lambda: None
        received = torch.empty_like(value)
        peers = [(self.rank + step) % self.size for step in (1, -1)]
        following, before = (peer if self.group is None else dist.get_global_rank(self.group, peer) for peer in peers)
        with _blame("send", self.rank, self.size):
            works = dist.batch_isend_irecv([
                dist.P2POp(dist.isend, value, following, self.group),
                dist.P2POp(dist.irecv, received, before, self.group),
            ])  # fmt: skip

        def wait() -> None:
            with _blame("receive", self.rank, self.size):
                for work in works:
                    work.wait()

        return received, wait

    def exchange(self, *numbers: int, device: torch.device) -> list[list[int]]:
        """The numbers of each rank, on the host. It synchronises with the device if the group has no backend for CPU
        tensors."""
        if self.size == 1:
            return [list(numbers)]
        where = torch.device("cpu") if "cpu:" in dist.get_backend_config(self.group) else device
        return self.all_gather(torch.tensor(numbers, device=where)).tolist()


class _Gather(torch.autograd.Function):
    """The rows of all ranks. Backward: the sum over ranks of the gradients of this rank's rows, times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ranks: Ranks, rows: list[int], factor: float) -> torch.Tensor:
        ctx.ranks, ctx.rows, ctx.factor = ranks, rows, factor
        return gather_rows(x, ranks, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        total = ctx.ranks.sum_to_owners(gradient, ctx.rows)
        return (total * ctx.factor).to(gradient.dtype), None, None, None


def gather_rows(value: torch.Tensor, ranks: Ranks, rows: list[int]) -> torch.Tensor:
    """The rows of all ranks; each has rows[rank] of them."""
    most = max(rows)
    if len(value) < most:  # collectives want one shape
        value = torch.cat([value, value.new_zeros(most - len(value), *value.shape[1:])])
    gathered = ranks.all_gather(value)
    if all(count == most for count in rows):
        return gathered.flatten(0, 1)
    return torch.cat([gathered[rank, :count] for rank, count in enumerate(rows)])


def gather(x: torch.Tensor, ranks: Ranks, rows: list[int]) -> torch.Tensor:
    """As ``gather_rows``, differentiable; x requires a gradient on all ranks or on none."""
    return x if ranks.size == 1 else _Gather.apply(x, ranks, rows, 1.0)


def gather_batch(
    x: torch.Tensor,  # [n, D]
    target: torch.Tensor,  # [n]
    ranks: Ranks,
    batch_size: int | None,
    ignore_index: int,
    factor: float,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The batch of all ranks, and the number of its first row that is this rank's own.

    With ``batch_size`` every rank is padded to that number of rows with ignored ones, without the host. Otherwise the
    ranks exchange their numbers of rows. A rank whose x needs no gradient takes part in the backward if another rank's
    does.
    """
    if ranks.size == 1:
        return x, target, 0
    if batch_size is None:
        wanted = torch.is_grad_enabled() and x.requires_grad
        known = ranks.exchange(len(x), int(wanted), device=x.device)
        rows = [count for count, _ in known]
        if not wanted and torch.is_grad_enabled() and any(needed for _, needed in known):
            x = x.detach().requires_grad_()
    else:
        rows = [batch_size] * ranks.size
        lacking = batch_size - len(x)
        if lacking:
            x = torch.cat([x, x.new_zeros(lacking, x.shape[1])])
            target = torch.cat([target, target.new_full((lacking,), ignore_index)])
    return _Gather.apply(x, ranks, rows, factor), gather_rows(target, ranks, rows), sum(rows[: ranks.rank])


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        return ctx.ranks.all_reduce(gradient.clone(memory_format=torch.contiguous_format)), None


def replicated(value: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """A value that is the same on all ranks and that each rank uses for its own classes. Backward: the gradients of the
    ranks are added, so that all ranks have the same one."""
    return _Replicated.apply(value, ranks) if ranks.size > 1 and value.requires_grad else value
