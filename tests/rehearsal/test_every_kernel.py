"""What must hold of all that the other files here have launched: run them together."""

from concurrent.futures import ThreadPoolExecutor

import aot
import pretend_driver
import pytest

import hyperkernels

pytestmark = pytest.mark.rehearsal


def test_every_kernel_was_launched():
    kernels = pretend_driver.kernels_of(pretend_driver.modules_of(hyperkernels))
    assert len(kernels) > 30
    assert kernels - set(pretend_driver.compiled) == set()


def test_no_kernel_has_a_stack():
    """Registers that do not suffice spill there."""
    handles = [handle for by_hash in pretend_driver.compiled.values() for handle in by_hash.values()]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda handle: aot.usage(handle.asm["cubin"]), handles))
    spilled = [
        (h.name, h.src.signature, h.src.constants) for h, (_, stack) in zip(handles, found, strict=True) if stack
    ]
    assert not spilled, "\n".join(map(str, spilled))
