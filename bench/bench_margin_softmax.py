"""The ArcFace head, forward and backward, against what a user writes in PyTorch, eager and compiled."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

import hyperkernels as hk

from .harness import Contender, Row, measure
from .memory import peak_bytes

OURS = "hyperkernels"
SCALE, MARGIN = 64.0, 0.5


def eager_head(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """ArcFace as it is usually written: normalise, multiply, replace the target's cosine, cross-entropy."""
    cos = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1, 1)
    target_cos = cos.gather(1, target[:, None])
    sin = (1 - target_cos * target_cos).clamp_min(1e-9).sqrt()
    psi = target_cos * math.cos(MARGIN) - sin * math.sin(MARGIN)
    psi = torch.where(target_cos > -math.cos(MARGIN), psi, target_cos - MARGIN * math.sin(MARGIN))
    return F.cross_entropy(SCALE * cos.scatter(1, target[:, None], psi), target)


def rows(device: str = "cpu", quick: bool = False) -> list[list[Row]]:
    """One list of rows a shape."""
    shapes = [(64, 10_000, 128)] if quick else [(256, 1_000, 512), (256, 10_000, 512), (256, 100_000, 512)]
    return [_shape(n, c, d, torch.float32, device, samples=5 if quick else 11) for n, c, d in shapes]


def _shape(n: int, c: int, d: int, dtype: torch.dtype, device: str, samples: int) -> list[Row]:
    torch.manual_seed(0)
    weight = torch.randn(c, d, dtype=dtype, device=device).mul_(0.05).requires_grad_()
    xs = [torch.randn(n, d, dtype=dtype, device=device).requires_grad_() for _ in range(3)]
    targets = [torch.randint(c, (n,), device=device) for _ in range(3)]
    compiled = torch.compile(eager_head)

    def fused(workspace: int | None):
        margin = hk.margins.ArcFace(MARGIN)
        return lambda x, w, t: hk.margin_softmax_loss(x, w, t, margin=margin, scale=SCALE, workspace=workspace)

    heads = {
        OURS: fused(None),
        "  workspace=0": fused(0),
        "  workspace=all": fused(n * (c + 512) * weight.element_size()),
        "torch.compile": compiled,
        "eager PyTorch": eager_head,
    }

    def step(head, i: int) -> tuple[torch.Tensor, ...]:
        loss = head(xs[i], weight, targets[i])
        return loss.detach(), *torch.autograd.grad(loss, (xs[i], weight))

    def three_gemms(i: int) -> tuple[torch.Tensor, ...]:
        x, w = xs[i].detach(), weight.detach()
        logits = x @ w.T
        return logits @ w, logits.T @ x

    truth = _truth(xs[0], weight, targets[0])
    peaks, errors = {}, {}
    for name, head in heads.items():
        errors[name] = _error(step(head, 0), truth)
        outputs = (n + c) * d * weight.element_size()
        peaks[name] = (peak_bytes(lambda h=head: step(h, 1), device) - outputs) / 1e6
    contenders = [Contender(name, lambda i, h=head: step(h, i)) for name, head in heads.items()]
    contenders.append(Contender("floor: three bare GEMMs", three_gemms, is_floor=True))
    return measure(
        contenders,
        op="margin_softmax ArcFace forward+backward",
        shape=f"N={n} C={c} D={d}",
        dtype=str(dtype).removeprefix("torch."),
        work=6.0 * n * c * d,
        unit="GFLOP/s",
        device=device,
        samples=samples,
        peaks=peaks,
        errors=errors,
    )


def _truth(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [v.detach().double().requires_grad_() for v in (x, weight)]
    loss = eager_head(*leaves, target)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def _error(got: tuple[torch.Tensor, ...], truth: tuple[torch.Tensor, ...]) -> float:
    """Largest relative error, in Euclidean norm, of loss, dx and dweight."""
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, truth, strict=True))
