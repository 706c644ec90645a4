"""Classes beyond one device: heads whose classes are sharded over the ranks of a process group, their checkpoints, and
clipping over all of them.

The head is ``hk.nn.PartialFC``.
"""

from .checkpoint import latest, load, load_insightface, save, state_dict
from .clip import clip_grad_norm_
from .shards import Shards

__all__ = ["Shards", "clip_grad_norm_", "latest", "load", "load_insightface", "save", "state_dict"]
