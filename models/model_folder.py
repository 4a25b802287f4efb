"""Folders of models that read a codec's tokens: weights, description, and their own copy of the codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from models.checkpoints import save_checkpoint
from models.vqgan import VQGAN, load_codec, save_codec

CODEC_FOLDER = "codec"
Config = TypeVar("Config")


def save_with_codec(
    folder: str | Path,
    kind: str,
    model: nn.Module,
    config: Any,
    codec: VQGAN,
    extra: Mapping[str, Any],
    *,
    codec_extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes `codec/` if it is not there yet, `weights.pt`, and `config.json` last.

    Args:
        folder: Made if missing.
        kind: Of the model, for `config.json`.
        model: Its state dict is written.
        config: Its config dataclass.
        codec: The codec whose tokens it reads.
        extra: JSON-able facts for `config.json`: "tasks", "domain", "render", "action_repeat", ...
        codec_extra: The codec's own facts, kept in `codec/config.json`.
        overwrite: Whether an earlier model in the folder may be replaced.

    Raises:
        FileExistsError: if the folder already holds a model and `overwrite` is off.
    """
    own_codec = Path(folder) / CODEC_FOLDER
    if not (own_codec / "config.json").exists():
        # a half-written copy of an earlier try is replaced
        save_codec(own_codec, codec, dict(codec_extra or {}), overwrite=True)
    save_checkpoint(folder, model, {"kind": kind, "model": asdict(config), **extra}, overwrite=overwrite)


def load_own_codec(folder: str | Path, device: Any) -> VQGAN:
    """The codec inside a model's folder, in eval mode without gradients (FileNotFoundError if it is missing)."""
    return load_codec(Path(folder) / CODEC_FOLDER, device=str(device)).eval().requires_grad_(False)


def require_same_values(config: Any, codec: VQGAN, keys: Sequence[str], name: str) -> None:
    """Refuses a codec that a model does not fit.

    Raises:
        ValueError: naming the first key that differs, both values and what to do.
    """
    for key in keys:
        mine, theirs = getattr(config, key), getattr(codec.config, key)
        if mine != theirs:
            raise ValueError(
                f"{name} {key}={mine} does not fit the codec's {key}={theirs}; use the codec's value"
            )


def model_config(cls: type[Config], values: Mapping[str, Any], folder: str | Path) -> Config:
    """The config dataclass of a saved model.

    Raises:
        ValueError: naming keys of `config.json` that this version does not know.
    """
    unknown = sorted(set(values) - set(cls.__dataclass_fields__))  # type: ignore[attr-defined]
    if unknown:
        raise ValueError(
            f"{folder}/config.json has unknown model keys {unknown}; it was written by another version, "
            "train the model again or use that version"
        )
    return cls(**values)
