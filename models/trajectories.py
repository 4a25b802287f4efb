"""Trajectories of states and actions on disk, and windows of them: what diffusers and relative rewards learn from.

<folder>/index.json          what they are: domain, task, mode, goal, sizes, seed
<folder>/observations.npy    (N, S) float32, all trajectories one after the other
<folder>/actions.npy         (N, A) float32
<folder>/rewards.npy         (N,) float32
<folder>/ends.npy            (E,) int64, where each trajectory ends (exclusive)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.files import new_folder, read_json, write_json

FORMAT_VERSION = 1
KIND = "trajectories"
SPLITS = ("train", "validation")
# Of every so many trajectories, the first is held out. Whole trajectories: windows of the splits never overlap.
HOLD_OUT_EVERY = 20
PADDINGS = ("none", "last")


class TrajectoryWriter:
    """Writes a folder of trajectories; it appears under its name only when complete. Use it in a `with` block.

    Args:
        folder: Must not exist.
        domain: "pointmaze", "locomotion", ...
        task: For example "pointmaze-large".
        mode: For example "base" or "expert".
        observation_dim: S.
        action_dim: A.
        goal: (row, column) all trajectories go to, or None.
        seed: That they were made with.
        extra: More JSON-able facts for the index.

    Raises:
        FileExistsError: if the folder exists.
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        domain: str,
        task: str,
        mode: str,
        observation_dim: int,
        action_dim: int,
        goal: Sequence[float] | None = None,
        seed: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if observation_dim < 1 or action_dim < 1:
            raise ValueError(
                f"observation_dim={observation_dim} and action_dim={action_dim} must be at least 1"
            )
        if self.folder.exists():
            raise FileExistsError(
                f"{self.folder} already exists; use it as it is, or choose another folder for new trajectories"
            )
        self.sizes = {"observations": (observation_dim,), "actions": (action_dim,), "rewards": ()}
        self.index: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "kind": KIND,
            "domain": domain,
            "task": task,
            "mode": mode,
            "goal": None if goal is None else list(goal),
            "observation_dim": observation_dim,
            "action_dim": action_dim,
            "transitions": 0,
            "trajectories": 0,
            "seed": seed,
            "extra": dict(extra or {}),
        }
        self.ends: list[int] = []
        self._place = ExitStack()
        self._part = self._place.enter_context(new_folder(self.folder))
        self._files: dict[str, BinaryIO] = {n: (self._part / f"{n}.raw").open("wb") for n in self.sizes}

    @property
    def transitions(self) -> int:
        """Transitions added so far."""
        return self.ends[-1] if self.ends else 0

    def add(self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> None:
        """Adds one trajectory.

        Args:
            observations: (T, S), the states in which the actions were taken.
            actions: (T, A).
            rewards: (T,).

        Raises:
            ValueError: if it is empty, a shape is wrong, or a number is not finite.
        """
        arrays = {"observations": observations, "actions": actions, "rewards": rewards}
        steps = len(observations)
        for name, array in arrays.items():
            wanted = (steps, *self.sizes[name])
            if not steps or np.shape(array) != wanted:
                raise ValueError(
                    f"{name} of a trajectory have shape {np.shape(array)}, expected {wanted} with at least one step"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} of trajectory {len(self.ends)} hold numbers that are not finite")
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array, np.float32).tobytes())
        self.ends.append(self.transitions + steps)

    def close(self) -> None:
        """Completes the folder and gives it its name.

        Raises:
            ValueError: if no trajectory was added.
            FileExistsError: if the folder appeared in the meantime.
        """
        if not self.ends:
            self.abort()
            raise ValueError(f"no trajectory was added to {self.folder}; nothing is written")
        total = self.transitions
        for name, size in self.sizes.items():
            self._files[name].close()
            raw = self._part / f"{name}.raw"
            array: np.ndarray = np.memmap(raw, np.float32, "r", shape=(total, *size))
            np.save(self._part / f"{name}.npy", array)
            raw.unlink()
        np.save(self._part / "ends.npy", np.asarray(self.ends, np.int64))
        write_json(
            self._part / "index.json", {**self.index, "transitions": total, "trajectories": len(self.ends)}
        )
        if self.folder.exists():
            self.abort()
            raise FileExistsError(
                f"{self.folder} appeared while it was being written; nothing is overwritten"
            )
        self._place.close()

    def abort(self) -> None:
        """Removes what was written."""
        for file in self._files.values():
            file.close()
        with suppress(InterruptedError), self._place:  # a block that fails leaves no new folder
            raise InterruptedError

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


