"""What is asked of pair losses over several ranks: the numbers of one process on all rows. Every rank makes the whole
problem and gives the loss its own part."""

import torch
import torch.distributed as dist

import hyperkernels as hk

from .partial_fc_cases import close, mine, same_everywhere

SIZE, COMMUNICATIONS = 5, ("gather", "ring")
OF_ROWS, OF_COLUMNS = ("x", "labels", "ids", "positive"), ("ref", "ref_labels", "ref_ids")


def embeddings(n, size=SIZE):
    return torch.randn(n, size, dtype=torch.float64)


def labels(n, classes=3):
    return torch.randint(classes, (n,)) * 2**40 - 2**41


def numbers(n):
    return torch.randint(2 * n + 1, (n,))


def learned(value):
    return torch.tensor(value, dtype=torch.float64)


def two(n, m, **options):
    return {"x": embeddings(n), "ref": embeddings(m), **options}


# Arguments of a loss for n rows and m columns in all; floating tensors are differentiated. A square problem has n = m.
SQUARE = {
    "one set": lambda n: {"x": embeddings(n), "labels": labels(n)},
    "one set, ids": lambda n: {"x": embeddings(n), "labels": labels(n), "ids": numbers(n)},
    "two views": lambda n: two(n, n),
    "two views, ids": lambda n: two(n, n, ids=torch.arange(n) % 4, ref_ids=torch.arange(n) % 4),
    "symmetric": lambda n: two(n, n, symmetric=True, temperature=learned(0.3)),
    "symmetric, labels": lambda n: two(n, n, labels=labels(n), ref_labels=labels(n), symmetric=True, margin=0.1),
    "symmetric, ids": lambda n: two(n, n, ids=numbers(n), ref_ids=numbers(n), symmetric=True, lse_coefficient=0.8),
    "symmetric, own positive": lambda n: two(
        n, n, labels=labels(n), ref_labels=labels(n), symmetric=True, same_label="ignore", positive_in_denominator=False
    ),
    "same label ignored": lambda n: two(n, n, labels=labels(n), ref_labels=labels(n), same_label="ignore"),
    "margin": lambda n: two(n, n, margin=0.3, temperature=learned(0.2)),
    "decoupled": lambda n: two(n, n, positive_in_denominator=False),
    "decoupled, labels": lambda n: {"x": embeddings(n), "labels": labels(n), "positive_in_denominator": False},
    "coefficient": lambda n: {"x": embeddings(n), "labels": labels(n), "lse_coefficient": 0.7},
    "queue": lambda n: two(n, n, queue=embeddings(6), temperature=learned(0.2)),
    "queue, labels": lambda n: {
        "x": embeddings(n), "labels": labels(n), "queue": embeddings(6), "queue_labels": labels(6),
    },
    "positive": lambda n: two(n, n, positive=torch.rand(n, dtype=torch.float64)),
    "positive, one set": lambda n: {"x": embeddings(n), "positive": torch.rand(n, dtype=torch.float64)},
    "clusterings": lambda n: two(n, n, labels=torch.randint(3, (n, 3)), ref_labels=torch.randint(3, (n, 3))),
    "euclidean": lambda n: {"x": embeddings(n), "labels": labels(n), "similarity": "euclidean"},
    "squared": lambda n: two(n, n, similarity="squared_euclidean", temperature=learned(4.0)),
    "dot": lambda n: two(n, n, similarity="dot", symmetric=True),
    "sum": lambda n: two(n, n, reduction="sum", temperature=learned(0.2)),
    "none": lambda n: two(n, n, reduction="none", symmetric=True, temperature=learned(0.2)),
}  # fmt: skip
OBLONG = {
    "references": lambda n, m: two(n, m, labels=labels(n), ref_labels=labels(m)),
    "references, ids": lambda n, m: two(
        n, m, labels=labels(n), ref_labels=labels(m), ids=numbers(n), ref_ids=numbers(m), temperature=learned(0.3)
    ),
}
OTHERS = {
    "supcon": (hk.losses.supcon, lambda n: {"x": embeddings(n), "labels": labels(n), "temperature": learned(0.2)}),
    "supcon, references": (hk.losses.supcon, lambda n: two(n, n, labels=labels(n), ref_labels=labels(n))),
    "supcon, ids": (hk.losses.supcon, lambda n: {"x": embeddings(n), "labels": labels(n), "ids": numbers(n)}),
    "supcon, no negative": (hk.losses.supcon, lambda n: {"x": embeddings(n), "labels": labels(n, 1)}),
    "supcon, no positive": (hk.losses.supcon, lambda n: {"x": embeddings(n), "labels": torch.arange(n)}),
    "supcontrast": (
        hk.losses.supcon,
        lambda n: {
            "x": embeddings(n), "labels": labels(n), "convention": "supcontrast", "temperature": learned(0.2),
        },
    ),
    "siglip": (hk.losses.siglip, lambda n: two(n, n, t=learned(8.0), b=learned(-3.0))),
    "siglip, labels": (
        hk.losses.siglip, lambda n: two(n, n, labels=labels(n), ref_labels=labels(n), t=learned(8.0), b=learned(-3.0)),
    ),
    "siglip, sum": (hk.losses.siglip, lambda n: two(n, n, ids=numbers(n), ref_ids=numbers(n), reduction="sum")),
    "nca": (hk.losses.nca, lambda n: {"x": embeddings(n), "labels": labels(n), "softmax_scale": learned(3.0)}),
}  # fmt: skip


