"""Mean and standard deviation of raw rewards over expert videos, kept in the checkpoint folder.

statistics.json    {signature: {task: {"mean", "std", "frames", "split", "weights"}}}

A reward that is scaled between expert videos and others (`needs_other_behaviours`) has the middle of their two means as
"mean" and half their distance as "std", and beside them "mean_expert", "mean_others" and "frames_others".
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.checkpoints import WEIGHTS_FILE
from models.episode import Episode
from models.files import locked, read_json, write_json
from models.training_folder import SUMMARY_FILE
from models.videos import VideoSet
from reward_service.config import DOMAIN_STATISTICS, FrameRewardConfig
from reward_service.contract import episode_seed

if TYPE_CHECKING:
    from reward_service.standardised import StandardisedReward

STATISTICS_FILE = "statistics.json"
LOCK_FILE = f".{STATISTICS_FILE}.lock"  # not that of the folder, which a training holds to its process's end
MIN_VALIDATION_VIDEOS = 5
SPLIT_CHOICES = ("auto", "train", "validation", "all")


def is_complete(folder: str | Path) -> bool:
    """Whether a training folder holds a finished reward model: trained to its end, with statistics of its rewards."""
    return all((Path(folder) / name).is_file() for name in (SUMMARY_FILE, STATISTICS_FILE))


class MeanStd(NamedTuple):
    """What standardises a task's raw rewards: (raw - mean) / std."""

    mean: float
    std: float


class Statistics:
    """The statistics of one checkpoint folder.

    Args:
        entries: {signature: {task: entry}}.
        folder: Named in errors.
        weights: Fingerprint of the weights in the folder.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Any]], folder: Path, weights: str) -> None:
        self._entries = entries
        self._folder = folder
        self._weights = weights

    @classmethod
    def read(cls, folder: str | Path) -> Statistics:
        """Reads `statistics.json`; an absent file means that nothing was computed yet."""
        path = Path(folder) / STATISTICS_FILE
        return cls(read_json(path) if path.is_file() else {}, Path(folder), fingerprint(folder))

    def has(self, config: FrameRewardConfig, task: str) -> bool:
        """Whether `lookup` finds statistics: computed, and with these weights."""
        entry = self._entries.get(config.signature(), {}).get(task)
        return entry is not None and entry["weights"] == self._weights

    def lookup(self, config: FrameRewardConfig, task: str) -> MeanStd:
        """Mean and deviation of a task's rewards, computed as `config` says.

        Raises:
            ValueError: if they were not computed, listing what there is, or belong to other weights.
        """
        signature = config.signature()
        entry = self._entries.get(signature, {}).get(task)
        again = (
            f"compute them with `python launch/pretrain.py stage=statistics reward={config.reward_choice} "
            f"preset=<that of the training> data=<their folder> out={self._folder}` and the frame_reward keys that were given"
        )
        if entry is None:
            there = "; ".join(f"{s}: {sorted(tasks)}" for s, tasks in sorted(self._entries.items())) or "none"
            raise ValueError(
                f"no reward statistics of task {task!r} for {signature!r} in {self._folder / STATISTICS_FILE}. "
                f"Available: {there}. Give expert videos of {task!r} and {again}, "
                "or say whose scale to use with frame_reward.statistics_task="
                f"{DOMAIN_STATISTICS} (all tasks of the model pooled) or another task's name"
            )
        if entry["weights"] != self._weights:
            raise ValueError(
                f"reward statistics of task {task!r} in {self._folder / STATISTICS_FILE} were computed with other "
                f"weights (fingerprint {entry['weights']}, the folder holds {self._weights}): {again}"
            )
        return MeanStd(entry["mean"], entry["std"])


def fingerprint(folder: str | Path) -> str:
    """Checksum of the weights of a reward-model folder, its codec included (CRC-32, 8 hex digits)."""
    checksum = 0
    for path in sorted(Path(folder).rglob(WEIGHTS_FILE)):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"


def compute_statistics(
    reward: StandardisedReward, videos: Sequence[VideoSet], split: str = "auto", seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Computes the statistics of every task among the videos and writes them into the reward's folder.

    If all tasks of the reward model are among them, also of all pooled, under the name "domain" (for
    `statistics_task`). Entries of other signatures and tasks are kept; the reward uses the new ones from here on.

    Args:
        reward: Read from a checkpoint folder; its config gives the signature.
        videos: Expert videos, and videos of other behaviours where the reward is scaled between both; several sets of
            one task are pooled.
        split: "train", "validation", "all", or "auto": validation where a task has at least five such
            videos, else train.
        seed: Seed of the noise.

    Returns:
        {task: entry} of what was computed.

    Raises:
        ValueError: if videos are missing or not the expert's, are rendered differently, all their rewards are equal,
            or the expert's are not the higher ones of a reward that is scaled between both.
    """
    if split not in SPLIT_CHOICES:
        raise ValueError(f"split is {split!r}, expected one of {SPLIT_CHOICES}")
    by_task: dict[str, list[VideoSet]] = {}
    for video_set in videos:
        _require_fitting(reward, video_set)
        by_task.setdefault(video_set.task, []).append(video_set)
    if not by_task:
        raise ValueError(
            "no videos to compute reward statistics from: give at least one set of expert videos"
        )
    weights = fingerprint(reward.folder)
    entries, raw = {}, {}
    for task, sets in by_task.items():
        used, raw[task] = _raw_of_task(reward, sets, split, seed)
        entries[task] = {**_scale(raw[task], f"task {task!r}"), "split": used, "weights": weights}
    if set(reward.tasks) <= set(raw):
        pooled = RawRewards.pooled([raw[task] for task in reward.tasks])
        used = "/".join(sorted({entries[task]["split"] for task in reward.tasks}))
        entries[DOMAIN_STATISTICS] = {**_scale(pooled, "all tasks"), "split": used, "weights": weights}
    _merge(reward.folder, reward.config.signature(), entries)
    reward.reload_statistics()
    return entries


