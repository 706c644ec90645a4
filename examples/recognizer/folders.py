"""Any collection of images with a folder an identity, as a directory or a zip: ``person/a.jpg``, or
``faces/person/a.jpg``.

An optional ``pairs.csv`` (columns ``first``, ``second``, ``same``; file names, 1 or 0) at the top or beside the
identities says which pairs to verify. Identities that the file links are held out together, so that the pairs of held-
out identities stay whole.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from .data import DataError, Dataset, Index, Pairs, draw_pairs, split_classes
from .sources import FORMATS, entries, read_images

PAIRS_FILE = "pairs.csv"
MAX_SAME_PAIRS = 20_000
DIFFERENT_PAIRS = 200_000
PROBE_FROM = 3  # identities with this many images give one of them for rank-1 identification

SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


class _Collection:
    """What is in the source: image names by identity in sorted order, their grey pixels, the rows of pairs.csv."""

    def __init__(self, source: Path, side: int) -> None:
        self.source = source
        names, read = entries(source)
        names = [n for n in names if not _is_hidden(n)]
        self.names = [n for n in names if PurePosixPath(n).suffix.lower() in SUFFIXES and "/" in n]
        if not self.names:
            raise DataError(
                f"{source} has no images in sub-folders; expected one folder per identity with images inside"
            )
        folders = sorted({str(PurePosixPath(n).parent) for n in self.names})
        self.identities = len(folders)
        number = {folder: i for i, folder in enumerate(folders)}
        self.labels: Index = np.array([number[str(PurePosixPath(n).parent)] for n in self.names])
        self.images = read_images(source, self.names, read, side)
        tables = [n for n in names if PurePosixPath(n).name == PAIRS_FILE]
        self.pairs = list(self._read_pairs(tables[0], read(tables[0]))) if tables else []

    def _read_pairs(self, table: str, content: bytes) -> Iterator[tuple[int, int, bool]]:
        """(first image, second image, same) for the rows whose images are here."""
        where = f"{table} of {self.source}"
        by_name = defaultdict(list)
        for i, name in enumerate(self.names):
            by_name[PurePosixPath(name).name].append(i)
        try:
            rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), restval="")
            if not {"first", "second", "same"} <= set(rows.fieldnames or []):
                raise DataError(f"{where} must have the columns first, second, same; it has {rows.fieldnames}")
            for line, row in enumerate(rows, 2):
                yield from self._pair(f"{where}, line {line}", row, by_name)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{where} is no table of comma-separated text: {error}") from error

    def _pair(self, where: str, row: dict[str, str], by_name: dict[str, list[int]]) -> Iterator[tuple[int, int, bool]]:
        if row["same"] not in ("0", "1"):
            raise DataError(f"{where}: same must be 1 or 0; got {row['same']!r:.40}")
        found = by_name.get(row["first"], []), by_name.get(row["second"], [])
        if any(len(f) > 1 for f in found):
            raise DataError(f"{where}: an image of that name is in more than one folder")
        if all(found):
            first, second = found[0][0], found[1][0]
            if (self.labels[first] == self.labels[second]) != (row["same"] == "1"):
                raise DataError(f"{where}: same={row['same']} contradicts the folders")
            yield first, second, row["same"] == "1"


def _linked_groups(count: int, links: list[tuple[int, int]]) -> list[list[int]]:
    """Connected components of ``count`` identities."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in links:
        root[find(a)] = find(b)
    groups = defaultdict(list)
    for i in range(count):
        groups[find(i)].append(i)
    return list(groups.values())


def _split(collection: _Collection, holdout: float, seed: int) -> tuple[Index, Index]:
    """(trained, held-out) identities. Identities that pairs link are held out together, before those in no pair."""
    count = collection.identities
    if not collection.pairs:
        return split_classes(count, holdout, seed)
    labels = collection.labels
    groups = _linked_groups(count, [(labels[a], labels[b]) for a, b, _ in collection.pairs])
    paired = {int(labels[i]) for a, b, _ in collection.pairs for i in (a, b)}
    rng = np.random.default_rng(seed)
    order = sorted(rng.permutation(len(groups)), key=lambda g: groups[g][0] not in paired)
    held: list[int] = []
    for g in order:
        if len(held) >= max(2, round(count * holdout)):
            break
        held += groups[g]
    trained = np.setdiff1d(np.arange(count), held)
    if len(trained) < 2:
        raise DataError(f"{collection.source}: the pairs link too many of the {count} identities to hold some out")
    return trained, np.sort(np.array(held, np.int64))


def _test_pairs(collection: _Collection, images: Index, seed: int) -> dict[str, Pairs]:
    """Pairs among the held-out ``images`` (numbers in the collection): those of the file, and drawn ones."""
    place = {int(i): k for k, i in enumerate(images)}
    sets = {}
    listed = [(place[a], place[b], same) for a, b, same in collection.pairs if a in place and b in place]
    kinds = [same for *_, same in listed]
    if kinds.count(True) >= 2 and kinds.count(False) >= 2:
        first, second, same = (np.array(column) for column in zip(*listed, strict=True))
        sets[PAIRS_FILE] = Pairs(first, second, same)
    rng = np.random.default_rng(seed)
    labels = collection.labels[images]
    different = min(DIFFERENT_PAIRS, len(images) ** 2)
    sets["drawn pairs"] = draw_pairs(labels, MAX_SAME_PAIRS, different, rng)
    return sets


def _set_probes_apart(labels: Index) -> tuple[Index, Index, Index]:
    """(training rows, probe rows, first training row of each class). A probe is the last image of its class."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    probes = order[(starts + counts - 1)[counts >= PROBE_FROM]]
    return np.setdiff1d(np.arange(len(labels)), probes), probes, order[starts]


def load(source: Path, *, side: int = 64, holdout: float = 0.1, split_seed: int = 0, min_images: int = 1) -> Dataset:
    """The data set of a folder or zip.

    Args:
        side: images become grey and side x side.
        min_images: trained identities with fewer images are left out; with 1, a single image is a class too, and serves
        by
            pushing the others away.

    Raises:
        DataError: the source is missing or empty, an image is unreadable, or identities are too few.
    """
    collection = _Collection(source, side)
    if collection.identities < 4:
        raise DataError(
            f"{source} has {collection.identities} identities; at least 4 are needed, 2 to train on and 2 to hold out"
        )
    trained, held = _split(collection, holdout, split_seed)
    counts = np.bincount(collection.labels, minlength=collection.identities)
    kept = trained[counts[trained] >= min_images]
    if len(kept) < 2:
        raise DataError(f"{source}: fewer than 2 identities to train on have {min_images} images")
    number = np.full(collection.identities, -1)
    number[kept] = np.arange(len(kept))
    images = collection.images[number[collection.labels] >= 0]
    labels = number[collection.labels][number[collection.labels] >= 0]
    train, probes, enrolled = _set_probes_apart(labels)
    heldout = np.flatnonzero(np.isin(collection.labels, held))
    return Dataset(
        name=source.stem,
        train=images[train],
        labels=labels[train],
        num_classes=len(kept),
        heldout=collection.images[heldout],
        heldout_labels=collection.labels[heldout],
        pairs=_test_pairs(collection, heldout, split_seed + 1),
        gallery=images[enrolled],
        probes=images[probes],
        probe_labels=labels[probes],
        protocol=(
            "Verification: pairs of identities never trained on. Rank-1: one image, withheld from training, "
            f"of every trained identity that has at least {PROBE_FROM}, against all classes."
        ),
        facts={"identities": collection.identities, "images": len(collection.names), "min_images": min_images},
    )
