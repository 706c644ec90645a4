"""Writing of files where other processes may write and the disk may be full."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block an OSError is raised as such, with the path, also where the writer wraps it in another
    exception.

    Raises:
        OSError: as the system raises it; for a full disk the message says so.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__cause__ or cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        reason = os.strerror(cause.errno)
        if cause.errno == errno.ENOSPC:
            reason += ": the disk is full"
        raise OSError(cause.errno, reason, os.fspath(cause.filename or path)) from error


class FolderInUse(RuntimeError):
    """Another process is writing to the folder."""


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed; whether that succeeded. True where locks do not exist."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock ``folder`` for this process, where the file system has locks. The lock ends with the process, also if it is
    killed.

    Raises:
        FolderInUse: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(handle):
            raise FolderInUse(f"another process is writing to {os.fspath(folder)}")
        yield
    finally:
        os.close(handle)


def _clear_away(path: Path) -> None:
    """Remove temporary files of ``path`` that killed processes left: those that are not locked."""
    for left in path.parent.glob(f"{glob.escape(path.stem)}.*.tmp") if fcntl is not None else ():
        with contextlib.suppress(OSError), left.open("rb") as file:
            if _lock(file.fileno()):
                left.unlink()


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file to write to. It replaces ``path`` once all is on the disk, so that ``path`` is never incomplete.

    Raises:
        OSError: of the system, with ``path``, which is then unchanged.
    """
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_away(path)
            with unfinished.open("wb") as file:
                _lock(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
