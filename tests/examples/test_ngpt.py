"""The nGPT example: its layer against the paper's formulas, and the command line on tiny models."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from examples import train_ngpt
from examples.ngpt import text, training
from examples.ngpt.model import Normalised, NormalisedLayer, PreNorm, rotation_angles
from examples.ngpt.training import Plan, Recipe, train
from examples.recognizer.data import DataError

TINY = {"width": 16, "layers": 2, "heads": 2, "context": 24, "batch": 8}


def norm(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def paper_layer(h, w, heads):
    """Sections 2.2 to 2.4 of arXiv 2410.01131 for a sequence h [T, d], position by position and head by head."""
    length, d = h.shape
    size = d // heads
    frequency = 10_000.0 ** (-np.arange(size // 2) * 2 / size)

    def turned(x, position):  # RoPE: pairs of coordinates as complex numbers
        z = (x[: size // 2] + 1j * x[size // 2 :]) * np.exp(1j * position * frequency)
        return np.concatenate([z.real, z.imag])

    w_q, w_k, w_v = np.split(w["qkv"], 3)
    attended = np.zeros((length, d))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        s_qk = w["qk_scale"][head]
        q = np.stack([s_qk * norm(turned(w_q[part] @ h[t], t)) for t in range(length)])
        k = np.stack([s_qk * norm(turned(w_k[part] @ h[t], t)) for t in range(length)])
        v = h @ w_v[part].T
        for t in range(length):
            weights = np.exp(math.sqrt(size) * k[: t + 1] @ q[t])
            attended[t, part] = (weights / weights.sum()) @ v[: t + 1]
    h_a = norm(attended @ w["out"].T)
    h = norm(h + np.abs(w["attention_alpha"]) * (h_a - h))
    w_u, w_v = np.split(w["up"], 2)
    s_u, s_v = np.split(w["uv_scale"], 2)
    u, v = h @ w_u.T * s_u, h @ w_v.T * s_v * math.sqrt(d)
    h_m = norm((u * v / (1 + np.exp(-v))) @ w["down"].T)
    return norm(h + np.abs(w["mlp_alpha"]) * (h_m - h))


def test_the_layer_is_the_papers():
    torch.manual_seed(0)
    width, heads, length = 24, 3, 7
    layer = NormalisedLayer(width, 2, heads).double()
    start = {"qk_scale": 1.0, "attention_alpha": 0.05, "mlp_alpha": 0.05, "uv_scale": width**0.5}
    for name, value in start.items():
        torch.testing.assert_close(getattr(layer, name)(), torch.full_like(getattr(layer, name)(), value))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.5 + torch.rand_like(parameter))
        layer.mlp_alpha.parameter[::2] *= -1  # a step size counts by its absolute value
    weights = {name: getattr(layer, name).detach().numpy() for name in ("qkv", "out", "up", "down")}
    weights |= {name: getattr(layer, name)().detach().numpy() for name in start}
    weights["uv_scale"] /= math.sqrt(width)  # which the paper writes beside s_v
    h = norm(np.random.default_rng(0).normal(size=(2, length, width)))
    frequency = 10_000.0 ** (-np.arange(width // heads // 2) * 2 / (width // heads))
    angles = torch.from_numpy(np.outer(np.arange(length), frequency))
    ours = layer(torch.from_numpy(h), angles).detach().numpy()
    for one, expected in zip(ours, (paper_layer(sequence, weights, heads) for sequence in h), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-11, atol=1e-13)


def test_rotation_angles():
    size = 8
    expected = np.outer(np.arange(20), 10_000.0 ** (-np.arange(size // 2) * 2 / size))
    np.testing.assert_allclose(rotation_angles(20, size).numpy(), expected, rtol=1e-6)


def test_the_loss_is_the_cross_entropy_of_scaled_cosines():
    torch.manual_seed(0)
    model = Normalised(16, 1, 2, 12)
    with torch.no_grad():
        model.logit_scale.parameter.mul_(1 + 20 * torch.rand(256))
    tokens = torch.randint(256, (3, 13))
    h = model.hidden(tokens[:, :-1])
    torch.testing.assert_close(h.norm(dim=-1), torch.ones(3, 12))
    logits = model.logit_scale() * (h @ model.output.T)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model(tokens), expected)


@pytest.fixture(scope="module")
def data():
    return text.load()


@pytest.fixture
def few_windows(monkeypatch):
    monkeypatch.setattr(training, "VALIDATION_WINDOWS", 16)


def test_the_text_is_split_by_file(data, tmp_path):
    again = text.load()
    assert torch.equal(data.train, again.train) and torch.equal(data.validation, again.validation)
    assert 0.03 < len(data.validation) / len(data.train) < 0.3
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(f"value = {i}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "t.py").write_text("left out\n")
    small = text.load(tmp_path)
    parts = [bytes(part.tolist()).split(b"\0") for part in (small.train, small.validation)]
    assert small.files == 40 and not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == sorted(f"value = {i}\n".encode() for i in range(40))
    with pytest.raises(DataError, match="has 0 Python sources"):
        text.load(tmp_path / "test" / "nothing")


@pytest.mark.parametrize("kind, rate", [(PreNorm, 1e-2), (Normalised, 3e-2)])
def test_it_learns_and_stays_on_the_sphere(data, kind, rate, few_windows):
    plan = Plan(steps=40, **TINY, seed=0, device="cpu")
    model, curve = train(data, plan, Recipe(kind, rate, 0.0, 0.0), "")
    assert len(curve.train) == 40 and curve.step[0] == 0 and curve.step[-1] == 40
    assert np.isfinite(curve.train + curve.validation).all()
    assert abs(curve.validation[0] - math.log(256)) < 1  # no byte is preferred at the start
    assert curve.validation[-1] < 4.0
    if kind is Normalised:
        for parameter, dim in model.unit_parameters():
            norms = parameter.norm(dim=dim)
            torch.testing.assert_close(norms, torch.ones_like(norms), rtol=1e-6, atol=1e-6)


def test_both_have_the_same_matrices():
    models = [kind(16, 2, 2, 24) for kind in (PreNorm, Normalised)]
    matrices = [
        {name: p.shape for name, p in m.named_parameters() if "scale" not in name and p.dim() == 2} for m in models
    ]
    assert matrices[0] == matrices[1] and len(matrices[0]) == 2 + 4 * 2


def test_command_line(tmp_path, capsys, few_windows):
    arguments = [f"--{name}={value}" for name, value in TINY.items()] + ["--steps", "12"]
    assert train_ngpt.main([*arguments, "--output", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    assert "nats a byte" in printed and "nGPT" in printed
    report = json.loads((tmp_path / "one" / "ngpt.json").read_text())
    assert report["plan"]["steps"] == 12 and report["recipes"]["nGPT"]["weight_decay"] == 0
    assert all(curve["validation"][-1] < curve["validation"][0] for curve in report["curves"].values())
    assert np.asarray(Image.open(tmp_path / "one" / "ngpt.png").convert("L")).std() > 5
    # The same seed gives the same curves.
    assert train_ngpt.main([*arguments, "--output", str(tmp_path / "two")]) == 0
    again = json.loads((tmp_path / "two" / "ngpt.json").read_text())
    for name, curve in report["curves"].items():
        for part in ("train", "validation"):
            assert again["curves"][name][part] == curve[part], (name, part)


def test_crossing():
    assert train_ngpt.crossing([0, 10, 20, 30], [5.0, 4.0, 2.0, 1.0], 3.0) == 15
    assert train_ngpt.crossing([0, 10, 20], [5.0, 4.0, 2.0], 2.0) == 20
    assert train_ngpt.crossing([0, 10], [5.0, 4.0], 3.0) is None


@pytest.mark.parametrize(
    "wrong, named",
    [
        (["--steps", "0"], "--steps: must be at least 1"),
        (["--ngpt-rate", "-1"], "--ngpt-rate: must be a positive number"),
        (["--width", "wide"], "--width: invalid"),
        (["--width", "24", "--heads", "5"], "--width must be a multiple of twice --heads (10); got 24"),
        (["--device", "nowhere"], "--device must be one that torch can use; got nowhere"),
        (["--context", "100000000"], "--context must be shorter than the text"),
    ],
)
def test_wrong_arguments_are_named(wrong, named, tmp_path, capsys):
    try:
        status = train_ngpt.main([*wrong, "--output", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    assert status in (1, 2) and named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
