"""The folder of a relative video reward: an expert video model, beside it its base model.

<folder>/             the expert model, as any video model's folder: config.json, weights.pt, codec/
<folder>/base/        the base model: config.json, weights.pt; it reads the same codec/
<folder>/network/     optional: the learned reward network of form r3
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.checkpoints import (
    WEIGHTS_FILE,
    apply_weights,
    load_checkpoint_config,
    load_weights,
    save_checkpoint,
)
from models.files import checksum
from models.model_folder import model_config
from models.vqdiffusion.checkpoint import KIND, load_video_model
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqgan import VQGAN

BASE_FOLDER = "base"


@dataclass(frozen=True)
class VideoPair:
    """Two video models that share codec, schedule and context, in eval mode without gradients.

    Attributes:
        expert: Trained on expert videos, from the weights of `base`.
        base: Trained on diverse videos.
        codec: Of both.
        meta: Content of the expert's `config.json`.
        base_meta: Content of the base's.
    """

    expert: VQDiffusion
    base: VQDiffusion
    codec: VQGAN
    meta: dict[str, Any]
    base_meta: dict[str, Any]

    @property
    def knows_partial_masks(self) -> bool:
        """Whether both models were trained on partly masked frames, not on fully masked ones alone."""
        return all(meta.get("all_mask_fraction", 0.0) < 1.0 for meta in (self.meta, self.base_meta))


def add_base(folder: str | Path, base_folder: str | Path) -> None:
    """Puts a copy of a video model into an expert's folder as its base, unless it is there already.

    Args:
        folder: Of the expert model.
        base_folder: Of the base model.

    Raises:
        ValueError: if the expert model did not start from this base model.
    """
    require_started_from(folder, base_folder)
    own = Path(folder) / BASE_FOLDER
    if (own / "config.json").exists():
        return
    model, _, meta = load_video_model(base_folder)
    # a half-written copy of an earlier try is replaced
    facts = {k: v for k, v in meta.items() if k != "format"}
    save_checkpoint(own, model, facts, overwrite=True)


def require_started_from(folder: str | Path, base_folder: str | Path) -> None:
    """Refuses an expert model that another base was trained into (ValueError)."""
    meta = load_checkpoint_config(folder, KIND)
    started = meta.get("init_from", {}).get("weights")
    base = checksum(Path(base_folder) / WEIGHTS_FILE)
    if started != base:
        raise ValueError(
            f"the expert model {folder} started from weights {started}, the base model {base_folder} has {base}: they "
            "are no pair. Give the base it was trained from, or train another expert in another folder"
        )


def load_pair(folder: str | Path, device: str | torch.device = "cpu") -> VideoPair:
    """Reads the folder of a relative video reward.

    Raises:
        FileNotFoundError: if it, its base or a part of them is missing.
        ValueError: if the two models do not fit each other.
    """
    with torch.inference_mode(False):  # so that the weights stay ordinary tensors wherever this is called
        return _load(Path(folder), device)


def _load(folder: Path, device: str | torch.device) -> VideoPair:
    expert, codec, meta = load_video_model(folder, device)
    own = folder / BASE_FOLDER
    if not (own / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds a video model without a base model to compare it with: {own} is missing. Train both with "
            "`python launch/pretrain.py stage=video` (diverse videos) and `stage=relative base=<that folder>`"
        )
    base_meta = load_checkpoint_config(own, KIND)
    config = model_config(VQDiffusionConfig, base_meta["model"], own)
    require_same_sizes(expert.config, config, folder)
    base = copy.deepcopy(expert)
    apply_weights(base, load_weights(own / WEIGHTS_FILE), own / WEIGHTS_FILE)
    return VideoPair(expert, base, codec, meta, base_meta)


def require_same_sizes(expert: VQDiffusionConfig, base: VQDiffusionConfig, folder: str | Path) -> None:
    """Refuses two models that do not share codes, schedule and context (ValueError naming what differs)."""
    a, b = asdict(expert), asdict(base)
    different = [f"{key}: {a[key]!r} against {b[key]!r}" for key in a if a[key] != b[key]]
    if different:
        raise ValueError(
            f"expert and base model of {folder} differ ({'; '.join(different)}): a relative reward compares two models "
            "that share all sizes; train the expert with stage=relative, which takes them from its base"
        )
