"""What the modules of the pair losses share. The modules themselves are written by `tools/modules.py`."""

from __future__ import annotations

from typing import Any

import torch

from .. import _check


class LossModule(torch.nn.Module):
    """Holds the options of a loss as attributes: a Parameter is learned, a tensor becomes a buffer. They are checked
    with every batch, as the function checks them."""

    _options: tuple[str, ...]  # their names

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def extra_repr(self) -> str:
        shown = ((name, getattr(self, name)) for name in self._options)
        return ", ".join(f"{name}={v!r}" for name, v in shown if not isinstance(v, torch.Tensor))


class ProxyLoss(LossModule):
    """Owns centres of the classes, [C * centers_per_class, D], drawn from N(0, 1/D): their norms start at one."""

    _centers: str  # the name of the parameter

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_classes = _check.integer("num_classes", num_classes, minimum=1)
        self.embedding_size = _check.integer("embedding_size", embedding_size, minimum=1)
        rows = num_classes * _check.integer("centers_per_class", options.get("centers_per_class", 1), minimum=1)
        centers = torch.empty(rows, embedding_size, device=device, dtype=dtype)
        self.register_parameter(self._centers, torch.nn.Parameter(centers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(getattr(self, self._centers), std=self.embedding_size**-0.5)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, {super().extra_repr()}"
