"""The embedder: a small residual network for grey images."""

from __future__ import annotations

import torch
from torch import nn


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = _conv(channels, channels)
        self.outer = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.outer(self.inner(x)))


class Embedder(nn.Module):
    """Images [n, 1, side, side] in [0, 1] to embeddings [n, embedding_size]; the head normalises them.

    A strided stem, then a strided convolution and a residual block a halving, down to 4 x 4 (5 x 5 at most), where
    position still counts, and a linear layer between batch norms.
    """

    def __init__(self, side: int, embedding_size: int, width: int = 32) -> None:
        super().__init__()
        channels, side = width, -(-side // 2)
        layers: list[nn.Module] = [_conv(1, channels, kernel=5, stride=2)]
        while side > 5:
            # Beyond four times the width a stage costs more than it brings at this size.
            wider = min(2 * channels, 4 * width)
            layers += [_conv(channels, wider, stride=2), Residual(wider)]
            channels, side = wider, -(-side // 2)
        self.features = nn.Sequential(*layers)
        self.project = nn.Linear(channels * side * side, embedding_size, bias=False)
        self.norm = nn.BatchNorm1d(embedding_size)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Brightness and contrast say nothing about who or what it is.
        deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
        x = (images - mean) / (deviation + 1e-3)
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        embeddings: torch.Tensor = self.norm(self.project(x.flatten(1)))
        return embeddings
