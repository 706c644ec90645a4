"""The modules of the pair losses compute what their functions do, with the options that they were given."""

import inspect

import pytest
import torch

import hyperkernels as hk
from tools.modules import CENTERS, LEFT_OUT, NAMES, OF_BATCH

N, D, C = 12, 5, 4
# Options for which another value cannot be made from the default.
OTHER = {
    "reduction": "sum", "convention": "supcontrast", "mean_over": "all", "mining": "batch_hard",
    "same_label": "ignore", "epsilon": 0.2, "pos_margin": 0.1, "neg_margin": 0.9, "alpha": 1.4, "num_classes": C,
    "margin": 0.3, "Tn": 2.0, "max_sim": 0.7, "communication": "ring", "gradient_reduction": "sum",
}  # fmt: skip


def options_of(function):
    """A value for every option, not the default where there is another that goes with the rest."""
    found = {}
    for p in inspect.signature(function).parameters.values():
        if p.name in (*OF_BATCH, *CENTERS, *LEFT_OUT, "process_group"):
            continue
        if p.name == "similarity":
            found[p.name] = "euclidean" if p.default == "squared_euclidean" else "squared_euclidean"
        elif isinstance(p.default, float) and p.name not in OTHER:
            found[p.name] = 1.25 * p.default
        elif p.name in OTHER:
            found[p.name] = OTHER[p.name]
        elif isinstance(p.default, bool):
            found[p.name] = p.default if p.name in ("symmetric", "include_self") else not p.default
        else:
            found[p.name] = 2 if p.name == "centers_per_class" else p.default
    return found


def batch_of(name):
    torch.manual_seed(3)
    x, labels = torch.randn(N, D, dtype=torch.float64), torch.arange(N) % C
    other = torch.randn(N, D, dtype=torch.float64)
    return {
        "info_nce": ((x, labels, other, labels), {}),
        "meow": ((x, torch.stack([labels, labels // 2], 1), other), {}),
        "siglip": ((x, other), {}),
        "uniformity": ((x,), {"ids": torch.arange(N) // 2}),
        "calibrated_uniformity": ((x, other), {}),
        "nearest_pair_packing": ((x, other), {}),
    }.get(name, ((x, labels), {}))


def test_every_loss_has_a_module():
    assert set(NAMES) == set(hk.losses.__all__)
    assert set(NAMES.values()) <= set(hk.nn.__all__)


@pytest.mark.parametrize("changed", (False, True), ids=("defaults", "changed"))
@pytest.mark.parametrize("name", hk.losses.__all__)
def test_value_and_gradient(name, changed):
    function, parameters = getattr(hk.losses, name), inspect.signature(getattr(hk.losses, name)).parameters
    needed = {"margin": 0.4, "Tn": 1.0} if name == "ranked_list" else {}
    options = options_of(function) if changed else needed
    centers = next((c for c in CENTERS if c in parameters), None)
    sizes = {"num_classes": C, "embedding_size": D, "dtype": torch.float64} if centers else {}
    module = getattr(hk.nn, NAMES[name])(**sizes, **options)
    (x, *rest), more = batch_of(name)
    own = [x.clone().requires_grad_() for _ in range(2)]
    given = {centers: getattr(module, centers)} if centers else {}
    ours, wanted = module(own[0], *rest, **more), function(own[1], *rest, **more, **given, **options)
    assert torch.equal(ours, wanted) and ours.isfinite().all()
    assert torch.equal(*(torch.autograd.grad(v.sum(), leaf)[0] for v, leaf in ((ours, own[0]), (wanted, own[1]))))
    if changed and options.keys() - {"num_classes"} and name != "soft_triple":  # which has other centres then
        plain = getattr(hk.nn, NAMES[name])(**sizes, **needed)
        plain.load_state_dict(module.state_dict())
        assert not torch.equal(plain(x, *rest, **more), ours.detach())


def test_a_parameter_is_learned_and_a_tensor_is_a_buffer():
    (x, labels), _ = batch_of("supcon")
    loss = hk.nn.SupConLoss(temperature=torch.nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    loss(x, labels).backward()
    twin = torch.tensor(0.2, requires_grad=True)
    hk.losses.supcon(x, labels, temperature=twin).backward()
    assert torch.equal(loss.temperature.grad, twin.grad) and twin.grad != 0
    beta = torch.full((C,), 1.1)
    held = hk.nn.MarginLoss(beta=beta).double()
    assert held.state_dict()["beta"].dtype == torch.float64
    assert torch.equal(held(x, labels), hk.losses.margin(x, labels, beta=beta.double()))


def test_repr_names_the_options():
    loss = hk.nn.ProxyAnchorLoss(C, D, margin=0.2)
    assert "num_classes=4, embedding_size=5, margin=0.2" in repr(loss)


@pytest.mark.parametrize("sizes", ({"num_classes": 0}, {"embedding_size": 0}, {"centers_per_class": 0}))
def test_wrong_sizes_are_named(sizes):
    (name,) = sizes
    with pytest.raises(ValueError, match=name):
        hk.nn.SoftTripleLoss(**{"num_classes": C, "embedding_size": D} | sizes)