def sizes():
    """Ragged, with an empty rank; one row each; no row but on one rank; none at all."""
    world = dist.get_world_size()
    return [rows[:world] for rows in ([5, 0, 7, 3], [1] * 4, [0, 4, 0, 0], [0] * 4)]


def part_of(arguments, rows, columns):
    kinds = {**dict.fromkeys(OF_ROWS, rows), **dict.fromkeys(OF_COLUMNS, columns)}
    return {name: v[mine(kinds[name])] if name in kinds else v for name, v in arguments.items()}


def step(loss, arguments, **options):
    """The loss, and the gradients of all floating tensors."""
    leaves = {
        name: v.detach().clone().requires_grad_(v.is_floating_point()) if isinstance(v, torch.Tensor) else v
        for name, v in arguments.items()
    }
    found = loss(**leaves, **options)
    (found * torch.linspace(1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)).sum().backward()
    return found.detach(), {
        name: v.grad for name, v in leaves.items() if isinstance(v, torch.Tensor) and v.requires_grad
    }


def assert_like_one_process(loss, arguments, rows, columns=None, wanted=None, gradient_reduction="mean"):
    columns = rows if columns is None else columns
    wanted, gradients = step(loss, arguments) if wanted is None else wanted
    gradients = part_of(gradients, rows, columns)
    own = part_of(arguments, rows, columns)
    factor = dist.get_world_size() if gradient_reduction == "mean" else 1
    for communication in COMMUNICATIONS:
        options = {"communication": communication, "gradient_reduction": gradient_reduction}
        value, found = step(loss, own, process_group=dist.group.WORLD, **options)
        close(value, wanted)
        same_everywhere(value)
        for name, gradient in found.items():
            if name in (*OF_ROWS, *OF_COLUMNS):
                close(gradient / factor, gradients[name])
            else:
                close(gradient, gradients[name])
                same_everywhere(gradient)


def check_gradient_reduction(alone):
    rows = sizes()[0]
    for name in ("queue", "positive", "symmetric"):
        assert_like_one_process(hk.losses.info_nce, SQUARE[name](sum(rows)), rows, gradient_reduction="sum")


def check_info_nce(name, alone):
    for rows in sizes():
        arguments = SQUARE[name](sum(rows))
        if arguments.get("reduction") == "none":
            check_rows_of_this_rank(arguments, rows)
        else:
            assert_like_one_process(hk.losses.info_nce, arguments, rows)


