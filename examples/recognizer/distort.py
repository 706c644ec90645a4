"""Small random distortions of a batch of images: what a scanner, a camera or a careless hand would do to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .data import Images


@dataclass(frozen=True)
class Distortion:
    """How far a sample may stray; every amount is drawn uniformly, a sample at a time.

    Args:
        rotation: degrees, either way.
        zoom: relative change of width and height, each by itself, either way.
        shear: horizontal shift per unit of height, either way.
        shift: share of the side, either way, in both directions.
        blur: 0 leaves the image alone, 1 replaces it by its 3 x 3 mean at most.
        noise: largest standard deviation of the added grey noise, of 1.
        contrast: largest loss of contrast, of 1.
        flip: mirror half of the samples.
    """

    rotation: float = 10.0
    zoom: float = 0.15
    shear: float = 0.15
    shift: float = 0.07
    blur: float = 1.0
    noise: float = 0.1
    contrast: float = 0.5
    flip: bool = False

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Distort a batch [n, 1, H, W] of floats in [0, 1]; noise may lead out of that range a little."""
        n = len(images)

        def uniform(amount: float) -> torch.Tensor:
            return (torch.rand(n, generator=generator) * 2 - 1) * amount

        def share(amount: float) -> torch.Tensor:
            return torch.rand(n, 1, 1, 1, generator=generator) * amount

        angle, shear = uniform(math.radians(self.rotation)), uniform(self.shear)
        wide, high = 1 + uniform(self.zoom), 1 + uniform(self.zoom)
        if self.flip:
            wide = wide * torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        cos, sin = angle.cos(), angle.sin()
        # Rows of the map from output to input coordinates, in which the side is 2.
        theta = torch.stack(
            [
                torch.stack([wide * cos, high * (shear * cos - sin), uniform(2 * self.shift)], 1),
                torch.stack([wide * sin, high * (shear * sin + cos), uniform(2 * self.shift)], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        out = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        out = out + share(self.blur) * (F.avg_pool2d(out, 3, 1, 1, count_include_pad=False) - out)
        out = out * (1 - share(self.contrast))
        return out + share(self.noise) * torch.randn(out.shape, generator=generator)


def to_float(images: Images | torch.Tensor) -> torch.Tensor:
    """[n, H, W] uint8 to [n, 1, H, W] float32 in [0, 1]."""
    return torch.as_tensor(images)[:, None].float() / 255


def distort_images(images: Images, distortion: Distortion, seed: int) -> Images:
    """Distort once and for all, for test images: the same seed gives the same images."""
    generator = torch.Generator().manual_seed(seed)
    chunks = [
        (distortion(to_float(images[i : i + 1024]), generator) * 255).round().clamp(0, 255).to(torch.uint8)[:, 0]
        for i in range(0, len(images), 1024)
    ]
    result: Images = torch.cat(chunks).numpy()
    return result
