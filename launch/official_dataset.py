"""Datasets and facts of the official implementation of Diffusion Reward (arXiv 2312.14134), read as they are.

<domain>/<task>/{train,test}/<episode>/<t>.png          one picture per agent step, t from 0
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.envs.registry import DOMAINS
from launch.cli import UsageError
from models.episode import Episode
from models.videos import RenderSettings, VideoSet, frames_only

SPLITS = {"train": "train", "test": "validation"}


@dataclass(frozen=True)
class OfficialDomain:
    """What the official files do not say about themselves.

    Attributes:
        render: How the pictures were drawn: in full quality, 64 px, the domain's camera.
        action_repeat: Simulator frames per picture.
        upside_down: Whether the first row of a picture shows the bottom of the scene. The Adroit pictures are
            probably upside down; look at one to be sure.
    """

    render: RenderSettings
    action_repeat: int
    upside_down: bool


OFFICIAL_DOMAINS = {
    "metaworld": OfficialDomain(RenderSettings("full", "corner2", 64, 64), 3, upside_down=False),
    "adroit": OfficialDomain(RenderSettings("full", "paper", 64, 64), 2, upside_down=True),
}


def is_upside_down(given: bool | None, domain: str) -> bool:
    """Whether the pictures of a domain are upside down on disk: as given, or the domain's default.

    Raises:
        UsageError: if something else than true, false or null is given; a word such as "no" would count as true.
    """
    if given is not None and not isinstance(given, bool):
        raise UsageError(f"upside_down is {given!r}, expected true, false, or null for the domain's default")
    return OFFICIAL_DOMAINS[domain].upside_down if given is None else given


def official_task_names(domain: str) -> dict[str, str]:
    """Official name -> our name of every task of a domain; our own names are among the official ones.

    Raises:
        UsageError: if the domain is unknown.
    """
    if domain not in OFFICIAL_DOMAINS:
        raise UsageError(f"domain={domain!r} is not allowed: expected one of {', '.join(OFFICIAL_DOMAINS)}")
    names: dict[str, str] = {}
    for task in next(d.tasks for d in DOMAINS if d.name == domain):
        short = task.removeprefix(f"{domain}-")
        versions = ("", "-v1", "-v2", "-v3") if domain == "metaworld" else ("", "-v0", "-v1")
        for name in {task, short, f"{domain}_{short}"}:
            names |= {f"{name}{version}": task for version in versions}
    return names


def is_official(folder: str | Path) -> bool:
    """Whether a folder is a task, a domain or a root of official datasets (and no video folder of ours)."""
    folder = Path(folder)
    return folder.is_dir() and not (folder / "index.json").exists() and bool(_task_folders(folder))


def read_official(
    folder: str | Path,
    domain: str | None = None,
    task: str | None = None,
    upside_down: bool | None = None,
) -> list[VideoSet]:
    """Reads every task at or below a folder. Pictures come out upright.

    Pictures are all that these datasets have: actions have length 0, sparse rewards are zeros, successes False, and
    every record says so ("success": None, "env_return": None).

    Args:
        folder: A task folder (with `train` and/or `test`), a domain folder, or a folder of domain folders.
        domain: Which domain to read where the folder holds several, or None for all.
        task: Only this task (our name), or None for all.
        upside_down: Whether the pictures on disk are upside down; None for the domain's default.

    Returns:
        One video set per task, sorted by folder; `train` is the split "train", `test` is "validation".

    Raises:
        FileNotFoundError: if there is no such dataset, or not that task.
        ValueError: naming the file or folder: for unknown tasks, gaps in the frames, unreadable pictures, and
            pictures that are not square or of different sizes.
    """
    folder = Path(folder)
    found = [(path, *_name(path)) for path in _task_folders(folder)]
    several = len({entry[1] for entry in found}) > 1
    wanted = [entry for entry in found if domain is None or not several or entry[1] == domain]
    chosen = [entry for entry in wanted if task is None or entry[2] == task]
    if not chosen:
        there = f"it holds {', '.join(sorted({entry[2] for entry in found}))}" if found else "it holds none"
        raise FileNotFoundError(
            f"no official dataset{f' of {task}' if task else ''} at {folder}: expected "
            f"<domain>/<task>/train/<episode>/0.png, {there}"
        )
    return [_read_task(path, name, ours, upside_down) for path, name, ours in chosen]


def read_one(folder: str | Path, task: str, upside_down: bool | None = None) -> VideoSet:
    """As `read_official` for one video set: the only task of the folder, or `task` where it holds several."""
    tasks = {_name(path)[1] for path in _task_folders(Path(folder))}
    (videos,) = read_official(folder, task=task if len(tasks) > 1 else None, upside_down=upside_down)
    return videos


def _task_folders(folder: Path) -> list[Path]:
    """Task folders at, one below or two below a folder."""
    for depth in ("", "*", "*/*"):
        paths = [folder] if not depth else sorted(path for path in folder.glob(depth) if path.is_dir())
        found = [path for path in paths if _has_pictures(path)]
        if found:
            return found
    return []


def _has_pictures(folder: Path) -> bool:
    return any(next((folder / split).glob("*/*.png"), None) is not None for split in SPLITS)


def _name(folder: Path) -> tuple[str, str]:
    """Domain and our task name of a task folder; the domain is named by the parent folder, or else by the task."""
    folder = folder.absolute()
    parent = folder.parent.name
    domains = [parent] if parent in OFFICIAL_DOMAINS else list(OFFICIAL_DOMAINS)
    known = {name: (d, task) for d in domains for name, task in official_task_names(d).items()}
    if folder.name not in known:
        near = difflib.get_close_matches(folder.name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        tasks = ", ".join(sorted({task for _, task in known.values()}))
        raise ValueError(
            f"{folder}: {folder.name!r} is no task of {' or '.join(domains)}; {hint}Known tasks: {tasks}. Rename "
            "the folder, or import your own videos with `python launch/collect.py source=videos`"
        )
    return known[folder.name]


def _read_task(folder: Path, domain: str, task: str, upside_down: bool | None) -> VideoSet:
    facts = OFFICIAL_DOMAINS[domain]
    flipped = is_upside_down(upside_down, domain)
    episodes: list[Episode] = []
    records = []
    for split, path in _episode_folders(folder):
        frames = _read_frames(path)
        if episodes and frames.shape[1:] != episodes[0].frames.shape[1:]:
            raise ValueError(
                f"{path}: pictures of {_size(frames)} pixels, but {episodes[0].episode_id} has "
                f"{_size(episodes[0].frames)}; all pictures of a task must have one size"
            )
        name = f"{folder.name}/{path.parent.name}/{path.name}"
        episodes.append(frames_only(name, task, np.ascontiguousarray(frames[:, ::-1]) if flipped else frames))
        records.append(
            {
                "file": str(path.relative_to(folder)),
                "split": split,
                "seed": None,
                "success": None,
                "env_return": None,
                "length_steps": len(episodes[-1]),
            }
        )
    height_px, width_px = episodes[0].frames.shape[1:3]
    render = RenderSettings(facts.render.quality, facts.render.camera, height_px, width_px)
    turned = "upside down on disk and turned upright" if flipped else "upright on disk"
    why = "upside_down not given, default of the domain" if upside_down is None else "as given"
    print(
        f"[official] {task} ({domain}): {len(episodes)} episodes of pictures from {folder}, taken as {turned} ({why})",
        flush=True,
    )
    return VideoSet(
        folder, task, domain, "expert", render, facts.action_repeat, tuple(episodes), tuple(records)
    )


def _episode_folders(folder: Path) -> Iterator[tuple[str, Path]]:
    """Split and folder of each episode, train first, in the order of the numbers in their names."""
    for name, split in SPLITS.items():
        if (folder / name).is_dir():
            paths = [path for path in (folder / name).iterdir() if path.is_dir()]
            for path in sorted(paths, key=lambda p: (len(p.name), p.name)):
                yield split, path


def _read_frames(folder: Path) -> np.ndarray:
    """Pictures of an episode in the order of their numbers, (T+1, H, W, 3) uint8."""
    numbered: dict[int, Path] = {}
    for path in folder.glob("*.png"):
        if not path.stem.isdecimal() or int(path.stem) in numbered:
            raise ValueError(
                f"{path}: expected pictures named 0.png, 1.png, ... once each; rename or remove it"
            )
        numbered[int(path.stem)] = path
    if len(numbered) < 2:
        raise ValueError(f"{folder} holds {len(numbered)} pictures; an episode needs at least two")
    gaps = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if gaps:
        shown = ", ".join(f"{number}.png" for number in gaps[:5])
        raise ValueError(
            f"{folder} lacks {shown}{', ...' if len(gaps) > 5 else ''}, but has {max(numbered)}.png: time steps "
            "would be wrong. Copy the episode again, or remove it"
        )
    frames = [_read_picture(numbered[number]) for number in range(len(numbered))]
    for number, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"{numbered[number]} is {_size(frame[None])} pixels, {numbered[0].name} beside it "
                f"{_size(frames[0][None])}; all pictures of a task must have one size"
            )
    return np.stack(frames)


def _read_picture(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            array = np.asarray(picture.convert("RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
    ) as error:  # Pillow raises all three for damaged files
        raise ValueError(f"{path} is not a readable picture ({error}); copy it again") from error
    if array.shape[0] != array.shape[1]:
        raise ValueError(
            f"{path} is {_size(array[None])} pixels; official pictures are square (64x64), and models take no others"
        )
    return array


def _size(frames: np.ndarray) -> str:
    return f"{frames.shape[1]}x{frames.shape[2]}"
