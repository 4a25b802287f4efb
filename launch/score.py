"""Scores videos with a learned reward: a CSV row per frame, a plot, and how well it tells two sets apart.

python launch/score.py checkpoint=checkpoints/video/door-close videos=data/door-close/expert split=validation
python launch/score.py videos=data/door-close/expert split=validation against=[data/door-close/random,frozen]
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from omegaconf import DictConfig, ListConfig

from launch import cli
from launch.cli import UsageError, build, suggest
from launch.official_dataset import is_official, read_one
from launch.paths import absolute_path
from launch.pretrain import choose_device
from models.files import new_folder, write_json
from models.videos import SPLITS, VideoSet, read_videos
from reward_service.contract import FrameReward, reward_class


@dataclass(frozen=True)
class ScoredSet:
    """Rewards of one set of videos: one (T_i+1,) float32 array per episode, one reward per frame."""

    name: str
    episode_ids: tuple[str, ...]
    rewards: tuple[np.ndarray, ...]


def main() -> None:
    """Entry point of `python launch/score.py`."""
    cli.main("score", __doc__ or "", score)


def score(config: DictConfig) -> int:
    """Scores `videos`, then each set of `against`, and writes CSV, plot and summary into a folder that appears when it is whole.

    Raises:
        UsageError: for a bad split, a reward that is not frozen, or an output folder that exists.
        FileNotFoundError: if videos or the reward model are missing.
    """
    if config.split not in ("all", *SPLITS):
        raise UsageError(f"unknown split {config.split!r}; {suggest(str(config.split), ('all', *SPLITS))}")
    kind = config.reward.frozen
    if kind is None:
        raise UsageError(
            f"reward={config.reward.name} gives a video no fixed value: it keeps learning, or comes from the "
            "environment. Choose a frozen one, such as reward=diffusion_likelihood"
        )
    videos = read_set(absolute_path(str(config.videos), "videos"), config.env.task, config.upside_down)
    given = config.checkpoint if config.checkpoint is not None else config.reward.checkpoint
    checkpoint = absolute_path(str(given).replace("{task}", videos.task), "checkpoint")
    name = f"{videos.task}-{videos.mode}_{time.strftime('%Y%m%d-%H%M%S')}"
    out = absolute_path(config.out if config.out is not None else f"scores/{name}", "out")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    reward = load_reward(config, checkpoint)
    reward.check_environment(videos.render, videos.action_repeat, videos.task, videos.domain)

    first = score_set(reward, videos, config.split, int(config.seed))
    others = [
        score_other(reward, source, videos, config.split, int(config.seed), config.upside_down)
        for source in _sources(config.against)
    ]
    summary = summarise(first, others)
    with new_folder(out) as partial:
        write_csv(partial / "rewards.csv", [first, *others])
        write_json(partial / "summary.json", {"checkpoint": str(checkpoint), **summary})
        plot(partial / "rewards.png", [first, *others], f"{videos.task}, {config.reward.name} reward")
    _print(summary, out)
    return 0


def load_reward(config: DictConfig, checkpoint: Path) -> FrameReward:
    """The frozen reward that `reward.frozen` and `frame_reward` describe, on `device`."""
    cls = reward_class(config.reward.frozen)
    settings = build(cls.config_class, config.frame_reward, "frame_reward.")
    return cls.from_checkpoint(checkpoint, asdict(settings), str(choose_device(config.device)))


def _sources(against: Any) -> list[str]:
    if against is None:
        return []
    return [str(a) for a in against] if isinstance(against, (list, tuple, ListConfig)) else [str(against)]


def score_set(
    reward: Any, videos: VideoSet, split: str, seed: int, corruption: str | None = None
) -> ScoredSet:
    """Scores a video set, or a corruption of its frames.

    Args:
        reward: A frozen reward.
        videos: The videos.
        split: "all", "train" or "validation".
        seed: Seed of the reward's noise.
        corruption: Name of a frame corruption ("frozen", "reversed"), or None.

    Raises:
        UsageError: if the split is empty.
    """
    from reward_service.contract import episode_seed
    from reward_service.corruptions import CORRUPTIONS

    episodes = videos.episodes if split == "all" else videos.split(split)
    if not episodes:
        raise UsageError(
            f"{videos.folder} has no video in split={split}; use split=all, or collect with validation_every=5"
        )
    frames = [e.frames if corruption is None else CORRUPTIONS[corruption](e.frames) for e in episodes]
    ids = tuple(e.episode_id for e in episodes)
    rewards = reward.score(frames, [videos.task] * len(frames), [episode_seed(i, seed) for i in ids])
    return ScoredSet(corruption or videos.mode, ids, tuple(rewards))


def read_set(folder: Path, task: str, upside_down: bool | None) -> VideoSet:
    """Reads a video folder, or one task of an official dataset: its only one, or `task`."""
    return read_one(folder, task, upside_down) if is_official(folder) else read_videos(folder)


def score_other(
    reward: Any, source: str, videos: VideoSet, split: str, seed: int, upside_down: bool | None = None
) -> ScoredSet:
    """Scores a second set: another video folder, or a corruption of the first set.

    Raises:
        UsageError: if the second set shows another task.
    """
    from reward_service.corruptions import CORRUPTIONS

    if source in CORRUPTIONS:
        return score_set(reward, videos, split, seed, corruption=source)
    other = read_set(absolute_path(source, "against"), videos.task, upside_down)
    if other.task != videos.task:
        raise UsageError(
            f"{other.folder} shows {other.task}, {videos.folder} shows {videos.task}; compare one task"
        )
    videos.render.require_same(other.render, str(videos.folder), str(other.folder))
    return score_set(reward, other, "all", seed)


def summarise(first: ScoredSet, others: Sequence[ScoredSet]) -> dict[str, Any]:
    """Mean rewards, progress correlation, and the AUCs against each other set."""
    from reward_service.quality import auc_per_step, compare, progress_correlation

    summary: dict[str, Any] = {
        "videos": first.name,
        "episodes": len(first.rewards),
        "mean_reward": float(np.concatenate(first.rewards).mean()),
        "progress_correlation": progress_correlation(first.rewards),
        "against": [],
    }
    for other in others:
        by_step = [round(float(value), 4) for value in auc_per_step(first.rewards, other.rewards)]
        numbers = {"name": other.name, **compare(first.rewards, other.rewards), "auc_by_step": by_step}
        summary["against"].append(numbers)
    return summary


def write_csv(path: Path, sets: Sequence[ScoredSet]) -> None:
    """Writes one row per frame: set, episode, frame, reward."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "episode", "frame", "reward"])
        for scored in sets:
            for episode_id, rewards in zip(scored.episode_ids, scored.rewards):
                writer.writerows([scored.name, episode_id, t, f"{r:.6f}"] for t, r in enumerate(rewards))


