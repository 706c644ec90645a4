"""The interface of modules with sharded classes, for checkpoints and clipping."""

from __future__ import annotations

from abc import ABC

import torch

from .collectives import Ranks
from .shards import Shards


class ShardedModule(ABC):
    """A module whose `weight` has only the rows of this rank's classes, sub_centers for each class."""

    weight: torch.nn.Parameter  # [classes here * sub_centers, embedding_size]
    ranks: Ranks
    shards: Shards
    world_size: int
    num_classes: int  # of all ranks together
    class_start: int  # the first class here
    sub_centers: int
    embedding_size: int


def sharded_of(module: torch.nn.Module) -> dict[torch.Tensor, ShardedModule]:
    """The sharded modules within a module, by their weights."""
    return {part.weight: part for part in module.modules() if isinstance(part, ShardedModule)}
