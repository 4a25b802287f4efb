"""What makes a checkpoint folder whole: a list of its files with sizes and checksums, written last.

manifest.json   {"number": 7, "files": {"learner.pt": {"bytes": 1048576, "sha256": "..."}, "counters.json": ...}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.files import read_json, sync_to_disk, write_json

MANIFEST = "manifest.json"
COUNTERS = "counters.json"
# In the counters of checkpoints that have a manifest; those without either were made before there were any.
FORMAT = {"checkpoint_format": 2}
CHUNK_BYTES = 1 << 20
# What reading a broken manifest or broken counters may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def file_record(path: Path) -> dict[str, Any]:
    """Size and checksum of a file."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return {"bytes": size_bytes, "sha256": digest.hexdigest()}


def seal(folder: Path, number: int) -> None:
    """Writes the manifest of a finished folder; returns once everything is on the disk itself.

    Args:
        folder: All its files become part of the manifest.
        number: Goes up with every checkpoint of a run, so that the newest is known without a clock.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync_to_disk(path)
    records = {path.relative_to(folder).as_posix(): file_record(path) for path in files}
    write_json(folder / MANIFEST, {"number": number, "files": records})
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_to_disk(path)


def checkpoint_number(folder: Path) -> float:
    """Number of a checkpoint: 0 for one without a manifest, infinite if the manifest cannot be read."""
    try:
        return 0 if _is_from_before_manifests(folder) else int(read_json(folder / MANIFEST)["number"])
    except UNREADABLE:
        return float("inf")


def damage(folder: Path, read_files: bool = True) -> str | None:
    """What is wrong with a checkpoint folder.

    One from before there were manifests is taken as it is if its counters can be read: it was renamed into place
    when it was finished, and nothing more is known about it.

    Args:
        folder: The folder.
        read_files: Compare checksums, which reads everything; otherwise sizes only.

    Returns:
        A reason, or None if it is whole.
    """
    try:
        if _is_from_before_manifests(folder):
            return None
        if not (folder / MANIFEST).exists():
            return f"{MANIFEST} is missing"
        return files_damage(folder, read_json(folder / MANIFEST)["files"], read_files)
    except UNREADABLE as error:
        return f"it cannot be read ({error})"


def _is_from_before_manifests(folder: Path) -> bool:
    return not (folder / MANIFEST).exists() and not FORMAT.items() <= read_json(folder / COUNTERS).items()


def files_damage(folder: Path, files: Mapping[str, Mapping[str, Any]], read_files: bool = True) -> str | None:
    """What is wrong with the files of a folder, by their records (`file_record`); None if nothing is.

    Raises:
        OSError: if a file cannot be read.
    """
    for name, record in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size_bytes = path.stat().st_size
        if size_bytes != record["bytes"]:
            return f"{name} has {size_bytes} bytes, expected {record['bytes']}"
        if read_files and file_record(path)["sha256"] != record["sha256"]:
            return f"{name} has another checksum than when it was written"
    return None
