"""One transformer over bytes, twice: pre-norm as in common use, and normalised (nGPT, arXiv 2410.01131).

Both have the same matrices, rotary positions (RoPE), a gated hidden layer of four widths (SwiGLU), no biases, and an
output matrix of its own. In nGPT everything that meets in a product is a unit vector of the embedding's dimension: the
hidden state, the rows of the matrices that read it, the columns of those that write to it. What is left to learn beside
directions are the vectors ``Scale``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

import hyperkernels as hk

BYTES = 256


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions: of x [..., T, S, H, D], coordinates i and i + D/2 turned by ``angles`` [T, D/2]."""
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def rotation_angles(context: int, head_width: int) -> torch.Tensor:
    frequencies = 10_000.0 ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies).float()


def matrix(rows: int, columns: int, std: float) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * std)


class Layer(nn.Module):
    """The matrices of a layer, and what both models do with them.

    Entries start with a standard deviation of 1 / sqrt(width), those that write to the residual stream, into which 2
    ``layers`` blocks add, with that of GPT-2, 1 / sqrt(2 layers) of it. nGPT keeps only the directions.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        entry = width**-0.5
        self.qkv = matrix(3 * width, width, entry)
        self.out = matrix(width, width, entry / (2 * layers) ** 0.5)
        self.up = matrix(8 * width, width, entry)
        self.down = matrix(width, 4 * width, entry / (2 * layers) ** 0.5)

    def scaled_heads(self, qk: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Queries and keys [B, T, 2, H, D] as they meet, and the softmax's scale of their products."""
        return qk, qk.shape[-1] ** -0.5

    def scaled_hidden(self, uv: torch.Tensor) -> torch.Tensor:
        return uv

    def attention(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        batch, context, width = x.shape
        qk, v = F.linear(x, self.qkv).view(batch, context, 3, self.heads, -1).split((2, 1), 2)
        qk, scale = self.scaled_heads(rotate(qk, angles))
        q, k, v = (heads.transpose(1, 2) for heads in (*qk.unbind(2), v.squeeze(2)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return F.linear(y.transpose(1, 2).reshape(batch, context, width), self.out)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        u, v = self.scaled_hidden(F.linear(x, self.up)).chunk(2, -1)
        return F.linear(u * F.silu(v), self.down)


class PreNormLayer(Layer):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__(width, layers, heads)
        self.attention_gain = nn.Parameter(torch.ones(width))
        self.mlp_gain = nn.Parameter(torch.ones(width))

    def forward(self, h: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        h = h + self.attention(F.rms_norm(h, (self.width,), self.attention_gain), angles)
        return h + self.mlp(F.rms_norm(h, (self.width,), self.mlp_gain))


class Scale(nn.Module):
    """A learned vector that starts at ``start``; the parameter itself starts at ``stored``.

    Adam moves every parameter by about the learning rate, so the smaller ``stored``, the faster the vector changes
    (section 2.5 of the paper): of the size of a matrix's entries, 1 / sqrt(width), it learns as fast as they do.
    """

    def __init__(self, *shape: int, start: float, stored: float) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.full(shape, stored))
        self.factor = start / stored

    def forward(self) -> torch.Tensor:
        return self.parameter * self.factor


class NormalisedLayer(Layer):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__(width, layers, heads)
        entry = width**-0.5
        self.attention_alpha = Scale(width, start=0.05, stored=entry)
        self.mlp_alpha = Scale(width, start=0.05, stored=entry)
        self.qk_scale = Scale(heads, width // heads, start=1.0, stored=entry)
        # s_u and s_v in one. v = W x of unit rows and a unit x has coordinates of about 1 / sqrt(width), where SiLU is
        # all but linear: sqrt(width) brings them to its bend. On u it does nothing, the residual takes the direction.
        self.uv_scale = Scale(8 * width, start=width**0.5, stored=1.0)

    def scaled_heads(self, qk: torch.Tensor) -> tuple[torch.Tensor, float]:
        # After the rotation, which keeps norms but would not commute with the scale. The products of unit vectors vary
        # by 1 / sqrt(D), so that the softmax multiplies by sqrt(D) where it usually divides.
        return hk.sphere.scaled_unit_norm(qk, self.qk_scale()), qk.shape[-1] ** 0.5

    def scaled_hidden(self, uv: torch.Tensor) -> torch.Tensor:
        return uv * self.uv_scale()

    def forward(self, h: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        # No norm before a block: h is a unit row already.
        h = hk.sphere.residual(h, self.attention(h, angles), self.attention_alpha().abs())
        return hk.sphere.residual(h, self.mlp(h), self.mlp_alpha().abs())


class Transformer(nn.Module):
    """``forward(tokens [B, T])`` gives the mean cross-entropy of every byte but the first, in nats."""

    angles: torch.Tensor

    def __init__(self, layer: type[Layer], width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.register_buffer("angles", rotation_angles(context, width // heads), persistent=False)
        self.embedding = matrix(BYTES, width, width**-0.5)
        self.layers = nn.ModuleList(layer(width, layers, heads) for _ in range(layers))
        self.output = matrix(BYTES, width, width**-0.5)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        h = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            h = layer(h, self.angles[: tokens.shape[1]])
        return h

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.loss(self.hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def loss(self, h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class PreNorm(Transformer):
    """RMS norm before every block and before the output."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__(PreNormLayer, width, layers, heads, context)
        self.gain = nn.Parameter(torch.ones(width))

    def loss(self, h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(F.rms_norm(h, self.gain.shape, self.gain), self.output), target)


class Normalised(Transformer):
    """nGPT. ``unit_parameters`` are unit at the start and must be made so again after every step of an optimiser."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__(NormalisedLayer, width, layers, heads, context)
        self.logit_scale = Scale(BYTES, start=1.0, stored=width**-0.5)
        for parameter, dim in self.unit_parameters():
            hk.unit_norm_(parameter, dim)

    def unit_parameters(self) -> list[tuple[nn.Parameter, int]]:
        """Every matrix, with its dimension that is the embedding's: rows that read it, columns that write to it."""
        found = [(self.embedding, 1), (self.output, 1)]
        for layer in self.layers:
            layer = cast(Layer, layer)
            found += [(layer.qkv, 1), (layer.out, 0), (layer.up, 1), (layer.down, 0)]
        return found

    def loss(self, h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # h and the rows of the output are unit already: logits are s_z times the cosine, with s_z learned per byte.
        return hk.margin_softmax_loss(
            h,
            self.output,
            target,
            margin=hk.margins.NormFace(),
            scale=1.0,
            class_scale=self.logit_scale(),
            normalize_x=False,
            normalize_weight=False,
        )
