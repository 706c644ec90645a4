"""Modules by the names that they had before: importable, with a warning, until version 0.3, also for pickles."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "hyperkernels.margin_softmax": "hyperkernels.heads",
    "hyperkernels.margin_softmax.margins": "hyperkernels.margins",
    "hyperkernels.pair_mining": "hyperkernels.pairs",
    "hyperkernels.pair_mining.losses": "hyperkernels.losses",
    "hyperkernels.pair_mining.mining": "hyperkernels.mining",
}


def new_name(name: str) -> str | None:
    """What a module of that name, or one in a package of that name, is called; None where nothing has moved."""
    for old in sorted(MOVED, key=len, reverse=True):
        if name == old or name.startswith(f"{old}."):
            return MOVED[old] + name[len(old) :]
    return None


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if new_name(fullname) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = new_name(old)
        assert new is not None
        # The module itself, not a copy: its classes are the ones that the new name has.
        sys.modules[old] = importlib.import_module(new)
        warnings.warn(f"{old} is called {new}; the old name goes in version 0.3", DeprecationWarning, stacklevel=2)


def attribute(package: str, name: str) -> ModuleType:
    """What a package's __getattr__ returns for an old name; an AttributeError for any other."""
    if f"{package}.{name}" not in MOVED:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(f"{package}.{name}")


def install() -> None:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
