"""What was saved or imported by the names of the version before is found."""

import importlib
import subprocess
import sys
import warnings

import pytest
import torch

import hyperkernels as hk
from hyperkernels import _moved
from tests.support import ROOT


def test_modules_that_were_pickled_load_and_run():
    """tests/data/modules_0.1.0.pt: torch.save of whole modules, as that version named their classes."""
    with pytest.warns(DeprecationWarning, match="is called hyperkernels"):
        for name in [name for name in sys.modules if _moved.new_name(name)]:
            del sys.modules[name]
        saved = torch.load(ROOT / "tests" / "data" / "modules_0.1.0.pt", weights_only=False)
    head, target = saved["head"], torch.tensor([0, 2])
    assert type(head.margin) is hk.margins.ArcFace and type(saved["memory"]) is hk.mining.CrossBatchMemory
    fresh = hk.nn.MarginSoftmax(4, 3, margin=hk.margins.ArcFace(0.4), scale=8.0)
    fresh.load_state_dict(head.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(head(x, target), fresh(x, target))
    assert saved["sface"](x, target).isfinite()
    for margin, kind in zip(saved["margins"], ("AdaFace", "CurricularFace", "SphereFace"), strict=True):
        assert type(margin) is getattr(hk.margins, kind)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("margin_softmax.negatives", "heads.negatives"),
        ("margin_softmax.margins.additive", "margins.additive"),
        ("margin_softmax.functional", "heads.functional"),
        ("pair_mining.losses", "losses"),
        ("pair_mining.mining.memory", "mining.memory"),
        ("pair_mining", "pairs"),
    ],
)
def test_an_old_name_is_the_module_itself(old, new):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = importlib.import_module(f"hyperkernels.{old}")
    assert found is importlib.import_module(f"hyperkernels.{new}")
    assert found.__name__ == f"hyperkernels.{new}" and found.__spec__.name == found.__name__


def test_an_old_name_warns_and_an_unknown_one_is_missing():
    code = (
        "import warnings; warnings.simplefilter('error', DeprecationWarning)\n"
        "import hyperkernels\n"
        "try: import hyperkernels.margin_softmax.negatives\n"
        "except DeprecationWarning as warned: print(warned)\n"
        "warnings.simplefilter('ignore')\n"
        "try: import hyperkernels.margin_softmax.nothing\n"
        "except ModuleNotFoundError as missing: print(missing)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "is called hyperkernels.heads" in said and "hyperkernels.heads.nothing" in said


def test_an_old_name_is_an_attribute_and_an_unknown_one_is_not():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert hk.margin_softmax.negatives is hk.heads.negatives and hk.pair_mining is hk.pairs
    with pytest.raises(AttributeError, match="module 'hyperkernels' has no attribute 'nothing'"):
        hk.nothing  # noqa: B018
