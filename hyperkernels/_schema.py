"""From a NamedTuple to a dispatcher's schema: the types, order and names of an op's arguments or results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import torch

Tensor = torch.Tensor
# An int that is computed from the sizes of tensors: a compiler may hold it as a symbol. Other ints are constants to it.
Size = int | torch.SymInt
# A tensor that the op writes.
Written = Annotated[Tensor, "written"]
# A tensor that the backward writes, and must not find saved: its new version would spoil a second backward.
Report = Annotated[Tensor | None, "report"]

_WORDS: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", bool: "bool", int: "int", float: "float",
    str: "str", Size: "SymInt",
}  # fmt: skip
_ALIASES = "abcdefgh"


class Field(NamedTuple):
    name: str
    word: str  # the type, as a schema says it
    marks: tuple[str, ...] = ()

    def is_tensor(self) -> bool:
        return self.word in ("Tensor", "Tensor?")


def _leaf(name: str, hint: Any) -> Field:
    marks: set[str] = set()

    def plain(hint: Any) -> Any:
        if get_origin(hint) is Annotated:
            inner, *said = get_args(hint)
            marks.update(said)
            return inner
        arguments = get_args(hint)
        if get_origin(hint) is list:
            return list[plain(arguments[0])]  # type: ignore[misc]
        if len(arguments) == 2 and arguments[1] is type(None):
            return plain(arguments[0]) | None
        return hint

    word = _WORDS.get(plain(hint))
    if word is None:
        raise TypeError(f"{name} must be one of {', '.join(map(str, _WORDS))} or a NamedTuple of them; got {hint}")
    return Field(name, word, tuple(sorted(marks)))


class Layout:
    """The fields of a NamedTuple, in order. Those that are NamedTuples themselves stand by their own fields, with a
    prefix before the names for Annotated[..., "prefix_"]."""

    def __init__(self, kind: Any, prefix: str = "") -> None:
        self.kind = kind
        self.parts: tuple[Layout | None, ...] = ()
        leaves: list[Field] = []
        for name, hint in get_type_hints(kind, include_extras=True).items():
            inner, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            part = Layout(inner, prefix + "".join(said)) if hasattr(inner, "_fields") else None
            leaves += [_leaf(prefix + name, hint)] if part is None else [*part.fields]
            self.parts = (*self.parts, part)
        self.fields: tuple[Field, ...] = tuple(leaves)
        self.names = tuple(field.name for field in leaves)
        if len({*self.names}) < len(self.names):
            raise TypeError(f"the names of {kind.__name__} must differ, also those within its parts; got {self.names}")
        self._nested = any(part is not None for part in self.parts)

    def flat(self, value: Any) -> tuple[Any, ...]:
        if not self._nested:
            return tuple(value)
        out: list[Any] = []
        for item, part in zip(value, self.parts, strict=True):
            if part is None:
                out.append(item)
            else:
                out.extend(part.flat(item))
        return tuple(out)

    def built(self, flat: Any) -> Any:
        return self._take(iter(flat)) if self._nested else self.kind(*flat)

    def _take(self, flat: Iterator[Any]) -> Any:
        return self.kind(*(next(flat) if part is None else part._take(flat) for part in self.parts))

    def arguments(self) -> str:
        """ "(Tensor x, int k)" """
        aliases = iter(_ALIASES)
        said = []
        for field in self.fields:
            word = field.word
            if "written" in field.marks:
                word = word.replace("Tensor", f"Tensor({next(aliases)}!)")
            said.append(f"{word} {field.name}")
        return f"({', '.join(said)})"
