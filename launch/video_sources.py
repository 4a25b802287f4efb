"""Which videos a folder of people's videos holds, and which split the folders give them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launch.cli import UsageError
from launch.decoding import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key

# Folder names of explicit splits, as people call them.
TRAIN_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("test", "validation", "val", "valid")


@dataclass(frozen=True)
class Found:
    """A video file, or a folder of pictures, and its split where the folders say it."""

    path: Path
    pictures: tuple[Path, ...] = ()
    split: str | None = None


def find_sources(path: Path) -> list[Found]:
    """The videos at a path, in natural order of their names; hidden files are left out.

    Raises:
        FileNotFoundError: if there are none.
        UsageError: if something there is neither a video nor a folder of pictures.
    """
    if not path.exists():
        raise FileNotFoundError(f"no videos at {path}: there is no such file or folder")
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise UsageError(f"{path} is not a video; expected {', '.join(VIDEO_SUFFIXES)}")
        return [Found(path)]
    folders = {entry.name.lower(): entry for entry in _entries(path) if entry.is_dir()}
    train = [folders[name] for name in TRAIN_FOLDERS if name in folders]
    held_out = [folders[name] for name in VALIDATION_FOLDERS if name in folders]
    if not (train and held_out):
        return _in_folder(path, None)
    others = [entry.name for entry in _entries(path) if entry not in (*train, *held_out)]
    if others:
        raise UsageError(
            f"{path} has {train[0].name} and {held_out[0].name} folders, and beside them {', '.join(others[:5])}: move "
            "them into one of the two"
        )
    parts = [(folder, "train") for folder in train] + [(folder, "validation") for folder in held_out]
    return [found for folder, split in parts for found in _in_folder(folder, split)]


def _entries(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural_key)


def _in_folder(folder: Path, split: str | None) -> list[Found]:
    entries = _entries(folder)
    pictures = tuple(p for p in entries if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
    rest = [p for p in entries if p not in pictures]
    if pictures and split is None and not rest:
        return [Found(folder, pictures)]
    found, strange = [], [p.name for p in pictures]
    for entry in rest:
        inner = _entries(entry) if entry.is_dir() else []
        if inner and all(p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES for p in inner):
            found.append(Found(entry, tuple(inner), split))
        elif entry.is_file() and entry.suffix.lower() in VIDEO_SUFFIXES:
            found.append(Found(entry, (), split))
        else:
            strange.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    if strange:
        more = f" and {len(strange) - 8} more" if len(strange) > 8 else ""
        raise UsageError(
            f"{folder} holds what is neither a video ({', '.join(VIDEO_SUFFIXES)}) nor a folder of pictures only "
            f"({', '.join(IMAGE_SUFFIXES)}): {', '.join(strange[:8])}{more}. Move it elsewhere"
        )
    if not found:
        raise FileNotFoundError(
            f"no videos in {folder}: expected files {', '.join(VIDEO_SUFFIXES)} or folders of pictures"
        )
    return found
