"""What is measured, on stderr, from the first second: on a terminal one line, written over; else a line a case."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO


class Progress:
    """``start`` names what comes next, ``step`` a part of it that takes a while, ``clear`` makes room for a table."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._started = ""

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stderr

    def start(self, text: str) -> None:
        self._started = text
        if self.stream.isatty():
            self._write_over(text)
        else:
            print(text, file=self.stream, flush=True)

    def step(self, text: str) -> None:
        if self.stream.isatty():
            self._write_over(f"{self._started}: {text}")

    def clear(self) -> None:
        if self.stream.isatty():
            self._write_over("")

    def _write_over(self, text: str) -> None:
        self.stream.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        self.stream.flush()


PROGRESS = Progress()
