"""Checkpoint folders: `config.json` + `weights.pt`, and the resumable `training_state.pt` of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from models.files import read_json, write_atomic, write_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.pt"
STATE_FILE = "training_state.pt"
FORMAT_VERSION = 1
# Kinds that `launch/relative.py` trains; the others are those of `launch/pretrain.py`.
KINDS_OF_RELATIVE = ("relative_reward", "toy_reward", "image_diffuser", "image_reward")


def save_tensors(path: str | Path, values: Any) -> None:
    """Writes tensors (nested dicts, lists, numbers, strings) atomically with `torch.save`.

    Raises:
        OSError: naming the file, if the disk is full or not writable; the file is untouched then.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save(values, file)
        except RuntimeError as error:
            cause = error.__context__
            if not isinstance(cause, OSError):
                raise
            # torch speaks of an "unexpected pos" in its archive instead.
            raise OSError(cause.errno, cause.strerror, str(path)) from None

    write_atomic(path, write)


def load_tensors(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Reads a file of tensors; nothing in it can run code (`weights_only=True`).

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: naming the file, if it cannot be read as tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: train that model first, or correct the path")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many unrelated types for a damaged or foreign file
        raise ValueError(
            f"{path} is not a readable file of tensors ({type(error).__name__}: {error}). It may be damaged, or "
            "hold pickled objects, which are refused because they could run code; save a plain state dict instead"
        ) from error


def load_weights(path: str | Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Reads a state dict.

    Args:
        path: A file written with `torch.save(module.state_dict())`.
        device: Where the tensors go.

    Returns:
        Parameter name -> tensor.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is unreadable or not a state dict.
    """
    weights = load_tensors(path, device)
    if not isinstance(weights, Mapping) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        found = sorted(map(str, weights)) if isinstance(weights, Mapping) else type(weights).__name__
        raise ValueError(f"{path} is not a state dict: expected parameter name -> tensor, found {found}")
    return dict(weights)


def apply_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Loads a state dict into a module; every key and every shape must match.

    Args:
        module: Receives the weights.
        weights: State dict.
        source: Named in the error.

    Raises:
        ValueError: listing missing keys, unexpected keys and shapes that differ.
    """
    wanted = module.state_dict()
    problems = []
    for title, names in (
        ("missing", wanted.keys() - weights.keys()),
        ("unexpected", weights.keys() - wanted.keys()),
    ):
        if names:
            problems.append(f"{len(names)} {title}: {_some(sorted(names))}")
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {_some(shapes)}")
    if problems:
        raise ValueError(
            f"weights of {source} do not fit {type(module).__name__} ({'; '.join(problems)}). "
            "Use the configuration that these weights were trained with"
        )
    module.load_state_dict(dict(weights))


def save_checkpoint(
    folder: str | Path, module: nn.Module, config: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a checkpoint folder: `weights.pt` first, `config.json` last.

    Args:
        folder: Made if missing.
        module: Its state dict is written.
        config: JSON-able description; must hold "kind". "format" is added.
        overwrite: Whether an existing checkpoint in the folder may be replaced.

    Raises:
        FileExistsError: if the folder already holds a checkpoint and `overwrite` is off.
    """
    folder = Path(folder)
    if not overwrite:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if (folder / name).exists():
                raise FileExistsError(
                    f"{folder / name} already exists; choose another folder or remove it first"
                )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    save_tensors(folder / WEIGHTS_FILE, weights)
    write_json(folder / CONFIG_FILE, {"format": FORMAT_VERSION, **config})


def load_checkpoint_config(folder: str | Path, kind: str) -> dict[str, Any]:
    """Reads and checks the `config.json` of a checkpoint folder.

    Args:
        folder: Checkpoint folder.
        kind: The expected kind of model, for example "vqgan".

    Raises:
        FileNotFoundError: if the folder holds no checkpoint.
        ValueError: if it is of another format or kind.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        verb = "relative.py train" if kind in KINDS_OF_RELATIVE else "pretrain.py"
        raise FileNotFoundError(
            f"no {kind} checkpoint at {folder}: {CONFIG_FILE} is missing. Train one with `python launch/{verb}`"
        )
    config = read_json(path)
    if config.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {config.get('format')!r}, expected {FORMAT_VERSION}; train it again"
        )
    if config.get("kind") != kind:
        raise ValueError(
            f"{path} describes a {config.get('kind')!r} model, expected {kind!r}; check the path"
        )
    return config


def require_same_config(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: str | Path) -> None:
    """Refuses to go on with another configuration.

    Args:
        saved: What the folder was started with (nested dicts of JSON values).
        wanted: What was asked for now.
        folder: Named in the error.

    Raises:
        ValueError: naming each key that differs, with both values.
    """
    a, b = flatten(saved), flatten(wanted)
    absent = "(absent)"
    different = [
        f"{key}: {a.get(key, absent)!r} there, {b.get(key, absent)!r} asked for"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, absent) != b.get(key, absent)
    ]
    if different:
        raise ValueError(
            f"{folder} was started with another configuration ({'; '.join(different)}). "
            "Resume with the same values, or choose another folder"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one level with dotted keys; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _some(names: list[str], limit: int = 5) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
