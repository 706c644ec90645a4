"""Pair losses over the batches of several ranks give the numbers of one process."""

from functools import partial

import pytest
import torch

import hyperkernels as hk
from tests.support.ranks import launch

from . import pair_cases as cases
from . import pair_costs as costs

NOT_HERE = ("check_info_nce", "check_references", "check_other", "check_rows_of_this_rank")
CHECKS = {
    **{name: partial(cases.check_info_nce, name) for name in cases.SQUARE},
    **{name: partial(cases.check_references, name) for name in cases.OBLONG},
    **{name: partial(cases.check_other, name) for name in cases.OTHERS},
    **{
        name.removeprefix("check_"): check
        for name, check in {**vars(cases), **vars(costs)}.items()
        if name.startswith("check_") and name not in NOT_HERE
    },
}


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 3])
def test_ranks_agree_with_one_process(world_size):
    launch(world_size, CHECKS)


@pytest.mark.parametrize("loss", [hk.losses.info_nce, hk.losses.supcon, hk.losses.siglip, hk.losses.nca])
def test_arguments(loss):
    x, y = torch.randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match="communication"):
        loss(x, ref=x, labels=y, ref_labels=y, communication="tree")
    with pytest.raises(ValueError, match="gradient_reduction"):
        loss(x, ref=x, labels=y, ref_labels=y, gradient_reduction="none")
