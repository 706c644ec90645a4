"""Heads and losses without data: on the device "meta", and exported for a batch of any size."""

import inspect

import pytest
import torch

import hyperkernels as hk

CLASSES, SIZE = 7, 5
PICKED = {"n_pairs"}  # whose pairs the data picks, and the host counts
LISTED = {"lifted", "nt_xent", "triplet", "tuplet_margin"}  # as many pairs as there are
PAIR_LOSSES = [name for name in hk.losses.__all__ if inspect.isfunction(getattr(hk.losses, name))]
EVERYDAY = {"circle", "info_nce", "triplet", "nbc_softmax", "ranked_list"}
HEADS = ("MarginSoftmax", "SFace", "SphereFace2", "UniFace", "PartialFC")
MARGINS = sorted(set(hk.margins.__all__) - {"Margin", "Rows", "ElasticFace"})  # it draws anew


def loss_of(name, x, labels):
    """That loss with what it needs beside x, made of x."""
    function = getattr(hk.losses, name)
    rows = torch.linspace(-1, 1, 40 * SIZE, device=x.device).sin().view(40, SIZE)
    options = {
        "centers": rows,
        "proxies": rows[:3],
        "fused": x.flip(0),
        "ref": None if name == "siglip" else x.flip(0),
        "y": x.flip(0),
        "labels": labels[:, None] if name == "meow" else labels,
        "temperature": 0.1,
        "beta": 1.2,
        "margin": 0.4,
        "Tn": 10.0,
    }
    parameters = inspect.signature(function).parameters
    needed = {key for key, value in parameters.items() if value.default is inspect.Parameter.empty}
    wanted = needed | ({"labels"} & set(parameters))
    if name == "siglip":
        return function(x, x.flip(0))
    return function(x, **{key: options[key] for key in wanted - {"x"}})


class Loss(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, labels):
        return loss_of(self.name, x, labels)


def check_export(module):
    """The exported program gives the module's numbers for other sizes of the batch."""
    batch = torch.export.Dim("batch", min=1)
    sample = torch.randn(8, SIZE), torch.arange(8) % 3
    exported = torch.export.export(module, sample, dynamic_shapes=({0: batch}, {0: batch})).module()
    for n in (1, 2, 8, 19, 300):
        x, labels = torch.randn(n, SIZE), torch.randint(3, (n,))
        torch.testing.assert_close(exported(x, labels), module(x, labels), equal_nan=True)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow)
    for name in PAIR_LOSSES if name not in PICKED
])  # fmt: skip
def test_a_pair_loss_is_exported_for_any_batch(name):
    check_export(Loss(name))


def with_margin(name, **options):
    arguments = {"ClassMargin": (torch.zeros(CLASSES),), "AdaCos": (CLASSES,)}.get(name, ())
    margin = getattr(hk.margins, name)(*arguments)
    return hk.nn.MarginSoftmax(SIZE, CLASSES, margin, normalize_x=name != "ASoftmax", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARGINS)
def test_a_margin_is_exported_for_any_batch(name):
    check_export(with_margin(name).eval())


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - LISTED - PICKED))
def test_a_pair_loss_on_meta(name):
    x = torch.empty(8, SIZE, device="meta", requires_grad=True)
    loss = loss_of(name, x, torch.empty(8, dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.is_meta and loss.shape == () and x.grad.shape == x.shape and x.grad.is_meta


@pytest.mark.parametrize("name", HEADS)
def test_a_head_on_meta(name):
    """Made without memory, used for its shapes, then given memory and numbers."""
    head = getattr(hk.nn, name)(SIZE, CLASSES, device="meta")
    x = torch.empty(8, SIZE, device="meta", requires_grad=True)
    loss = head(x, torch.empty(8, dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.is_meta and loss.shape == () and x.grad.shape == x.shape
    assert head.weight.grad.is_meta and head.weight.grad.shape == head.weight.shape
    head.to_empty(device="cpu")
    head.reset_parameters()
    assert head(torch.randn(3, SIZE), torch.tensor([0, 1, 2])).isfinite()


@pytest.mark.parametrize("name", [*MARGINS, "ElasticFace"])
def test_a_margin_on_meta(name):
    head = with_margin(name, device="meta").to("meta")
    x = torch.empty(8, SIZE, device="meta", requires_grad=True)
    loss, statistics = head(x, torch.empty(8, dtype=torch.int64, device="meta"), return_statistics=True)
    loss.backward()
    assert loss.is_meta and all(value.shape == (8,) for value in statistics) and x.grad.is_meta


def test_miners_of_known_sizes_on_meta():
    x, labels = torch.empty(8, SIZE, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    values, columns = hk.mining.topk_negatives(x, labels, k=2)
    assert values.shape == columns.shape == (8, 2) and columns.is_meta


MINERS_OF_LISTS = sorted(
    {name for name in hk.mining.__all__ if inspect.isfunction(getattr(hk.mining, name))}
    - {"topk_negatives", "semi_hard_pool"}
)


@pytest.mark.parametrize("name", [*MINERS_OF_LISTS, *sorted(LISTED | PICKED)])
def test_what_lists_pairs_refuses_meta(name):
    x, labels = torch.empty(8, SIZE, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    function = getattr(hk.mining if name in MINERS_OF_LISTS else hk.losses, name)
    arguments = (x, x.flip(0), labels) if name == "mine_hard_negatives" else (x, labels)
    with pytest.raises(NotImplementedError, match=f"{name} lists pairs, as many as the data say"):
        function(*arguments)


def test_autocast_elsewhere_leaves_meta_alone():
    x = torch.empty(8, SIZE, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert hk.nn.MarginSoftmax(SIZE, CLASSES, device="meta")(x, x[:, 0].long()).dtype == torch.float32
