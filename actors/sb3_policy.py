"""Policies of Stable-Baselines3, read from their zip files without unpickling anything and without that library.

<file>.zip
    data          JSON; what is not plain is a pickle in base64, which is never decoded, beside plain descriptions of it
    policy.pth    the networks' state dict

Read are MLP policies over one state vector: PPO and A2C (Gaussian, clipped), SAC and TQC (squashed Gaussian), TD3 and
DDPG (squashed). Normalisation by VecNormalize lies outside the file and is not applied.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "LeakyReLU": lambda x: np.where(x > 0, x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "SiLU": lambda x: x / (1.0 + np.exp(-x)),
    "Identity": lambda x: x,
}


@dataclass(frozen=True)
class Family:
    """How the algorithms of one family name the layers of their policies.

    Attributes:
        algorithms: For messages.
        hidden: Prefix of the hidden layers; a number and "weight" or "bias" follow.
        output: Prefix of the output layer, or None where it is the last of `hidden`.
        is_squashed: The mean action goes through tanh; else it is clipped.
        activation: The library's default.
    """

    algorithms: str
    hidden: tuple[str, ...]
    output: str | None
    is_squashed: bool
    activation: str


ON_POLICY = Family(
    "PPO/A2C", ("mlp_extractor.shared_net", "mlp_extractor.policy_net"), "action_net", False, "Tanh"
)
SQUASHED_GAUSSIAN = Family("SAC/TQC", ("actor.latent_pi",), "actor.mu", True, "ReLU")
DETERMINISTIC = Family("TD3/DDPG", ("actor.mu",), None, True, "ReLU")


@dataclass(frozen=True)
class MlpPolicy:
    """The mean action of an MLP.

    Attributes:
        name: Used in messages.
        layers: (weight (out, in), bias (out,)) float32, in order.
        activation: Name in `ACTIVATIONS`, between the layers.
        is_squashed: tanh at the end, else clipped to [-1, 1].
        is_default_activation: The file names no activation; the library's default was taken.
    """

    name: str
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    activation: str
    is_squashed: bool
    is_default_activation: bool

    @property
    def state_size(self) -> int:
        """Numbers in a state."""
        return int(self.layers[0][0].shape[1])

    @property
    def action_size(self) -> int:
        """Numbers in an action."""
        return int(self.layers[-1][0].shape[0])

    def __str__(self) -> str:
        sizes = "-".join(str(n) for n in (self.state_size, *(len(bias) for _, bias in self.layers)))
        default = " (the library's default: the file names none)" if self.is_default_activation else ""
        return f"{self.name}: MLP {sizes}, {self.activation}{default}"

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Mean action (A,) float32 in [-1, 1] of one state (S,)."""
        x = np.asarray(state, dtype=np.float32)
        for number, (weight, bias) in enumerate(self.layers, 1):
            x = weight @ x + bias
            if number < len(self.layers):
                x = ACTIVATIONS[self.activation](x)
        action = np.tanh(x) if self.is_squashed else np.clip(x, -1.0, 1.0)
        return action.astype(np.float32)


def load_sb3_policy(path: str | Path) -> MlpPolicy:
    """Reads the policy of a zip file of Stable-Baselines3.

    Args:
        path: What `model.save(path)` wrote.

    Raises:
        ValueError: if it is no such file, holds objects other than plain tensors, or a policy that is not supported;
            the message names what was found.
    """
    path = Path(path)
    data, weights = _read(path)
    family = _family(path, weights)
    _refuse_unsupported(path, data, weights)
    activation, is_default = _activation(path, data, family)
    layers = [layer for prefix in family.hidden for layer in _numbered_layers(path, weights, prefix)]
    if family.output is not None:
        layers.append(_layer(path, weights, family.output))
    _require_chain(path, layers)
    return MlpPolicy(
        f"{path} ({family.algorithms})", tuple(layers), activation, family.is_squashed, is_default
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    expected = (
        "expected a file written by model.save() of Stable-Baselines3, with 'data' and 'policy.pth' in it"
    )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "policy.pth" not in names:
                raise ValueError(f"{path} holds {', '.join(names) or 'nothing'}; {expected}")
            data = json.loads(archive.read("data")) if "data" in names else {}
            packed = archive.read("policy.pth")
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or another kind of file ({error}); {expected}") from error
    try:
        weights = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"policy.pth of {path} was refused: it holds more than plain tensors, or is damaged ({first})"
        ) from error
    if not isinstance(weights, Mapping) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ValueError(f"policy.pth of {path} is no state dict of tensors")
    return data if isinstance(data, dict) else {}, dict(weights)


