"""python -m tools.modules [--check]: writes hyperkernels/nn/losses/, a module for every loss of hk.losses.

A loss is declared once, by its function: the signature and the docstring of the module are made from it, as text, which
editors and `inspect` see. `make lint` checks that the text is current.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hyperkernels as hk

FOLDER = Path(__file__).resolve().parent.parent / "hyperkernels" / "nn" / "losses"
NAMES = {
    "calibrated_uniformity": "CalibratedUniformityLoss",
    "circle": "CircleLoss",
    "contrastive": "ContrastiveLoss",
    "fast_ap": "FastAPLoss",
    "generalized_lifted": "GeneralizedLiftedLoss",
    "info_nce": "InfoNCELoss",
    "lifted": "LiftedLoss",
    "margin": "MarginLoss",
    "meow": "MEOWLoss",
    "multi_similarity": "MultiSimilarityLoss",
    "n_pairs": "NPairsLoss",
    "nbc_softmax": "NBCSoftmaxLoss",
    "nca": "NCALoss",
    "nearest_pair_packing": "NearestPairPackingLoss",
    "nt_xent": "NTXentLoss",
    "proxy_anchor": "ProxyAnchorLoss",
    "proxy_nca": "ProxyNCALoss",
    "ranked_list": "RankedListLoss",
    "siglip": "SigLIPLoss",
    "soft_target_info_nce": "SoftTargetInfoNCELoss",
    "soft_triple": "SoftTripleLoss",
    "supcon": "SupConLoss",
    "triplet": "TripletLoss",
    "tuplet_margin": "TupletMarginLoss",
    "uniformity": "UniformityLoss",
    "weighted_triplet": "WeightedTripletLoss",
}
# Arguments that come with every batch; all others are options.
OF_BATCH = (
    "x", "labels", "ref", "ref_labels", "ids", "ref_ids", "positive", "queue", "queue_labels", "negatives", "gallery",
    "fused",
)  # fmt: skip
CENTERS = ("proxies", "centers")  # what a module owns, a row or several for each class
LEFT_OUT = ("proxy_labels",)  # the centres of a module are those of the classes 0 to C - 1
LEARNED = "A Parameter among the options is learned, a tensor is a buffer."
OWN = """\
num_classes: C, at least 1.
embedding_size: D, at least 1."""
OWNED = (
    "{}: the centres of the classes, [C, D], or [C * centers_per_class, D] with row = class * centers_per_class + "
    "centre. Drawn from N(0, 1/D)."
)

Parameter = inspect.Parameter


class Documentation:
    """The parts of a function's docstring."""

    def __init__(self, function: Callable[..., Any]) -> None:
        text = inspect.getdoc(function) or ""
        self.summary, _, rest = text.partition("\n\nArgs:\n")
        arguments, _, rest = rest.partition("\n\nReturns:\n")
        self.returns, _, self.raises = rest.partition("\n\nRaises:\n")
        self.arguments: dict[str, str] = {}
        for entry in re.split(r"\n(?=    \S)", arguments):
            names, _, text = entry.partition(":")
            for name in names.split(","):
                self.arguments[name.strip()] = " ".join(text.split())

    def of(self, name: str) -> str:
        """What is said of an argument, where need be by the function that the text points at."""
        text = self.arguments[name]
        found = re.fullmatch(r"as in ``(hk\.losses\.)?([\w.]+)``\.", text)
        if not found:
            return text
        there = hk.pair_statistics if found[2] == "hk.pair_statistics" else getattr(hk.losses, found[2])
        return Documentation(there).of(name)


def entries(documentation: Documentation, names: list[str]) -> Iterator[str]:
    """Those of the names, one for several of the same text."""
    by_text: dict[str, list[str]] = {}
    for name in names:
        by_text.setdefault(documentation.of(name), []).append(name)
    for text, same in by_text.items():
        yield f"{', '.join(same)}: {text}"


def filled(entry: str, indent: int) -> str:
    return textwrap.fill(
        entry, 120, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4), break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def declared(parameters: list[Parameter]) -> str:
    text, keyword_only = [], False
    for p in parameters:
        if p.kind is Parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            text.append("*")
        default = "" if p.default is Parameter.empty else f" = {p.default!r}".replace("'", '"')
        text.append(f"{p.name}: {p.annotation}{default}")
    return ", ".join(text)


