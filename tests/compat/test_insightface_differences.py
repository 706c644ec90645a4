"""Where hyperkernels.compat.insightface is not as insightface's arcface_torch, and why."""

import pytest
import torch
import torch.nn.functional as F

import hyperkernels as hk
from hyperkernels.compat.insightface import ArcFace, CombinedMarginLoss, CosFace, PartialFC_V2

from . import insightface_formulas as formulas

D, CLASSES = 6, 9


def problem(rows=5):
    """Ours, the formula with the same centres, and a batch."""
    head = PartialFC_V2(ArcFace(), D, CLASSES).double()
    formula = formulas.Head(head.weight.detach(), 64.0, lambda cos, own: formulas.arcface(cos, own, 0.5))
    return head, formula, torch.randn(rows, D, dtype=torch.float64, requires_grad=True), torch.arange(rows)


def test_difference_functions_of_logits():
    """Theirs calls any function with the matrix of logits, which is not there."""

    def margin(logits, labels):
        return logits * 64

    class Own(ArcFace):
        def forward(self, logits, labels):
            return super().forward(logits, labels) / 2

    class Renamed(ArcFace):
        """What changes no logits is taken."""

    for wrong in (margin, Own(), torch.nn.Identity(), hk.margins.ArcFace, None):
        with pytest.raises(TypeError, match=r"derive from hk\.margins\.Margin"):
            PartialFC_V2(wrong, D, CLASSES)
    PartialFC_V2(Renamed(), D, CLASSES)


def test_difference_the_logits_stay():
    """Theirs overwrites them."""
    for margin in (ArcFace(), CosFace(), CombinedMarginLoss(64, 1.0, 0.5, 0.0, 0.4)):
        logits = torch.rand(4, CLASSES)
        before = logits.clone()
        margin(logits, torch.arange(4))
        assert torch.equal(logits, before)


def test_difference_cosines_past_one():
    """The arccosine of theirs is NaN there; its head clamps, ours knows what to do with them."""
    logits = torch.tensor([[1 + 1e-6, -1 - 1e-6, 0.5]], dtype=torch.float64)
    assert formulas.arcface(logits, torch.zeros(1, 3, dtype=torch.bool), 0.5).isnan().any()
    torch.testing.assert_close(ArcFace()(logits, torch.tensor([0])), ArcFace()(logits.clamp(-1, 1), torch.tensor([0])))
    x = (torch.randn(40, 1) * torch.ones(40, 7)).requires_grad_()  # on their centres, but for rounding
    head = PartialFC_V2(ArcFace(), 7, 2)
    head.load_state_dict({"weight": torch.tensor([[0.3], [-0.3]]).expand(2, 7)})
    loss = head(x, (x[:, 0] < 0).long())
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and head.weight.grad.isfinite().all()


def test_difference_combinations():
    """Theirs loses m1 and m2 in silence where m3 > 0, and stops at the first step at what it does not have."""
    with pytest.warns(UserWarning, match="m1=1.0, m2=0.3 are lost"):
        lost = CombinedMarginLoss(64, 1.0, 0.3, 0.2)
    logits, labels = torch.rand(4, CLASSES), torch.arange(4)
    assert torch.equal(lost(logits, labels), CosFace(64, 0.2)(logits, labels))
    with pytest.raises(ValueError, match="CombinedMargin"):
        CombinedMarginLoss(64, 1.35, 0.0, 0.0)


def test_difference_margins_of_angles():
    """Theirs takes any; past pi/2 or below 0 an angular margin is none."""
    for m in (-0.1, 1.6):
        with pytest.raises(ValueError, match=r"\[0.0, 1.57"):
            ArcFace(margin=m)
        with pytest.raises(ValueError, match=r"\[0.0, 1.57"):
            CombinedMarginLoss(64, 1.0, m, 0.0)


