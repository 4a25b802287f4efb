"""Collects videos: of the expert (successes only), or of behaviours that a reward must tell from it.

python launch/collect.py task=door-close episodes=20
python launch/collect.py task=door-close behaviour=random episodes=20 validation_every=0
python launch/collect.py task_set=metaworld7 episodes=20
python launch/collect.py source=videos path=my_videos name=pour-tea fps=10
python launch/collect.py source=run path=runs/first behaviour=policy out=data/reach/policy
python launch/collect.py task=pointmaze-large mode=expert goal=3,6         (trajectories of states; own --help)
python launch/collect.py task=halfcheetah mode=base                         (likewise)
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig

from actors.envs.registry import EnvConfig, task_set
from launch import cli, collect_trajectories, locomotion_data
from launch.cli import UsageError, build, suggest
from launch.interrupts import end_with_parent
from launch.paths import absolute_path
from launch.progress import Progress
from models.episode import Episode
from models.files import new_folder
from models.videos import require_held_out, write_videos

# Seeds are drawn per stream, so that the videos do not depend on the number of processes.
STREAMS = 16
# Videos that are not rolled out here: source -> importer, called with the configuration and a new folder's path.
SOURCES = {
    "videos": "launch.import_videos:import_videos",
    "minari": "launch.import_minari:import_minari",
    "run": "launch.import_run:import_run",
}
# The keys that only some sources know; None rolls out.
SOURCE_KEYS: dict[str | None, tuple[str, ...]] = {
    None: ("episodes", "seed", "workers", "expert", "trust_expert"),
    "videos": ("path", "name", "fps", "source_fps", "fit", "crop", "start_s", "end_s", "max_frames"),
    "minari": ("episodes", "minari_replay", "keep_failures"),
    "run": ("path", "episodes", "only_failures"),
}


@dataclass(frozen=True)
class CollectSettings:
    """What to collect.

    Attributes:
        env: Task and renderer setting.
        behaviour: One of `actors.experts.BEHAVIOURS`.
        episodes: How many videos, at least 1.
        validation_every: Every n-th is held out (0: none).
        seed: Base of the scene seeds; the same base gives every behaviour the same scenes.
        workers: Processes, or None for one per core.
        expert: Where the expert comes from (`actors.expert_sources.load_expert`), or None for the domain's own.
        trust_expert: Whether an expert that has to be unpickled may be.
    """

    env: EnvConfig
    behaviour: str = "expert"
    episodes: int = 20
    validation_every: int = 5
    seed: int = 0
    workers: int | None = None
    expert: str | None = None
    trust_expert: bool = False

    def __post_init__(self) -> None:
        from actors.experts import require_behaviour

        require_behaviour(self.behaviour)
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.validation_every < 0:
            raise ValueError(f"validation_every must not be negative, got {self.validation_every}")
        require_held_out(self.behaviour, self.episodes, self.validation_every)
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")


def main() -> None:
    """Entry point of `python launch/collect.py`."""
    if collect_trajectories.is_trajectory_task(sys.argv[1:]):
        collect_trajectories.main()
    elif locomotion_data.is_locomotion(sys.argv[1:]):
        locomotion_data.main()
    else:
        cli.main("collect", __doc__ or "", collect)


def collect(config: DictConfig) -> int:
    """Collects into a new folder; it appears under its name only when it is complete.

    Raises:
        UsageError: if a setting is bad or the folder exists.
        TooFewSuccessesError: if the expert fails too often.
    """
    _require_keys_of_the_source(config)
    if config.task_set is not None:
        if str(config.source) in ("videos", "run"):
            raise UsageError(f"source={config.source} imports one task; call it for each, without task_set=")
        return _collect_set(config)
    if config.source is not None:
        return _import(config)
    settings = build(CollectSettings, {name: config[name] for name in CollectSettings.__dataclass_fields__})
    default = f"data/{settings.env.task}/{settings.behaviour}"
    out = _new_folder(config.out if config.out is not None else default)
    from actors.envs.gl import describe_gl

    if settings.expert is not None:
        # Loaded here as well, so that a bad one is refused at once.
        print(f"[collect] expert: {_load_expert(settings)}", flush=True)
    facts = describe_gl()
    warning = f". WARNING: {facts.warning}" if facts.warning else ""
    print(f"[collect] rendering with {facts}{warning}", flush=True)
    seeds: list[int] = []
    with new_folder(out) as partial:
        count = write_videos(
            partial,
            collect_all(settings, seeds),
            task=settings.env.task,
            domain=settings.env.domain,
            mode=settings.behaviour,
            render=settings.env.render,
            action_repeat=settings.env.action_repeat,
            validation_every=settings.validation_every,
            seeds=seeds,
            extra={
                "gl_renderer": facts.renderer,
                "seed": settings.seed,
                "episode_steps": settings.env.episode_steps,
                "expert": settings.expert,
            },
        )
    print(f"[collect] {count} {settings.behaviour} videos of {settings.env.task}: {out}")
    return 0


def _require_keys_of_the_source(config: DictConfig) -> None:
    """Refuses keys of another source, which would mean nothing, and a run without its own."""
    source = None if config.source is None else str(config.source).partition(":")[0]
    if source not in SOURCE_KEYS:
        raise UsageError(f"unknown source {source!r}; {suggest(str(source), SOURCES)}")
    if source == "run":
        if config.path is None or config.out is None:
            raise UsageError("source=run needs path=<run folder of train.py> and out=<new folder>")
        return  # The importer refuses all but its own keys.
    given = {override.partition("=")[0] for override in config.overrides}
    sources = {key: [name for name in SOURCE_KEYS if key in SOURCE_KEYS[name]] for key in given}
    if meaningless := sorted(key for key in given if sources[key] and source not in sources[key]):
        others = sorted({f"source={name}" for key in meaningless for name in sources[key] if name})
        here = "videos that are rolled out (source=null)" if source is None else f"source={source}"
        raise UsageError(
            f"{', '.join(meaningless)} mean nothing there: {here} takes {', '.join(SOURCE_KEYS[source])}; leave them out"
            + (f", or say {' or '.join(others)}" if others else "")
        )


def _import(config: DictConfig) -> int:
    """Runs the importer of a source. Its behaviour is a label, and people's own videos have a task of their own."""
    task = config.name if config.name is not None else config.env.task
    default = f"data/{task}/{config.behaviour}"
    out = _new_folder(config.out if config.out is not None else default)
    return _source(str(config.source))(config, out)


