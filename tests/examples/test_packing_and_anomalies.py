"""The packing and the anomaly example: their bound, their parts, and both from the command line."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from examples import detect_anomalies, pack_sphere
from examples.anomalies import data, training
from examples.packing import training as packing
from examples.packing.bound import least_largest_cosine


@pytest.mark.parametrize(
    ("points", "dimension", "cosine"),
    [
        (2, 3, -1.0),  # opposite
        (5, 4, -1 / 4),  # simplex
        (16, 8, 0.0),  # Rankin: axes
        (12, 3, 1 / math.sqrt(5)),  # icosahedron
        (240, 8, 1 / 2),  # E8
        (196_560, 24, 1 / 2),  # Leech lattice
    ],
)
def test_the_bound_is_that_of_arrangements_known_to_be_best(points, dimension, cosine):
    assert least_largest_cosine(points, dimension) == pytest.approx(cosine, abs=1e-12)


def test_the_bound_rises_with_the_points():
    bounds = [least_largest_cosine(n, 6) for n in range(2, 200)]
    assert all(a < b + 1e-12 for a, b in pairwise(bounds)) and -1 == bounds[0] < bounds[-1] < 1


@pytest.mark.parametrize("name", list(packing.OBJECTIVES))
def test_objectives_are_those_of_plain_pytorch(name):
    x = torch.randn(40, 7, dtype=torch.float64)
    found = []
    for objective in (packing.OBJECTIVES[name], packing.EAGER[name]):
        v = x.clone().requires_grad_()
        loss = objective(v, 0.1)
        found.append((loss.detach(), *torch.autograd.grad(loss, v)))
    torch.testing.assert_close(*found)


PACK = ["--points", "60", "--dimension", "8", "--steps", "40"]


def test_packing_parts_the_points(tmp_path, capsys):
    objectives = ["soft", "nearest", "pair"]
    assert pack_sphere.main([*PACK, "--objective", *objectives, "--output", str(tmp_path / "one")]) == 0
    report = json.loads((tmp_path / "one" / "packing.json").read_text())
    for name in objectives:
        largest = report["packings"][name]["largest_cosine"]
        assert report["bound"] < largest[-1] < largest[0] < 1
        assert report["packings"][name]["step"][-1] == 40
    # All pairs at once part farther than one pair a step.
    ends = {name: report["packings"][name]["largest_cosine"][-1] for name in objectives}
    assert ends["soft"] < ends["pair"] and ends["nearest"] < ends["pair"]
    assert np.asarray(Image.open(tmp_path / "one" / "packing.png").convert("L")).std() > 5
    assert "Levenshtein's bound" in capsys.readouterr().out
    points = torch.load(tmp_path / "one" / "points.pt")
    for name in objectives:
        cosines = (points[name] @ points[name].T).fill_diagonal_(-1)
        assert float(cosines.max()) == pytest.approx(ends[name], abs=1e-5)


def test_packing_by_seed():
    ends = [packing.pack(packing.Plan(30, 5, 10, 0.1, 0.1, 0.01, seed), "soft")[0] for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])
    torch.testing.assert_close(ends[0].norm(dim=1), torch.ones(30))


def test_a_cost_that_memory_does_not_suffice_for():
    plan = packing.Plan(10, 3, 1, 0.1, 0.1, 0.1, 0)

    def too_large(x, temperature):
        raise MemoryError

    assert packing.cost(plan, too_large) is None


@pytest.mark.parametrize(
    ("main", "arguments", "named"),
    [
        (pack_sphere.main, ["--points", "1"], "--points"),
        (pack_sphere.main, ["--dimension", "2"], "--dimension"),
        (pack_sphere.main, ["--objective", "hard"], "--objective"),
        (pack_sphere.main, ["--rate", "0"], "--rate"),
        (pack_sphere.main, ["--temperature", "0.01", "0.1"], "--temperature"),
        (detect_anomalies.main, ["--nu", "0.5"], "--nu"),
        (detect_anomalies.main, ["--classes", "10"], "--classes"),
        (detect_anomalies.main, ["--classes", "1", "--shown", "2"], "--shown"),
        (detect_anomalies.main, ["--epochs", "0"], "--epochs"),
        (detect_anomalies.main, ["--rate", "inf"], "--rate"),
    ],
)
def test_arguments_are_refused_by_name(main, arguments, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main([*arguments, "--output", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert f"argument {named}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_auc_counts_ordered_pairs():
    normal, anomalous = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 5.0, 6.0])
    pairs = [(a > n) + 0.5 * (a == n) for n in normal for a in anomalous]
    assert data.auc(normal, anomalous) == pytest.approx(float(sum(pairs)) / len(pairs))


def test_anomalies_far_from_a_plane_are_found():
    """Normal rows near a plane of five dimensions, anomalies anywhere."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(5, 20, generator=generator)
    normal = torch.randn(240, 5, generator=generator) @ plane + 0.1 * torch.randn(240, 20, generator=generator)
    anomalous = 2 * torch.randn(300, 20, generator=generator)
    labels = torch.cat([torch.zeros(240), torch.ones(300)]).long()
    found = data.split(torch.cat([normal, anomalous]), labels, 0, seed=0)
    assert [len(v) for v in found] == [120, 120, 300]
    plan = training.Plan(hidden=32, latent=16, epochs=30, rate=1e-3, nu=0.05)
    detector = training.start(found.train, plan, seed=0)
    training.train_ball(detector, found.train, plan)
    assert data.auc(detector.ball_scores(found.normal), detector.ball_scores(found.anomalous)) > 0.9
    training.train_shell(detector, found.train, plan)
    assert data.auc(detector.shell_scores(found.normal), detector.shell_scores(found.anomalous)) > 0.9
    assert 0 < detector.inner < detector.outer and len(detector.losses) == 60
    assert torch.isfinite(torch.tensor(detector.losses)).all()


@pytest.mark.parametrize("rank", [6, 3])
def test_the_projection_makes_coordinates_orthogonal(rank):
    model = training.Compressor(6, 8, 6).double()
    z = torch.randn(50, rank, dtype=torch.float64) @ torch.randn(rank, 6, dtype=torch.float64)
    model.orthogonalize(z)
    points = z @ model.projection
    gram = points.T @ points / 50
    expected = torch.diag(torch.tensor([1.0] * rank + [0.0] * (6 - rank), dtype=torch.float64))
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-8)


def test_the_anomaly_example_on_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    arguments = ["--classes", "0", "6", "--epochs", "5", "--seeds", "2", "--threads", str(torch.get_num_threads())]
    assert detect_anomalies.main([*arguments, "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "anomalies.json").read_text())
    assert set(report["mean"]) == {"distance to mean", "OneClassSVM", "projection, untrained", "DOHSC", "DO2HSC"}
    assert all(0.8 < value <= 1 for value in report["mean"].values())
    assert np.asarray(Image.open(tmp_path / "anomalies.png").convert("L")).std() > 5
    assert "OneClassSVM" in capsys.readouterr().out
    # The same seed, the same numbers.
    plan = training.Plan(128, 32, 5, 1e-3, 0.03)
    again = detect_anomalies.judge(data.split(*data.digits(), 6, seed=1), plan, seed=1)[0]
    assert again == {name: values[1][1] for name, values in report["auc"].items()}
