"""The example recogniser at small size: data, training, resuming, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples import train_recognizer
from examples.recognizer import folders, glyphs, training
from examples.recognizer.data import DataError, Dataset, draw_pairs, split_classes
from examples.recognizer.distort import Distortion, distort_images, to_float
from examples.recognizer.evaluate import evaluate, heldout_tar
from examples.recognizer.training import CheckpointError, Settings, Trainer
from hyperkernels import _backend
from tests.support import ROOT

HAS_KERNELS = _backend.choose("margin_softmax", "cpu").backend == "cpp"

needs_fonts = pytest.mark.skipif(
    any(not glyphs.installed(module) for module in ("manimgx_fonts_cjk", "matplotlib_fontja")),
    reason="the font wheels manimgx-fonts-cjk and matplotlib-fontja are not installed",
)
needs_library = pytest.mark.skipif(not HAS_KERNELS, reason="the library of C++ kernels is not built")


@pytest.fixture(autouse=True)
def small_and_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "DIFFERENT_PAIRS", 3000)
    monkeypatch.setattr(folders, "DIFFERENT_PAIRS", 3000)
    if not HAS_KERNELS:
        monkeypatch.setenv(_backend.ENV_VARIABLE, "reference")


# Data


def test_split_and_pairs():
    trained, held = split_classes(50, 0.1, seed=3)
    assert len(held) == 5 and sorted([*trained, *held]) == list(range(50))
    assert not np.array_equal(held, split_classes(50, 0.1, seed=4)[1])
    with pytest.raises(DataError, match="too few"):
        split_classes(3, 0.5, seed=0)
    labels = np.array([0, 0, 0, 1, 2, 2])
    pairs = draw_pairs(labels, max_same=100, different=200, rng=np.random.default_rng(0))
    assert pairs.same.sum() == 4 and (~pairs.same).sum() == 200
    assert np.array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    assert draw_pairs(labels, 2, 10, np.random.default_rng(0)).same.sum() == 2


def test_distortion_is_seeded_and_keeps_the_shape():
    images = np.random.default_rng(0).integers(0, 256, (7, 20, 20), np.uint8)
    first = distort_images(images, Distortion(), seed=1)
    assert first.shape == images.shape and first.dtype == np.uint8
    assert np.array_equal(first, distort_images(images, Distortion(), seed=1))
    assert not np.array_equal(first, distort_images(images, Distortion(), seed=2))
    none = Distortion(rotation=0, zoom=0, shear=0, shift=0, blur=0, noise=0, contrast=0)
    assert np.abs(distort_images(images, none, seed=1).astype(int) - images).max() <= 1
    mirrored = distort_images(images, Distortion(**{**vars(none), "flip": True}), seed=1).astype(int)
    for before, after in zip(images, mirrored, strict=True):
        assert min(np.abs(after - before).max(), np.abs(after - before[:, ::-1]).max()) <= 1


@needs_fonts
def test_glyphs_are_cached_whole_and_split_by_class(tmp_path):
    calls = []
    options = {"cache": tmp_path, "side": 24, "characters": 20, "holdout": 0.2, "distortion": Distortion()}
    first = glyphs.load(**options, progress=lambda done, total: calls.append(done))
    assert calls[-1] == 20
    (cached,) = tmp_path.iterdir()  # nothing unfinished is left beside it
    calls.clear()
    second = glyphs.load(**options, progress=lambda done, total: calls.append(done))
    assert not calls and np.array_equal(first.train, second.train) and np.array_equal(first.heldout, second.heldout)
    assert first.num_classes == 16 and first.train.shape == (160, 24, 24) and first.gallery.shape == (16, 24, 24)
    trained = {image.tobytes() for image in np.load(cached)[:, : len(glyphs.TRAIN_STYLES)].reshape(-1, 24, 24)}
    assert {image.tobytes() for image in first.train} <= trained  # and none in the other font
    (pairs,) = first.pairs.values()
    labels = first.heldout_labels
    assert np.array_equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    half = len(labels) // 2
    assert (pairs.first < half).all() and (pairs.second >= half).all()  # one image in each font


@needs_fonts
def test_an_interrupted_rendering_leaves_no_cache(tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        glyphs.load(cache=tmp_path, side=24, characters=20, distortion=Distortion(), progress=stop)
    assert not list(tmp_path.iterdir())


def make_people(folder: Path, counts: list[int], side: int = 20) -> None:
    """People 0, 1, ...: noisy pictures of a random pattern each, ``counts[i]`` of person i."""
    rng = np.random.default_rng(0)
    for person, count in enumerate(counts):
        pattern = rng.integers(40, 216, (side, side))
        (folder / f"person{person:02d}").mkdir(parents=True)
        for k in range(count):
            picture = np.clip(pattern + rng.normal(0, 12, (side, side)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / f"person{person:02d}" / f"p{person:02d}_{k}.png")


def zip_folder(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as z:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                z.write(path, path.relative_to(folder).as_posix())
    return archive


def test_folder_and_zip_give_the_same_data(tmp_path):
    make_people(tmp_path / "tree" / "people", [1, 2, 3, 4, 5, 3, 3, 2, 2, 2])
    (tmp_path / "tree" / "people" / "readme.txt").write_text("not an image")
    tree = folders.load(tmp_path / "tree", side=16, holdout=0.3)
    zipped = folders.load(zip_folder(tmp_path / "tree", tmp_path / "people.zip"), side=16, holdout=0.3)
    for name in ("train", "labels", "heldout", "heldout_labels", "gallery", "probes", "probe_labels"):
        assert np.array_equal(getattr(tree, name), getattr(zipped, name)), name
    assert tree.train.shape[1:] == (16, 16) and tree.num_classes == 7
    assert len(set(tree.heldout_labels.tolist())) == 3
    assert sorted(set(tree.labels.tolist())) == list(range(7))  # every class keeps an image to train on
    assert len(tree.train) + len(tree.probes) + len(tree.heldout) == 27
    assert list(tree.pairs) == ["drawn pairs"]
    every = [image.tobytes() for part in (tree.train, tree.probes, tree.heldout) for image in part]
    assert len(set(every)) == 27  # no image serves twice
    assert folders.load(tmp_path / "tree", side=16, holdout=0.3, min_images=3).num_classes < 7


def test_listed_pairs_are_used_where_both_people_are_held_out(tmp_path):
    make_people(tmp_path / "people", [3] * 12)
    same = [(f"p{i:02d}_0.png", f"p{i:02d}_1.png", 1) for i in range(12)]
    # Three groups of four people that the pairs link.
    different = [(f"p{i:02d}_0.png", f"p{i + d:02d}_2.png", 0) for i in (0, 4, 8) for d in (1, 2, 3)]
    rows = [",".join(map(str, row)) for row in [("first", "second", "same"), *same, *different]]
    (tmp_path / "people" / "pairs.csv").write_text("\n".join(rows))
    data = folders.load(tmp_path / "people", side=16, holdout=0.3)
    assert list(data.pairs) == ["pairs.csv", "drawn pairs"]
    listed = data.pairs["pairs.csv"]
    assert listed.same.sum() == 4 and (~listed.same).sum() == 3  # one group, whole
    labels = data.heldout_labels
    assert np.array_equal(labels[listed.first] == labels[listed.second], listed.same)
    (tmp_path / "people" / "pairs.csv").write_text("first,second,same\np00_0.png,p01_0.png,1\n")
    with pytest.raises(DataError, match=r"line 2: same=1 contradicts the folders"):
        folders.load(tmp_path / "people", side=16)
    (tmp_path / "people" / "pairs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="must have the columns first, second, same"):
        folders.load(tmp_path / "people", side=16)


def test_bad_data_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        folders.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in sub-folders"):
        folders.load(tmp_path / "empty")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        folders.load(tmp_path / "text.zip")
    make_people(tmp_path / "three", [2, 2, 2])
    with pytest.raises(DataError, match="has 3 identities; at least 4"):
        folders.load(tmp_path / "three")
    make_people(tmp_path / "singles", [1] * 6)
    with pytest.raises(DataError, match="no held-out identity has two images"):
        folders.load(tmp_path / "singles")
    make_people(tmp_path / "broken", [2] * 6)
    (tmp_path / "broken" / "person03" / "p03_1.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cannot read the image person03/p03_1\.png"):
        folders.load(tmp_path / "broken")


# Training


def tiny_data(classes: int = 24, copies: int = 10, side: int = 16) -> Dataset:
    """Random patterns: a class each to train on, as many again held out."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (2 * classes, side, side), np.uint8)
    held = np.repeat(np.arange(classes), 2)
    pairs = draw_pairs(held, 1000, 500, rng)
    return Dataset(
        name="patterns",
        train=np.repeat(patterns[:classes], copies, axis=0),
        labels=np.repeat(np.arange(classes), copies),
        num_classes=classes,
        heldout=distort_images(patterns[classes:][held], Distortion(), 1),
        heldout_labels=held,
        pairs={"patterns": pairs},
        gallery=patterns[:classes],
        probes=distort_images(patterns[:classes], Distortion(), 2),
        probe_labels=np.arange(classes),
        protocol="",
    )