def _new_folder(given: str) -> Path:
    out = absolute_path(given, "out")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    return out


def _collect_set(config: DictConfig) -> int:
    """Runs the same command for every task of a set; tasks whose folder exists are left as they are."""
    tasks = task_set(config.task_set)
    own = ("task=", "task_set=", "out=")
    given = [o for o in config.overrides if not o.startswith(own)]
    for number, task in enumerate(tasks, 1):
        root = config.out if config.out is not None else "data"
        out = absolute_path(f"{root}/{task}/{config.behaviour}", "out")
        print(f"[collect] task {number} of {len(tasks)}: {task}", flush=True)
        if (out / "index.json").exists():
            print(f"[collect] {out} is there already")
            continue
        config_of_task = cli.compose("collect", [*given, f"task={task}"])
        config_of_task.out = str(out)  # Not as an override, whose syntax has no "(", "," or "ü" in a path.
        code = collect(config_of_task)
        if code:
            return code
    return 0


def _source(name: str) -> Callable[[DictConfig, Path], int]:
    """What imports videos from a source."""
    kind = name.partition(":")[0]
    module, _, function = SOURCES[kind].partition(":")
    importer: Callable[[DictConfig, Path], int] = getattr(importlib.import_module(module), function)
    return importer


def collect_all(settings: CollectSettings, seeds: list[int]) -> Iterator[Episode]:
    """Yields all episodes, in an order that does not depend on the number of processes.

    Args:
        settings: What to collect.
        seeds: Receives the seed of each episode before it is yielded.
    """
    streams = min(STREAMS, settings.episodes)
    shares = [settings.episodes // streams + (i < settings.episodes % streams) for i in range(streams)]
    workers = min(settings.workers or os.cpu_count() or 1, streams)
    progress = Progress("collect", "videos")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        futures = [pool.submit(_collect_stream, settings, share, i) for i, share in enumerate(shares)]
        try:
            _show_progress(futures, shares, progress)
            for future in futures:
                for episode, seed in future.result():
                    seeds.append(seed)
                    yield episode
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _show_progress(futures: list[Future[Any]], shares: list[int], progress: Progress) -> None:
    done = 0
    progress(0, sum(shares))
    for future in as_completed(futures):
        done += len(future.result())
        progress(done, sum(shares))


def _collect_stream(settings: CollectSettings, episodes: int, stream: int) -> list[tuple[Episode, int]]:
    from actors.collecting import collect_episodes

    expert = None if settings.expert is None else _load_expert(settings)
    return list(
        collect_episodes(
            settings.env, settings.behaviour, episodes, settings.seed, stream=stream, expert=expert
        )
    )


def _load_expert(settings: CollectSettings) -> Callable[..., Any]:
    """Loads the given expert; each process loads its own."""
    from actors.expert_sources import load_expert
    from launch.rllib_expert import load_rllib_policy

    return load_expert(
        str(settings.expert),
        settings.env.task,
        trust=settings.trust_expert,
        load_checkpoint=load_rllib_policy,
    )


if __name__ == "__main__":
    main()
