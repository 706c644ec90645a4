"""The mining example, from the command line, on few characters."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("manimgx_fonts_cjk")

from examples import mine_negatives


def test_it_trains_mines_and_reports(tmp_path, capsys):
    arguments = ["--characters", "40", "--steps", "6", "--classes", "8", "--images", "3", "--embedding", "16"]
    out = tmp_path / "out"
    assert mine_negatives.main([*arguments, "--cache", str(tmp_path), "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report["verification"]) == {"mined pairs", "random pairs"}
    assert all(len(losses) == 6 and np.isfinite(losses).all() for losses in report["loss"].values())
    assert report["mined"]["queries"] == 36 and -1 <= report["mined"]["mean_hardest_cosine"] <= 1
    for name in ("verification.png", "hard_negatives.png"):
        assert np.asarray(Image.open(out / name).convert("L")).std() > 5, name
    assert "TAR at 1e-2" in capsys.readouterr().out
    # The same seed trains the same embedders.
    assert mine_negatives.main([*arguments, "--cache", str(tmp_path), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["verification"] == report["verification"] and again["loss"] == report["loss"]


def test_too_many_classes_for_the_data(tmp_path, capsys):
    arguments = ["--characters", "20", "--classes", "64", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    assert mine_negatives.main(arguments) == 1
    assert "--classes" in capsys.readouterr().err
