"""Which row of the kernels' tables a GPU takes: that of its own capability, whichever device is current."""

import pytest
import torch

from hyperkernels.kernels.triton import gpu as _gpu

CAPABILITIES = {"cuda:0": (9, 0), "cuda:1": (8, 0), "cuda:2": (12, 0), "cuda:3": (10, 3), "cuda:4": (8, 9)}


@pytest.mark.parametrize(
    ("device", "row"),
    [("cuda:0", "sm_90"), ("cuda:1", "sm_80"), ("cuda:2", "sm_80"), ("cuda:3", "sm_100"), ("cuda:4", "sm_80"),
     ("cpu", "sm_90")],
)  # fmt: skip
def test_the_row_is_that_of_the_tensors_device(device, row, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at="cuda:0": CAPABILITIES[str(at)])
    assert _gpu.architecture(torch.device(device)) == row


def test_an_amd_gpu_has_a_row_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert _gpu.architecture(torch.device("cuda", 0)) == "gfx"
