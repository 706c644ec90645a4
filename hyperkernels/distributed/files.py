"""Writing to folders that others may write to and to disks that may be full."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An error of the system in what is written below is raised as such, with the path, whatever the writer made of it.

    Raises:
        OSError: as of the system; of a full disk it says that the disk is full.
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


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold ``folder`` for this process alone, where the file system has locks; one that is killed lets go of it.

    Raises:
        RuntimeError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RuntimeError(f"another process is writing to {os.fspath(folder)}") from error
            except OSError:
                pass  # a file system without locks
        yield
