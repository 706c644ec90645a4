"""The example recogniser under torchrun: two processes on the CPU learn what one does, stop, and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import hyperkernels as hk
from examples import train_recognizer
from examples.recognizer import folders
from examples.recognizer.ranks import ENVIRONMENT, Ranks
from examples.recognizer.training import CheckpointError, Trainer
from tests.support import ROOT

from .test_recognizer import HAS_KERNELS, make_people, small_and_quiet  # noqa: F401 (a fixture)

BATCH = 15  # one rank has 8 images of it, the other 7
PEOPLE = 25
OPTIONS = ["--size", "16", "--epochs", "3", "--batch", str(BATCH), "--rate", "0.05", "--head-rate", "20"]
OPTIONS += ["--embedding", "32", "--holdout", "0.2", "--head", "fused" if HAS_KERNELS else "reference"]

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo"
    ),
]


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    make_people(folder, [6] * PEOPLE)
    return folder


def arguments(people: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(people), "--out", str(out / "report"), *OPTIONS, *more]


def torchrun(*command: str, logs: Path, ranks: int = 2) -> subprocess.Popen[bytes]:
    """What rank r prints goes to the folder ``logs``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    launcher += ["--redirects", "3", "--log-dir", str(logs), "-m", "examples.train_recognizer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*launcher, *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def printed(logs: Path, rank: int, stream: str) -> str:
    (file,) = logs.glob(f"*/attempt_0/{rank}/{stream}.log")
    return file.read_text()


def finish(process: subprocess.Popen[bytes], logs: Path) -> str:
    """What rank 0 printed, once all is over; the others must have been silent."""
    _, launcher_errors = process.communicate(timeout=120)
    assert process.returncode == 0, printed(logs, 0, "stderr") + printed(logs, 1, "stderr") + launcher_errors.decode()
    assert printed(logs, 1, "stdout") == "" and printed(logs, 1, "stderr") == ""
    return printed(logs, 0, "stdout")


def report_of(out: Path) -> dict:
    return json.loads((out / "report" / "report.json").read_text())


def alone(people: Path, out: Path, *more: str) -> Trainer:
    """One process with the same head, of all classes."""
    args = train_recognizer.parser().parse_args(arguments(people, out, *more))
    settings = train_recognizer.make_settings(args)
    data = train_recognizer.load_data(args, settings.distortion)
    return Trainer(data, settings, Ranks(launched=True))


class Halves(torch.nn.Module):
    """An embedder whose batch norms see the share of one rank at a time."""

    def __init__(self, embedder: torch.nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.embedder(part) for part in images.tensor_split(2)])


@pytest.fixture(scope="module")
def straight(people, tmp_path_factory) -> Trainer:
    """An uninterrupted run of one process."""
    trainer = alone(people, tmp_path_factory.mktemp("straight"))
    trainer.network = Halves(trainer.embedder)
    trainer.run(None, lambda embedder: 0.0)
    return trainer


@pytest.fixture(scope="module")
def stopped(people, tmp_path_factory) -> tuple[Path, Trainer]:
    """A run of two ranks that was stopped after its first checkpoint: its folder, and what one process takes up."""
    out = tmp_path_factory.mktemp("stopped")
    process = torchrun(*arguments(people, out), logs=out / "first")
    deadline = time.monotonic() + 100
    while hk.distributed.latest(out / "report" / "checkpoints") is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (out / "report" / "report.json").exists()
    trainer = alone(people, out)
    path = trainer.find(out / "report" / "checkpoints")
    trainer.load(path)
    assert path.name == f"epoch-{trainer.epoch}"
    with pytest.raises(CheckpointError, match=r"other settings \(scale: 16\.0 there, 20\.0 here\)"):
        alone(people, out, "--scale", "20").load(path)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        alone(people, out).load(out)
    return out, trainer


def assert_alike(found: list[float], wanted: list[float]) -> None:
    """Rounding apart at first. A ReLU that it tips over magnifies the difference, so that the rest may drift."""
    np.testing.assert_allclose(found[:3], wanted[:3], rtol=1e-5)
    np.testing.assert_allclose(found, wanted, rtol=0.01, atol=0.01)


