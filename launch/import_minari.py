"""Videos from a Minari dataset: its recorded episodes, replayed and drawn in our environment.

python launch/collect.py task=adroit-door source=minari:D4RL/door/expert-v2 episodes=50
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from actors.collecting import trimmed_length
from actors.envs.registry import EnvConfig, domain_of
from actors.replaying import REPLAYS, Recording, Replayer
from launch.cli import UsageError, build
from launch.progress import Progress
from models.episode import Episode
from models.files import new_folder
from models.videos import require_held_out, write_videos

# Which recorded environments are ours: same models, same state, same actions (rewards are not used).
ENVIRONMENTS = {
    "adroit-door": ("AdroitHandDoor-v1", "AdroitHandDoorSparse-v1"),
    "adroit-hammer": ("AdroitHandHammer-v1", "AdroitHandHammerSparse-v1"),
    "adroit-pen": ("AdroitHandPen-v1", "AdroitHandPenSparse-v1"),
    "adroit-relocate": ("AdroitHandRelocate-v1", "AdroitHandRelocateSparse-v1"),
}
EXTRA = "pip install -e '.[minari]' -c constraints.txt"


@dataclass(frozen=True)
class MinariSettings:
    """What to replay.

    Attributes:
        source: "minari:<dataset id>", for example minari:D4RL/door/expert-v2.
        env: Task and renderer setting; `action_repeat` recorded steps become one agent step.
        episodes: How many videos at most, at least 1.
        validation_every: Every n-th is held out (0: none).
        minari_replay: "actions" (needs the state or seed of the beginning) or "state" (needs the state of each step).
        keep_failures: Keep episodes that do not end in success, too, uncut.
        behaviour: Label of the videos.
    """

    source: str
    env: EnvConfig
    episodes: int = 20
    validation_every: int = 5
    minari_replay: str = "actions"
    keep_failures: bool = False
    behaviour: str = "expert"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([-\w]+://[-\w]+/)?[-\w]+(/[-\w]+)*-v\d+", self.dataset_id):
            raise ValueError(
                f"source={self.source} names no dataset with its version; for example source=minari:D4RL/door/expert-v2"
            )
        if self.minari_replay not in REPLAYS:
            raise ValueError(f"minari_replay is {self.minari_replay!r}; use one of {', '.join(REPLAYS)}")
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.validation_every < 0:
            raise ValueError(f"validation_every must not be negative, got {self.validation_every}")
        require_held_out(self.behaviour, self.episodes, self.validation_every)
        if self.env.task not in ENVIRONMENTS:
            raise ValueError(
                f"recordings of task {self.env.task!r} cannot be replayed; tasks that can: {', '.join(ENVIRONMENTS)}"
            )

    @property
    def dataset_id(self) -> str:
        """What stands after "minari:"."""
        return self.source.partition(":")[2]


def import_minari(config: DictConfig, out: Path) -> int:
    """Replays a dataset into a new video folder; it appears under its name only when it is complete.

    Args:
        config: Composed configuration of collect.py.
        out: New folder.

    Returns:
        0.

    Raises:
        UsageError: if a setting is bad, Minari is not installed, the dataset cannot be had or does not fit the task,
            or no episode succeeds.
    """
    settings = build(MinariSettings, {name: config[name] for name in MinariSettings.__dataclass_fields__})
    dataset = open_dataset(settings.dataset_id)
    require_task(dataset, settings)
    print(
        f"[collect] {settings.dataset_id}: {dataset.total_episodes:,} episodes, replaying "
        f"{settings.minari_replay} in {settings.env.task}, {settings.env.action_repeat} recorded steps to a frame",
        flush=True,
    )
    tally = Tally()
    with new_folder(out) as partial:
        count = write_videos(
            partial,
            replay(dataset, settings, tally),
            task=settings.env.task,
            domain=settings.env.domain,
            mode=settings.behaviour,
            render=settings.env.render,
            action_repeat=settings.env.action_repeat,
            validation_every=settings.validation_every,
            extra={
                "source": settings.source,
                "minari_replay": settings.minari_replay,
                "actions": "mean of the recorded actions of each agent step",
            },
        )
        if count == 0:
            raise UsageError(
                f"none of the {tally.played} replayed episodes of {settings.dataset_id} ends in success"
                + ("; try minari_replay=state" if settings.minari_replay == "actions" else "")
                + ", or keep_failures=true with another behaviour="
            )
    print(
        f"[collect] {count} {settings.behaviour} videos of {settings.env.task}: {out}. Replayed {tally.played}, of which "
        f"{tally.successes} succeed in our environment; asked for {settings.episodes}"
    )
    return 0


@dataclass
class Tally:
    """How many episodes were replayed, and how many ended well."""

    played: int = 0
    successes: int = 0


def open_dataset(dataset_id: str) -> Any:
    """The dataset on this machine (`MINARI_DATASETS_PATH`, else ~/.minari), downloaded if it is not there.

    Raises:
        UsageError: saying whether Minari, the dataset or its server is missing.
    """
    try:
        import minari
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise UsageError(f"source=minari needs Minari ({error}): {EXTRA}") from error
    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError:
        print(f"[collect] {dataset_id} is not on this machine; asking Minari's server", flush=True)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(f"dataset {dataset_id!r} cannot be opened: {error}") from error
    where = f"datasets on this machine are looked for in {get_dataset_path('')}, or MINARI_DATASETS_PATH"
    try:
        return minari.load_dataset(dataset_id, download=True)
    except ImportError as error:
        raise UsageError(f"downloading {dataset_id!r} needs more of Minari ({error}): {EXTRA}") from error
    except ValueError as error:  # Minari's own word for ids and versions that its server does not have.
        raise UsageError(f"dataset {dataset_id!r} cannot be downloaded: {error} ({where})") from error
    except Exception as error:  # Its HTTP library has many kinds of failure, and changes between versions.
        raise UsageError(
            f"Minari's server cannot be reached for dataset {dataset_id!r} ({type(error).__name__}: {error}). Check the "
            f"network, or copy the dataset from another machine: {where}"
        ) from error


def require_task(dataset: Any, settings: MinariSettings) -> None:
    """Refuses a dataset of another environment.

    Raises:
        UsageError: naming both.
    """
    task = settings.env.task
    spec = dataset.env_spec
    recorded = None if spec is None else spec.id
    if recorded not in ENVIRONMENTS[task]:
        fitting = [name for name, ids in ENVIRONMENTS.items() if recorded in ids]
        hint = f"give task={fitting[0]}" if fitting else "it cannot be replayed here"
        raise UsageError(
            f"dataset {settings.dataset_id!r} was recorded in {recorded or 'an environment it does not name'}, task "
            f"{task!r} is {' or '.join(ENVIRONMENTS[task])}; {hint}"
        )


def replay(dataset: Any, settings: MinariSettings, tally: Tally) -> Iterator[Episode]:
    """Yields replayed episodes until there are enough, or the dataset ends.

    Raises:
        UsageError: if a recording cannot be replayed.
    """
    replayer = Replayer(settings.env, settings.minari_replay)
    progress = Progress("collect", "videos")
    kept = 0
    for number in range(dataset.total_episodes):
        try:
            episode = replayer.play(read_recording(dataset, number, settings, replayer.state_keys))
        except ValueError as error:
            raise UsageError(str(error)) from error
        tally.played += 1
        chosen = choose(episode, settings)
        tally.successes += bool(episode.successes[-1])
        if chosen is not None:
            kept += 1
            yield chosen
        progress(kept, settings.episodes, {"replayed": tally.played, "succeeded": tally.successes})
        if kept == settings.episodes:
            break
    replayer.close()


def choose(episode: Episode, settings: MinariSettings) -> Episode | None:
    """The episode as it is kept: expert videos end in success, as those that are rolled out here."""
    if settings.keep_failures:
        return episode
    if domain_of(settings.env.task).cuts_expert_videos:
        length = trimmed_length(episode.successes)
        arrays = {k: v[: length + (k == "frames")] for k, v in episode.arrays().items()}
        episode = Episode(episode_id=episode.episode_id, task=episode.task, **arrays)
    return episode if episode.successes[-1] else None


def read_recording(
    dataset: Any, number: int, settings: MinariSettings, state_keys: tuple[str, ...]
) -> Recording:
    """One episode of a dataset; physical states may lie in its infos, or in the options of its reset."""
    data = dataset[number]
    metadata = next(iter(dataset.storage.get_episode_metadata([dataset.episode_indices[number]])))
    observations = data.observations if isinstance(data.observations, np.ndarray) else None
    options = metadata.get("options") or {}
    return Recording(
        name=f"{settings.dataset_id}/{int(data.id)}",
        actions=np.asarray(data.actions),
        first_observation=None if observations is None else np.asarray(observations[0], np.float64),
        states=find_state(data.infos or {}, state_keys),
        first_state=find_state(options, state_keys),
        seed=metadata.get("seed"),
    )


def find_state(values: Any, keys: tuple[str, ...]) -> Mapping[str, np.ndarray] | None:
    """The innermost mapping that has all keys, wherever it is nested (recorders name it differently)."""
    if not isinstance(values, Mapping):
        return None
    if all(key in values for key in keys):
        return {key: np.asarray(values[key], np.float64) for key in keys}
    found = (find_state(inner, keys) for inner in values.values())
    return next((state for state in found if state is not None), None)
