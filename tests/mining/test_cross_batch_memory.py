"""The queue of past embeddings, against a list."""

import copy
import io

import pytest
import torch

import hyperkernels as hk

from .cases import listed

CrossBatchMemory = hk.mining.CrossBatchMemory


def batch(n, d=4, dtype=torch.float32):
    return torch.randn(n, d, dtype=dtype), torch.randint(5, (n,))


def contents(memory):
    """{id: (embedding, label)}."""
    return {
        i: (e, y)
        for i, e, y in zip(memory.ids.tolist(), memory.embeddings.tolist(), memory.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("sizes", ([3, 3], [4, 4, 4, 4], [7, 7, 2, 0, 9], [10], [23], [1] * 25, [9, 23, 4]))
@pytest.mark.parametrize("given_ids", (False, True))
def test_holds_the_newest(sizes, given_ids):
    memory = CrossBatchMemory(4, 10)
    queue = []
    for n in sizes:
        x, labels = batch(n)
        ids = torch.randperm(n) - 10**12 * (1 + len(queue)) if given_ids else None
        found = memory.enqueue(x, labels, ids)
        if ids is not None:
            assert torch.equal(found, ids)
        assert found.shape == (n,)
        queue += list(zip(found.tolist(), x.tolist(), labels.tolist(), strict=True))
        newest = queue[-10:]
        assert memory.filled == len(newest)
        assert memory.embeddings.shape == (len(newest), 4)
        assert contents(memory) == {i: (e, y) for i, e, y in newest}
    if not given_ids:
        assert [i for i, _, _ in queue] == list(range(sum(sizes)))


def test_views_not_copies():
    memory = CrossBatchMemory(4, 10)
    memory.enqueue(*batch(6))
    assert memory.embeddings.data_ptr() == memory._embeddings.data_ptr()
    assert memory.labels.data_ptr() == memory._labels.data_ptr()
    assert memory.ids.data_ptr() == memory._ids.data_ptr()


def test_detached_and_rounded():
    memory = CrossBatchMemory(4, 10, dtype=torch.bfloat16)
    x = torch.randn(3, 4, requires_grad=True)
    memory.enqueue(x * 2, torch.zeros(3, dtype=torch.int64))
    assert not memory.embeddings.requires_grad
    assert torch.equal(memory.embeddings, (x * 2).detach().bfloat16())
    assert CrossBatchMemory(4, 10, dtype=torch.float64).embeddings.dtype == torch.float64
    assert list(memory.parameters()) == []


@pytest.mark.parametrize("before", ([], [4], [7, 7], [10], [25]))
def test_saved_and_loaded_it_goes_on_alike(before):
    memory = CrossBatchMemory(4, 10)
    for n in before:
        memory.enqueue(*batch(n))
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    loaded = CrossBatchMemory(4, 10)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, copy.deepcopy(memory)):
        reference = copy.deepcopy(memory)
        for n in (0, 3, 8, 14):
            for name in ("embeddings", "labels", "ids"):
                assert torch.equal(getattr(other, name), getattr(reference, name))
            x, labels = batch(n)
            assert torch.equal(other.enqueue(x, labels), reference.enqueue(x, labels))


STATES = {
    "another memory size": lambda state: CrossBatchMemory(4, 12).state_dict(),
    "another embedding size": lambda state: {**state, "_embeddings": torch.zeros(10, 5)},
    "labels missing": lambda state: {k: v for k, v in state.items() if k != "_labels"},
    "no tensor": lambda state: {**state, "_ids": [1]},
    "no pointer": lambda state: {**state, "_extra_state": torch.zeros(2, dtype=torch.int64)},
    "pointer beyond the ring": lambda state: {**state, "_extra_state": torch.tensor([10, 10, 0])},
    "filled beyond the ring": lambda state: {**state, "_extra_state": torch.tensor([0, 11, 0])},
}


@pytest.mark.parametrize("nested", (False, True))
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_refused_changes_nothing(name, nested):
    memory, other = CrossBatchMemory(4, 10), CrossBatchMemory(4, 10)
    memory.enqueue(*batch(3))
    other.enqueue(*batch(17))
    before = {k: v.clone() for k, v in memory.state_dict().items()}
    state = STATES[name](other.state_dict())
    with pytest.raises(RuntimeError):
        if nested:
            state = {f"0.{k}": v for k, v in state.items()}
            torch.nn.ModuleList([memory]).load_state_dict(state)
        else:
            memory.load_state_dict(state)
    after = memory.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_a_state_without_a_memory_is_missing_or_left_out():
    memory = CrossBatchMemory(4, 10)
    ids = memory.enqueue(*batch(3))
    with pytest.raises(RuntimeError, match="_labels"):
        memory.load_state_dict({})
    memory.load_state_dict({}, strict=False)
    assert torch.equal(memory.ids, ids)


def test_a_batch_is_no_pair_of_itself():
    """The queued batch: what a miner finds is what it finds in the rest, and in the batch among itself."""
    memory = CrossBatchMemory(4, 64, dtype=torch.float64)
    memory.enqueue(*batch(40, dtype=torch.float64))
    old, old_labels = memory.embeddings.clone(), memory.labels.clone()
    x, labels = batch(20, dtype=torch.float64)
    ids = memory.enqueue(x, labels)
    found = hk.mining.triplet_margin(
        x, labels, memory.embeddings, memory.labels, ids=ids, ref_ids=memory.ids, type_of_triplets="easy", margin=-2.5
    )
    everything, all_labels = torch.cat([old, x]), torch.cat([old_labels, labels])
    expected = [
        (i, p, n)
        for i in range(20)
        for p in range(60)
        for n in range(60)
        if p != 40 + i and all_labels[p] == labels[i] and n != 40 + i and all_labels[n] != labels[i]
    ]
    assert torch.equal(memory.embeddings, everything)
    assert listed(found) == expected


def test_the_same_image_twice_in_the_memory():
    """By ids of the user's, an image that is still in the memory from the epoch before is no pair of its new view."""
    memory = CrossBatchMemory(2, 8)
    x, labels = torch.eye(2), torch.tensor([0, 1])
    memory.enqueue(x, labels, torch.tensor([70, 71]))
    ids = memory.enqueue(x, labels, torch.tensor([70, 71]))
    found = hk.mining.batch_easy_hard(
        x, labels, memory.embeddings, memory.labels, ids=ids, ref_ids=memory.ids, pos_strategy="all", neg_strategy="all"
    )
    assert len(found[0]) == 0
    assert listed(found[2:]) == [(0, 1), (0, 3), (1, 0), (1, 2)]


def test_writing_under_a_backward_is_refused():
    memory = CrossBatchMemory(4, 8)
    memory.enqueue(*batch(8))
    x = torch.randn(3, 4, requires_grad=True)
    loss = (x @ memory.embeddings.T).sum()
    memory.enqueue(*batch(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_errors_name_the_argument():
    memory = CrossBatchMemory(4, 8)
    x, labels = batch(3)
    for call, kind, text in (
        (lambda: CrossBatchMemory(0, 8), ValueError, "embedding_size must be at least 1"),
        (lambda: CrossBatchMemory(4, 1.5), TypeError, "memory_size must be an int"),
        (lambda: CrossBatchMemory(4, 8, dtype=torch.int64), TypeError, "dtype must be"),
        (lambda: memory.enqueue(x[:, :3], labels), ValueError, r"x must be \[N, 4\]"),
        (lambda: memory.enqueue(x.long(), labels), TypeError, "x must have dtype"),
        (lambda: memory.enqueue(x, labels[:2]), ValueError, "labels must have one entry"),
        (lambda: memory.enqueue(x, labels, labels.int()), TypeError, "ids must have dtype int64"),
        (lambda: memory.enqueue(x.to("meta"), labels), ValueError, "x must be on the device of the memory"),
    ):
        with pytest.raises(kind, match=text):
            call()
    assert memory.filled == 0
    memory.enqueue(x, labels)
    assert memory.ids.tolist() == [0, 1, 2]  # a refused batch used no ids
