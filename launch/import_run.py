"""Videos of a training run's own policy, from its replay: what its reward was maximised by, and not only what experts do.

    python launch/collect.py source=run path=runs/<run> behaviour=policy episodes=24 validation_every=2 out=data/<task>/policy
    (only_failures=true: what a base model may learn from without being told that success is common)

A reward that a policy has found a way around gives these videos more than an expert's (docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from launch.blocks import block_number
from launch.cli import UsageError, build
from launch.paths import absolute_path
from launch.run_folder import RunFolder
from launch.settings import TrainSettings
from launch.train import train_settings
from learner.replay import EpisodeStore
from models.episode import Episode
from models.files import new_folder
from models.videos import write_videos

TAKEN = ("source", "path", "behaviour", "episodes", "only_failures", "validation_every", "out")


@dataclass(frozen=True)
class RunSettings:
    """Which episodes of a run.

    Attributes:
        path: Its folder.
        behaviour: What the videos are called, anything but "expert".
        episodes: At most so many, the newest of the replay; 1 or more.
        only_failures: Leave out episodes with a success.
        validation_every: Every n-th is held out (0: none).
    """

    path: str
    behaviour: str
    episodes: int = 20
    only_failures: bool = False
    validation_every: int = 5

    def __post_init__(self) -> None:
        if self.behaviour == "expert":
            raise ValueError("a policy's videos are no expert's: say behaviour=policy")
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.validation_every < 0:
            raise ValueError(f"validation_every must not be negative, got {self.validation_every}")


def import_run(config: DictConfig, out: Path) -> int:
    """Writes the newest episodes of a stopped run's replay as videos.

    Args:
        config: Composed configuration of `collect`.
        out: New folder.

    Raises:
        UsageError: if `path` is no run folder, the run is going on, its replay has no such episodes, or a key is given that
            the run answers.
    """
    given = {override.partition("=")[0] for override in config.overrides}
    if meaningless := sorted(given - set(TAKEN)):
        raise UsageError(f"source=run takes episodes as they are stored; leave out {', '.join(meaningless)}")
    settings = build(RunSettings, {name: config[name] for name in RunSettings.__dataclass_fields__})
    folder = RunFolder.open(absolute_path(settings.path, "path"))
    run = train_settings(folder.config())
    env = run.env
    episodes = newest_episodes(folder, run, settings.episodes, settings.only_failures)
    if not episodes:
        wanted = "failed episodes" if settings.only_failures else "episodes"
        raise UsageError(f"the replay of {folder.path} has no {wanted}; let the run go on, then try again")
    with new_folder(out) as partial:
        write_videos(
            partial,
            episodes,
            task=env.task,
            domain=env.domain,
            mode=settings.behaviour,
            render=env.render,
            action_repeat=env.action_repeat,
            validation_every=settings.validation_every,
            extra={"source": "run", "first": episodes[0].episode_id, "last": episodes[-1].episode_id},
        )
    successes = sum(episode.is_success for episode in episodes)
    print(
        f"[collect] {len(episodes)} {settings.behaviour} videos of {env.task}, {successes} of them a success "
        f"({episodes[0].episode_id} to {episodes[-1].episode_id} of {folder.path}): {out}"
    )
    return 0


def newest_episodes(
    folder: RunFolder, run: TrainSettings, most: int, only_failures: bool = False
) -> list[Episode]:
    """The newest episodes of all replay shards, oldest first.

    Args:
        folder: Of the run.
        run: Its settings.
        most: How many at most.
        only_failures: Leave out episodes with a success.

    Raises:
        UsageError: if a process has a shard open.
    """
    found: list[Episode] = []
    for shard in sorted((folder.path / "replay").glob("shard_*")):
        try:
            store = EpisodeStore(shard, run.replay_config, run.env.render.height_px, run.env.action_dim)
        except RuntimeError as error:
            raise UsageError(f"{error}; stop the run first, it can be resumed") from error
        try:
            wanted = ~store.index.succeeded if only_failures else np.ones(store.size_episodes, bool)
            for number in store.index.evicted + np.flatnonzero(wanted)[-most:]:
                found += store.episodes(int(number), 1)  # whole, however long
        finally:
            store.close()
    # Blocks are numbered in the order in which they were rolled out, and so are the episodes of each.
    return sorted(found, key=lambda episode: _numbers(episode.episode_id))[-most:]


def _numbers(episode_id: str) -> tuple[int, int]:
    """Block and place in it: as words, "b0000012-10" would come before "b0000012-9"."""
    return block_number(episode_id), int(episode_id.rpartition("-")[2])
