"""Whether videos, codec and video model fit together, and what of it a reward model remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.checkpoints import CONFIG_FILE
from models.files import read_json
from models.videos import RenderSettings, VideoSet
from models.vqgan import VQGAN


def dataset_facts(videos: Sequence[VideoSet]) -> dict[str, Any]:
    """What a reward model must remember of its videos: tasks, domain, render setting and action repeat.

    Raises:
        ValueError: if there are no videos, or they differ in domain, render setting or action repeat.
    """
    if not videos:
        raise ValueError("no video sets: give at least one folder of expert videos")
    first = videos[0]
    for other in videos[1:]:
        first.render.require_same(other.render, str(first.folder), str(other.folder))
        for key in ("action_repeat", "domain"):
            if getattr(first, key) != getattr(other, key):
                raise ValueError(
                    f"{first.folder} has {key}={getattr(first, key)!r}, {other.folder} has "
                    f"{key}={getattr(other, key)!r}: one video model needs videos of one {key}"
                )
    return {
        "tasks": sorted({video.task for video in videos}),
        "domain": first.domain,
        "render": asdict(first.render),
        "action_repeat": first.action_repeat,
    }


def codec_facts(codec_folder: str | Path, render: RenderSettings) -> dict[str, Any]:
    """The codec's own facts, from its `config.json`, after checking that it saw frames drawn the same way.

    Raises:
        FileNotFoundError: if there is no codec.
        ValueError: if its frames were drawn differently, naming each key that differs.
    """
    path = Path(codec_folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"no codec at {codec_folder}: {CONFIG_FILE} is missing. "
            "Train one with `python launch/pretrain.py stage=codec`, or correct the path"
        )
    facts = {k: v for k, v in read_json(path).items() if k not in ("format", "kind", "model")}
    if "render" in facts:
        RenderSettings(**facts["render"]).require_same(render, f"the codec {codec_folder}", "the videos")
    return facts


def check_resolution(render: RenderSettings, codec: VQGAN) -> None:
    """Refuses videos of another size than the codec's pictures.

    Raises:
        ValueError: naming both sizes.
    """
    size = codec.config.resolution_px
    if (render.height_px, render.width_px) != (size, size):
        raise ValueError(
            f"videos are {render.height_px}x{render.width_px} pixels, the codec takes {size}x{size}: train a codec "
            "at this resolution, or collect videos at the codec's"
        )