def plot(path: Path, sets: Sequence[ScoredSet], title: str) -> None:
    """Draws the mean reward at each time step with the middle half of the episodes shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5))
    for scored in sets:
        longest = max(map(len, scored.rewards))
        padded = np.full((len(scored.rewards), longest), np.nan)
        for row, rewards in enumerate(scored.rewards):
            padded[row, : len(rewards)] = rewards
        (line,) = axes.plot(np.nanmean(padded, axis=0), label=scored.name)
        low, high = np.nanpercentile(padded, [25, 75], axis=0)
        axes.fill_between(np.arange(longest), low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel="agent step", ylabel="standardised reward")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _print(summary: dict[str, Any], out: Path) -> None:
    progress = summary["progress_correlation"]["per_episode"]
    print(
        f"{summary['episodes']} {summary['videos']} videos: mean reward {summary['mean_reward']:.3f}, "
        f"rank correlation with progress {progress:+.2f}"
    )
    for row in summary["against"]:
        print(
            f"  against {row['name']:<9} AUC per episode {row['auc_per_episode']:.2f}, per frame "
            f"{row['auc_per_frame']:.2f}, per time step {row['auc_per_step']:.2f}; mean reward {row['mean_negative']:.3f}"
        )
    print(f"written: {out}/rewards.csv, rewards.png, summary.json")


if __name__ == "__main__":
    main()
