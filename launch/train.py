"""Trains a policy with Ray: rollout actors, reward actors, replay shards, one DrQ-v2 learner.

python launch/train.py task=door-close reward=diffusion reward.checkpoint=<folder> preset=laptop
python launch/train.py resume=<run folder, or storage URL/run>
ray job submit --working-dir . -- python launch/train.py task=door-close out=/abs/path ...
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, ListConfig

from actors.envs.gl import check_gl
from launch import cli
from launch.paths import absolute_path
from launch.ray_access import protect_local_ray, ray_address
from launch.run_folder import RunFolder, continued
from launch.settings import TrainSettings, train_settings
from launch.storage import StoredRun
from launch.stores import is_url, run_name, run_url

if TYPE_CHECKING:
    from launch.uploads import Uploads


def main() -> None:
    """Entry point of `python launch/train.py`."""
    cli.main("train", __doc__ or "", run_training, with_overrides_of_the_run)


def with_overrides_of_the_run(overrides: list[str]) -> list[str]:
    """Puts the resumed run's own overrides in front, so that only deliberate changes differ.

    Raises:
        UsageError: if `resume=` names neither a run folder nor a stored run.
    """
    resumed = [cli.read_value(o) for o in overrides if o.startswith("resume=")]
    if not resumed or resumed[-1] is None:
        return overrides
    return overrides_of(config_of(str(resumed[-1]))) + overrides


def config_of(resume: str) -> DictConfig:
    """The configuration of a run, given its folder or the URL of its copy."""
    if is_url(resume):
        return StoredRun(resume).config()
    return RunFolder.open(absolute_path(resume, "resume")).config()


def overrides_of(config: DictConfig) -> list[str]:
    """The overrides that a run was started with, which a continuation is composed from."""
    return [o for o in config.overrides if not o.startswith(("out=", "resume="))]


def run_training(config: DictConfig) -> int:
    """Checks everything cheap, then starts Ray and trains.

    Args:
        config: Composed configuration.

    Returns:
        0 when finished, 0 after a clean stop by Ctrl-C or SIGTERM as well.
    """
    given: list[str] = []
    if config.resume is not None:
        saved = config_of(config.resume)
        given = list(config.overrides[len(overrides_of(saved)) :])
        config = continued(saved, config, given)
    if config.reward.checkpoint is not None:
        folder = config.reward.checkpoint.replace("{task}", config.env.task)
        config.reward.checkpoint = str(absolute_path(folder, "reward.checkpoint"))
    if config.bonus.get("videos") is not None:
        config.bonus.videos = video_folders(config.bonus.videos, config.env.task)
    settings = train_settings(config)
    check_reward_model(settings)
    check_bonus(settings)
    if ray_address(settings.cluster.address) == "local":
        check_gl()  # On a cluster the nodes that render may be others than this one.
    out = _out(config, settings)
    store = None if settings.storage is None else StoredRun(run_url(settings.storage, out.name))
    if store is not None:
        store.require_writable(is_new=config.resume is None)
    folder, wall_offset_s = _run_folder(config, out, settings.storage_replay)
    if store is not None:
        store.claim(folder)
    try:
        return train(settings, folder, wall_offset_s, store, given)
    except BaseException:
        if config.resume is None and store is None:  # What a store has was claimed for this run.
            folder.discard_if_unused()
        raise


def video_folders(given: Any, task: str) -> str | list[str]:
    """Video folders of a bonus as absolute paths, with the task's name in place of "{task}"."""
    if isinstance(given, (list, tuple, ListConfig)):
        return [str(video_folders(folder, task)) for folder in given]
    return str(absolute_path(str(given).replace("{task}", task), "bonus.videos"))


def check_bonus(settings: TrainSettings) -> None:
    """Refuses a bonus that does not fit the environment, such as expert videos of another task.

    Raises:
        ValueError, FileNotFoundError: saying what does not fit and what to do.
    """
    env = settings.env
    settings.bonus.check_environment(env.render, env.action_repeat, env.task, env.domain)


def check_reward_model(settings: TrainSettings) -> None:
    """Loads the reward model once and refuses what does not fit the environment.

    Raises:
        ValueError, FileNotFoundError: saying what does not fit and what to do.
    """
    if settings.reward.frozen is None:
        return
    from reward_service.contract import reward_class

    model = reward_class(settings.reward.frozen).from_checkpoint(
        str(settings.reward.checkpoint), asdict(settings.frame_reward), device="cpu"
    )
    env = settings.env
    model.check_environment(env.render, env.action_repeat, env.task, env.domain)


