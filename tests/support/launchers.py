"""The launchers of the Triton kernels, by the names and with the arguments of their ops, past the dispatcher."""

from collections.abc import Callable
from typing import Any

import hyperkernels  # noqa: F401  declares the ops
from hyperkernels._ops import OPERATIONS


class Launchers:
    def __getattr__(self, name: str) -> Callable[..., Any]:
        return OPERATIONS[name].launch


launchers = Launchers()
