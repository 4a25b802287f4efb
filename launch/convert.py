"""Converts files of the official implementation of Diffusion Reward into checkpoint and video folders.

    python launch/convert.py kind=codec    source=vqgan.pt    domain=metaworld
    python launch/convert.py kind=video    source=best.pth    domain=metaworld
    python launch/convert.py kind=videogpt source=videogpt.pt domain=adroit tasks=[door,hammer,pen]
    python launch/convert.py kind=dataset  source=<root>      domain=metaworld             (to data/<task>/expert)

Nothing in a file can run code: pickled objects are refused. Sizes are read off the tensors; keys that are missing or
unknown are listed. Rewards need statistics over expert videos afterwards (`pretrain.py stage=statistics`). PNG datasets
are read as they are by pretrain.py and score.py; only reward=amp needs them converted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # Run as a script: import from the project root, not from launch/.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from omegaconf import DictConfig, ListConfig

from actors.envs.registry import task_set
from launch import cli
from launch.cli import UsageError, suggest
from launch.official_dataset import (
    OFFICIAL_DOMAINS,
    is_official,
    is_upside_down,
    official_task_names,
    read_official,
)
from launch.paths import absolute_path
from models import official
from models.files import new_folder
from models.official import OfficialFile
from models.videos import VideoSet, write_videos
from models.vqgan import VQGAN

DATASET = "dataset"
PAPER_TASKS = {"metaworld": "metaworld7", "adroit": "adroit3"}
# Reward whose statistics the printed next command computes.
NEXT_REWARD = {"video": "diffusion", "videogpt": "viper"}


def main() -> None:
    """Entry point of `python launch/convert.py`."""
    cli.main("convert", __doc__ or "", convert)


def convert(config: DictConfig) -> int:
    """Reads the official file, builds the model, writes its folder.

    Raises:
        UsageError: for an unknown kind, domain or task, or an output folder that exists.
        FileNotFoundError: if a file is missing.
        ValueError: if a file does not hold what it should; keys that do not fit are listed.
    """
    if config.kind == DATASET:
        return _convert_dataset(config)
    if config.kind not in CONVERTERS:
        raise UsageError(f"unknown kind {config.kind!r}; {suggest(str(config.kind), [*CONVERTERS, DATASET])}")
    facts = official_facts(config)
    default = f"checkpoints/{config.kind}/official-{config.domain}"
    out = absolute_path(config.out if config.out is not None else default, "out")
    if out.exists():
        raise UsageError(f"{out} already exists; nothing is overwritten. Choose another folder with out=...")
    file = official.read_official(absolute_path(str(config.source), "source"), str(config.weights))
    facts["official"] = {"file": file.path.name, "weights": file.kind, "last_epoch": file.last_epoch}
    if file.kind != "plain":
        print(f"[convert] {file.path.name}: {file.kind} weights of epoch {file.last_epoch}")
    with new_folder(out) as partial:
        CONVERTERS[config.kind](config, file, facts, partial)
    print(f"[convert] done: {out}")
    if config.kind in NEXT_REWARD:
        print(
            "[convert] next, statistics of the reward over expert videos drawn like the official ones (full quality): "
            f"python launch/pretrain.py stage=statistics reward={NEXT_REWARD[config.kind]} preset=paper "
            f"data=<videos> out={out}"
        )
    return 0


def official_facts(config: DictConfig) -> dict[str, Any]:
    """What the official files do not say: tasks, domain, render setting and action repeat.

    Raises:
        UsageError: for an unknown domain or task.
    """
    domain = str(config.domain)
    known = official_task_names(domain)
    given = config.tasks if config.tasks is not None else list(task_set(PAPER_TASKS[domain]))
    names = list(given) if isinstance(given, (list, tuple, ListConfig)) else [given]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown task {name!r} of {domain}; {suggest(str(name), set(known.values()))}")
    facts = OFFICIAL_DOMAINS[domain]
    size = int(config.resolution_px)
    return {
        "tasks": sorted({known[name] for name in names}),
        "domain": domain,
        "render": {**asdict(facts.render), "height_px": size, "width_px": size},
        "action_repeat": facts.action_repeat,
    }


def _convert_dataset(config: DictConfig) -> int:
    """Writes one video folder per task, <out>/<task>/expert; a task appears only when it is complete."""
    source = absolute_path(str(config.source), "source")
    if not is_official(source):
        raise UsageError(f"no official dataset at {source}: expected <domain>/<task>/train/<episode>/0.png")
    sets = read_official(source, str(config.domain), upside_down=config.upside_down)
    if config.tasks is not None:
        wanted = official_facts(config)["tasks"]
        absent = set(wanted) - {videos.task for videos in sets}
        if absent:
            raise UsageError(f"{source} has no videos of {', '.join(sorted(absent))}")
        sets = [videos for videos in sets if videos.task in wanted]
    root = absolute_path(config.out if config.out is not None else "data", "out")
    for videos in sets:
        if (root / videos.task / "expert").exists():
            raise UsageError(
                f"{root / videos.task / 'expert'} already exists; nothing is overwritten. Choose another folder "
                "with out=..."
            )
    for videos in sets:
        out = root / videos.task / "expert"
        with new_folder(out) as partial:
            _write_dataset(partial, videos)
        print(f"[convert] {len(videos.episodes)} videos of {videos.task}: {out}", flush=True)
    return 0


def _write_dataset(folder: Path, videos: VideoSet) -> None:
    write_videos(
        folder,
        videos.episodes,
        task=videos.task,
        domain=videos.domain,
        mode=videos.mode,
        render=videos.render,
        action_repeat=videos.action_repeat,
        splits=[record["split"] for record in videos.records],
        has_rewards=False,
        extra={"official": [record["file"] for record in videos.records]},
    )


def _convert_codec(config: DictConfig, file: OfficialFile, facts: dict[str, Any], out: Path) -> None:
    from models.vqgan import save_codec

    codec = _build_codec(config, file)
    save_codec(out, codec, facts)
    _describe("codec", codec)
    _left_out("not of the codec", file.other_names(official.CODEC_MARK))


def _convert_video(config: DictConfig, file: OfficialFile, facts: dict[str, Any], out: Path) -> None:
    from models.vqdiffusion.checkpoint import save_video_model

    codec = _codec_of(config, file)
    weights = file.require(official.DIFFUSION_MARK, "video diffusion model")
    heads = 16 if config.num_heads is None else int(config.num_heads)
    model, unused = official.build_video_model(
        weights, file.path, heads, int(config.num_history_frames), int(config.frame_skip)
    )
    save_video_model(out, model, codec, facts, codec_extra=facts)
    _describe("codec", codec)
    _describe("video model", model)
    _left_out("nothing reads them", unused)
    _left_out("unknown", file.other_names(official.CODEC_MARK, official.DIFFUSION_MARK))


def _convert_videogpt(config: DictConfig, file: OfficialFile, facts: dict[str, Any], out: Path) -> None:
    from models.videogpt.checkpoint import save_videogpt

    if config.frame_skip != 1:
        raise UsageError(
            f"frame_skip={config.frame_skip}: official VideoGPT weights know neighbouring frames only"
        )
    codec = _codec_of(config, file)
    weights = file.require(official.VIDEOGPT_MARK, "VideoGPT")
    heads = 8 if config.num_heads is None else int(config.num_heads)
    model, unused = official.build_videogpt(weights, codec, file.path, heads, int(config.num_history_frames))
    save_videogpt(out, model, codec, facts, codec_extra=facts)
    _describe("codec", codec)
    _describe("videogpt", model)
    _left_out("nothing reads them", unused)
    _left_out("unknown", file.other_names(official.CODEC_MARK, official.VIDEOGPT_MARK))


CONVERTERS: dict[str, Callable[[DictConfig, OfficialFile, dict[str, Any], Path], None]] = {
    "codec": _convert_codec,
    "video": _convert_video,
    "videogpt": _convert_videogpt,
}


def _codec_of(config: DictConfig, file: OfficialFile) -> VQGAN:
    """The codec that `codec_source` names, or the one in the file itself; they must be one if both are there."""
    inside = file.part(official.CODEC_MARK)
    if config.codec_source is None:
        if inside is None:
            raise UsageError(
                f"{file.path} does not hold the codec; give the official one with codec_source=<vqgan.pt>"
            )
        return _build_codec(config, file)
    other = official.read_official(
        absolute_path(str(config.codec_source), "codec_source"), str(config.weights)
    )
    codec = _build_codec(config, other)
    if inside is not None:
        state = codec.state_dict()
        different = [n for n, value in inside.items() if n not in state or not torch.equal(state[n], value)]
        if different:
            raise UsageError(
                f"the codec in {file.path} is not that of {other.path}: {len(different)} tensors differ, "
                f"{different[0]} among them. The video model knows the tokens of its own codec only: leave "
                "codec_source out"
            )
    return codec


def _build_codec(config: DictConfig, file: OfficialFile) -> VQGAN:
    given = config.upside_down
    upside_down = is_upside_down(given, config.domain)
    why = "default of the domain" if given is None else "as given"
    print(
        f"[convert] weights know {'upside-down' if upside_down else 'upright'} pictures ({why}, upside_down=)"
    )
    weights = file.require(official.CODEC_MARK, "codec")
    return official.build_codec(weights, file.path, int(config.resolution_px), upside_down)


def _describe(what: str, model: Any) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    sizes = ", ".join(f"{key}={value}" for key, value in asdict(model.config).items())
    print(f"[convert] {what}: {count:,} parameters; {sizes}")


def _left_out(why: str, names: list[str]) -> None:
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        print(f"[convert] left out, {why}: {len(names)} tensors ({shown})")


if __name__ == "__main__":
    main()