def _out(config: DictConfig, settings: TrainSettings) -> Path:
    """Path of the run folder: the one that is resumed, or a new one."""
    if config.resume is not None and not is_url(config.resume):
        return absolute_path(config.resume, "resume")
    if config.out is not None:
        return absolute_path(config.out, "out")
    run = f"{settings.env.task}_{settings.reward.name}_seed{settings.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    return absolute_path(f"runs/{run_name(config.resume) if config.resume is not None else run}", "out")


def _run_folder(config: DictConfig, out: Path, with_replay: bool) -> tuple[RunFolder, float]:
    if config.resume is None:
        return RunFolder.create(out, config), 0.0
    is_stored = is_url(config.resume)
    folder = StoredRun(config.resume).download(out, with_replay) if is_stored else RunFolder.open(out)
    folder.require_same_config(config)
    wall_s = max((row["wall_s"] for row in folder.metric_lines()), default=0.0)
    return folder, wall_s


def _resume_command(place: Path | str, given: Sequence[str]) -> str:
    also = [shlex.quote(o) for o in given if not o.startswith(("resume=", "out="))]
    return " ".join(["python launch/train.py", shlex.quote(cli.path_override("resume", place)), *also])


def train(
    settings: TrainSettings,
    folder: RunFolder,
    wall_offset_s: float = 0.0,
    store: StoredRun | None = None,
    given: Sequence[str] = (),
) -> int:
    """Starts Ray, builds the actors, runs the coordinator, shuts everything down.

    Args:
        settings: Everything configurable.
        folder: Run folder.
        wall_offset_s: Wall time of the earlier parts of a resumed run.
        store: Gets copies of the checkpoints.
        given: Overrides of a resumed run that its folder does not know.
    """
    protect_local_ray(settings.cluster.address)
    import ray

    from launch.console import TrainingView
    from launch.coordinator import Coordinator
    from launch.interrupts import StopFlag
    from launch.metrics import MetricsLog
    from launch.placement import require_resources
    from launch.ray_metrics import RayMetrics, endpoint
    from launch.system import build_system, start_ray

    view = TrainingView(
        f"{settings.env.task}  reward={settings.reward.name}  {folder.path}", settings.console
    )
    try:
        start_ray(settings.cluster, namespace=f"drr-{folder.path.name}-{time.time_ns():x}")
        stop = StopFlag()  # After Ray, which puts its own handler on SIGTERM.
        require_resources(settings)
        view.event(f"Ray is up with {ray.cluster_resources().get('CPU', 0):g} CPUs; starting actors")
        system = build_system(settings, folder.path, view.event, lambda: bool(stop))
        gl = ray.get(system.rollouts[0].describe_gl.remote())
        view.event(
            f"rendering with {gl['renderer']}" + (f". WARNING: {gl['warning']}" if gl["warning"] else "")
        )
        view.event(f"metrics for Prometheus at {endpoint()}")
        tags = {"run": folder.path.name, "task": settings.env.task, "reward": settings.reward.name}
        log = MetricsLog(folder.path, wall_offset_s, sink=RayMetrics(tags))
        try:
            uploads = None if store is None else _uploads(settings, folder, store, system.shards)
            outcome = Coordinator(settings, system, folder, log, view, stop, uploads).run()
        finally:
            log.close()
        view.event(f"{outcome}: run folder {folder.path}")
        if outcome != "finished":
            view.event(f"go on with: {_resume_command(folder.path, given)}")
            if store is not None:
                view.event(f"or anywhere with: {_resume_command(store.url, given)}")
    finally:
        view.close()
        ray.shutdown()
    return 0


def _uploads(settings: TrainSettings, folder: RunFolder, store: StoredRun, shards: Sequence[Any]) -> Uploads:
    """What copies the checkpoints, and the replay where that is wanted, into the store."""
    from launch.replay_copies import ReplayCopies
    from launch.uploads import Uploads

    replay = ReplayCopies(store, folder, shards) if settings.storage_replay else None
    return Uploads(store, folder, settings.keep_checkpoints, replay)


if __name__ == "__main__":
    main()
