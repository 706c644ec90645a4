from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .. import _check
from .._autocast import autocast_dtype
from ..distributed.checkpoint import as_dtensor, local_rows
from ..distributed.collectives import Ranks, gather_batch
from ..distributed.draws import draw_centers, sample_classes, shared
from ..distributed.head import Shard, ShardedHead
from ..distributed.sharded import ShardedModule
from ..distributed.shards import Shards
from ..distributed.wrappers import holder, surroundings
from ..heads import losses
from ..heads.functional import ClassStatistics, check_head
from ..kernels.margin_softmax.problem import ABSENT, IGNORED
from ..margins import ArcFace, Margin
from ..margins.base import Callback
from .margin_softmax import MarginHead

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum")


class PartialFC(MarginHead, ShardedModule):
    """A classification head on the hypersphere whose classes are shared out among the ranks of a process group.

    Every rank owns the centres of a contiguous range of classes and feeds its own batch. A step gathers the embeddings
    and targets of all ranks, takes each rank's statistics over its own classes, merges them and computes the margin and
    the loss of the global batch, the same number on every rank. What travels is O(N D) + O(N W) numbers for N rows in
    all on W ranks, whatever the number of classes.

    Without a process group it is a head like ``hk.nn.MarginSoftmax``, in one process.

    Args:
        embedding_size: D, at least 1.
        num_classes: C of all ranks together, at least 1; there may be fewer classes than ranks.
        margin: as in ``hk.nn.MarginSoftmax``. State and parameters are replicated: they follow the global batch and
            move alike on all ranks. A callable of the user's own that draws at random must draw alike on all ranks.
        scale: inverse temperature s, above 0.
        sample_rate: in [0, 1]; below 1, every training step takes this share of each rank's classes: those of the
            global batch, and others at random. It takes min(num_local, max(N, 1)) where that is more, so that the
            number depends on sizes alone and holds every class of the batch. The gradient of ``weight`` is then a
            sparse tensor of the rows that took part, for ``hk.optim``; the others neither decay nor drift. In
            evaluation all classes take part.
        sub_centers: K, at least 1.
        process_group: the ranks that share the classes; None takes the default group where torch.distributed is
            initialised, this process alone where it is not. gloo and NCCL serve.
        batch_size: the largest batch of a rank, or None. With it, a rank that has fewer rows fills up with ignored
            ones, and nothing passes through the host. With None the ranks exchange their sizes at every step, which on
            a group that has no backend for CPU tensors synchronises with the device
            (``init_process_group("cpu:gloo,cuda:nccl")`` has both). A rank may have no row at all; with ``batch_size``,
            x must then require a gradient as it does elsewhere.
        gradient_reduction: how the wrapper of the backbone reduces its gradients over ranks: ``"mean"``, as
            DistributedDataParallel and ``fully_shard`` do, or ``"sum"``. The loss is a mean over the global batch
            already, so for ``"mean"`` the gradient of x, and of nothing else, is multiplied by the number of ranks.
        seed: of the centres and of what is drawn in training, the same on all ranks.
        normalize_x, normalize_weight, ignore_index, label_smoothing, smoothing_over, skip_budget, workspace, eps: as in
            ``hk.margin_softmax_loss``.
        device, dtype: of the weight.

    Attributes:
        weight: this rank's centres [num_local * K, D], row = (class - class_start) * K + centre, drawn from N(0, 1/D);
            the centre that a class starts with depends on ``seed`` and the kind of device, not on the number of ranks.
        rank, world_size: of this process in the group.
        num_local, class_start: this rank's classes are class_start to class_start + num_local - 1.
        draws: int64 scalar, a buffer: the training steps so far, which with ``seed`` decide all that is drawn. A
            resumed run draws what the first would have drawn; on another number of ranks the order in which classes are
            taken is the same and the sets differ with the shards.

    Shape: ``forward(x [n, D], target [n] int64) -> loss``, a scalar, the mean over the rows of all ranks that are not
    ignored; target counts the classes of all ranks, and n may differ between ranks. With ``return_statistics=True`` a
    pair of it and the ``hk.ClassStatistics`` of this rank's n rows over the classes of all ranks.

    ``state_dict`` gives the weight as a DTensor over the ranks, as torch.distributed.checkpoint wants it; see
    ``hk.distributed.save``. ``load_state_dict`` takes that, the rows of this rank or those of all ranks.

    All ranks must take part in every forward and every backward, and the weight must be out of DistributedDataParallel
    and FSDP, which would take the shards for copies of each other: the module does their work for its own parameters.
    A model that holds the head may be wrapped if the wrapper leaves its weight out. Clip gradients by
    ``hk.distributed.clip_grad_norm_``.

    Raises:
        TypeError, ValueError: a wrong argument, named.
        IndexError: a target out of range, on the CPU, on all ranks. Elsewhere such a row is NaN.
        RuntimeError: another rank has died or failed; DistributedDataParallel or FSDP holds the weight, at the first
            forward.

    Partial FC, An et al., 2022 (arXiv 2203.15565).
    """

    draws: torch.Tensor

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        margin: Margin | Callback = ArcFace(0.5),
        scale: float = 64.0,
        *,
        sample_rate: float = 1.0,
        sub_centers: int = 1,
        process_group: ProcessGroup | None = None,
        batch_size: int | None = None,
        gradient_reduction: str = "mean",
        seed: int = 0,
        normalize_x: bool = True,
        normalize_weight: bool = True,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        smoothing_over: str = "all",
        skip_budget: float = 0.0,
        workspace: int | None = None,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embedding_size,
            num_classes,
            margin,
            scale,
            sub_centers,
            normalize_x=normalize_x,
            normalize_weight=normalize_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            smoothing_over=smoothing_over,
            skip_budget=skip_budget,
            workspace=workspace,
            eps=eps,
            device=device,
        )
        if self.label_smoothing and self.skip_budget:
            raise ValueError("skip_budget must be 0 with label_smoothing, whose gradient reaches every class")
        self.sample_rate = _check.number("sample_rate", sample_rate, minimum=0.0, maximum=1.0)
        self.batch_size = None if batch_size is None else _check.integer("batch_size", batch_size, minimum=1)
        self.gradient_reduction = _check.choice("gradient_reduction", gradient_reduction, REDUCTIONS)
        self.seed = _check.integer("seed", seed)
        self.ranks = Ranks(process_group)
        self.rank, self.world_size = self.ranks.rank, self.ranks.size
        self.shards = Shards(num_classes, self.world_size)
        self.class_start, self.num_local = self.shards.start(self.rank), self.shards.size(self.rank)
        shape = (self.num_local * sub_centers, embedding_size)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self._marked = 0
        self._looked = (0, 0)  # where, for a wrapper
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.draws.zero_()
        draw_centers(self.weight, self.class_start, self.sub_centers, self.embedding_size**-0.5, self.seed)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.world_size > 1:
            local = destination[prefix + "weight"]
            destination[prefix + "weight"] = as_dtensor(local, self.shards, self.ranks, self.sub_centers)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict:
            value = state_dict[prefix + "weight"]
            state_dict[prefix + "weight"] = local_rows(value, self.shards, self.ranks, self.sub_centers)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _refuse_wrappers(self) -> None:
        """Look for what takes the shards of all ranks for copies of one, again where something may have changed."""
        if self.world_size == 1:
            return
        looked = (id(self), surroundings())
        if self._looked == looked:
            return
        wrapper = holder(id(self), id(self.weight), self.ranks.members)
        if wrapper:
            raise RuntimeError(
                f"weight must be out of {wrapper}, which takes the classes of every rank for copies of the same ones "
                "and overwrites them: make the head anew, and wrap what is beside it alone, such as the backbone, or "
                "leave the head out (_ddp_params_and_buffers_to_ignore of DistributedDataParallel, ignored_params of "
                "fully_shard, ignored_modules of FullyShardedDataParallel)"
            )
        self._looked = looked

    def _check_batch(self, x: Any, target: Any) -> torch.Tensor:
        """x as the weight wants it; what can be wrong with one rank's batch is said before any rank waits for it."""
        _check.tensor("x", x, _check.FLOAT_DTYPES, dim=2)
        _check.tensor("target", target, (torch.int64,), dim=1)
        _check.same_device("x", x, "weight", self.weight)
        _check.same_device("target", target, "x", x)
        if x.shape[1] != self.embedding_size:
            raise ValueError(f"x must have {self.embedding_size} columns; got shape {tuple(x.shape)}")
        rows = x.shape[0]  # of any number where the module is exported, which len() would fix
        if target.shape[0] != rows:
            raise ValueError(f"target must have one entry per row of x ({rows}); got shape {tuple(target.shape)}")
        if self.batch_size is not None and rows > self.batch_size:
            raise ValueError(f"x must have at most batch_size={self.batch_size} rows; got {rows}")
        dtype = autocast_dtype(x)
        if dtype is not None and self.weight.dtype != torch.float64:
            return x.to(dtype)
        if x.dtype != self.weight.dtype:
            raise TypeError(f"x must have the dtype of weight ({self.weight.dtype}); got {x.dtype}")
        return x

    def _sample(self, local: torch.Tensor, shard: Shard, step: torch.Tensor) -> torch.Tensor | None:
        """The classes of this shard that take part, increasing, given the targets as it numbers them; None for all."""
        if shard.sample_rate == 1:
            return None
        count = shard.samples(self.rank, len(local))
        self._mark_gradient()
        return sample_classes(local, self.class_start, self.num_local, count, self.seed, step)

    def _mark_gradient(self) -> None:
        """Have the gradient of the weight say that its rows are in order and distinct where they come so. Autograd
        drops that flag; without it an optimiser would sort and copy the rows, and on CUDA wait for them."""
        if self._marked == id(self.weight) or not (self.weight.requires_grad and self.weight.is_leaf):
            return
        distinct, owner = False, weakref.ref(self.weight)  # the hooks belong to the weight

        def look(gradient: torch.Tensor | None) -> None:  # None where the weight is updated in its backward
            nonlocal distinct
            weight = owner()
            # One that adds to what is there is left to the sum.
            first = weight is not None and weight.grad is None
            distinct = first and gradient is not None and gradient.is_sparse and gradient.is_coalesced()

        def mark(weight: torch.Tensor) -> None:
            if distinct and weight.grad is not None and weight.grad.is_sparse:
                weight.grad._coalesced_(True)

        self.weight.register_hook(look)
        self.weight.register_post_accumulate_grad_hook(mark)
        self._marked = id(self.weight)

    def head(
        self, x: torch.Tensor, target: torch.Tensor, step: torch.Tensor, hardest: bool = False
    ) -> tuple[losses.Head, int]:
        """The head on the global batch with the classes that this step samples, and which of its rows is this rank's
        first."""
        self._refuse_wrappers()
        x = self._check_batch(x, target)
        factor = self.world_size if self.gradient_reduction == "mean" else 1
        x, target, first = gather_batch(x, target, self.ranks, self.batch_size, self.ignore_index, factor)
        # Compiled, the kernel says so: a question to the data would break the graph.
        on_cpu = target.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu or os.environ.get("HYPERKERNELS_CHECK") == "1":
            outside = (target < 0) | (target >= self.num_classes)
            if bool((outside & (target != self.ignore_index)).any()):
                raise IndexError(
                    f"target must lie in [0, {self.num_classes}) or equal ignore_index={self.ignore_index}"
                )
        sampling = self.training and self.sample_rate < 1
        shard = Shard(self.ranks, self.shards, self.sample_rate if sampling else 1.0, hardest)
        local = shard.local(target, self.ignore_index)
        head = check_head(
            x,
            # The op needs a class. An empty shard lends it one of zeros, whose statistics the merge leaves out.
            self.weight if self.num_local else F.pad(self.weight, (0, 0, 0, self.sub_centers)),
            local,
            scale=self.scale,
            classes=self._sample(local, shard, step) if self.num_local else None,
            sub_centers=self.sub_centers,
            normalize_x=self.normalize_x,
            normalize_weight=self.normalize_weight,
            ignore_index=IGNORED,
            absent_index=ABSENT,
            workspace=self.workspace,
            skip_budget=self.skip_budget,
            skip_report=self._skip_report,
            eps=self.eps,
        )
        return (ShardedHead.over(head, target, self.ignore_index, shard) if self.world_size > 1 else head), first

    def forward(self, x: torch.Tensor, target: torch.Tensor, return_statistics: bool = False) -> Any:
        step = self.draws.clone()
        if self.training:
            self.draws.add_(1)
        margin = shared(self.margin, ~self.seed, step)
        margin.check(self.num_classes, self.normalize_x, self.normalize_weight)
        head, first = self.head(x, target, step, return_statistics)
        loss, statistics, head = losses.margin_softmax(head, margin, "mean", self.label_smoothing, self.smoothing_over)
        if not return_statistics:
            return loss
        everyone = ClassStatistics(*statistics, head.correct(statistics))
        return loss, ClassStatistics(*(value[first : first + target.shape[0]] for value in everyone))

    def extra_repr(self) -> str:
        sampled = f", sample_rate={self.sample_rate}" if self.sample_rate < 1 else ""
        return f"{super().extra_repr()}{sampled}, rank={self.rank}, world_size={self.world_size}"
