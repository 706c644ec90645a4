"""Data that a stranger made: the recogniser's ``--data`` has limits, and says which file is at fault."""

import fcntl
import io
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from examples import train_recognizer
from examples.recognizer import folders, glyphs, sources
from examples.recognizer.data import DataError, draw_pairs
from examples.recognizer.distort import Distortion
from examples.recognizer.training import Trainer
from hyperkernels.distributed import files
from tests.support import room


def picture(kind="PNG", side=4, value=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def archive(path, compression=zipfile.ZIP_STORED, **changed):
    """Six people with two images each; ``changed`` are other contents by name, with __ for the slash."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for person in range(6):
            for k in "ab":
                file.writestr(f"p{person}/{person}{k}.png", picture(value=person))
        for name, content in changed.items():
            file.writestr(name.replace("__", "/").replace("_png", ".png").replace("_csv", ".csv"), content)
    return path


def refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        folders.load(path, side=8, holdout=0.4)
    assert str(path) in str(caught.value)


def test_every_format_is_read(tmp_path):
    for person, kind in enumerate(sources.FORMATS):
        for k in "ab":
            path = tmp_path / f"p{person}" / f"{k}{sources.FORMATS[kind][0]}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture(kind, value=30 * person))
    collection = folders._Collection(tmp_path, 8)
    assert np.allclose(collection.images[:, 0, 0], np.repeat(30 * np.arange(len(sources.FORMATS)), 2), atol=3)


def test_no_other_format_is_tried(tmp_path, monkeypatch):
    """PostScript goes to Ghostscript, which runs it."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: pytest.fail("it is run"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    refused(archive(tmp_path / "a.zip", p9__a_png=script), "cannot read the image p9/a.png")


def test_a_zip_that_unpacks_to_too_much(tmp_path):
    path = archive(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, p9__a_png=bytes(1_000_000))
    refused(path, "unpacks to 1,0")


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE", 1000)
    path = archive(tmp_path / "a.zip", p9__a_png=bytes(1001))
    refused(path, "p9/a.png of .* has 1,001 bytes")
    zipfile.ZipFile(path).extractall(tmp_path / "tree")
    refused(tmp_path / "tree", "p9/a.png of .* has 1,001 bytes")


@pytest.mark.parametrize("side", [8000, 20_000])
def test_a_huge_image(tmp_path, side):
    """Its first bytes say how large it is; nothing is decoded. (Pillow itself refuses the larger.)"""
    small = picture()
    header = small[:16] + struct.pack(">II", side, side) + small[24:29]
    content = header + struct.pack(">I", zlib.crc32(header[12:])) + small[33:]
    tracemalloc.start()
    refused(archive(tmp_path / "a.zip", p9__a_png=content), "cannot read the image p9/a.png")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_images_that_do_not_fit_into_memory(tmp_path):
    with pytest.raises(DataError, match="12 images of 1000000 x 1000000 pixels take"):
        folders.load(archive(tmp_path / "a.zip"), side=1_000_000)


def test_damaged_entries(tmp_path):
    path = archive(tmp_path / "a.zip", p9__a_png=b"content of the image")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"content of", b"contents f"))
    refused(path, "p9/a.png of .*CRC")
    for change in (b"\x01\x00", b"\x00\x00"):  # encrypted; then of an unknown compression
        found = bytearray(content)
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = found.rindex(signature) + flags
            found[at : at + 4] = change + (b"\x00\x00" if change[0] else b"\x63\x00")
        path.write_bytes(found)
        refused(path, "p9/a.png of .*(encrypted|compression)")
    path.write_bytes(content[:-30])
    refused(path, "neither a folder nor a zip file")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"first,second,same\n0a.png\n", "line 2: same must be 1 or 0; got ''"),
        (b"first,second,same\n0a.png,0b.png,yes\n", "line 2: same must be 1 or 0; got 'yes'"),
        (b"first,second,same\n\xff\xfe,0b.png,1\n", "no table of comma-separated text"),
        (b"first,second,same\n" + b"a" * 200_000 + b",b,1\n", "no table of comma-separated text"),
        (b"", "must have the columns"),
        (b"\x00\x01", "(must have the columns|no table)"),
    ],
    ids=["short", "word", "encoding", "field", "empty", "zeros"],
)
def test_odd_tables_of_pairs(tmp_path, table, message):
    refused(archive(tmp_path / "a.zip", pairs_csv=table), f"pairs.csv of .*{message}")


