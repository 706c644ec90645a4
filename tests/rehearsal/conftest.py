import os

import pytest

# The pretended driver must be there before anything asks Triton for one: `make rehearse` runs these files, in a process
# of their own.
REHEARSING = os.environ.get("HYPERKERNELS_REHEARSAL") == "1"
if REHEARSING:
    from . import pretend_driver

    pretend_driver.install()
else:
    collect_ignore_glob = ["*"]  # but for a file that is named


@pytest.fixture(autouse=True)
def _triton():
    if not REHEARSING:
        pytest.skip("make rehearse runs it")
    import hyperkernels as hk

    with hk.backend("triton"):
        yield


def pytest_collection_modifyitems(items):
    """What asks for all that was launched goes last."""
    items.sort(key=lambda item: item.path.name == "test_every_kernel.py")
