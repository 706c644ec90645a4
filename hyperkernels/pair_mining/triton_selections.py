"""The launchers of the Triton kernels of the ops that return pairs."""

from .triton_bins import pair_bins, pair_bins_backward
from .triton_lists import pair_count, pair_list
from .triton_samples import pair_sample
from .triton_top_k import pair_top_k
from .triton_values import pair_values, pair_values_backward

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
