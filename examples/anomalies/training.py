"""Orthogonal hypersphere compression (Zhang et al., arXiv 2302.06430): an encoder, a projection, and a ball (DOHSC)
or a shell (DO2HSC) around what is normal.

The losses, the centre and the radii are ours. Encoder and projection are plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

import hyperkernels as hk


@dataclass(frozen=True)
class Plan:
    """``epochs`` for the ball, and as many more for the shell; ``nu``: the share of normal rows let outside."""

    hidden: int
    latent: int
    epochs: int
    rate: float
    nu: float


class Compressor(nn.Module):
    """Rows to points whose coordinates are orthogonal over the batch, so that no coordinate can collapse."""

    projection: torch.Tensor

    def __init__(self, features: int, hidden: int, latent: int) -> None:
        super().__init__()
        # Without biases no weights map every row to one point, as in Deep SVDD.
        self.encoder = nn.Sequential(
            nn.Linear(features, hidden, bias=False), nn.LeakyReLU(0.1), nn.Linear(hidden, latent, bias=False)
        )
        self.register_buffer("projection", torch.eye(latent))

    @torch.no_grad()
    def orthogonalize(self, z: torch.Tensor) -> None:
        """The projection from the singular value decomposition Z = U S V^T of a batch: W = V S^-1 sqrt(N), with which
        Z W has orthogonal columns of mean square 1: distances do not depend on N. (The authors' program multiplies by
        S.) W is a constant for the gradient."""
        _, singular, v = torch.linalg.svd(z, full_matrices=False)
        # Directions that the batch does not have are left out.
        kept = singular > 1e-5 * singular[0]
        self.projection = (v.T * torch.where(kept, len(z) ** 0.5 / singular, 0)).contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.encoder(x)
        if self.training:
            self.orthogonalize(z.detach())
        return z @ self.projection


@dataclass
class Detector:
    """A compressor, the centre and the radii of the shell; and the loss of every epoch."""

    model: Compressor
    center: torch.Tensor
    inner: float = 0.0
    outer: float = 0.0
    losses: list[float] = field(default_factory=list)

    @torch.no_grad()
    def distances(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(self.model.eval()(x) - self.center, dim=1)

    def ball_scores(self, x: torch.Tensor) -> torch.Tensor:
        """DOHSC: higher the farther outside of the ball."""
        return self.distances(x).square() - self.outer**2

    def shell_scores(self, x: torch.Tensor) -> torch.Tensor:
        """DO2HSC: negative within the shell, higher the farther from it to either side."""
        distances = self.distances(x)
        return (distances - self.inner) * (distances - self.outer)


def start(x: torch.Tensor, plan: Plan, seed: int) -> Detector:
    """An untrained encoder; its projection, centre and radii are those of the rows."""
    torch.manual_seed(seed)
    model = Compressor(x.shape[1], plan.hidden, plan.latent)
    with torch.no_grad():
        detector = Detector(model, hk.sphere.svdd_center(model.train()(x)))
    measure(detector, x, plan)
    return detector


@torch.no_grad()
def measure(detector: Detector, x: torch.Tensor, plan: Plan) -> None:
    """Projection and radii anew, from all rows as the encoder now has them."""
    points = detector.model.train()(x)
    inner, outer = hk.sphere.shell_radii(points, detector.center, plan.nu)
    detector.inner, detector.outer = float(inner), float(outer)


def _train(detector: Detector, x: torch.Tensor, plan: Plan, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Full batches: a class has some ninety rows."""
    optimizer = torch.optim.Adam(detector.model.parameters(), lr=plan.rate, weight_decay=1e-4)
    for _ in range(plan.epochs):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(detector.model.train()(x))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        detector.losses.append(loss.item())


def train_ball(detector: Detector, x: torch.Tensor, plan: Plan) -> None:
    """DOHSC. As in the authors' program the radius is 0 in training, and a quantile of the distances afterwards."""
    _train(detector, x, plan, lambda points: hk.sphere.svdd_loss(points, detector.center, nu=plan.nu))
    measure(detector, x, plan)


def train_shell(detector: Detector, x: torch.Tensor, plan: Plan) -> None:
    """DO2HSC, on from DOHSC: its quantiles are the radii of the shell, which then stay."""
    inner, outer = detector.inner, detector.outer
    _train(detector, x, plan, lambda points: hk.sphere.shell_loss(points, detector.center, inner, outer))
    measure(detector, x, plan)
    detector.inner, detector.outer = inner, outer
