"""What a reward thinks of each place in a maze, and whether it thinks best of the goal (arXiv 2306.01804, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from actors.envs.pointmaze import Cell, MazeLayout
from models.diffuser.diffuser import Diffuser
from models.trajectories import TrajectorySet

# (B, h, A + S) noised windows and (B,) diffusion steps to (B,) rewards.
Reward = Callable[[Tensor, Tensor], Tensor]
SMOOTHING = 3
# A bin that fewer windows pass is left out: its mean says little.
LEAST_VISITS = 5
# "Within one cell of the goal", in cells, between the middle of the best bin and the goal.
RECOVERY_DISTANCE = 1.0
BATCH_WINDOWS = 1024


class Heatmap(NamedTuple):
    """Mean reward by place.

    Attributes:
        values: (rows * k, columns * k) float64, k bins per cell; NaN in walls and where too few windows pass.
        visits: The number of windows in each bin.
        bins_per_cell: k.
    """

    values: np.ndarray
    visits: np.ndarray
    bins_per_cell: int

    def centres(self) -> np.ndarray:
        """(rows * k, columns * k, 2) fractional cells of the bins' middles."""
        k = self.bins_per_cell
        rows, columns = self.values.shape
        axes = ((np.arange(n) + 0.5) / k - 0.5 for n in (rows, columns))
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


class Judgement(NamedTuple):
    """How well a heatmap shows a goal.

    Attributes:
        recovered: Whether the best bin of the smoothed heatmap is within one cell of the goal.
        distance_cells: From the middle of the best bin to the goal.
        percentile: Share of bins whose smoothed value is below that of the goal's bin, 0 to 100.
        best: (row, column) of the best bin's middle.
        chance: Share of bins within one cell of the goal: how often a blind guess recovers it.
    """

    recovered: bool
    distance_cells: float
    percentile: float
    best: Cell
    chance: float


class MazeWindows(NamedTuple):
    """Windows that the places are judged by.

    Attributes:
        x: (N, h, A + S) normalised vectors.
        cells: (N, 2) fractional row and column in the middle of each window.
    """

    x: Tensor
    cells: np.ndarray


def maze_windows(
    data: TrajectorySet, base: Diffuser, layout: MazeLayout, steps: int, count: int
) -> MazeWindows:
    """Windows spread evenly over a set of trajectories.

    Args:
        data: Usually held-out base trajectories: they pass every place in every direction.
        base: Whose normaliser and padding are used.
        layout: Of the maze.
        steps: h, the length of the reward's own windows.
        count: N at most.
    """
    windows = data.windows(steps, base.config.padding)
    observations, actions = windows.read(windows.even(count))
    x = base.normaliser.normalise(torch.from_numpy(actions), torch.from_numpy(observations))
    return MazeWindows(x, layout.to_rows_columns(observations[:, steps // 2, :2]))


@torch.no_grad()
def window_rewards(
    reward: Reward, base: Diffuser, x: Tensor, diffusion_steps: tuple[int, ...], seed: int
) -> np.ndarray:
    """Rewards of windows, noised to each of some diffusion steps, averaged over these.

    Args:
        reward: The reward.
        base: Whose schedule is used.
        x: (N, h, A + S) clean normalised windows.
        diffusion_steps: t, 0 to T - 1.
        seed: Of the noise.

    Returns:
        (N,) float64.
    """
    device = base.given.device
    generator = torch.Generator().manual_seed(seed)
    total = np.zeros(len(x))
    for step in diffusion_steps:
        noise = torch.randn(x.shape, generator=generator)
        for part in torch.arange(len(x)).split(BATCH_WINDOWS):
            t = torch.full((len(part),), step, dtype=torch.int64, device=device)
            noised = base.schedule.add_noise(x[part].to(device), t, noise[part].to(device))
            total[part.numpy()] += reward(noised, t).double().cpu().numpy()
    return total / len(diffusion_steps)


def heatmap(rewards: np.ndarray, cells: np.ndarray, layout: MazeLayout, bins_per_cell: int) -> Heatmap:
    """Mean reward of the windows in each bin.

    Args:
        rewards: (N,).
        cells: (N, 2) fractional cells.
        layout: Of the maze.
        bins_per_cell: Bins along the side of a cell, 1 or more.
    """
    shape = tuple(n * bins_per_cell for n in layout.shape)
    index = np.floor((cells + 0.5) * bins_per_cell).astype(np.int64)
    row, column = np.clip(index, 0, np.array(shape) - 1).T
    visits, total = np.zeros(shape, np.int64), np.zeros(shape)
    np.add.at(visits, (row, column), 1)
    np.add.at(total, (row, column), rewards)
    walls = np.repeat(np.repeat(np.array(layout.walls), bins_per_cell, 0), bins_per_cell, 1)
    is_seen = (visits >= LEAST_VISITS) & ~walls
    values = np.where(is_seen, total / np.maximum(visits, 1), np.nan)
    return Heatmap(values, visits, bins_per_cell)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 bins, of those that have a value; bins without one stay NaN."""
    edge = SMOOTHING // 2
    padded = np.pad(values, edge, constant_values=np.nan)
    blocks = np.lib.stride_tricks.sliding_window_view(padded, (SMOOTHING, SMOOTHING))
    is_seen = ~np.isnan(blocks)
    means = np.where(is_seen, blocks, 0).sum((-2, -1)) / np.maximum(is_seen.sum((-2, -1)), 1)
    return np.where(np.isnan(values), np.nan, means)


def judge(places: Heatmap, goal: Cell) -> Judgement:
    """Compares a heatmap with the goal that its reward was to find.

    Raises:
        ValueError: if no bin has a value.
    """
    values = smoothed(places.values)
    is_seen = ~np.isnan(values)
    if not is_seen.any():
        raise ValueError(
            "no bin of the heatmap has enough windows: use more trajectories or fewer bins per cell"
        )
    distances = np.linalg.norm(places.centres() - np.array(goal), axis=-1)
    best = np.unravel_index(np.nanargmax(values), values.shape)
    at_goal = np.unravel_index(np.argmin(np.where(is_seen, distances, np.inf)), values.shape)
    row, column = places.centres()[best]
    return Judgement(
        recovered=bool(distances[best] <= RECOVERY_DISTANCE),
        distance_cells=float(distances[best]),
        percentile=float(100 * (values[is_seen] < values[at_goal]).mean()),
        best=(float(row), float(column)),
        chance=float((distances[is_seen] <= RECOVERY_DISTANCE).mean()),
    )