def check_rows_of_this_rank(arguments, rows):
    """reduction="none": the rows of this rank, and the gradient of the sum of what all ranks make of theirs."""
    weights = torch.linspace(1, 2, sum(rows), dtype=torch.float64)
    leaves = [arguments[name].clone().requires_grad_() for name in ("x", "ref", "temperature")]
    wanted = hk.losses.info_nce(leaves[0], ref=leaves[1], temperature=leaves[2], symmetric=True, reduction="none")
    expected = torch.autograd.grad((wanted * weights).sum(), leaves)
    for communication in COMMUNICATIONS:
        x, ref, temperature = (leaf.detach()[mine(rows)] if leaf.dim() else leaf.detach() for leaf in leaves)
        own = [v.clone().requires_grad_() for v in (x, ref, temperature)]
        found = hk.losses.info_nce(
            own[0], ref=own[1], temperature=own[2], symmetric=True, reduction="none", process_group=dist.group.WORLD,
            communication=communication, gradient_reduction="sum",
        )  # fmt: skip
        close(found, wanted[mine(rows)])
        gradients = torch.autograd.grad((found * weights[mine(rows)]).sum(), own)
        close(gradients[0], expected[0][mine(rows)])
        close(gradients[1], expected[1][mine(rows)])
        close(gradients[2], expected[2])


def check_references(name, alone):
    for rows, columns in zip(sizes(), ([2, 3, 0, 6], [0, 2, 1, 1], [3, 1, 2, 0], [1, 0, 2, 1]), strict=True):
        columns = columns[: len(rows)]
        arguments = OBLONG[name](sum(rows), sum(columns))
        for loss in (hk.losses.info_nce, hk.losses.supcon, hk.losses.nca):
            own = dict(arguments)
            if loss is hk.losses.nca:
                own.pop("temperature", None)
            assert_like_one_process(loss, own, rows, columns)


def check_other(name, alone):
    loss, make = OTHERS[name]
    for rows in sizes():
        assert_like_one_process(loss, make(sum(rows)), rows)


def check_hard_negatives(alone):
    """The further rows of each rank's ref are negatives of all rows."""
    rows, columns = ([3, 0, 2, 4], [5, 2, 2, 4])
    rows, columns = rows[: dist.get_world_size()], columns[: dist.get_world_size()]
    starts = [sum(columns[:rank]) for rank in range(len(rows))]
    positives = torch.tensor([start + i for start, n in zip(starts, rows, strict=True) for i in range(n)])
    others = torch.tensor([j for j in range(sum(columns)) if j not in set(positives.tolist())], dtype=torch.int64)
    order = torch.cat([positives, others])
    arguments = two(sum(rows), sum(columns))
    for loss in (hk.losses.info_nce, hk.losses.siglip):
        value, gradients = step(loss, {**arguments, "ref": arguments["ref"][order]})
        gradients["ref"] = torch.empty_like(gradients["ref"]).index_copy(0, order, gradients["ref"])
        assert_like_one_process(loss, arguments, rows, columns, (value, gradients))


def check_a_group_of_one(alone):
    arguments = SQUARE["symmetric"](6)
    wanted = step(hk.losses.info_nce, arguments)
    for communication in COMMUNICATIONS:
        value, gradients = step(hk.losses.info_nce, arguments, process_group=alone, communication=communication)
        close(value, wanted[0])
        for name, gradient in gradients.items():
            close(gradient, wanted[1][name])


def check_what_is_frozen(alone):
    """x or ref wants no gradient, everywhere or on one rank; a temperature alone; nothing at all."""
    rows = [3, 2, 0, 4][: dist.get_world_size()]
    arguments = SQUARE["symmetric"](sum(rows))
    wanted = step(hk.losses.info_nce, arguments)
    own = part_of(arguments, rows, rows)
    first, elsewhere = dist.get_rank() == 0, dist.get_rank() != 0
    for communication in COMMUNICATIONS:
        options = {"process_group": dist.group.WORLD, "communication": communication, "gradient_reduction": "sum"}
        for x, ref, temperature in (
            (False, True, True), (True, False, False), (first, elsewhere, True), (False, first, False),
            (elsewhere, False, True), (False, False, True),
        ):  # fmt: skip
            needs = {"x": x, "ref": ref, "temperature": temperature}
            leaves = {name: own[name].clone().requires_grad_(need) for name, need in needs.items()}
            loss = hk.losses.info_nce(**leaves, symmetric=True, **options)
            if loss.requires_grad:
                loss.backward()
            for name, leaf in leaves.items():
                assert (leaf.grad is not None) == needs[name]
                if needs[name]:
                    close(leaf.grad, part_of(wanted[1], rows, rows)[name])
        with torch.no_grad():
            close(hk.losses.info_nce(**own, **options), wanted[0])
        assert not hk.losses.info_nce(own["x"], ref=own["ref"], **options).requires_grad


