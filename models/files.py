"""Small file helpers shared by every package: atomic writes and readable JSON."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

LOCK_FILE = ".lock"
# What file systems without flock answer, such as Lustre by default.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_HELD: dict[Path, int] = {}  # open files of this process, whose locks end with it


def write_atomic(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that a reader sees either the old content or the new one, never a part.

    Args:
        path: Target file; its folder must exist.
        write: Called with an open binary file.

    Raises:
        OSError: if the disk is full or not writable; the target is untouched then.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync_to_disk(path: str | Path) -> None:
    """Waits until the contents of a file, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if (
            error.errno != errno.EINVAL
        ):  # What some network file systems answer for a folder: they have no such call.
            raise
    finally:
        os.close(handle)


def try_lock(path: str | Path) -> int:
    """Locks a file, made if it is missing, for as long as it stays open; returns its handle.

    Where the file system has no locks, a warning says so, and the file is only opened.

    Raises:
        BlockingIOError: if another open file holds the lock.
    """
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Holds the lock of a file as `try_lock` does, waiting for it."""
    handle = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: str | Path, kind: int) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise
        warnings.warn(
            f"{path} cannot be locked on this file system ({error.strerror}): nothing keeps two processes from writing "
            "into its folder, see to it yourself that only one does",
            RuntimeWarning,
            stacklevel=3,
        )
    return handle


def hold_folder(folder: str | Path) -> None:
    """Keeps other processes from training in a folder until this one ends, however it ends.

    Raises:
        RuntimeError: if another process holds it.
    """
    path = Path(folder).resolve() / LOCK_FILE
    if path in _HELD:
        return
    try:
        _HELD[path] = try_lock(path)
    except BlockingIOError as error:
        raise RuntimeError(
            f"another process is training in {folder}; wait for it, or choose another folder"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into. It gets the name `path` when the block ends well, and is gone when it does not.

    What killed processes have left of such folders in the same place is removed: nobody holds its lock.

    Raises:
        OSError: if `path` has come to hold something in the meantime.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for lock in path.parent.glob(f".*.partial-*/{LOCK_FILE}"):
        if _is_let_go(lock):
            shutil.rmtree(lock.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.partial-") as partial:
        begun = Path(partial) / f"{LOCK_FILE}.new"
        lock_file = os.open(begun, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with suppress(OSError):  # without locks, nothing is ever let go
                fcntl.flock(lock_file, fcntl.LOCK_EX)
            begun.rename(begun.with_name(LOCK_FILE))
            folder = Path(partial) / path.name
            folder.mkdir()
            yield folder
            folder.rename(path)
        finally:
            os.close(lock_file)


def _is_let_go(lock: Path) -> bool:
    """Whether the process that locked a file has ended; no where that cannot be known."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def checksum(path: str | Path) -> str:
    """CRC-32 of a file, 8 hex digits."""
    return f"{zlib.crc32(Path(path).read_bytes()):08x}"


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinities are refused (ValueError)."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: naming the file, if it is not valid JSON, or something else than an object.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:  # Bytes that are no text as well.
        raise ValueError(
            f"{path} is not valid JSON ({error}); it may be half written: make it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds {json.dumps(content)[:40]}, expected an object of names and values; the file was changed from "
            "outside: restore it or make it again"
        )
    return content
