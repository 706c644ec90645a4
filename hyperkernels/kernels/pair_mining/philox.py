"""Random numbers by counter, in plain PyTorch: the bits that the kernels draw."""

import torch


def philox(counter: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Philox 4x32 with ten rounds: four int64 tensors of 32-bit numbers from four counters and a 64-bit key."""
    low = 0xFFFFFFFF
    key0, key1 = seed & low, seed >> 32 & low
    c0, c1, c2, c3 = counter
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32 & low) ^ c1 ^ key0,
            product1 & low,
            (product0 >> 32 & low) ^ c3 ^ key1,
            product0 & low,
        )
        key0, key1 = key0 + 0x9E3779B9 & low, key1 + 0xBB67AE85 & low
    return [c0, c1, c2, c3]
