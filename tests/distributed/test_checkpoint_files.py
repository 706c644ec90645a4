"""What is in a checkpoint's files: those of earlier versions load, and a hostile one runs nothing and reads nothing."""

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

import hyperkernels as hk
from tests.support import ROOT

DATA = ROOT / "tests" / "data"


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Linear(3, 4)
        self.head = hk.nn.PartialFC(4, 5)


def made():
    model = Model()
    return model, hk.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(DATA / "checkpoint-2-ranks", tmp_path / "checkpoint"))


@pytest.fixture
def metadata(folder):
    """What the file says, and it written again when the test has changed it."""
    return pickle.loads((folder / ".metadata").read_bytes())


def write(folder, metadata):
    (folder / ".metadata").write_bytes(metadata if isinstance(metadata, bytes) else pickle.dumps(metadata))


class Code:
    """Unpickled, it makes the folder ``path``."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(folder, message, error=ValueError):
    with pytest.raises(error, match=f"(?s){message}"):
        hk.distributed.load(folder, *made())


def put(folder, metadata, name, content):
    """Give an item these bytes, in a file of its own."""
    (folder / "other.distcp").write_bytes(content)
    place = metadata.storage_data[MetadataIndex(name, None if name.endswith("lr") else (0,))]
    place.relative_path, place.offset, place.length = "other.distcp", 0, len(content)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["1-rank", "2-ranks"])
def test_checkpoints_of_earlier_versions(name):
    wanted = torch.load(DATA / "checkpoints.pt", weights_only=True)[name]
    model, optimizer = made()
    extra = hk.distributed.load(DATA / f"checkpoint-{name}", model, optimizer)
    found = {"model": dict(model.state_dict()), "state": optimizer.state_dict()["state"]}
    torch.testing.assert_close(found, {key: wanted[key] for key in found}, rtol=0, atol=0)
    assert optimizer.param_groups[0]["lr"] == wanted["lr"]
    assert extra["step"] == 2 and extra["note"][0] == "a" and torch.equal(extra["note"][1], torch.arange(3))


def test_code_in_the_metadata(folder, metadata, tmp_path):
    ran = tmp_path / "ran"
    for content in (Code(ran), {"storage_data": Code(ran)}):
        write(folder, content)
        refused(folder, "names posix.mkdir")
    metadata.planner_data["model"] = Code(ran)
    write(folder, metadata)
    refused(folder, "names posix.mkdir")
    assert not ran.exists() and hk.distributed.latest(tmp_path) is None


def test_the_metadata_changes_no_class(folder):
    """A pickle may set attributes of the classes that it names."""
    slots = b"NX\x0d\x00\x00\x00relative_pathX\x01\x00\x00\x00/s".replace(b"NX", b"N}X")
    write(folder, b"\x80\x02ctorch.distributed.checkpoint.filesystem\n_StorageInfo\n" + slots + b"\x86b.")
    refused(folder, "no metadata")
    assert not hasattr(_StorageInfo, "relative_path")


EIGHT = b"\xff" * 7 + b"\x00"
NO_METADATA = {
    "empty": b"",
    "nothing": b"\x80\x02.",
    "none": b"N.",
    "junk": b"junk",
    "frame": b"\x80\x04\x95" + EIGHT,
    "memo": b"}r\xff\xff\xff\x7f.",
    "bytearray": b"\x80\x05\x96" + EIGHT,
}


@pytest.mark.parametrize("content", NO_METADATA.values(), ids=NO_METADATA)
def test_no_metadata(folder, content):
    write(folder, content)
    refused(folder, "no metadata of a checkpoint")


def test_code_in_an_item(folder, metadata, tmp_path):
    ran = tmp_path / "ran"
    put(folder, metadata, "optimizer.0.param_groups.0.lr", saved(Code(ran)))
    write(folder, metadata)
    refused(folder, "optimizer.0.param_groups.0.lr .*posix.mkdir")
    assert not ran.exists()


def test_code_in_a_tensor(folder, metadata, tmp_path):
    ran = tmp_path / "ran"
    put(folder, metadata, "model.backbone.bias", saved({"a": Code(ran), "b": torch.zeros(100)}))
    write(folder, metadata)
    refused(folder, "model.backbone.bias .*posix.mkdir")
    assert not ran.exists()


def test_code_in_extra(folder, metadata, tmp_path):
    ran = tmp_path / "ran"
    extra = torch.frombuffer(bytearray(saved(Code(ran))), dtype=torch.uint8)
    put(folder, metadata, "extra", saved(extra))
    stored = metadata.state_dict_metadata["extra"]
    stored.size = stored.chunks[0].sizes = extra.shape
    write(folder, metadata)
    refused(folder, "extra of .*posix.mkdir")
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "linked folder", "fifo"])
def test_a_path_outside(folder, metadata, tmp_path, kind):
    """A file that one may read and that the checkpoint's author may not."""
    secret = tmp_path / "secret"
    secret.write_bytes(saved(torch.arange(5.0)))
    name = {"absolute": str(secret), "above": "../secret", "linked folder": "up/secret"}.get(kind, "inner")
    if kind == "link":
        (folder / name).symlink_to(secret)
    if kind == "linked folder":
        (folder / "up").symlink_to(tmp_path)
    if kind == "fifo":
        os.mkfifo(folder / name)
    place = metadata.storage_data[MetadataIndex("model.backbone.bias", (0,))]
    place.relative_path, place.offset, place.length = name, 0, secret.stat().st_size
    write(folder, metadata)
    if kind == "fifo":
        refused(folder, "no plain file", FileNotFoundError)
    else:
        refused(folder, "outside the folder")