def check_nan(alone):
    for communication in COMMUNICATIONS:
        x = embeddings(3)
        x[0, 0] = torch.nan if dist.get_rank() == 1 else 1.0
        options = {"process_group": dist.group.WORLD, "communication": communication}
        loss = hk.losses.supcon(x, labels(3), **options)
        assert loss.isnan()
        same_everywhere(loss)


def check_disagreement(alone):
    """Arguments of other kinds on one rank: an error on all of them, and the group is still usable."""
    last = dist.get_rank() == dist.get_world_size() - 1
    y = torch.arange(2)
    for communication in COMMUNICATIONS:
        options = {"process_group": dist.group.WORLD, "communication": communication}
        for arguments, what in (
            ({"x": embeddings(2, SIZE - last)}, "embedding size"),
            ({"x": embeddings(2).to(torch.float32 if last else torch.float64)}, "dtype"),
            ({"x": embeddings(2), **({"ids": y} if last else {})}, "ids must"),
            ({"x": embeddings(2), **({"ref": embeddings(2), "ref_labels": y} if last else {})}, "ref must"),
        ):
            try:
                hk.losses.supcon(**arguments, labels=y, **options)
            except ValueError as error:
                assert what in str(error) and "on all ranks" in str(error)
            else:
                raise AssertionError(f"no error for {what}")
        hk.losses.supcon(embeddings(2), y, **options)


def check_half_precision(alone):
    """bfloat16 and autocast travel as they are, gradients are summed in float32."""
    rows = [6, 3, 8, 5][: dist.get_world_size()]
    x, y = embeddings(sum(rows), 32).float(), labels(sum(rows))
    for dtype in (torch.bfloat16, torch.float16):
        arguments = {"x": x.to(dtype), "labels": y}
        truth = step(hk.losses.supcon, {"x": x.to(dtype).double(), "labels": y})
        wanted = step(hk.losses.supcon, arguments)
        for communication in COMMUNICATIONS:
            options = {"process_group": dist.group.WORLD, "communication": communication, "gradient_reduction": "sum"}
            own = part_of(arguments, rows, rows)
            found = step(hk.losses.supcon, own, **options)
            assert found[1]["x"].dtype == dtype
            torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
            exact = truth[1]["x"][mine(rows)]
            error = (found[1]["x"].double() - exact).abs().max() if len(exact) else 0
            assert error <= 2 * (wanted[1]["x"].double() - truth[1]["x"]).abs().max()
    # The reference multiplies in bfloat16 there.
    with torch.autocast("cpu", torch.bfloat16):
        wanted = step(hk.losses.supcon, {"x": x, "labels": y})
        for communication in COMMUNICATIONS:
            options = {"process_group": dist.group.WORLD, "communication": communication}
            value, gradients = step(hk.losses.supcon, part_of({"x": x, "labels": y}, rows, rows), **options)
            torch.testing.assert_close(value, wanted[0], rtol=1e-3, atol=1e-3)
            assert gradients["x"].dtype == torch.float32


class Towers(torch.nn.Module):
    """Two views, each with its own encoder, and a temperature."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = torch.nn.Linear(6, SIZE), torch.nn.Linear(4, SIZE)
        self.log_scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, a, b):
        return self.first(a), self.second(b), self.log_scale.exp().reciprocal()


def check_beside_ddp(alone):
    """Five steps of two encoders and a temperature, all of them in DistributedDataParallel, as in one process."""
    rows = [4, 1, 3, 2][: dist.get_world_size()]
    a, b = embeddings(sum(rows), 6), embeddings(sum(rows), 4)
    results = []
    for communication in (None, *COMMUNICATIONS):
        model, part, options = Towers().double(), slice(None), {}
        if communication is not None:
            model, part = torch.nn.parallel.DistributedDataParallel(model), mine(rows)
            options = {"process_group": dist.group.WORLD, "communication": communication}
        optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            x, ref, temperature = model(a[part], b[part])
            loss = hk.losses.info_nce(x, ref=ref, temperature=temperature, symmetric=True, **options)
            loss.backward()
            optimizer.step()
        results.append([loss.detach(), *model.parameters()])
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            close(one, other)
