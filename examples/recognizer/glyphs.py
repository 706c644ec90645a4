"""Han characters as identities: a class each, rendered from two fonts that come as PyPI wheels.

Noto Sans CJK draws every character in five regional designs and any weight; its renderings are trained on. IPAexGothic
draws the same characters by another hand; no image of it is ever trained on. It plays the part of the other camera: a
test pair compares a Noto image with an IPAexGothic image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hyperkernels.distributed import files

from .data import DataError, Dataset, Images, Index, Pairs, draw_different, split_classes
from .distort import Distortion, distort_images

# (face of the collection, weight): JP, KR, SC, TC, HK, two weights each, so that all nine hundreds occur.
TRAIN_STYLES = ((0, 200), (0, 700), (1, 400), (1, 900), (2, 300), (2, 600), (3, 100), (3, 500), (4, 400), (4, 800))
ENROLLED_STYLE = 2  # a regular weight, for the gallery
EM = 0.82  # height of the font, of the image
VIEWS = 4  # test images of each kind of a held-out character
DIFFERENT_PAIRS = 200_000

Progress = Callable[[int, int], None]  # called with (characters done, characters in all)


def installed(module: str) -> Path | None:
    """Where the wheel's module lies. It is not imported: importing matplotlib_fontja changes matplotlib's fonts."""
    found = find_spec(module)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def font_paths() -> tuple[str, str]:
    """(Noto Sans CJK, IPAexGothic), or an ImportError that names the wheel to install."""
    paths = []
    for module, wheel, file in (
        ("manimgx_fonts_cjk", "manimgx-fonts-cjk", "NotoSansCJK-VF.otf.ttc"),
        ("matplotlib_fontja", "matplotlib-fontja", "fonts/ipaexg.ttf"),
    ):
        folder = installed(module)
        if folder is None:
            raise ImportError(f"the glyphs need the fonts of the wheel {wheel}: pip install {wheel}")
        paths.append(str(folder / file))
    return paths[0], paths[1]


def shared_characters() -> list[str]:
    """Characters of the block CJK Unified Ideographs that both fonts draw, in code order."""
    from fontTools.ttLib import TTFont

    noto, ipa = font_paths()
    codes = set(TTFont(noto, fontNumber=0, lazy=True).getBestCmap()) & set(TTFont(ipa, lazy=True).getBestCmap())
    return [chr(code) for code in sorted(codes) if 0x4E00 <= code <= 0x9FFF]


def _draw(character: str, font: ImageFont.FreeTypeFont, side: int) -> Images:
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text((side / 2, side / 2), character, fill=255, font=font, anchor="mm")
    return np.asarray(image)


def render(characters: list[str], side: int, progress: Progress) -> Images:
    """White on black, [characters, styles + 1, side, side]: the training styles in order, IPAexGothic last."""
    noto, ipa = font_paths()
    em = round(side * EM)
    fonts = []
    for face, weight in TRAIN_STYLES:
        font = ImageFont.truetype(noto, em, index=face)
        font.set_variation_by_axes([weight])
        fonts.append(font)
    fonts.append(ImageFont.truetype(ipa, em))
    images = np.empty((len(characters), len(fonts), side, side), np.uint8)
    for i, character in enumerate(characters):
        for j, font in enumerate(fonts):
            images[i, j] = _draw(character, font, side)
        progress(i + 1, len(characters))
    return images


def _cached(path: Path, shape: tuple[int, ...]) -> Images:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # takes no memory for what the file does not hold
        if mapped.shape != shape or mapped.dtype != np.uint8:
            raise ValueError(f"it holds {mapped.dtype} of shape {mapped.shape} in place of {shape}")
        return np.array(mapped)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged; without it the glyphs are rendered anew: {error}") from error


def cached_render(characters: list[str], side: int, cache: Path, progress: Progress) -> Images:
    """``render``, kept in a file of ``cache`` that gets its name when it is complete: what is found there is whole."""
    made_of = ("".join(characters), TRAIN_STYLES, EM, [Path(font).stat().st_size for font in font_paths()])
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    path = cache / f"glyphs-{len(characters)}x{side}px-{key}.npy"
    if path.exists():
        return _cached(path, (len(characters), len(TRAIN_STYLES) + 1, side, side))
    images = render(characters, side, progress)
    with files.whole(path) as file:
        np.save(file, images)
    return images


def choose_characters(count: int | None) -> list[str]:
    """All shared characters, or ``count`` of them spread evenly over the block."""
    characters = shared_characters()
    if count is None or count >= len(characters):
        return characters
    return [characters[i] for i in np.linspace(0, len(characters) - 1, count).round().astype(int)]


def _pairs(labels: Index, rng: np.random.Generator) -> Pairs:
    """Pairs of held-out images of classes ``labels``: the first half are Noto's, the second IPAexGothic's."""
    noto = np.arange(len(labels) // 2)
    ipa = noto + len(noto)
    a, b = draw_different(noto, ipa, labels, DIFFERENT_PAIRS, rng)
    same = np.arange(len(noto) + DIFFERENT_PAIRS) < len(noto)
    return Pairs(np.concatenate([noto, a]), np.concatenate([ipa, b]), same)


def load(
    *,
    cache: Path,
    side: int = 32,
    characters: int | None = None,
    holdout: float = 0.1,
    split_seed: int = 0,
    distortion: Distortion,
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """The data set of glyphs; test images are distorted here, once, training images in the training loop."""
    names = choose_characters(characters)
    rendered = cached_render(names, side, cache, progress)
    trained, held = split_classes(len(names), holdout, split_seed)
    rng = np.random.default_rng(split_seed + 1)
    styles = len(TRAIN_STYLES)
    # A different random choice of styles for every held-out character, its IPAexGothic image as often.
    chosen = np.argsort(rng.random((len(held), styles)), axis=1)[:, :VIEWS]
    noto_views = rendered[held[:, None], chosen].reshape(-1, side, side)
    ipa_views = np.repeat(rendered[held, styles], VIEWS, axis=0)
    heldout_labels = np.tile(np.repeat(np.arange(len(held)), VIEWS), 2)
    return Dataset(
        name="glyphs",
        train=rendered[trained, :styles].reshape(-1, side, side),
        labels=np.repeat(np.arange(len(trained)), styles),
        num_classes=len(trained),
        heldout=distort_images(np.concatenate([noto_views, ipa_views]), distortion, split_seed + 2),
        heldout_labels=heldout_labels,
        pairs={"Noto against IPAexGothic": _pairs(heldout_labels, rng)},
        gallery=rendered[trained, ENROLLED_STYLE],
        probes=distort_images(rendered[trained, styles], distortion, split_seed + 3),
        probe_labels=np.arange(len(trained)),
        protocol=(
            "Verification: characters never trained on, a distorted image in Noto Sans CJK against one in IPAexGothic, "
            "a font never trained on. Rank-1: trained characters, a distorted IPAexGothic image against all classes."
        ),
        facts={"characters": len(names), "styles": styles},
    )