def test_rows_with_too_many_columns(tmp_path):
    table = "first,second,same\n" + "".join(f"{i}a.png,{i}b.png,1,more,and\n" for i in range(6))
    assert folders.load(archive(tmp_path / "a.zip", pairs_csv=table), side=8, holdout=0.4)


def all_pairs(labels):
    return {(a, b) for a in range(len(labels)) for b in range(a + 1, len(labels)) if labels[a] == labels[b]}


def test_pairs_are_drawn_without_listing_them():
    rng = np.random.default_rng()
    labels = np.array([0] * 3000 + [1] * 3000)
    rng.shuffle(labels)
    tracemalloc.start()
    found = draw_pairs(labels, 20_000, 100, rng)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    first, second = found.first[found.same], found.second[found.same]
    assert (labels[first] == labels[second]).all() and (first != second).all()
    assert len({frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}) == 20_000


def test_few_pairs_are_all_taken_and_many_evenly():
    rng = np.random.default_rng()
    labels = rng.integers(5, size=20)
    found = draw_pairs(labels, 10_000, 10, rng)
    same = [tuple(sorted(pair)) for pair in zip(found.first[found.same], found.second[found.same], strict=True)]
    assert len(same) == len(set(same)) and set(same) == all_pairs(labels)
    counts = dict.fromkeys(same, 0)
    for _ in range(2000):
        found = draw_pairs(labels, len(same) // 2, 1, rng)
        for pair in zip(found.first[found.same], found.second[found.same], strict=True):
            counts[tuple(sorted(pair))] += 1
    expected = 2000 * (len(same) // 2) / len(same)
    assert all(abs(count - expected) < 6 * np.sqrt(expected) for count in counts.values())


def test_a_cache_that_is_damaged(tmp_path):
    options = {"side": 8, "characters": 8, "distortion": Distortion()}
    glyphs.load(cache=tmp_path, **options)
    (path,) = Path(tmp_path).iterdir()
    content = path.read_bytes()
    huge = content.replace(b"(8, 11, 8, 8)", b"(88888, 99999, 8, 8)")
    for damaged in (
        content[:-1],
        content[:20],
        b"",
        huge,
        content.replace(b"|u1", b"|O8"),
        content.replace(b"|u1", b"|i1"),
    ):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path} is damaged; without it"):
            glyphs.load(cache=tmp_path, **options)


@pytest.mark.parametrize("size", [100, 20_000, 399_000])
def test_no_room_for_a_file(tmp_path, size):
    """What was there stays, nothing is left beside it, and the error says what it is."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"the one before")
    with pytest.raises(OSError, match=f"File too large: '{path}'"), room(size), files.whole(path) as file:
        torch.save(torch.zeros(100_000), file)
    assert [other.name for other in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"the one before"


def test_a_checkpoint_without_room(tmp_path):
    """The trainer's own; a run says so in a line."""
    state = {"weight": torch.zeros(100_000)}
    trainer = SimpleNamespace(sharded=False, settings=SimpleNamespace(as_dict=dict), history=SimpleNamespace())
    for name in ("embedder", "head", "optimizer"):
        setattr(trainer, name, SimpleNamespace(state_dict=lambda: state))
    Trainer.save(trainer, tmp_path / "checkpoint.pt")
    with pytest.raises(OSError, match="File too large"), room(100_000):
        Trainer.save(trainer, tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["head"]["weight"].shape == (100_000,)


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for name in ("checkpoint.1.tmp", "checkpoint.2.tmp", "other.1.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with (tmp_path / "checkpoint.2.tmp").open("rb") as alive:  # of a run that still writes
        fcntl.flock(alive, fcntl.LOCK_EX)
        with files.whole(path) as file:
            file.write(b"whole")
    assert sorted(other.name for other in tmp_path.iterdir()) == ["checkpoint.2.tmp", "checkpoint.pt", "other.1.tmp"]
    with files.whole(path) as file:
        file.write(b"whole")
    assert sorted(other.name for other in tmp_path.iterdir()) == ["checkpoint.pt", "other.1.tmp"]


def test_two_runs_in_one_folder(tmp_path, capsys):
    with files.locked(tmp_path):
        assert train_recognizer.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert f"another process is writing to {tmp_path}" in capsys.readouterr().err
    assert train_recognizer.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "no images" in capsys.readouterr().err
