"""Video datasets on disk: one folder per (task, mode) with an index and one npz per episode.

<folder>/index.json            what the videos are and how they were rendered
<folder>/episodes/000000.npz   frames, actions, env_rewards, discounts, successes
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.episode import Episode
from models.files import read_json, write_atomic, write_json

FORMAT_VERSION = 1
SPLITS = ("train", "validation")
# Render quality and domain of people's own videos.
RECORDED = "recorded"
OWN_DOMAIN = "videos"


@dataclass(frozen=True)
class RenderSettings:
    """How frames are drawn. Videos, training and evaluation must share one setting.

    Attributes:
        quality: "fast" (no shadows, no multisampling, no reflections), "full" (the simulator's defaults), or
            "recorded": not drawn by a simulator but taken from people's own videos.
        camera: Camera name, or an environment-specific preset name. For recorded frames: how they were cut from the
            pictures, and how many there are in a second.
        height_px: Frame height in pixels.
        width_px: Frame width in pixels.
    """

    quality: str = "fast"
    camera: str = "corner2"
    height_px: int = 64
    width_px: int = 64

    def __post_init__(self) -> None:
        if self.quality not in ("fast", "full", RECORDED):
            raise ValueError(f"render quality {self.quality!r} is unknown; use 'fast' or 'full'")
        if self.height_px < 8 or self.width_px < 8:
            raise ValueError(
                f"frames of {self.height_px}x{self.width_px} pixels are too small; use at least 8x8"
            )

    def require_same(self, other: RenderSettings, mine: str, theirs: str) -> None:
        """Refuses a mismatch, naming each key that differs.

        Raises:
            ValueError: if the two settings are not equal.
        """
        a, b = asdict(self), asdict(other)
        different = [f"{key}: {a[key]!r} against {b[key]!r}" for key in a if a[key] != b[key]]
        if different:
            raise ValueError(
                f"{mine} and {theirs} are rendered differently ({'; '.join(different)}). A reward model sees such a "
                "shift as strangeness: use one renderer setting, or collect videos and pretrain again with the other"
            )


@dataclass(frozen=True)
class VideoSet:
    """Videos of one task and one kind of behaviour, in memory.

    Attributes:
        folder: Where they were read from.
        task: Task name.
        domain: "metaworld", "adroit", ...; "videos" for people's own.
        mode: "expert", "random", "half", "noisy", "wander", "misdirected", or the label of people's own videos.
        render: How the frames were drawn.
        action_repeat: Simulator frames per agent step, so per video frame.
        episodes: The episodes, in index order.
        records: Index entry of each episode: split, seed, success, env_return, length_steps. What is unknown is None.
    """

    folder: Path
    task: str
    domain: str
    mode: str
    render: RenderSettings
    action_repeat: int
    episodes: tuple[Episode, ...]
    records: tuple[dict[str, Any], ...]

    def split(self, name: str) -> tuple[Episode, ...]:
        """Episodes of "train" or "validation" (may be empty)."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is unknown; use one of {SPLITS}")
        return tuple(e for e, r in zip(self.episodes, self.records) if r["split"] == name)


def write_videos(
    folder: str | Path,
    episodes: Iterable[Episode],
    *,
    task: str,
    domain: str,
    mode: str,
    render: RenderSettings,
    action_repeat: int,
    validation_every: int = 5,
    seeds: Sequence[int] | None = None,
    splits: Sequence[str] | None = None,
    has_rewards: bool = True,
    extra: dict[str, Any] | None = None,
) -> int:
    """Writes a video folder; episodes are consumed one at a time, the index is written last.

    Args:
        folder: New or empty folder.
        episodes: Episodes to write.
        validation_every: Every n-th episode goes to the validation split (0: none).
        seeds: Seed of each episode, kept in the index, or None.
        splits: Split of each episode, in place of `validation_every`, or None.
        has_rewards: False for pictures alone (see `frames_only`): the index then says null where rewards and success
            would stand.
        extra: More facts for the index (policy, noise, simulator versions).

    Returns:
        The number of episodes written.

    Raises:
        FileExistsError: if the folder already holds videos.
    """
    folder = Path(folder)
    if (folder / "index.json").exists() or (folder / "episodes").exists():
        raise FileExistsError(f"{folder} already holds videos; choose another folder or remove it first")
    (folder / "episodes").mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for number, episode in enumerate(episodes):
        name = f"episodes/{number:06d}.npz"
        _write_arrays(folder / name, episode)
        records.append(
            {
                "file": name,
                "split": _split(number, validation_every) if splits is None else splits[number],
                "seed": None if seeds is None else int(seeds[number]),
                "success": episode.is_success if has_rewards else None,
                "env_return": episode.env_return if has_rewards else None,
                "length_steps": len(episode),
            }
        )
    index = {
        "format": FORMAT_VERSION,
        "task": task,
        "domain": domain,
        "mode": mode,
        "render": asdict(render),
        "action_repeat": action_repeat,
        "episodes": records,
        "extra": extra or {},
    }
    write_json(folder / "index.json", index)
    return len(records)