def module_of(name: str, function: Callable[..., Any]) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in LEFT_OUT]
    batch = [p for p in parameters if p.name in OF_BATCH]
    options = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters if p.name not in (*OF_BATCH, *CENTERS)]
    owned = next((p.name for p in parameters if p.name in CENTERS), None)
    documentation = Documentation(function)
    held = [p.name for p in options]

    lines = [f"class {NAMES[name]}({'ProxyLoss' if owned else 'LossModule'}):"]
    lines += [textwrap.indent(f'"""{documentation.summary}', "    "), ""]
    lines += [f"    The module of ``hk.losses.{name}``. {LEARNED}"]
    lines += ["", "    Args:"]
    lines += [filled(entry, 8) for entry in OWN.splitlines()] if owned else []
    lines += [filled(entry, 8) for entry in entries(documentation, held)]
    lines += [filled(f"device, dtype: of ``{owned}``.", 8)] if owned else []
    lines += ["", "    Attributes:", filled(OWNED.format(owned), 8)] if owned else []
    lines += ["", "    Forward:"]
    lines += [filled(entry, 8) for entry in entries(documentation, [p.name for p in batch])]
    lines += ["", "    Returns:", textwrap.indent(documentation.returns, "    ")]
    lines += ["", "    Raises:", textwrap.indent(documentation.raises, "    "), '    """', ""]

    lines += [f"    {owned}: torch.nn.Parameter"] if owned else []
    lines += [*(f"    {p.name}: {p.annotation}" for p in options), f"    _options = {tuple(held)!r}", ""]
    both = ", ".join(f"{n}={n}" for n in held)
    if owned:
        lines += [
            f"    _centers = {owned!r}".replace("'", '"'), "",
            f"    def __init__(self, num_classes: int, embedding_size: int, {declared(options)}, "
            "device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:",
            f"        super().__init__(num_classes, embedding_size, device, dtype, {both})",
        ]  # fmt: skip
    else:
        lines += [f"    def __init__(self, {declared(options)}) -> None:", f"        super().__init__({both})"]
    given = [
        *(f"{p.name}={p.name}" if p.kind is Parameter.KEYWORD_ONLY else p.name for p in batch),
        *([f"self.{owned}"] if owned else []),
        *(f"{n}=self.{n}" for n in held),
    ]
    given.sort(key=lambda text: "=" in text)
    lines += [
        "", f"    def forward(self, {declared(batch)}) -> torch.Tensor:",
        f"        return losses.{name}({', '.join(given)})", "",
    ]  # fmt: skip
    return "\n".join(lines)


def texts() -> dict[str, str]:
    """What each file must hold."""
    found: dict[str, list[str]] = {}
    for name in hk.losses.__all__:
        found.setdefault(getattr(hk.losses, name).__module__.rpartition(".")[2], []).append(name)
    files, imports = {}, []
    for file, names in sorted(found.items()):
        bodies = [module_of(name, getattr(hk.losses, name)) for name in names]
        bases = sorted({base for base in ("LossModule", "ProxyLoss") if any(f"({base})" in body for body in bodies)})
        head = [
            f'"""Modules of ``hyperkernels.losses.{file}``. Written by tools/modules.py from its functions."""', "",
            "from __future__ import annotations", "",
            *(["from typing import Any", ""] if any(": Any" in body for body in bodies) else []),
            "import torch", "", "from ... import losses", f"from ..loss_module import {', '.join(bases)}", "", "",
        ]  # fmt: skip
        files[f"{file}.py"] = "\n".join([*head, "\n\n".join(bodies)])
        imports.append(f"from .{file} import {', '.join(NAMES[name] for name in names)}")
    classes = ", ".join(f'"{NAMES[name]}"' for name in hk.losses.__all__)
    head = '"""A module for every loss of ``hk.losses``. Written by tools/modules.py from the functions."""\n\n'
    files["__init__.py"] = head + "\n".join(imports) + f"\n\n__all__ = [{classes}]\n"
    return {name: formatted(text, name) for name, text in files.items()}


def formatted(text: str, name: str) -> str:
    for command in (["check", "--fix", "--quiet", "--exit-zero"], ["format", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(FOLDER / name), "-"],
            input=text, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.modules", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a file is not what it must be")
    check, wanted = parser.parse_args().check, texts()
    have = {path.name: path.read_text() for path in FOLDER.glob("*.py")}
    stale = sorted(name for name in wanted.keys() | have.keys() if wanted.get(name) != have.get(name))
    if check:
        for name in stale:
            print(f"{FOLDER / name} is not what `python -m tools.modules` writes")
        return bool(stale)
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).unlink(missing_ok=True)
        if name in wanted:
            (FOLDER / name).write_text(wanted[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
