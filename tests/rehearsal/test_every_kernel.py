"""What must hold of all that the other files here have launched: run them together."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import hyperkernels
from tests.support import aot

from . import pretend_driver

pytestmark = pytest.mark.rehearsal


# Bytes. The sizes and tiles that the ahead-of-time tests compile have no stack; those of the edges may have a little.
LARGEST_STACK = 64


def own_kernels():
    return pretend_driver.kernels_of(pretend_driver.modules_of(hyperkernels))


def test_every_kernel_was_launched():
    kernels = own_kernels()
    assert len(kernels) > 30
    assert kernels - set(pretend_driver.compiled) == set()


def test_no_kernel_has_a_large_stack():
    """Registers that do not suffice spill there."""
    handles = [handle for name in own_kernels() for handle in pretend_driver.compiled[name].values()]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda handle: aot.usage(handle.asm["cubin"]), handles))
    spilled = [
        (stack, h.name, h.src.signature, h.src.constants)
        for h, (_, stack) in zip(handles, found, strict=True)
        if stack > LARGEST_STACK
    ]
    assert not spilled, "\n".join(map(str, spilled))
