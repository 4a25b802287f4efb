"""The folder of a trained VideoGPT: weights, description, and its own copy of the codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints import WEIGHTS_FILE, apply_weights, load_checkpoint_config, load_weights
from models.model_folder import load_own_codec, model_config, require_same_values, save_with_codec
from models.videogpt.config import VideoGPTConfig
from models.videogpt.gpt import VideoGPT
from models.vqgan import VQGAN

KIND = "videogpt"
MASK_SUFFIX = ".attn.mask"
POSITIONS = "transformer.pos_emb"


def save_videogpt(
    folder: str | Path,
    model: VideoGPT,
    codec: VQGAN,
    extra: Mapping[str, Any],
    *,
    codec_extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a self-contained reward-model folder: `codec/`, `weights.pt`, and `config.json` last.

    Args:
        folder: Made if missing.
        model: Weights to keep (those of the best validation).
        codec: Written to `codec/` if that is not there yet.
        extra: JSON-able facts for `config.json`: "tasks", "domain", "render", "action_repeat", ...
        codec_extra: The codec's own facts, kept in `codec/config.json`.
        overwrite: Whether an earlier model in the folder may be replaced.

    Raises:
        FileExistsError: if the folder already holds a model and `overwrite` is off.
        ValueError: if the codec does not fit the model.
    """
    require_codec_fits(model.config, codec)
    save_with_codec(
        folder, KIND, model, model.config, codec, extra, codec_extra=codec_extra, overwrite=overwrite
    )


def load_videogpt(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[VideoGPT, VQGAN, dict[str, Any]]:
    """Reads a reward-model folder.

    Returns:
        The model and its codec in eval mode without gradients, and the content of `config.json`.

    Raises:
        FileNotFoundError: if there is no checkpoint, or a part of it is missing.
        ValueError: if it is of another kind or format, or weights do not fit.
    """
    with torch.inference_mode(False):  # so that the weights stay ordinary tensors wherever this is called
        return _load(Path(folder), device)


def _load(folder: Path, device: str | torch.device) -> tuple[VideoGPT, VQGAN, dict[str, Any]]:
    meta = load_checkpoint_config(folder, KIND)
    config = model_config(VideoGPTConfig, meta["model"], folder)
    codec = load_own_codec(folder, device)
    require_codec_fits(config, codec)
    model = VideoGPT(config, codec.codebook.embedding.weight)
    apply_weights(model, load_weights(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    return model.to(device).eval().requires_grad_(False), codec, meta


def require_codec_fits(config: VideoGPTConfig, codec: VQGAN) -> None:
    """Refuses a codec whose tokens or code vectors the model does not know.

    Raises:
        ValueError: naming the key, both values and what to do.
    """
    require_same_values(config, codec, ("num_codes", "latent_size", "latent_dim"), "videogpt")


def from_official(weights: Mapping[str, Tensor], config: VideoGPTConfig, source: str) -> dict[str, Tensor]:
    """The GPT part of an official state dict (names `transformer.*`) as a state dict of `VideoGPT`.

    The causal masks are left out, for they hold no knowledge, and of the position embeddings (5120 officially, of
    which a window uses the first ones only) those of one window are kept. Both are exact.

    Args:
        weights: Official names; anything else is passed on, for `apply_weights` to complain about.
        config: Of the model to be filled.
        source: Named in errors.

    Raises:
        ValueError: if a mask is not causal, or there are fewer positions than a window has tokens.
    """
    kept = {}
    for name, value in weights.items():
        if name.endswith(MASK_SUFFIX):
            if not torch.equal(value.bool(), torch.ones_like(value, dtype=torch.bool).tril()):
                raise ValueError(
                    f"{source}: {name} is not a causal mask; these weights are not of the official VideoGPT"
                )
        elif name == POSITIONS:
            if value.ndim != 3 or value.shape[1] < config.block_size:
                raise ValueError(
                    f"{source}: {name} is {tuple(value.shape)}, but a window has {config.block_size} tokens; lower "
                    "num_history_frames or latent_size to what the weights were trained with"
                )
            kept[name] = value[:, : config.block_size].clone()
        else:
            kept[name] = value
    return kept
