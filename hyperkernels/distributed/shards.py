"""The partition of the classes among ranks."""

from __future__ import annotations

from typing import NamedTuple


class Shards(NamedTuple):
    """The classes 0 to num_classes - 1 in world_size contiguous shards, the first num_classes % world_size of them one
    class larger. A shard is empty where there are more ranks than classes."""

    num_classes: int
    world_size: int

    def start(self, rank: int) -> int:
        """The first class of a rank; that of rank world_size is num_classes."""
        each, more = divmod(self.num_classes, self.world_size)
        return each * rank + min(rank, more)

    def size(self, rank: int) -> int:
        return self.start(rank + 1) - self.start(rank)
