"""Folders of pairs of next latents: what base and expert make of the same current latents, at every step.

A folder holds `pairs.json` (what was asked for and which trajectory has which prompt) and `shard-<n>.npy`, each
(B, 3, S, C, H, W) float32: B trajectories of S steps, noisiest first; current, base's next and expert's next latents.
A folder whose making was cut off is gone on with, shard by shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import require_same_config
from models.files import read_json, write_atomic, write_json
from models.images.config import PairConfig, SafeGuidanceConfig
from models.images.ddim import DDIMSteps
from models.images.sampling import Predict, paired_trajectories, start_latents

FORMAT_VERSION = 1
KIND = "latent_pairs"
INDEX_FILE = "pairs.json"


class PairBatch(NamedTuple):
    """Pairs of any trajectories and steps.

    Attributes:
        current: (B, C, H, W) float32 latents at `steps`.
        base: (B, C, H, W) float32 the base's next latents.
        safe: (B, C, H, W) float32 the expert's next latents.
        steps: (B,) int64, S - 1 is the noisiest and 0 the last step.
    """

    current: Tensor
    base: Tensor
    safe: Tensor
    steps: Tensor


@dataclass(frozen=True)
class LatentStatistics:
    """Per step, channel and pixel, over trajectories.

    Attributes:
        mean: (S, C, H, W) float32 of the current latents.
        std: (S, C, H, W) float32 of the current latents, floored.
        next_std: (S, C, H, W) float32 of both next latents together, floored.
    """

    mean: Tensor
    std: Tensor
    next_std: Tensor


def make_pairs(
    folder: str | Path,
    predictor: Callable[[np.ndarray], Predict],
    steps: DDIMSteps,
    guidance: SafeGuidanceConfig,
    config: PairConfig,
    shape: tuple[int, int, int],
    num_prompts: int,
    facts: Mapping[str, Any],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    expert: Callable[[np.ndarray], Predict] | None = None,
) -> PairSet:
    """Samples trajectories of base and expert into a folder, or what is missing in it.

    Args:
        folder: Made if missing.
        predictor: From (B,) prompt numbers to the model's noise for a batch of these prompts.
        steps: Noise levels.
        guidance: Guidance of base and expert.
        config: How many.
        shape: (C, H, W) of latents.
        num_prompts: Prompts in all; every prompt gets about the same number of trajectories.
        facts: JSON-able facts about model and prompts; checked when a folder is gone on with.
        seed: Of prompts and noise.
        device: Where to sample.
        progress: Called with (trajectories done, trajectories planned).
        expert: As `predictor`, for an expert with a network of its own.

    Returns:
        The complete set.

    Raises:
        ValueError: if the folder was made with another configuration.
        FileExistsError: if it holds something else.
        FloatingPointError: if latents are not finite.
    """
    folder = Path(folder)
    rng = np.random.default_rng([seed, 5])
    prompts = rng.permutation(np.arange(config.trajectories) % num_prompts)
    index = {
        "format": FORMAT_VERSION,
        "kind": KIND,
        "shape": list(shape),
        "guidance": asdict(guidance),
        "pairs": asdict(config),
        "seed": seed,
        "facts": dict(facts),
        "prompts": [int(prompt) for prompt in prompts],
        "follows_safe": [int(follows) for follows in _follows_safe(config)],
    }
    _claim(folder, index)
    size = config.shard_trajectories
    for shard, first in enumerate(range(0, config.trajectories, size)):
        chosen = prompts[first : first + size]
        path = folder / shard_name(shard)
        if not path.exists():
            follow = _follows_safe(config)[first : first + size]
            start = start_latents((len(chosen), *shape), seed, shard, device)
            pairs = paired_trajectories(
                predictor(chosen),
                steps,
                guidance,
                start,
                torch.from_numpy(follow),
                None if expert is None else expert(chosen),
            )
            values = torch.stack(list(pairs), dim=1).numpy()
            if not np.isfinite(values).all():
                raise FloatingPointError(
                    f"latents of {path} are not finite: lower guidance.cfg_scale, or set guidance.clip_x0 for images"
                )
            write_atomic(path, lambda file, values=values: np.save(file, values))  # type: ignore[misc]
        if progress is not None:
            progress(first + len(chosen), config.trajectories)
    return PairSet(folder)


def shard_name(shard: int) -> str:
    """File of a shard."""
    return f"shard-{shard:05d}.npy"


def _claim(folder: Path, index: dict[str, Any]) -> None:
    if (folder / INDEX_FILE).exists():
        saved = read_json(folder / INDEX_FILE)
        # Pairs from before the weights were remembered are taken to be of these.
        weights = {key: index["facts"][key] for key in ("weights",) if key in index["facts"]}
        saved["facts"] = {**weights, **saved.get("facts", {})}
        require_same_config(saved, index, folder)
        for half_written in folder.glob(".shard-*"):  # left by a kill in the middle of a shard
            half_written.unlink()
        return
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no latent pairs; choose an empty or new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / INDEX_FILE, index)


def _follows_safe(config: PairConfig) -> np.ndarray:
    """(N,) bool. With "both" every second trajectory, and every second one of those held out."""
    if config.follow == "both":
        block, place = np.divmod(np.arange(config.trajectories), config.validation_every)
        return (block + place) % 2 == 1
    return np.full(config.trajectories, config.follow == "safe")


class PairSet:
    """A complete folder of pairs, read lazily.

    Args:
        folder: Made by `make_pairs`.

    Attributes:
        index: Content of `pairs.json`.
        shape: (C, H, W) of latents.
        num_steps: S.
        prompts: (N,) int64 prompt number of each trajectory.
        follows_safe: (N,) bool, which trajectories went on with the expert's latents.

    Raises:
        FileNotFoundError: if there are no pairs, or not all.
        ValueError: if the folder holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"no latent pairs at {self.folder}: {INDEX_FILE} is missing; make them first"
            )
        self.index = read_json(path)
        if (self.index.get("kind"), self.index.get("format")) != (KIND, FORMAT_VERSION):
            raise ValueError(
                f"{path} describes {self.index.get('kind')!r} of format {self.index.get('format')!r}, expected "
                f"{KIND!r} of format {FORMAT_VERSION}; check the path"
            )
        self.config = PairConfig(**self.index["pairs"])
        self.shape: tuple[int, int, int] = tuple(self.index["shape"])
        self.num_steps = int(self.index["guidance"]["num_steps"])
        self.prompts = np.array(self.index["prompts"], dtype=np.int64)
        self.follows_safe = np.array(self.index["follows_safe"], dtype=bool)
        size = self.config.shard_trajectories
        paths = [self.folder / shard_name(shard) for shard in range(-(-len(self) // size))]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(paths)} shards of {self.folder} are missing ({missing[0]}, ...); make the "
                "pairs again with the same settings to fill the gaps"
            )
        self._shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
        for path, values in zip(paths, self._shards):
            if values.shape[1:] != (3, self.num_steps, *self.shape) or values.dtype != np.float32:
                raise ValueError(
                    f"{path} is {values.dtype} {values.shape}, expected float32 "
                    f"(B, 3, {self.num_steps}, {', '.join(map(str, self.shape))}); remove it and make the pairs again"
                )

    def __len__(self) -> int:
        return self.config.trajectories

    def trajectories(self, split: str) -> np.ndarray:
        """Numbers of the trajectories of "train" or "validation" (every `validation_every`-th), int64."""
        held_out = np.arange(len(self)) % self.config.validation_every == self.config.validation_every - 1
        if split not in ("train", "validation"):
            raise ValueError(f"split must be 'train' or 'validation', got {split!r}")
        return np.flatnonzero(held_out if split == "validation" else ~held_out)

    def gather(self, trajectories: np.ndarray, steps: np.ndarray) -> PairBatch:
        """Pairs of chosen trajectories at chosen steps.

        Args:
            trajectories: (B,) int64.
            steps: (B,) int64.
        """
        size = self.config.shard_trajectories
        rows = [
            self._shards[n // size][n % size, :, self.num_steps - 1 - t] for n, t in zip(trajectories, steps)
        ]
        values = torch.from_numpy(np.stack(rows, axis=1))
        return PairBatch(values[0], values[1], values[2], torch.from_numpy(np.asarray(steps, dtype=np.int64)))

    def current(self, step: int, trajectories: np.ndarray) -> Tensor:
        """(B, C, H, W) float32 current latents of chosen trajectories at one step."""
        return self.gather(trajectories, np.full(len(trajectories), step)).current

    def results(self, trajectories: np.ndarray) -> Tensor:
        """(B, C, H, W) float32 what chosen trajectories ended with."""
        batch = self.gather(trajectories, np.zeros(len(trajectories), dtype=np.int64))
        follows = torch.from_numpy(self.follows_safe[trajectories]).view(-1, 1, 1, 1)
        return torch.where(follows, batch.safe, batch.base)

    def statistics(self, split: str, std_floor: float) -> LatentStatistics:
        """Means and standard deviations, one pass over the shards.

        Args:
            split: "train" or "validation".
            std_floor: Smallest standard deviation as a share of the step's largest.
        """
        chosen = self.trajectories(split)
        size = self.config.shard_trajectories
        sums = np.zeros((2, 2, self.num_steps, *self.shape))  # (current | next) x (sum | sum of squares)
        for shard, values in enumerate(self._shards):
            rows = chosen[(chosen >= shard * size) & (chosen < shard * size + len(values))] - shard * size
            part = values[rows].astype(np.float64)
            for kind, latents in enumerate((part[:, 0], part[:, 1:].reshape(-1, *part.shape[2:]))):
                sums[kind, 0] += latents.sum(axis=0)
                sums[kind, 1] += (latents**2).sum(axis=0)
        mean, std = _moments(sums[0], len(chosen), std_floor)
        _, next_std = _moments(sums[1], 2 * len(chosen), std_floor)
        return LatentStatistics(mean, std, next_std)


def _moments(sums: np.ndarray, count: int, floor: float) -> tuple[Tensor, Tensor]:
    # The reversal puts step t at position t.
    mean = sums[0] / count
    std = np.sqrt(np.maximum(sums[1] / count - mean**2, 0.0))
    std = np.maximum(std, floor * std.max(axis=(1, 2, 3), keepdims=True))
    return (
        torch.from_numpy(np.ascontiguousarray(mean[::-1], dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(np.maximum(std, 1e-6)[::-1], dtype=np.float32)),
    )