def test_metadata_that_is_a_link(folder, tmp_path):
    (folder / ".metadata").rename(tmp_path / "metadata")
    (folder / ".metadata").symlink_to(tmp_path / "metadata")
    refused(folder, "outside the folder")


@pytest.mark.parametrize("name", ["extra", "optimizer.0.state.backbone.bias.momentum_buffer", "model.backbone.bias"])
def test_a_size_beyond_the_files(folder, metadata, name):
    stored = metadata.state_dict_metadata[name]
    stored.size = stored.chunks[0].sizes = torch.Size([2**40])
    write(folder, metadata)
    refused(folder, f"gives {name} a size")
    metadata.storage_data[MetadataIndex(name, (0,))].length = 2**43
    write(folder, metadata)
    refused(folder, "shorter than")


def test_items_that_share_their_bytes(folder, metadata):
    """As many tensors as one likes, each of the size of the file."""
    size = (folder / "__1_0.distcp").stat().st_size
    for place in metadata.storage_data.values():
        place.relative_path, place.offset, place.length = "__1_0.distcp", 0, size
    write(folder, metadata)
    refused(folder, "shorter than")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.chunks.clear(), "not the whole"),
        (lambda stored: setattr(stored.chunks[0], "offsets", torch.Size([1])), "beyond its tensor"),
        (lambda stored: setattr(stored, "size", (4,)), "torch.Size"),
        (lambda stored: setattr(stored.chunks[0], "sizes", torch.Size([4, 1])), "beyond its tensor"),
        (lambda stored: setattr(stored.properties, "dtype", "float32"), "dtype"),
        (lambda stored: setattr(stored, "chunks", None), "no metadata"),
    ],
)
def test_tensors_that_make_no_sense(folder, metadata, change, message):
    change(metadata.state_dict_metadata["model.backbone.bias"])
    write(folder, metadata)
    refused(folder, message)


@pytest.mark.parametrize("name", ["optimizer.0.param_groups.0.lr", "model.backbone.bias"])
def test_an_item_that_unpacks_to_more_than_the_file(folder, metadata, name):
    """A zip within the file, of which torch would unpack what is compressed."""
    buffer = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved(torch.zeros(100_000))))
    with source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    put(folder, metadata, name, buffer.getvalue())
    write(folder, metadata)
    refused(folder, f"{name} .*unpacks to 40")


def test_a_file_that_was_cut_off(folder):
    path = folder / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, "cut off")
    path.unlink()
    refused(folder, "__1_0.distcp is missing", FileNotFoundError)


def test_every_torch_load_is_of_weights_only():
    """In the package and the examples."""
    import ast

    for path in [*(ROOT / "hyperkernels").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                assert options.get("weights_only") == "True", f"{path}, line {node.lineno}"