def _family(path: Path, weights: Mapping[str, torch.Tensor]) -> Family:
    if "action_net.weight" in weights:
        return ON_POLICY
    if "actor.mu.weight" in weights:
        return SQUASHED_GAUSSIAN
    if "actor.mu.0.weight" in weights:
        return DETERMINISTIC
    raise ValueError(
        f"{path} holds no policy that is supported: expected MLP policies of PPO, A2C (action_net.*), SAC, TQC "
        f"(actor.mu.weight), TD3 or DDPG (actor.mu.0.weight); found {', '.join(sorted(weights)[:8])}, ..."
    )


def _refuse_unsupported(path: Path, data: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    other = [key for key in weights if "features_extractor" in key or "lstm" in key]
    if other:
        raise ValueError(
            f"{path} is no plain MLP policy: it has {other[0]} (pictures, several inputs or a memory). An expert "
            "must read the environment's state vector: train it with policy='MlpPolicy'"
        )
    if data.get("use_sde"):
        raise ValueError(
            f"{path} was trained with use_sde=True, which is not supported; train with use_sde=False"
        )
    space = data.get("action_space")
    kind = space.get(":type:", "") if isinstance(space, Mapping) else ""
    if kind and ".Box" not in kind:
        raise ValueError(f"{path} has actions of {kind}, expected a continuous Box in [-1, 1]")
    if isinstance(space, Mapping):
        _require_unit_box(path, space)


def _require_unit_box(path: Path, space: Mapping[str, Any]) -> None:
    for key, wanted in (("low", -1.0), ("high", 1.0)):
        text = str(space.get(f"{key}_repr", space.get(key, "")))
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*(?:[eE][-+]?\d+)?|-?inf", text)]
        if any(not math.isclose(n, wanted) for n in numbers):
            raise ValueError(
                f"{path} has actions with {key} {text}, expected {wanted:g}: our environments take actions in [-1, 1]. "
                "Train on an environment with rescaled actions (gymnasium.wrappers.RescaleAction)"
            )


def _activation(path: Path, data: Mapping[str, Any], family: Family) -> tuple[str, bool]:
    """The activation's name, and whether it is the library's default."""
    options = data.get("policy_kwargs")
    text = str(options.get("activation_fn", "")) if isinstance(options, Mapping) else ""
    if not text:
        return family.activation, True
    name = text.rstrip("'>").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ValueError(f"{path} has activation {text}; supported are {', '.join(ACTIVATIONS)}")
    return name, False


def _numbered_layers(
    path: Path, weights: Mapping[str, torch.Tensor], prefix: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    found = {int(m[1]) for key in weights if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", key))}
    return [_layer(path, weights, f"{prefix}.{number}") for number in sorted(found)]


def _layer(path: Path, weights: Mapping[str, torch.Tensor], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = weights.get(f"{prefix}.weight"), weights.get(f"{prefix}.bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        shapes = [None if t is None else tuple(t.shape) for t in (weight, bias)]
        raise ValueError(
            f"{path}: {prefix} is no linear layer (weight {shapes[0]}, bias {shapes[1]}); only plain MLPs are supported"
        )
    layer = weight.to(torch.float32).numpy(), bias.to(torch.float32).numpy()
    if not all(np.isfinite(array).all() for array in layer):
        raise ValueError(f"{path}: {prefix} has numbers that are not finite")
    return layer


def _require_chain(path: Path, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for (before, _), (after, _) in itertools.pairwise(layers):
        if after.shape[1] != before.shape[0]:
            raise ValueError(
                f"{path}: a layer with {before.shape[0]} outputs is followed by one with {after.shape[1]} inputs; only "
                "plain MLPs are supported"
            )