@dataclass(frozen=True)
class TrajectorySet:
    """Trajectories of one task and one kind of behaviour, mapped from disk.

    Attributes:
        folder: Where they are.
        index: The content of `index.json`.
        observations: (N, S) float32.
        actions: (N, A) float32.
        rewards: (N,) float32.
        ends: (E,) int64, exclusive ends of all trajectories.
        chosen: (C,) int64 numbers of the trajectories that belong to this set; all, or those of a split.
    """

    folder: Path
    index: dict[str, Any]
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def starts(self) -> np.ndarray:
        """(C,) int64 first rows of the chosen trajectories."""
        return np.where(self.chosen > 0, self.ends[self.chosen - 1], 0)

    @property
    def stops(self) -> np.ndarray:
        """(C,) int64 exclusive last rows of the chosen trajectories."""
        return self.ends[self.chosen]

    @property
    def lengths(self) -> np.ndarray:
        """(C,) int64 steps of the chosen trajectories."""
        return self.stops - self.starts

    @property
    def rows(self) -> np.ndarray:
        """Row numbers of all transitions of the chosen trajectories, in order."""
        return np.concatenate([np.arange(a, b) for a, b in zip(self.starts, self.stops)])

    def split(self, name: str) -> TrajectorySet:
        """The trajectories of "train" or "validation": whole ones, the first of every 20 is held out.

        Raises:
            ValueError: for another name, or if there is only one trajectory.
        """
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}; expected one of {SPLITS}")
        if len(self.ends) < 2:
            raise ValueError(
                f"{self.folder} holds one trajectory, which cannot be split into train and validation: collect more"
            )
        held_out = self.chosen % HOLD_OUT_EVERY == 0
        return replace(self, chosen=self.chosen[held_out if name == "validation" else ~held_out])

    def windows(self, horizon: int, padding: str = "none") -> WindowIndex:
        """All windows of `horizon` consecutive steps.

        Args:
            horizon: Steps of a window, at least 1.
            padding: "none": only windows that lie within a trajectory; "last": windows start at every step and
                repeat the last transition where the trajectory has ended.

        Raises:
            ValueError: if there are no such windows.
        """
        if horizon < 1 or padding not in PADDINGS:
            raise ValueError(
                f"horizon={horizon}, padding={padding!r}: expected at least 1, and one of {PADDINGS}"
            )
        last_starts = self.stops if padding == "last" else self.stops - horizon + 1
        counts = np.maximum(last_starts - self.starts, 0)
        if not counts.sum():
            raise ValueError(
                f"no trajectory of {self.folder} has {horizon} steps (the longest has {self.lengths.max()}); "
                "choose a shorter horizon or padding=last"
            )
        before = np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(self.starts, counts) + np.arange(counts.sum()) - before
        return WindowIndex(self, horizon, starts, np.repeat(self.stops, counts))


@dataclass(frozen=True)
class WindowIndex:
    """Windows of one horizon.

    Attributes:
        trajectories: What they are windows of.
        horizon: H, steps of a window.
        starts: (W,) int64 first row of each window.
        stops: (W,) int64 exclusive end of the trajectory each window lies in.
    """

    trajectories: TrajectorySet
    horizon: int
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """(B, H) int64 rows of the windows with numbers `index` (B,)."""
        rows = self.starts[index][:, None] + np.arange(self.horizon)
        return np.minimum(rows, self.stops[index][:, None] - 1)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Observations (B, H, S) and actions (B, H, A), float32, of the windows with numbers `index` (B,)."""
        rows = self.rows(index)
        return self.trajectories.observations[rows], self.trajectories.actions[rows]

    def even(self, count: int) -> np.ndarray:
        """Numbers of at most `count` windows, spread evenly."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))


def read_trajectories(folder: str | Path) -> TrajectorySet:
    """Maps a folder of trajectories.

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ValueError: naming the file, if something in it does not fit the index.
    """
    folder = Path(folder)
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no trajectories at {folder}: index.json is missing. Collect some with `python launch/collect.py`, "
            "or correct the path"
        )
    index = read_json(path)
    if index.get("kind") != KIND or index.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{path} describes {index.get('kind', 'videos')!r} of format {index.get('format')!r}, expected "
            f"{KIND!r} of format {FORMAT_VERSION}; check the path"
        )
    total, trajectories = index["transitions"], index["trajectories"]
    wanted = {
        "observations": ((total, index["observation_dim"]), np.float32),
        "actions": ((total, index["action_dim"]), np.float32),
        "rewards": ((total,), np.float32),
        "ends": ((trajectories,), np.int64),
    }
    arrays = {name: _map(folder / f"{name}.npy", *expected) for name, expected in wanted.items()}
    ends = np.asarray(arrays.pop("ends"))
    if (np.diff(ends, prepend=0) < 1).any() or ends[-1] != total:
        raise ValueError(f"{folder}/ends.npy must rise to the number of transitions, {total}; collect again")
    return TrajectorySet(folder, index, **arrays, ends=ends, chosen=np.arange(trajectories))


def _map(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the folder is not complete, collect again")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} holds {array.shape} {array.dtype}, its index says {shape} {np.dtype(dtype)}; collect again"
        )
    return array