def require_held_out(behaviour: str, count: int, validation_every: int) -> None:
    """Refuses so few expert videos that none would be held out, before the work of making them.

    Raises:
        ValueError: naming both numbers.
    """
    if behaviour == "expert" and 0 < count < validation_every:
        raise ValueError(
            f"{count} videos and validation_every={validation_every} hold none out, and pretraining needs both kinds: "
            "choose a smaller validation_every, or for videos of your own folders train/ and test/. For videos that are only scored: validation_every=0"
        )


def _split(number: int, validation_every: int) -> str:
    is_validation = validation_every > 0 and number % validation_every == validation_every - 1
    return "validation" if is_validation else "train"


def frames_only(episode_id: str, task: str, frames: np.ndarray) -> Episode:
    """An episode of which only the pictures are known, for `write_videos(..., has_rewards=False)`.

    Args:
        episode_id: Name of the episode.
        task: Task name.
        frames: (T+1, H, W, 3) uint8, T > 0.

    Returns:
        An episode with actions of length 0; rewards and successes are placeholders of 0 and False.
    """
    steps = len(frames) - 1
    return Episode(
        episode_id=episode_id,
        task=task,
        frames=frames,
        actions=np.zeros((steps, 0), np.float32),
        env_rewards=np.zeros(steps, np.float32),
        discounts=np.ones(steps, np.float32),
        successes=np.zeros(steps, bool),
    )


def _write_arrays(path: Path, episode: Episode) -> None:
    arrays: dict[str, Any] = episode.arrays()
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))


def read_videos(folder: str | Path) -> VideoSet:
    """Reads one video folder into memory (a 101-frame 64x64 episode takes 1.2 MB).

    Raises:
        FileNotFoundError: if the folder or its index is missing.
        ValueError: if the index is of another format, or lists no episode.
    """
    folder = Path(folder)
    index_path = folder / "index.json"
    if not index_path.is_file():
        raise FileNotFoundError(
            f"no videos at {folder}: {index_path.name} is missing. Expected a folder written by "
            "`python launch/collect.py task=... out=<folder>`"
        )
    index = read_json(index_path)
    if index.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{index_path} has format {index.get('format')!r}, expected {FORMAT_VERSION}; collect the videos again"
        )
    if not index["episodes"]:
        raise ValueError(f"{folder} lists no episode; collect at least one video there")
    episodes = []
    for record in index["episodes"]:
        with np.load(folder / record["file"], allow_pickle=False) as arrays:
            episodes.append(
                Episode(episode_id=f"{folder.name}/{record['file']}", task=index["task"], **dict(arrays))
            )
    return VideoSet(
        folder=folder,
        task=index["task"],
        domain=index["domain"],
        mode=index["mode"],
        render=RenderSettings(**index["render"]),
        action_repeat=index["action_repeat"],
        episodes=tuple(episodes),
        records=tuple(index["episodes"]),
    )


def find_video_folders(root: str | Path) -> list[Path]:
    """All video folders at or below `root`, sorted.

    Raises:
        FileNotFoundError: if there is none.
    """
    root = Path(root)
    found = sorted(path.parent for path in root.rglob("index.json")) if root.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"no video folder at or below {root}: expected index.json written by `python launch/collect.py`"
        )
    return found
