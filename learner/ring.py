"""The data files of a replay store: fixed-size rows, written with pwrite, read through memory maps."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from models.files import write_atomic

LARGE_SHARE_OF_MEMORY = 0.5  # the rest of the machine needs memory too


class ReplayDiskFullError(OSError):
    """The disk holding the replay store has no room; nothing was acknowledged."""


def disk_full(path: Path, error: OSError) -> OSError:
    """Turns "no space left" into an error that says what to do; leaves other errors as they are."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return ReplayDiskFullError(
        error.errno,
        f"no space left while writing the replay file {path}; the episode was not stored: free disk space, "
        "lower replay.capacity_transitions, or put the run folder on a larger disk",
    )


def map_rows(path: Path, rows: int, row_shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A file's rows through a read-only memory map; the map goes with the last array that uses it.

    Args:
        path: The file.
        rows: Number of rows.
        row_shape: Shape of one row.
        dtype: Type of the elements.

    Returns:
        (rows, *row_shape), shows what is written to the file later.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is too short.
    """
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(rows, *row_shape)))


class ReadAhead:
    """Asks the kernel for many rows at once, so that a disk reads them side by side instead of one after the other.

    Without it every frame that is not in memory stops the reader, and fetches what lies around it as well.

    Args:
        path: The file.
        row_bytes: Size of a row.
    """

    def __init__(self, path: Path, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as this object lives)

    def __call__(self, rows: np.ndarray, count: int) -> None:
        """Says that `count` rows from each of `rows` on will be read soon; does not wait for them."""
        descriptor, length_bytes = self._file.fileno(), count * self._row_bytes
        for offset in (rows * self._row_bytes).tolist():
            os.posix_fadvise(descriptor, offset, length_bytes, os.POSIX_FADV_WILLNEED)


def read_ahead_if_large(path: Path, row_bytes: int) -> ReadAhead | None:
    """Read-ahead for a file that may not stay in memory; None for a smaller one, where it would only cost time."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    large = path.stat().st_size > LARGE_SHARE_OF_MEMORY * memory_bytes
    return ReadAhead(path, row_bytes) if large and hasattr(os, "posix_fadvise") else None


class EvictionCounter:
    """Number of episodes evicted so far, in a file that readers in other processes map.

    The writer raises it before it reuses the rows of an evicted episode. A reader that looks at it after reading
    rows of episode number k and finds at most k therefore knows that they were whole. Both sides rely on stores
    and loads being seen in program order, as x86-64 guarantees.

    Args:
        path: The file.
        writable: Make the file if it is missing, and allow `publish`.
    """

    def __init__(self, path: Path, writable: bool) -> None:
        if writable and not path.exists():
            write_atomic(path, lambda file: file.write(bytes(8)))
        self._cell = np.memmap(path, dtype=np.uint64, mode="r+" if writable else "r", shape=(1,))

    @property
    def value(self) -> int:
        """What was published last."""
        return int(self._cell[0])

    def publish(self, evicted: int) -> None:
        """Shows a number to the readers; one aligned store of 8 bytes."""
        self._cell[0] = evicted


class RowFile:
    """A file of `rows` equal rows, addressed modulo its length.

    Writes go through the file descriptor, not through the map: a full disk is then an error that
    can be handled, where a store into a map would kill the process.

    Args:
        path: The file; made if it is missing.
        rows: Number of rows.
        row_shape: Shape of one row.
        dtype: Type of the elements.
        preallocate: Reserve the whole file on disk now, so that a full disk shows at the start.
        must_exist: Refuse a missing or cut file instead of starting from empty rows.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        row_shape: tuple[int, ...],
        dtype: type,
        preallocate: bool = False,
        must_exist: bool = False,
    ) -> None:
        self.path, self.rows, self.row_shape, self.dtype = path, rows, row_shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(row_shape, dtype=np.int64)) * self.dtype.itemsize
        size_bytes = path.stat().st_size if path.exists() else 0
        if must_exist and size_bytes != rows * self.row_bytes:
            raise ValueError(
                f"replay file {path} has {size_bytes} bytes, expected {rows * self.row_bytes}; the file was lost "
                "or cut: restore it or start a new replay folder"
            )
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(self._fd, rows * self.row_bytes)
            if preallocate:
                os.posix_fallocate(self._fd, 0, rows * self.row_bytes)
        except OSError as error:
            os.close(self._fd)
            raise disk_full(path, error) from error
        self.data = map_rows(path, rows, row_shape, dtype)

    def write(self, start_row: int, values: np.ndarray) -> None:
        """Writes rows from `start_row` on, going round the end of the file.

        Raises:
            ReplayDiskFullError: if the disk is full.
        """
        values = np.ascontiguousarray(values, dtype=self.dtype)
        until_end = min(len(values), self.rows - start_row)
        self._write_at(start_row, values[:until_end])
        self._write_at(0, values[until_end:])

    def _write_at(self, row: int, values: np.ndarray) -> None:
        rest, offset = memoryview(values.reshape(-1).view(np.uint8)), row * self.row_bytes  # type: ignore[arg-type]
        try:
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise disk_full(self.path, error) from error

    def sync(self) -> None:
        """Waits until the rows are on the disk itself, not only in the kernel's cache."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Closes the file; the map goes with the last array that uses it."""
        os.close(self._fd)