def test_difference_labels_that_are_no_class():
    """In theirs such a row costs 69.08 and pushes its embedding away from whatever is near; -1 is not left out."""
    head, formula, x, labels = problem()
    labels[1] = -1
    _, own = formula.logits(x, labels)
    assert not own[1].any()
    without = torch.arange(5) != 1
    row = 5 * formula(x, labels) - 4 * formula(x[without], labels[without])
    torch.testing.assert_close(row.item(), 69.0775527898)
    assert torch.autograd.grad(row, x)[0][1].norm() > 0
    for wrong in (-1, -7, CLASSES, 10**12):
        labels[1] = wrong
        with pytest.raises(IndexError, match=f"target must lie in .0, {CLASSES}"):
            head(x, labels)
    for ignored, options in ((-100, {}), (-1, {"ignore_index": -1})):
        labels[1] = ignored
        other = PartialFC_V2(ArcFace(), D, CLASSES, **options).double()
        other.load_state_dict(head.state_dict())
        torch.testing.assert_close(other(x, labels), formula(x[without], labels[without]))


def test_difference_labels():
    """Theirs takes floating point, which rounds large ones, and changes the shape of the caller's tensor."""
    head, _, x, labels = problem()
    column = labels[:, None].int()
    assert head(x, column) == head(x, labels) and column.shape == (5, 1)
    with pytest.raises(TypeError, match="local_labels must have dtype int64"):
        head(x, labels.float())


def test_difference_one_process_and_any_batch():
    """Theirs needs a process group, the CUDA device, and the size of the first batch, of two rows at least."""
    assert not torch.distributed.is_initialized()
    for rows in (5, 3, 1, 0):
        head, formula, x, labels = problem(rows)
        loss = head(x, labels)
        loss.backward()
        torch.testing.assert_close(loss, formula(x, labels) if rows else torch.zeros((), dtype=torch.float64))
    assert not hasattr(head, "last_batch_size")


def test_difference_zero_rows():
    """The gradient of theirs is that of unit length, divided by 1e-12."""
    head, formula, x, labels = problem()
    with torch.no_grad():
        x[0] = 0
        head.weight[2] = formula.weight[2] = 0
    found = torch.autograd.grad(head(x, labels), [x, head.weight])
    wanted = torch.autograd.grad(formula(x, labels), [x, formula.weight])
    for ours, theirs, row in zip(found, wanted, (0, 2), strict=True):
        assert theirs[row].norm() > 1e9 and not ours[row].any()
        others = torch.arange(len(ours)) != row
        torch.testing.assert_close(ours[others], theirs[others])


def test_difference_learned_samples():
    """-log p in float32 is 0 or at least 6e-8."""
    head = PartialFC_V2(CosFace(), 2, 2)
    head.load_state_dict({"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]])})
    x, labels = torch.tensor([[1.0, 0.1]]), torch.tensor([0])
    formula = formulas.Head(head.weight.detach(), 64.0, lambda cos, own: formulas.cosface(cos, own, 0.4))
    assert formula(x, labels) == 0
    logits, _ = formula.double().logits(x.double(), labels)
    truth = F.softplus(logits[0, 1] - logits[0, 0])
    assert truth < 1e-13
    torch.testing.assert_close(head(x, labels).double(), truth, rtol=1e-4, atol=0)


def test_difference_a_second_backward():
    """Theirs overwrites what it has saved."""
    head, _, x, labels = problem()
    loss = head(x, labels)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)


def test_difference_half_precision():
    """Theirs rounds the unit vectors and the logits; here the logits are float32."""
    head = PartialFC_V2(CosFace(), 32, 50, fp16=True)
    x, labels = torch.randn(20, 32), torch.arange(20)
    weight = head.weight.detach()

    def loss(cos):
        return F.cross_entropy(CosFace()(cos.float(), labels), labels)

    truth = loss(F.normalize(x) @ F.normalize(weight).T)
    theirs = loss((F.normalize(x).half().float() @ F.normalize(weight).half().float().T).half())
    assert (head(x, labels) - truth).abs() < 2 * (theirs - truth).abs() + 1e-3
