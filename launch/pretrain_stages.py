"""The trainings of `pretrain.py`, from a composed configuration to a training folder: in its process or in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from actors.envs.registry import domain_of, task_set
from actors.experts import JUDGED_ONLY, LEARNED_FROM
from launch.cli import UsageError, build
from launch.official_dataset import is_official, read_official
from launch.paths import absolute_path
from launch.pretrain_relative import with_few_experts
from models.training_log import Progress
from models.videos import VideoSet, find_video_folders, read_videos

# The stages of this file, and the metrics that their progress shows.
SHOWN = {
    "codec": ("l1", "validation_l1", "codes_used"),
    "video": ("loss", "validation_loss", "learning_rate"),
    "videogpt": ("loss", "validation_loss", "learning_rate"),
}


def name_and_tasks(config: DictConfig) -> tuple[str, tuple[str, ...]]:
    """What <task> stands for in the default folders, and the tasks."""
    if config.task_set is not None:
        return config.task_set, task_set(config.task_set)
    return config.env.task, (config.env.task,)


def read_videos_of(config: DictConfig) -> list[VideoSet]:
    """The videos that a stage trains on; those of `actors.experts.JUDGED_ONLY` behaviours are left out, and it says so.

    Raises:
        FileNotFoundError: if there are none.
        UsageError: if all of them are left out.
    """
    tasks = name_and_tasks(config)[1]
    # The relative reward needs everybody's videos.
    behaviours = LEARNED_FROM if config.stage == "relative" else ("expert",)
    own = [f"data/{task}/{behaviour}" for task in tasks for behaviour in behaviours]
    data = config.data if config.data is not None else own
    videos = read_all(data, config.upside_down, domain_of(tasks[0]).name)
    used = [video for video in videos if video.mode not in JUDGED_ONLY]
    for video in videos:
        if video.mode in JUDGED_ONLY:
            print(
                f"[{config.stage}] left out: {video.folder}, {video.mode} videos are only judged", flush=True
            )
    if not used:
        raise UsageError(
            f"data= has only videos that are judged, not learned from ({', '.join(JUDGED_ONLY)})"
        )
    return with_few_experts(used, config.expert_videos) if config.stage == "video" else used


def read_all(data: Any, upside_down: bool | None = None, domain: str | None = None) -> list[VideoSet]:
    """Videos of one folder, of every video folder below it, or of a list of folders; official datasets as well.

    Args:
        data: Folder, or a list of folders.
        upside_down: Whether official pictures are upside down on disk; None for the domain's default.
        domain: Which domain is read where an official dataset has several.

    Raises:
        FileNotFoundError: if there are none.
    """
    roots = list(data) if isinstance(data, (list, tuple, ListConfig)) else [data]
    videos: list[VideoSet] = []
    for root in roots:
        folder = absolute_path(str(root), "data")
        if is_official(folder):
            videos += read_official(folder, domain, upside_down=upside_down)
        else:
            videos += [read_videos(found) for found in find_video_folders(folder)]
    return videos


def require_shares(config: DictConfig, workers: int) -> None:
    """Refuses a number of workers that cannot share the batch of the stage.

    Raises:
        UsageError: for such a number, or a stage that trains in one process.
    """
    if workers > 1 and config.stage not in SHOWN:
        raise UsageError(
            f"workers={workers}: stage={config.stage} runs in one process, leave workers= out; several train together "
            f"with stage={' | '.join(SHOWN)}"
        )
    if workers > 1:
        _training_settings(config).require_shares(workers)


def train_stage(
    config: DictConfig, videos: Sequence[VideoSet], out: Path, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """Trains, or goes on with, the model of a stage of `SHOWN`.

    Args:
        config: Composed configuration of `pretrain.py`; the codec's folder is given where the stage needs one.
        videos: To train on.
        out: Training folder.
        device: Where to train.
        progress: Called with (step, total_steps, metrics).

    Returns:
        The training's summary; empty in a worker that is not the first.
    """
    train = {"codec": _train_codec, "video": _train_video, "videogpt": _train_videogpt}[config.stage]
    return train(config, videos, out, device, progress)


def asked_settings(config: DictConfig) -> dict[str, Any]:
    """What a stage would train with: the validated fields of both its config dataclasses; of a relative pair only "training".

    Raises:
        UsageError: for a value that is not allowed.
    """
    training = {"training": asdict(_training_settings(config))}
    if config.stage == "relative":  # its sizes are the base's
        return training
    return {**training, "model": asdict(_model_settings(config))}


def _training_settings(config: DictConfig) -> Any:
    """How the stage's model is trained, validated."""
    from models.codec_training import CodecTrainingConfig
    from models.video_training import VideoTrainingConfig
    from models.videogpt_training import VideoGPTTrainingConfig

    classes = {"codec": CodecTrainingConfig, "video": VideoTrainingConfig, "videogpt": VideoGPTTrainingConfig}
    name = "video" if config.stage == "relative" else config.stage
    section = f"{name}_training"
    return build(classes[name], {**config[section], "seed": config.seed}, f"{section}.")


def _model_settings(config: DictConfig) -> Any:
    """Sizes of the stage's model, validated."""
    from models.videogpt.config import VideoGPTConfig
    from models.vqdiffusion.config import VQDiffusionConfig
    from models.vqgan import VQGANConfig

    classes = {"codec": VQGANConfig, "video": VQDiffusionConfig, "videogpt": VideoGPTConfig}
    return build(classes[config.stage], config[config.stage], f"{config.stage}.")


def _train_codec(
    config: DictConfig, videos: Sequence[VideoSet], out: Path, device: torch.device, progress: Progress
) -> dict[str, Any]:
    from models.codec_training import train_codec
    from models.video_facts import dataset_facts

    training, model = _training_settings(config), _model_settings(config)
    return train_codec(training, model, videos, out, device, progress, extra=dataset_facts(videos))


def _train_video(
    config: DictConfig, videos: Sequence[VideoSet], out: Path, device: torch.device, progress: Progress
) -> dict[str, Any]:
    from models.video_training import train_video_model

    training, model = _training_settings(config), _model_settings(config)
    codec, start = config.codec_checkpoint, config.init_from
    return train_video_model(training, model, videos, codec, out, device, progress, init_from=start)


def _train_videogpt(
    config: DictConfig, videos: Sequence[VideoSet], out: Path, device: torch.device, progress: Progress
) -> dict[str, Any]:
    from models.videogpt_training import train_videogpt

    training, model = _training_settings(config), _model_settings(config)
    return train_videogpt(training, model, videos, config.codec_checkpoint, out, device, progress)