@pytest.mark.slow
def test_two_ranks_learn_as_one_process(straight, stopped):
    history = stopped[1].history
    assert len(history.loss) == stopped[1].epoch * straight.steps_per_epoch
    assert_alike(history.loss, straight.history.loss[: len(history.loss)])
    assert history.images == [straight.steps_per_epoch * BATCH] * stopped[1].epoch


@pytest.mark.slow
def test_a_stopped_run_goes_on(people, straight, stopped):
    out, trainer = stopped
    text = finish(torchrun(*arguments(people, out, "--resume"), logs=out / "second"), out / "second")
    for phrase in ("classes to train on", "resumed from", "equal error rate", "head's peak memory, plain", "report: "):
        assert text.count(phrase) == 1
    assert "training: 100%" in printed(out / "second", 0, "stderr")
    pictures = {"training.png", "cosines.png", "roc.png", "hard_pairs.png"}
    assert {path.name for path in (out / "report").iterdir()} == {"report.json", "checkpoints", *pictures}
    found = report_of(out)
    losses, before = found["history"]["loss"], len(trainer.history.loss)
    assert found["machine"]["ranks"] == 2 and len(found["history"]["heldout_tar"]) == 3
    assert losses[:before] == trainer.history.loss
    assert_alike(losses, straight.history.loss)

    # The same checkpoint goes on in one process, and the last one gives the same verdict there.
    trainer.network = Halves(trainer.embedder)
    trainer.run(None, lambda embedder: 0.0)
    assert_alike(losses[before:], trainer.history.loss[before:])
    trainer.load(trainer.find(out / "report" / "checkpoints"))
    assert trainer.epoch == 3 and trainer.history.loss == losses
    again = train_recognizer.evaluate(trainer.embedder, trainer.data, trainer.centres())
    assert again.rank1_centre == found["trained"]["rank1_centre"]
    assert again.rank1_template == found["trained"]["rank1_template"]


@pytest.mark.slow
def test_sampled_classes(people, tmp_path):
    """A batch holds fewer classes than a step takes, of either rank."""
    more = ("--sample-rate", "0.8", "--margin", "cosface")
    finish(torchrun(*arguments(people, tmp_path, *more), logs=tmp_path / "logs"), tmp_path / "logs")
    found = report_of(tmp_path)
    losses = found["history"]["loss"]
    assert found["settings"]["sample_rate"] == 0.8 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    trainer = alone(people, tmp_path, *more)
    path = trainer.find(tmp_path / "report" / "checkpoints")
    trainer.load(path)
    assert trainer.head.draws == len(losses)


def test_sampling_in_one_process(people, tmp_path, capsys):
    changed = arguments(people, tmp_path, "--sample-rate", "0.8", "--epochs", "1")
    assert train_recognizer.main(changed) == 0
    losses = report_of(tmp_path)["history"]["loss"]
    assert train_recognizer.main([*changed, "--resume"]) == 0
    assert "resumed from" in capsys.readouterr().out
    assert report_of(tmp_path)["history"]["loss"] == losses


def test_what_makes_no_sense_is_refused(people, tmp_path, monkeypatch, capsys):
    assert train_recognizer.main(arguments(people, tmp_path, "--head", "compile", "--sample-rate", "0.5")) == 1
    assert "--head compile knows neither torchrun nor --sample-rate" in capsys.readouterr().err
    (tmp_path / "report" / "checkpoints").mkdir(parents=True)
    assert train_recognizer.main(arguments(people, tmp_path, "--resume")) == 1
    assert "goes on under torchrun" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_recognizer.main(arguments(people, tmp_path, "--sample-rate", "0"))
    capsys.readouterr()
    with pytest.raises(folders.DataError, match="a batch of 15 images leaves some of 8 ranks fewer than two"):
        trainer = alone(people, tmp_path)
        Trainer(trainer.data, trainer.settings, Ranks(size=8, launched=True))
    monkeypatch.setattr(Ranks, "join", lambda self: None)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "1")
    assert train_recognizer.main(arguments(people, tmp_path, "--head", "compile")) == 1
    assert capsys.readouterr().err == ""  # rank 0 says it
