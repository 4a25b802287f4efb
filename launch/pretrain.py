"""Trains the codec (VQ-GAN), a video model (VQ-Diffusion or VideoGPT), a pair of them for a relative reward, or computes
the statistics of their rewards.

    python launch/pretrain.py stage=codec task=door-close
    python launch/pretrain.py stage=video task=door-close
    python launch/pretrain.py stage=videogpt task=door-close                           (for reward=viper)
    python launch/pretrain.py stage=video task=door-close data=[data/door-close] expert_videos=15 out=checkpoints/base/door-close
    python launch/pretrain.py stage=relative task=door-close                           (after that, for reward=relative)
    python launch/pretrain.py stage=codec task_set=metaworld7                          (one model for several tasks)
    python launch/pretrain.py stage=video task=door-close workers=2                    (codec, video, videogpt: on Ray Train)
    python launch/pretrain.py stage=diffuser data=data/pointmaze-large/base            (trajectories, for relative.py)
    python launch/pretrain.py stage=statistics data=data/drawer-open/expert out=checkpoints/video/metaworld7

An unfinished output folder is resumed, a finished one is never overwritten.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from omegaconf import DictConfig, ListConfig

from launch import cli
from launch.cli import UsageError, build, suggest
from launch.diffuser_stage import train_diffuser_stage, with_family_of_the_data
from launch.paths import absolute_path
from launch.pretrain_relative import train_relative
from launch.pretrain_stages import SHOWN, name_and_tasks, read_videos_of, require_shares, train_stage
from launch.progress import LastValues as Shown
from launch.ray_access import protect_local_ray
from models.files import read_json
from models.relative_video.network import NETWORK_FOLDER
from models.relative_video.training import is_finished
from models.training_folder import SUMMARY_FILE, is_unfinished
from models.videos import VideoSet
from reward_service.contract import reward_class
from reward_service.statistics import STATISTICS_FILE, compute_statistics

STAGES = ("codec", "video", "videogpt", "relative", "diffuser", "statistics")
# Whose statistics a stage computes by default.
STAGE_REWARDS = {"video": "diffusion", "videogpt": "viper", "relative": "relative"}


def main() -> None:
    """Entry point of `python launch/pretrain.py`."""
    cli.main("pretrain", __doc__ or "", pretrain, with_choices_of_the_stage)


def with_choices_of_the_stage(overrides: list[str]) -> list[str]:
    """Puts what follows from the stage in front: the reward, or the family of the trajectories."""
    return with_reward_of_the_stage(with_family_of_the_data(overrides))


def with_reward_of_the_stage(overrides: list[str]) -> list[str]:
    """Puts the reward whose statistics the stage computes in front, unless one is given."""
    stage = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("stage=")), None)
    if stage in STAGE_REWARDS and not any(o.startswith("reward=") for o in overrides):
        return [f"reward={STAGE_REWARDS[stage]}", *overrides]
    return overrides


def pretrain(config: DictConfig) -> int:
    """Reads the videos, then runs the chosen stage.

    Raises:
        UsageError: for an unknown stage or device, or workers that cannot train it together.
        FileNotFoundError: if videos or the codec are missing.
    """
    if config.stage not in STAGES:
        raise UsageError(f"unknown stage {config.stage!r}; {suggest(str(config.stage), STAGES)}")
    _require_reward_of_the_stage(config)
    workers = count_workers(config.workers)
    require_shares(config, workers)
    # The workers of a cluster may have the GPUs that this machine lacks.
    device = choose_device("auto" if workers > 1 and config.device == "cuda" else config.device)
    if config.threads is not None:
        torch.set_num_threads(int(config.threads))
    if config.stage == "diffuser":
        print(f"[diffuser] done: {train_diffuser_stage(config, device)}")
        return 0
    name, _ = name_and_tasks(config)
    videos = read_videos_of(config)
    shown = {video.task for video in videos}
    if config.data is not None and config.task_set is None and len(shown) == 1:
        name = shown.pop()  # given videos of one task say it themselves
    for video in videos:
        kinds = f"{len(video.split('train'))} train, {len(video.split('validation'))} validation"
        print(
            f"[{config.stage}] {video.task}: {kinds} {video.mode} videos, {video.render.quality} rendering",
            flush=True,
        )
    default = f"checkpoints/{config.stage}/{name}"
    if config.stage == "statistics":
        default = str(config.reward.checkpoint).replace("{task}", name)
    out = absolute_path(config.out if config.out is not None else default, "out")
    if _lacks_statistics_only(config, out):
        print(f"[{config.stage}] {out} is trained; its statistics were cut off", flush=True)
    elif config.stage in SHOWN:
        resolve_paths(config, name, out)
        print(f"[{config.stage}] {_train(config, videos, workers, device)}")
    elif config.stage == "relative":
        shown_metrics = Shown("relative", ("loss", "validation_loss", "learning_rate"))
        print(f"[relative] {train_relative(config, videos, name, out, device, shown_metrics)}")
    elif is_unfinished(out):
        raise UsageError(f"the training in {out} is not finished; go on with the command that began it")
    if config.stage in (*STAGE_REWARDS, "statistics"):
        _statistics(config, videos, out, device)
    print(f"[{config.stage}] done: {out}")
    return 0


def _lacks_statistics_only(config: DictConfig, out: Path) -> bool:
    """Whether a kill came between the end of a reward model's training and its statistics."""
    if config.stage not in STAGE_REWARDS or (out / STATISTICS_FILE).exists():
        return False
    network = out / NETWORK_FOLDER if config.frame_reward.get("form") == "r3" else out
    trained = is_finished(out) if config.stage == "relative" else (out / SUMMARY_FILE).exists()
    return trained and (network / SUMMARY_FILE).exists()


