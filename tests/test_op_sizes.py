"""Sizes that the ops cannot work with: each is refused by its name before any memory is taken.

The ops are called as a C++ caller may call them, past the checks of the Python functions.
"""

import pytest
import torch

from tests.support import REFUSED, need_cpp_kernels, tiled_ops

need_cpp_kernels()

LARGEST = 2**63 - 1


@pytest.mark.parametrize("name", tiled_ops.NAMES)
def test_tiles_of_pairs(name):
    tiled_ops.check_refused(name)


@pytest.mark.parametrize("name", tiled_ops.NAMES)
def test_the_largest_tile(name):
    results = []
    for tile in (128, 4096):
        torch.manual_seed(0)
        results.append(tiled_ops.run(name, "", tile, tile))
    for small, large in zip(*results, strict=True):
        assert torch.equal(small, large)


def head(block, kept=0, kind="cosine", transform=None, sub_centers=1):
    x = torch.randn(3, 5)
    return torch.ops.hyperkernels.class_statistics(
        x, torch.randn(12, 5), torch.zeros(3, dtype=torch.int64), torch.ones(3), None, None, transform, None, kind,
        sub_centers, True, True, 1e-12, -100, -1, block, kept, 0.0, None,
    )  # fmt: skip


@pytest.mark.parametrize("sub_centers", [1, 3])
def test_blocks_of_classes(sub_centers):
    largest = 4096 // sub_centers
    head(largest, sub_centers=sub_centers)
    for size in (-LARGEST - 1, -1, 0, largest + 1, 2**30, 2**62, LARGEST):
        with pytest.raises(REFUSED, match=rf"^block must be in \[1, {largest}\]; got {size}"):
            head(size, sub_centers=sub_centers)
    for kept in (-LARGEST - 1, -1, 2, LARGEST):
        with pytest.raises(REFUSED, match=rf"kept_blocks must be in \[0, 1\]; got {kept}"):
            head(largest, kept, sub_centers=sub_centers)


@pytest.mark.parametrize("power", [-1e30, 0.0, 0.5, 2.5, 9.0, 2.0**31, 1e30, float("inf"), float("nan")])
def test_powers_of_sphereface2(power):
    transform = torch.tensor([[0.4, 3.0, 0.0], [0.4, power, 0.0], [0.4, 8.0, 0.0]])
    with pytest.raises(REFUSED, match=r"transform\[1, 1\], the power of sphereface2, must be a whole number in"):
        head(16, kind="sphereface2", transform=transform)
