"""The launchers of the Triton kernels of the ops that return pairs."""

from .bins import pair_bins, pair_bins_backward
from .lists import pair_count, pair_list
from .samples import pair_sample
from .top_k import pair_top_k
from .values import pair_values, pair_values_backward

__all__ = [
    "pair_bins",
    "pair_bins_backward",
    "pair_count",
    "pair_list",
    "pair_sample",
    "pair_top_k",
    "pair_values",
    "pair_values_backward",
]
