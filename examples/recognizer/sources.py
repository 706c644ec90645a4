"""Files of a folder or zip that a stranger may have made: every one within limits, whatever is wrong with it named."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .data import DataError, Images

# What they are read as, whatever their names say: other formats of Pillow call other programs, as Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pgm", ".ppm"),
}
MAX_FILE = 64 << 20  # bytes of a file, unpacked
MAX_RATIO = 100  # bytes that a zip unpacks to, of one of its own
MAX_PIXELS = 50_000_000  # of an image
MEMORY_SHARE = 0.5  # of this machine's, for all images

Reader = Callable[[str], bytes]


def _check_size(source: Path, name: str, size: int) -> None:
    if size > MAX_FILE:
        raise DataError(f"{name} of {source} has {size:,} bytes, more than the {MAX_FILE:,} that are read of a file")


def _of_folder(source: Path) -> tuple[list[str], Reader]:
    def read(name: str) -> bytes:
        try:
            _check_size(source, name, (source / name).stat().st_size)
            return (source / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {name} of {source}: {error}") from error

    return sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()), read


def _of_zip(source: Path) -> tuple[list[str], Reader]:
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{source} is neither a folder nor a zip file: {error}") from error
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    packed, unpacked = source.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > MAX_RATIO * packed:
        raise DataError(f"{source} of {packed:,} bytes unpacks to {unpacked:,}, which no collection of images does")

    def read(name: str) -> bytes:
        _check_size(source, name, entries[name].file_size)
        try:
            return archive.read(entries[name])
        except Exception as error:  # encrypted, a wrong checksum, an unknown compression, ...
            raise DataError(f"cannot read {name} of {source}: {error}") from error

    return sorted(entries), read


def entries(source: Path) -> tuple[list[str], Reader]:
    """(names of all files below ``source``, how to read one); names are relative, with forward slashes, sorted."""
    if not source.exists():
        raise DataError(f"{source} does not exist")
    return _of_folder(source) if source.is_dir() else _of_zip(source)


def _read_image(source: Path, name: str, content: bytes, side: int) -> Images:
    try:
        with Image.open(io.BytesIO(content), formats=list(FORMATS)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR))
    except Exception as error:  # the decoders raise whatever comes to them
        raise DataError(f"cannot read the image {name} of {source}: {error}") from error


def read_images(source: Path, names: list[str], read: Reader, side: int) -> Images:
    """[n, side, side], grey.

    Raises:
        DataError: they would not fit into memory; or one cannot be read, is in none of ``FORMATS`` or too large.
    """
    size, memory = len(names) * side * side, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > MEMORY_SHARE * memory:
        raise DataError(
            f"{source}: {len(names):,} images of {side} x {side} pixels take {size:,} bytes of the {memory:,} here"
        )
    images: Images = np.empty((len(names), side, side), np.uint8)
    for i, name in enumerate(names):
        images[i] = _read_image(source, name, read(name), side)
    return images
