"""Training a video model from the weights of another one: what must agree, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints import WEIGHTS_FILE
from models.files import checksum
from models.vqdiffusion.checkpoint import load_video_model
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqgan import VQGAN

# Facts that two video models must share so that one can go on from the other.
SHARED_FACTS = ("domain", "render", "action_repeat")


@dataclass(frozen=True)
class VideoStart:
    """Weights that a video model's training starts from.

    Attributes:
        folder: The trained model they were read from.
        checksum: Of its weights file (CRC-32, 8 hex digits).
        weights: State dict, the running losses behind the importance distribution included.
        trained_steps: Optimiser steps behind them, or None where unknown.
    """

    folder: Path
    checksum: str
    weights: Mapping[str, Tensor]
    trained_steps: int | None

    @classmethod
    def read(
        cls,
        folder: str | Path,
        model_config: VQDiffusionConfig,
        codec: VQGAN,
        facts: Mapping[str, Any],
    ) -> VideoStart:
        """Reads a trained video model and checks that another training can go on from it.

        Args:
            folder: Of the trained model.
            model_config: Sizes of the model to be trained: equal to those of the trained one.
            codec: Codec of the model to be trained: has the weights of the trained one's.
            facts: Of the new videos, as `dataset_facts` gives them.

        Raises:
            FileNotFoundError: if there is no such model.
            ValueError: if sizes, codec or the way videos are made differ, naming what.
        """
        model, own_codec, meta = load_video_model(folder)
        _require_same(asdict(model.config), asdict(model_config), folder, "video.", "train with its sizes")
        there = {key: meta[key] for key in SHARED_FACTS if key in meta}
        here = {key: facts[key] for key in there}
        _require_same(there, here, folder, "", "give videos made as its own were")
        _require_same_codec(own_codec, codec, folder)
        path = Path(folder) / WEIGHTS_FILE
        return cls(Path(folder), checksum(path), model.state_dict(), meta.get("trained_steps"))

    def facts(self) -> dict[str, Any]:
        """What the new model's `config.json` remembers."""
        return {"folder": str(self.folder), "weights": self.checksum, "trained_steps": self.trained_steps}


def _require_same(
    there: Mapping[str, Any], here: Mapping[str, Any], folder: str | Path, prefix: str, advice: str
) -> None:
    different = [
        f"{prefix}{key}: {there[key]!r} there, {here[key]!r} here" for key in there if there[key] != here[key]
    ]
    if different:
        raise ValueError(
            f"a training cannot start from the video model {folder}: {'; '.join(different)}; {advice}, or start "
            "without it"
        )


def _require_same_codec(there: VQGAN, here: VQGAN, folder: str | Path) -> None:
    a, b = there.state_dict(), here.state_dict()
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name].to(a[name].device)) for name in a)
    if not same:
        raise ValueError(
            f"a training cannot start from the video model {folder}: it has another codec, so the same tokens mean "
            f"other pictures. Give codec_checkpoint={folder}/codec"
        )
