"""The folder of a trained video model: weights, description, and its own copy of the codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.checkpoints import WEIGHTS_FILE, apply_weights, load_checkpoint_config, load_weights
from models.model_folder import load_own_codec, model_config, require_same_values, save_with_codec
from models.vqdiffusion.config import VQDiffusionConfig
from models.vqdiffusion.diffusion import VQDiffusion
from models.vqgan import VQGAN

KIND = "vqdiffusion"


def save_video_model(
    folder: str | Path,
    model: VQDiffusion,
    codec: VQGAN,
    extra: Mapping[str, Any],
    *,
    codec_extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a self-contained reward-model folder: `codec/`, `weights.pt`, and `config.json` last.

    Args:
        folder: Made if missing.
        model: Weights to keep (the EMA of the best validation).
        codec: Written to `codec/` if that is not there yet.
        extra: JSON-able facts for `config.json`: "tasks", "domain", "render", "action_repeat", ...
        codec_extra: The codec's own facts, kept in `codec/config.json`.
        overwrite: Whether an earlier video model in the folder may be replaced.

    Raises:
        FileExistsError: if the folder already holds a video model and `overwrite` is off.
        ValueError: if the codec does not fit the model.
    """
    require_codec_fits(model.config, codec)
    save_with_codec(
        folder, KIND, model, model.config, codec, extra, codec_extra=codec_extra, overwrite=overwrite
    )


def load_video_model(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[VQDiffusion, VQGAN, dict[str, Any]]:
    """Reads a reward-model folder.

    Returns:
        The model and its codec in eval mode without gradients, and the content of `config.json`.

    Raises:
        FileNotFoundError: if there is no checkpoint, or a part of it is missing.
        ValueError: if it is of another kind or format, or weights do not fit.
    """
    with torch.inference_mode(False):  # so that the weights stay ordinary tensors wherever this is called
        return _load(Path(folder), device)


def _load(folder: Path, device: str | torch.device) -> tuple[VQDiffusion, VQGAN, dict[str, Any]]:
    meta = load_checkpoint_config(folder, KIND)
    model = VQDiffusion(model_config(VQDiffusionConfig, meta["model"], folder))
    apply_weights(model, load_weights(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    codec = load_own_codec(folder, device)
    require_codec_fits(model.config, codec)
    return model.to(device).eval().requires_grad_(False), codec, meta


def require_codec_fits(config: VQDiffusionConfig, codec: VQGAN) -> None:
    """Refuses a codec whose tokens the model does not know.

    Raises:
        ValueError: naming the key, both values and what to do.
    """
    require_same_values(config, codec, ("num_codes", "latent_size"), "video model")