def _require_reward_of_the_stage(config: DictConfig) -> None:
    """Refuses, before any training, a reward whose statistics cannot be computed with what the stage makes."""
    wanted, frozen = STAGE_REWARDS.get(config.stage), config.reward.frozen
    if wanted is not None and frozen != wanted:
        raise UsageError(
            f"stage={config.stage} trains the model of the frozen reward {wanted!r}, but reward={config.reward.name} "
            f"has {frozen!r}; leave reward= out"
        )
    if config.stage == "statistics" and frozen is None:
        raise UsageError(f"reward={config.reward.name} has no statistics; choose a frozen reward")
    if frozen is not None and config.stage in (*STAGE_REWARDS, "statistics"):
        build(reward_class(frozen).config_class, config.frame_reward, "frame_reward.")


def count_workers(given: Any) -> int:
    """How many processes train together; null means one.

    Raises:
        UsageError: if it is no whole number of at least 1.
    """
    if given is None:
        return 1
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UsageError(f"workers must be a whole number of at least 1, or null for one, got {given!r}")
    return given


def choose_device(name: str) -> torch.device:
    """ "auto" takes a GPU if there is one.

    Raises:
        UsageError: for an unknown device, or cuda without a GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {name!r}; {suggest(str(name), ('auto', 'cpu', 'cuda'))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda, but torch sees no GPU here; use device=cpu or install a CUDA build of torch"
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_paths(config: DictConfig, name: str, out: Path) -> None:
    """Makes all paths of a training absolute and fills in the defaults: workers run in other folders.

    Args:
        config: Composed configuration, changed in place.
        name: What <task> stands for in the default folders.
        out: Training folder.
    """
    if config.data is not None:
        roots = config.data if isinstance(config.data, ListConfig) else [config.data]
        config.data = [str(absolute_path(str(root), "data")) for root in roots]
    else:
        tasks = name_and_tasks(config)[1]
        config.data = [str(absolute_path(f"data/{task}/expert", "data")) for task in tasks]
    if config.stage != "codec":
        codec = (
            config.codec_checkpoint if config.codec_checkpoint is not None else f"checkpoints/codec/{name}"
        )
        config.codec_checkpoint = str(absolute_path(str(codec), "codec_checkpoint"))
    if config.init_from is not None:
        config.init_from = str(absolute_path(str(config.init_from), "init_from"))
    config.out = str(out)


def _train(config: DictConfig, videos: list[VideoSet], workers: int, device: torch.device) -> dict[str, Any]:
    shown = Shown(config.stage, SHOWN[config.stage])
    if workers == 1:
        return train_stage(config, videos, Path(config.out), device, shown)
    protect_local_ray(config.address)  # before anything imports Ray
    from launch.pretrain_workers import train_on_workers

    return train_on_workers(config, workers, shown)


def _statistics(config: DictConfig, videos: list[VideoSet], out: Path, device: torch.device) -> None:
    cls = reward_class(config.reward.frozen)
    if config.stage == "video" and any(video.mode != "expert" for video in videos):
        videos = [video for video in videos if video.mode == "expert"]
        print(
            "[statistics] of the expert videos among them; a model of other behaviours serves as a base",
            flush=True,
        )
        if not videos:
            return
    base = build(cls.config_class, config.frame_reward, "frame_reward.")
    sees_first_frame = read_json(out / "config.json")["model"].get("history", "recent") != "recent"
    for settings in base.cheap_siblings():
        if sees_first_frame and getattr(settings, "mode", None) == "entropy":
            print(
                "[statistics] no entropy: the model does not see the frames just before",
                flush=True,
            )
            continue
        reward = cls.from_checkpoint(out, asdict(settings), str(device))
        for task, numbers in compute_statistics(reward, videos, seed=config.seed).items():
            print(
                f"[statistics] {task} {settings.signature()}: mean {numbers['mean']:.3f}, std {numbers['std']:.3f} "
                f"over {numbers['frames']} {numbers['split']} frames",
                flush=True,
            )


if __name__ == "__main__":
    main()
