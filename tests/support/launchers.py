"""What runs an op past the dispatcher, by its name and with its arguments: the Triton launchers, and the updates of the
optimisers in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import hyperkernels  # noqa: F401  declares the ops
from hyperkernels._ops import OPERATIONS
from hyperkernels.kernels.optim import reference


class Launchers:
    def __getattr__(self, name: str) -> Callable[..., Any]:
        return OPERATIONS[name].launch


class ReferenceUpdates:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *flat: getattr(reference, name)(OPERATIONS[name].call(flat))


launchers = Launchers()
reference_updates = ReferenceUpdates()