class RawRewards(NamedTuple):
    """Raw rewards of frames: (N,) float64 of the expert, and of other behaviours where they are needed, else None."""

    expert: np.ndarray
    others: np.ndarray | None

    @classmethod
    def pooled(cls, parts: Sequence[RawRewards]) -> RawRewards:
        """All of them together."""
        others = [part.others for part in parts if part.others is not None]
        return cls(
            np.concatenate([part.expert for part in parts]), np.concatenate(others) if others else None
        )


def _raw_of_task(
    reward: StandardisedReward, sets: Sequence[VideoSet], split: str, seed: int
) -> tuple[str, RawRewards]:
    """The split that is used, and the raw rewards of a task's frames."""
    task = sets[0].task
    expert = [videos for videos in sets if videos.mode == "expert"]
    others = [videos for videos in sets if videos.mode != "expert"]
    for kind, found in (("expert", expert), ("other", others)):
        if not found and (kind == "expert" or reward.needs_other_behaviours):
            raise ValueError(
                f"task {task!r} has no {kind} videos: this reward is scaled between the expert's and those of other "
                "behaviours. Give both kinds, for example data=[data/<task>/expert,data/<task>/random]"
            )
    used, episodes = _choose(expert, split, task)
    raw = _raw_values(reward, episodes, seed)
    if not others:
        return used, RawRewards(raw, None)
    used_others, episodes = _choose(others, split, task)
    used = used if used == used_others else f"{used}/{used_others}"
    return used, RawRewards(raw, _raw_values(reward, episodes, seed))


def _require_fitting(reward: StandardisedReward, videos: VideoSet) -> None:
    if videos.mode != "expert" and not reward.needs_other_behaviours:
        raise ValueError(
            f"{videos.folder} holds {videos.mode!r} videos; reward statistics need expert videos"
        )
    reward.render.require_same(
        videos.render, f"the reward model {reward.folder}", f"the videos {videos.folder}"
    )
    reward.require_action_repeat(videos.action_repeat, f"the videos {videos.folder}")
    reward.require_domain(videos.domain, f"the video folder {videos.folder}")


def _choose(sets: Sequence[VideoSet], split: str, task: str) -> tuple[str, list[Episode]]:
    """The split that is used, and its episodes."""
    held_out = [episode for videos in sets for episode in videos.split("validation")]
    trained = [episode for videos in sets for episode in videos.split("train")]
    if split == "auto":
        split = "validation" if len(held_out) >= MIN_VALIDATION_VIDEOS else "train"
    episodes = {"train": trained, "validation": held_out, "all": trained + held_out}[split]
    if not episodes:
        raise ValueError(f"task {task!r} has no {split} videos; use split='all' or collect more videos")
    return split, episodes


def _raw_values(reward: StandardisedReward, episodes: Sequence[Episode], seed: int) -> np.ndarray:
    """Raw rewards of all frames, (N,) float64."""
    names = [episode.episode_id for episode in episodes]
    frames = [episode.frames for episode in episodes]
    raw = reward.raw(frames, [episode_seed(name, seed) for name in names], names)
    return np.concatenate(raw).astype(np.float64)


def _scale(raw: RawRewards, what: str) -> dict[str, Any]:
    """Statistics entry of raw rewards."""
    if raw.others is None:
        return _mean_std(raw.expert, what)
    high, low = float(raw.expert.mean()), float(raw.others.mean())
    if not high > low:
        raise ValueError(
            f"the mean raw reward of {what} is {high:.6g} on expert videos and {low:.6g} on others: the reward cannot be "
            "scaled between them, because it does not prefer the expert. Train the expert model longer, or give its base "
            "fewer expert videos"
        )
    return {
        "mean": (high + low) / 2,
        "std": (high - low) / 2,
        "frames": len(raw.expert),
        "frames_others": len(raw.others),
        "mean_expert": high,
        "mean_others": low,
    }


def _mean_std(values: np.ndarray, what: str) -> dict[str, Any]:
    mean, std = float(values.mean()), float(values.std())
    if not std > 1e-6 * max(1.0, abs(mean)):
        raise ValueError(
            f"all {len(values)} raw rewards of {what} are {mean:.6g}: they cannot be standardised. The video "
            "model does not react to its history; train it longer, or check the videos"
        )
    return {"mean": mean, "std": std, "frames": len(values)}


def _merge(folder: Path, signature: str, entries: Mapping[str, Any]) -> None:
    path = folder / STATISTICS_FILE
    with locked(folder / LOCK_FILE):  # another process may be adding its own
        known = read_json(path) if path.is_file() else {}
        write_json(path, {**known, signature: {**known.get(signature, {}), **entries}})
