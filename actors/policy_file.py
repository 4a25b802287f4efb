"""Policies as plain arrays: a small network from a low-dimensional state to an action, in one npz file."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from models.files import write_atomic

# Keeps the division by `in_scale` finite; part of the format.
SCALE_EPSILON = 1e-8
NONLINEARITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}
# How the output becomes an action: clipped, or squashed (policies of SAC). Files without the key are clipped.
OUTPUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clip": lambda x: np.clip(x, -1.0, 1.0),
    "tanh": np.tanh,
}
DEFAULT_OUTPUT = "clip"
ARRAYS = (
    "w0",
    "b0",
    "w1",
    "b1",
    "w2",
    "b2",
    "in_shift",
    "in_scale",
    "out_shift",
    "out_scale",
    "log_std",
)
KEYS = (*ARRAYS, "nonlinearity", "layer_sizes")


class FilePolicy:
    """The mean action of a policy with two hidden layers.

    a = g(out_shift + out_scale * (W2 f(W1 f(W0 x + b0) + b1) + b2)),
    x = (state - in_shift) / (in_scale + 1e-8)

    with f = tanh or relu (`nonlinearity`), and g = a clip to [-1, 1] or tanh (`output`).

    Attributes:
        arrays: The arrays of the file, float32 (`layer_sizes` (4,): state size S, hidden H, hidden H, action size A).
        state_size: S.
        action_size: A.
        nonlinearity: "tanh" or "relu".
        output: "clip" or "tanh".
    """

    def __init__(self, arrays: dict[str, np.ndarray], name: str = "policy") -> None:
        """Checks the arrays.

        Args:
            arrays: `KEYS`: w0 (H, S), b0 (H,), w1 (H, H), b1 (H,), w2 (A, H), b2 (A,), in_shift and in_scale (S,),
                out_shift, out_scale and log_std (A,), nonlinearity () text "tanh" or "relu", layer_sizes (4,) int;
                optional: output () text "clip" (default) or "tanh".
            name: Used in messages.

        Raises:
            ValueError: naming what is missing, of another shape, not finite or not supported.
        """
        _check(arrays, name)
        self._name = name
        self.nonlinearity = str(arrays["nonlinearity"])
        self.output = str(arrays.get("output", DEFAULT_OUTPUT))
        self.arrays = {key: arrays[key].astype(np.float32) for key in ARRAYS}
        self.state_size, _, _, self.action_size = (int(size) for size in arrays["layer_sizes"])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file format, for `save_policy_file`."""
        hidden = self.arrays["b0"].shape[0], self.arrays["b1"].shape[0]
        sizes = np.array([self.state_size, *hidden, self.action_size], dtype=np.int32)
        words = {"nonlinearity": np.array(self.nonlinearity)}
        if self.output != DEFAULT_OUTPUT:
            words["output"] = np.array(self.output)
        return {**self.arrays, **words, "layer_sizes": sizes}

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Mean action (A,) float32 in [-1, 1] of one state (S,), or (N, A) of (N, S).

        Raises:
            ValueError: if the state has another length than the policy's.
        """
        state = np.asarray(state)
        if state.shape[-1:] != (self.state_size,):
            raise ValueError(
                f"{self._name} takes states of {self.state_size} numbers, got shape {state.shape}: "
                "it belongs to another task"
            )
        p = self.arrays
        x = (state - p["in_shift"]) / (p["in_scale"] + SCALE_EPSILON)
        activation = NONLINEARITIES[self.nonlinearity]
        hidden = activation(x @ p["w0"].T + p["b0"])
        hidden = activation(hidden @ p["w1"].T + p["b1"])
        action = (hidden @ p["w2"].T + p["b2"]) * p["out_scale"] + p["out_shift"]
        return OUTPUTS[self.output](action).astype(np.float32)


def _check(arrays: dict[str, np.ndarray], name: str) -> None:
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"{name} is no policy file: {', '.join(missing)} missing; expected keys {', '.join(KEYS)}"
        )
    for key, allowed in (("nonlinearity", NONLINEARITIES), ("output", OUTPUTS)):
        word = str(arrays.get(key, DEFAULT_OUTPUT))
        if word not in allowed:
            raise ValueError(f"{name}: {key} is {word!r}; supported are {', '.join(allowed)}")
    sizes = arrays["layer_sizes"]
    if sizes.shape != (4,) or sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise ValueError(f"{name}: layer_sizes is {sizes.tolist()}, expected four whole numbers of 1 or more")
    state, first, second, action = (int(size) for size in sizes)
    shapes = {
        "w0": (first, state),
        "b0": (first,),
        "w1": (second, first),
        "b1": (second,),
        "w2": (action, second),
        "b2": (action,),
        "in_shift": (state,),
        "in_scale": (state,),
        "out_shift": (action,),
        "out_scale": (action,),
        "log_std": (action,),
    }
    for key, shape in shapes.items():
        array = arrays[key]
        if array.shape != shape:
            raise ValueError(f"{name}: {key} has shape {array.shape}, expected {shape} from layer_sizes")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ValueError(f"{name}: {key} ({array.dtype}) must be finite floating-point numbers")


def load_policy_file(path: str | Path) -> FilePolicy:
    """Reads a policy; the file can hold plain arrays only (no pickles).

    Args:
        path: npz file with the arrays of `FilePolicy`.

    Returns:
        A callable: state (S,) -> action (A,) float32 in [-1, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no npz file, holds objects, or its arrays do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no policy file at {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds one lone array")
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    # A damaged archive fails in zipfile or, if it is compressed, in zlib, objects and text in numpy.
    except (ValueError, BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{path} is no npz file of plain arrays: {error}") from error
    return FilePolicy(arrays, str(path))


def save_policy_file(path: str | Path, arrays: dict[str, Any]) -> None:
    """Writes a policy to a new file, in one piece.

    Args:
        path: New file.
        arrays: As of `FilePolicy`; floating-point arrays are written as float32.

    Raises:
        FileExistsError: if the file exists.
        ValueError: if the arrays do not fit together.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} already exists; nothing is overwritten")
    FilePolicy(arrays, str(path))
    plain: dict[str, Any] = {key: np.asarray(arrays[key]) for key in (*KEYS, "output") if key in arrays}
    plain |= {key: plain[key].astype(np.float32) for key in ARRAYS}
    write_atomic(path, lambda file: np.savez(file, **plain))
