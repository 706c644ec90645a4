import os

import pytest

# The pretended driver must be there before anything asks Triton for one: `make rehearse` runs these files, in a process
# of their own.
if os.environ.get("HYPERKERNELS_REHEARSAL") == "1":
    import pretend_driver

    pretend_driver.install()
else:
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def _triton():
    import hyperkernels as hk

    with hk.backend("triton"):
        yield


def pytest_collection_modifyitems(items):
    """What asks for all that was launched goes last."""
    items.sort(key=lambda item: item.path.name == "test_every_kernel.py")
