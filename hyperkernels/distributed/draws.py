"""Random numbers that are the same on every rank and for any number of ranks: functions of a seed, a step and a place.

They are computed on the device, without the state of a generator: a checkpoint has the number of the step, and a
resumed run continues the same sequence on any number of ranks.
"""

from __future__ import annotations

from functools import partial

import torch

from .._fake import register_fake
from ..margins.base import Callback, Margin, as_margin

BLOCK = 1024  # classes whose centres are drawn together

# The finaliser of splitmix64 (Steele et al., 2014), in the wrapping arithmetic of int64.
_STEP, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(z: torch.Tensor) -> torch.Tensor:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        z = (z ^ (z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    return z ^ (z >> 31).bitwise_and_(2**33 - 1)


def _random_bits(seed: int, step: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    stream = _mix(_mix(torch.full_like(step, seed)) + step)
    return _mix(((place + 1) * _STEP).add_(stream)).bitwise_and_(2**62 - 1)


# An op, so that a compiler leaves it whole: a backward that drew again would read a number of steps that has moved on,
# and inductor (torch 2.13) writes beyond its buffers where torch.arange meets a factor this large.
_LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")
_LIBRARY.define("random_bits(int seed, Tensor step, Tensor place) -> Tensor")
_LIBRARY.impl("random_bits", _random_bits, "CompositeExplicitAutograd")
register_fake(_LIBRARY, "random_bits", lambda seed, step, place: torch.empty_like(place))


def random_bits(seed: int, step: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Random int64 in [0, 2^62), [n], as a function of a seed, the number of the step (a scalar) and distinct places
    [n]."""
    return torch.ops.hyperkernels.random_bits(seed, step, place)


def sample_classes(
    target: torch.Tensor,  # [N], as this shard numbers its classes; below 0 where it is none of them
    first: int,
    size: int,
    count: int,
    seed: int,
    step: torch.Tensor,
) -> torch.Tensor:
    """`count` of the `size` classes of a shard that starts at class `first`, as increasing int64 within the shard: all
    classes of the targets, at most `count`, and random others."""
    place = torch.arange(first, first + size, device=target.device)
    wanted = torch.zeros(size + 1, dtype=torch.int64, device=target.device)
    wanted.index_fill_(0, torch.where(target >= 0, target, size), 2**62)
    keys = random_bits(seed, step, place).add_(wanted[:size])
    return keys.topk(count, sorted=False).indices.sort().values


def _normal(seed: int, step: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    place = torch.arange(len(like), device=like.device)
    # Odd numbers over 2^53: never 0 or 1.
    uniform = ((random_bits(seed, step, place) >> 10) * 2 + 1).double() * 2.0**-53
    return torch.special.ndtri(uniform).to(like.dtype)


def shared(margin: Margin | Callback, seed: int, step: torch.Tensor) -> Margin:
    """The margin; if it draws from the default generator, in a form that draws the same on all ranks."""
    return as_margin(margin).shared(partial(_normal, seed, step))


@torch.no_grad()
def draw_centers(weight: torch.Tensor, first: int, sub_centers: int, std: float, seed: int) -> None:
    """Fill weight, the rows of the classes from `first` on, from N(0, std^2). The numbers of a class depend on the
    seed, the class and the kind of device alone, not on the shard."""
    if weight.is_meta or not weight.numel():
        return
    generator = torch.Generator(weight.device)
    end = first + len(weight) // sub_centers
    block = weight.new_empty(BLOCK, sub_centers * weight.shape[1])
    rows = weight.view(end - first, -1)
    for number in range(first // BLOCK, -(-end // BLOCK)):
        # Philox and Mersenne twister alike want seeds that differ in many bits.
        key = int(random_bits(seed, torch.tensor(number), torch.zeros(1, dtype=torch.int64)))
        block.normal_(std=std, generator=generator.manual_seed(key))
        low, high = max(first, number * BLOCK), min(end, (number + 1) * BLOCK)
        rows[low - first : high - first] = block[low - number * BLOCK : high - number * BLOCK]
