"""The packages we are compared with: optional, and named where they are absent."""

from __future__ import annotations

import importlib.util

# PyPI name: module
CPU = {
    "pytorch-metric-learning": "pytorch_metric_learning",
    "faiss-cpu": "faiss",
    "geoopt": "geoopt",
    "pykeops": "pykeops",
}
GPU = {
    "pytorch-metric-learning": "pytorch_metric_learning",
    "faiss-gpu-cu12": "faiss",
    "geoopt": "geoopt",
    "pykeops": "pykeops",
    "cut-cross-entropy": "cut_cross_entropy",
    "liger-kernel": "liger_kernel",
    "quack-kernels": "quack",
}


def names(device: str) -> list[str]:
    return list(GPU if device == "cuda" else CPU)


def present(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