def tiny_settings(**changes) -> Settings:
    usual = {
        "data": "patterns",
        "head": "reference",
        "margin": "arcface",
        "m": 0.3,
        "scale": 16.0,
        "skip_budget": 0.0,
        "embedding_size": 32,
        "epochs": 3,
        "batch": 48,
        "rate": 0.05,
        "head_rate": 20.0,
        "seed": 0,
        "distortion": Distortion(),
    }
    return Settings(**{**usual, **changes})


def train(trainer: Trainer, checkpoint: Path | None = None, until: int | None = None) -> Trainer:
    trainer.run(checkpoint, lambda embedder: heldout_tar(embedder, trainer.data), until)
    return trainer


@pytest.fixture
def in_float64():
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(before)


@needs_library
@pytest.mark.parametrize(
    "margin", ["arcface", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cosface", "normface"))]
)
def test_fused_and_reference_heads_learn_alike(margin, monkeypatch, in_float64):
    used = []
    select = _backend.select

    def spy(family, device):
        used.append((family, select(family, device)))
        return used[-1][1]

    monkeypatch.setattr(_backend, "select", spy)
    data = tiny_data()
    in_float64()  # in float32 a ReLU that rounding tips over parts the curves, as does a change of the weights by 1e-7
    monkeypatch.setattr(training, "to_float", lambda images: to_float(images).double())
    curves = {}
    for head, backend in (("reference", "reference"), ("fused", "cpp")):
        used.clear()
        trainer = Trainer(data, tiny_settings(head=head, margin=margin, m=None, epochs=8, rate=0.005, head_rate=50.0))
        trainer.embedder.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        train(trainer)
        assert {chosen for family, chosen in used if family == "margin_softmax"} == {backend}
        curves[head] = np.array(trainer.history.loss)
    assert len(curves["fused"]) == 40
    assert curves["reference"][-5:].mean() < 0.7 * curves["reference"][:5].mean()
    np.testing.assert_allclose(curves["fused"], curves["reference"], rtol=1e-9)


def test_training_beats_no_training():
    data = tiny_data()
    trainer = Trainer(data, tiny_settings(epochs=20))
    before = evaluate(trainer.embedder, data, None)
    train(trainer)
    after = evaluate(trainer.embedder, data, trainer.head.weight)
    assert after.verification["patterns"].eer < before.verification["patterns"].eer
    assert after.rank1_centre is not None and after.rank1_template is not None and before.rank1_template is not None
    assert after.rank1_template > before.rank1_template
    assert trainer.history.images == [240] * 20 and len(trainer.history.heldout_tar) == 20


def assert_same_run(one: Trainer, other: Trainer) -> None:
    assert one.history.loss == other.history.loss
    assert one.history.rate == other.history.rate
    assert one.history.heldout_tar == other.history.heldout_tar
    for name, value in one.embedder.state_dict().items():
        assert torch.equal(value, other.embedder.state_dict()[name]), name
    assert torch.equal(one.head.weight, other.head.weight)


def test_resumed_equals_uninterrupted(tmp_path):
    data, settings = tiny_data(), tiny_settings()
    straight = train(Trainer(data, settings))
    stopped = Trainer(data, settings)
    step, path = stopped.step, tmp_path / "run" / "checkpoint.pt"

    def interrupted(rows):
        if stopped.epoch == 1:  # the second epoch gets one step far
            stopped.step = broken
        return step(rows)

    def broken(rows):
        raise KeyboardInterrupt

    stopped.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(stopped, path)
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
    resumed = Trainer(data, settings)
    resumed.load(path)
    assert resumed.epoch == 1
    assert_same_run(train(resumed, path), straight)


def test_a_foreign_checkpoint_is_refused(tmp_path):
    data, path = tiny_data(), tmp_path / "checkpoint.pt"
    train(Trainer(data, tiny_settings(epochs=1)), path)
    with pytest.raises(
        CheckpointError, match=r"other settings \(scale: 16\.0 there, 32\.0 here; seed: 0 there, 1 here\)"
    ):
        Trainer(data, tiny_settings(epochs=1, scale=32.0, seed=1)).load(path)
    path.write_bytes(b"half a checkpoint")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        Trainer(data, tiny_settings(epochs=1)).load(path)


# The command line


@needs_fonts
def test_command_line(tmp_path, capsys):
    arguments = ["--characters", "40", "--size", "16", "--epochs", "2", "--batch", "60", "--embedding", "32"]
    arguments += ["--head", "reference", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "report")]
    assert train_recognizer.main(arguments) == 0
    printed = capsys.readouterr().out
    for phrase in ("untrained", "TAR at FAR 0.01", "equal error rate", "images/s", "head's peak memory, plain PyTorch"):
        assert phrase in printed
    names = {path.name for path in (tmp_path / "report").iterdir()}
    pictures = {"training.png", "cosines.png", "roc.png", "hard_pairs.png"}
    assert names == {"report.json", "checkpoint.pt", *pictures}
    for name in pictures:
        with Image.open(tmp_path / "report" / name) as image:
            assert min(image.size) > 300
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["settings"]["head"] == "reference" and numbers["settings"]["epochs"] == 2
    assert len(numbers["history"]["loss"]) == 12 and len(numbers["history"]["heldout_tar"]) == 2
    assert 0 < numbers["head_share"] < 1
    assert set(numbers["head_peak_bytes"]) == {"reference", "eager", "gradients"}

    assert train_recognizer.main([*arguments, "--resume"]) == 0
    assert "resumed from" in capsys.readouterr().out
    again = json.loads((tmp_path / "report" / "report.json").read_text())
    assert again["trained"] == numbers["trained"] and again["history"] == numbers["history"]
    assert train_recognizer.main([*arguments, "--resume", "--scale", "20"]) == 1
    assert "other settings (scale: 16.0 there, 20.0 here)" in capsys.readouterr().err


def test_command_line_on_a_folder(tmp_path, capsys):
    make_people(tmp_path / "people", [4] * 10)
    arguments = [
        "--data",
        str(tmp_path / "people"),
        "--size",
        "16",
        "--epochs",
        "1",
        "--batch",
        "8",
        "--head",
        "reference",
    ]
    assert train_recognizer.main([*arguments, "--holdout", "0.3", "--flip", "--out", str(tmp_path / "report")]) == 0
    assert "rank-1, nearest class centre" in capsys.readouterr().out
    assert train_recognizer.main(["--data", str(tmp_path / "nothing"), "--out", str(tmp_path / "report")]) == 1
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_runs_from_anywhere(tmp_path):
    script = ROOT / "examples" / "train_recognizer.py"
    done = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--head {fused,reference,compile}" in done.stdout
