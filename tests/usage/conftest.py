import pytest

from .cases import EVERYDAY_MODULES, FUNCTIONS, MODULES, Net, case_of, sample


@pytest.fixture(params=sample([*FUNCTIONS, *MODULES], {*FUNCTIONS, *EVERYDAY_MODULES}))
def case(request):
    """Each function and module."""
    return case_of(request.param)


@pytest.fixture(params=sample(MODULES, EVERYDAY_MODULES))
def net(request):
    """A layer and each module after it."""
    return Net(request.param)
