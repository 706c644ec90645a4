"""hk.nn.MarginSoftmax as a module in a training loop."""

import pytest
import torch

import hyperkernels as hk


def test_it_trains():
    head = hk.nn.MarginSoftmax(16, 30, margin=hk.margins.CosFace(0.2), scale=16.0)
    x = torch.nn.Parameter(torch.randn(60, 16))
    target = torch.arange(60) % 30
    optimiser = torch.optim.SGD([x, *head.parameters()], lr=1.0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = head(x, target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_it_calls_the_function_with_its_own_settings():
    head = hk.nn.MarginSoftmax(
        8, 9, margin=hk.margins.NormFace(), scale=7.0, reduction="sum", ignore_index=3, label_smoothing=0.2
    )
    x, target = torch.randn(5, 8), torch.tensor([0, 3, 8, 1, 1])
    wanted = hk.margin_softmax_loss(
        x,
        head.weight,
        target,
        margin=hk.margins.NormFace(),
        scale=7.0,
        reduction="sum",
        ignore_index=3,
        label_smoothing=0.2,
    )
    assert torch.equal(head(x, target), wanted)


def test_what_a_state_dict_holds():
    head = hk.nn.MarginSoftmax(4, 6)
    assert list(head.state_dict()) == ["weight"] and head.weight.shape == (6, 4)


def test_a_learned_scale():
    """It starts as the scale given, and its logarithm is learned."""
    head = hk.nn.MarginSoftmax(8, 9, scale=7.0, learn_scale=True, dtype=torch.float64)
    x, target = torch.randn(5, 8, dtype=torch.float64), torch.tensor([0, 3, 8, 1, 1])
    torch.testing.assert_close(head(x, target), hk.margin_softmax_loss(x, head.weight, target, scale=7.0))
    torch.nn.init.constant_(head.log_scale, 1.5)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    wanted = hk.margin_softmax_loss(x, head.weight, target, scale=scale.exp())
    torch.testing.assert_close(head(x, target), wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(a, b)[0] for a, b in ((head(x, target), head.log_scale), (wanted, scale)))
    )


def test_a_margin_that_is_a_module_is_part_of_the_head():
    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Parameter(torch.tensor(0.3))

        def forward(self, target_cos, x_norm):
            return target_cos - self.m

    head = hk.nn.MarginSoftmax(4, 6, margin=Learned())
    assert dict(head.named_parameters()).keys() == {"weight", "margin.m"}
    head(torch.randn(3, 4), torch.tensor([5, 0, 2])).backward()
    assert head.margin.m.grad > 0


def test_weight_norms_start_near_one_and_repr_names_the_margin():
    head = hk.nn.MarginSoftmax(256, 50, margin=hk.margins.ArcFace(0.4))
    assert (head.weight.norm(dim=1) - 1).abs().max() < 0.3
    assert "ArcFace(m=0.4" in repr(head) and "num_classes=50" in repr(head)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 5), ValueError, "embedding_size must be at least 1; got 0"),
        ((4, 0), ValueError, "num_classes must be at least 1; got 0"),
        ((4, 5.0), TypeError, "num_classes must be an int; got float"),
        ((4, 5, hk.margins.NormFace(), -1.0), ValueError, "scale must be greater than 0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        hk.nn.MarginSoftmax(*arguments)
