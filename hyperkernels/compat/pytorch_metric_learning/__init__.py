"""Miners and losses with the names, arguments and call shapes of pytorch-metric-learning 2.9.0.

    from hyperkernels.compat.pytorch_metric_learning import losses, miners

in the place of ``from pytorch_metric_learning import losses, miners``. That library need not be installed; its own
distance and reducer objects are taken as well as those of ``distances`` and ``reducers`` here. What differs, and why,
is in docs/pytorch_metric_learning.md.
"""

from . import distances, losses, miners, reducers

__all__ = ["distances", "losses", "miners", "reducers"]
