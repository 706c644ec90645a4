"""Every launch of the pair statistics."""

import pytest
import torch

from hyperkernels.kernels.pair_mining import op
from tests.support import pair_cases as cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TILE = op.Tile(256, 512)  # the CPU's: the Triton kernels have their own

pytestmark = pytest.mark.rehearsal


def run(dtype=torch.bfloat16, **options):
    cases.run(cases.make(dtype=dtype, **options), TILE, lambda name, statistic: torch.ones_like(statistic))


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(dtype):
    for n, m, d in ((1, 1, 1), (70, 300, 100)):
        run(dtype, n=n, m=m, d=d)


@pytest.mark.parametrize("m", [None, 0, 1])
def test_edges(m):
    for n, d in ((1, 1), (0, 1), (3, 0)):
        run(n=n, m=m, d=d)
        run(n=n, m=m, d=d, columns=True, window="both")


# Every similarity, transform, selection, kind of label and set of numbers once, none of them where that is a choice.
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float16, "transform": "none", "moments": False, "select": "positive"},
        {"dtype": torch.float32, "transform": "none", "extremes": False, "label": "bits", "select": "negative"},
        {"transform": "circle", "similarity": "euclidean", "columns": True, "m": 5, "id": "none", "window": "lower"},
        {"transform": "softplus", "similarity": "squared_euclidean", "columns": True, "m": 5, "window": "both"},
        {"transform": "softplus", "offset": False, "label": "none", "id": "none", "moments": False, "m": 1},
        {"dtype": torch.float32, "similarity": "euclidean", "window": "upper", "select": "negative", "m": 5},
        {"dtype": torch.float64, "transform": "circle", "columns": True, "m": 1, "select": "positive"},
        {"dtype": torch.float64, "transform": "none", "similarity": "euclidean", "label": "none", "id": "none"},
        {"transform": "linear", "moments": False, "extremes": False, "label": "bits", "id": "none"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_options(options):
    run(**options)
