"""Planning in a locomotion task with a diffuser, steered or not: returns of many rollouts in lockstep."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.envs.locomotion import LocomotionConfig
from actors.seeding import indexed_seed
from actors.state_rollouts import StateEpisode, returns, roll_out
from launch.cli import UsageError
from models.diffuser.diffuser import Diffuser
from models.diffuser.sampling import Push
from models.files import read_json, write_json
from models.relative.config import SteeringConfig
from models.relative.reward import RelativeReward
from models.relative.steering import GradientField

UNSTEERED = SteeringConfig(scale=0.0)
# Bases of the seeds of rollouts, apart from those of the data and of its references.
PHASE_SEEDS = {"tune": 2000, "report": 3000}


@dataclass(frozen=True)
class Cell:
    """One planner and the rollouts it is measured on.

    Attributes:
        phase: "tune" or "report"; they have other initial states and other noise.
        method: "unsteered", "discriminator", "relative" (the base diffuser, so steered) or "expert" (its own diffuser).
        steering: Of the steered ones.
    """

    phase: str
    method: str
    steering: SteeringConfig = UNSTEERED

    @property
    def key(self) -> str:
        """Name of the cell, unique in an evaluation."""
        if self.method in ("unsteered", "expert"):
            return f"{self.phase}/{self.method}"
        return f"{self.phase}/{self.method}/scale{self.steering.scale:g}/stop{self.steering.stop_steps}"


@dataclass(frozen=True)
class Rollouts:
    """How many rollouts, and how long.

    Attributes:
        count: At least 1.
        episode_steps: Time limit.
        lockstep: Rollouts whose plans are one batch of the network.
    """

    count: int
    episode_steps: int
    lockstep: int


class Planner:
    """One plan per environment step; its first action is taken (arXiv 2306.01804, section 5.2).

    Rollouts of several cells are planned in one batch of the network; each has the steering of its cell.

    Attributes:
        plans: Made so far.
        seconds: That they took.
    """

    def __init__(
        self,
        model: Diffuser,
        rewards: Mapping[str, GradientField],
        cells: Sequence[Cell],
        seed: int,
    ) -> None:
        """Gets ready.

        Args:
            model: Plans; conditioned on the current state.
            rewards: What steers, by method; a method without one is not steered.
            cells: Of each rollout (row), one after the other.
            seed: Of the noise.

        Raises:
            UsageError: if the model is not conditioned on the current state alone.
        """
        if model.config.given_steps != (0,):
            raise UsageError(
                f"this diffuser has conditioning={model.config.conditioning!r}, planning step by step needs 'first'"
            )
        self._model, self._rewards, self._cells = model, rewards, list(cells)
        self._device = model.normaliser.shift.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self.plans, self.seconds = 0, 0.0

    def __call__(self, rows: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """First actions (B, A) of plans from observations (B, S) of the rollouts with numbers `rows` (B,)."""
        started_s = time.perf_counter()
        states = torch.as_tensor(observations, device=self._device)[:, None, :]
        conditions = self._model.conditions(states)
        push = self._push([self._cells[row] for row in rows])
        plans = self._model.sample(conditions, push=push, generator=self._generator)
        actions = self._model.normaliser.actions(plans[:, 0]).cpu().numpy()
        self.plans += len(rows)
        self.seconds += time.perf_counter() - started_s
        return actions

    def _push(self, cells: Sequence[Cell]) -> Push | None:
        """What is added to x_t: each row's own scale times the gradient of its own reward."""
        rows: dict[tuple[str, str], list[int]] = {}
        for number, cell in enumerate(cells):
            if cell.method in self._rewards and cell.steering.scale != 0:
                rows.setdefault((cell.method, cell.steering.units), []).append(number)
        if not rows:
            return None

        def push(x: Tensor, step: int) -> Tensor | None:
            added = None
            for (method, units), numbers in rows.items():
                pushed = [n for n in numbers if step >= cells[n].steering.stop_steps]
                if pushed:
                    reward = self._rewards[method]
                    gradient = reward.mean_gradient if units == "mean" else reward.gradient
                    index = torch.tensor(pushed, device=x.device)
                    scales = torch.tensor([cells[n].steering.scale for n in pushed], device=x.device)
                    t = torch.full((len(pushed),), step, dtype=torch.int64, device=x.device)
                    added = torch.zeros_like(x) if added is None else added
                    added[index] = scales[:, None, None] * gradient(x[index], t)
            return added

        return push


@dataclass(frozen=True)
class Models:
    """What is evaluated.

    Attributes:
        base: Diffuser of the base data.
        expert: Diffuser of the expert data.
        rewards: "relative" and "discriminator".
    """

    base: Diffuser
    expert: Diffuser
    rewards: Mapping[str, RelativeReward]


class CellFile:
    """Results of cells on disk, so that an evaluation goes on where it was cut off."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens or begins the file.

        Args:
            path: JSON file.
            settings: What every result in it depends on.

        Raises:
            UsageError: if it was begun with other settings, naming the first that differs.
        """
        self._path = path
        settings = json.loads(json.dumps(settings))
        self._content: dict[str, Any] = {"settings": settings, "cells": {}}
        if path.exists():
            self._content = read_json(path)
            before = self._content["settings"]
            different = [k for k in before.keys() | settings.keys() if before.get(k) != settings.get(k)]
            if different:
                key = min(different)
                raise UsageError(
                    f"{path} holds results with {key}={before.get(key)!r}, now it is {settings.get(key)!r}; nothing is "
                    "overwritten: choose another folder with out=..."
                )

    def get(self, key: str) -> dict[str, Any] | None:
        """The result of a cell, or None."""
        return self._content["cells"].get(key)

    def put(self, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps results of cells by key."""
        self._content["cells"] |= results
        write_json(self._path, self._content)

    @property
    def settings(self) -> dict[str, Any]:
        """What every result depends on."""
        return self._content["settings"]

    def results(self) -> dict[str, dict[str, Any]]:
        """All results by key."""
        return self._content["cells"]


def measure(
    cells: Sequence[Cell], task: str, models: Models, rollouts: Rollouts, seed: int
) -> dict[str, dict[str, Any]]:
    """Plays the rollouts of cells of one phase, those of the base diffuser together.

    Rollout number n of every cell starts in the same state. All plans of one batch share the network.

    Returns:
        For each key `returns` (one per rollout), `lengths`, `plans`, and of the run it was played in `plans_per_s`
        (planning alone) and `wall_s`.
    """
    results: dict[str, dict[str, Any]] = {}
    for model, together in (
        (models.base, [cell for cell in cells if cell.method != "expert"]),
        (models.expert, [cell for cell in cells if cell.method == "expert"]),
    ):
        jobs = [(cell, number) for number in range(rollouts.count) for cell in together]
        episodes: list[StateEpisode] = []
        plans, plan_s, started_s = 0, 0.0, time.perf_counter()
        for first in range(0, len(jobs), rollouts.lockstep):
            part = jobs[first : first + rollouts.lockstep]
            base_seed = PHASE_SEEDS[part[0][0].phase] + seed
            seeds = [indexed_seed("evaluation", base_seed, number) for _, number in part]
            planner = Planner(model, models.rewards, [cell for cell, _ in part], seed=seeds[0] + first)
            episodes += roll_out(LocomotionConfig(task, rollouts.episode_steps), seeds, planner)
            plans, plan_s = plans + planner.plans, plan_s + planner.seconds
        for cell in together:
            own = [episode for (other, _), episode in zip(jobs, episodes) if other == cell]
            results[cell.key] = {
                "returns": [round(value, 3) for value in returns(own).tolist()],
                "lengths": [len(episode.rewards) for episode in own],
                "plans": sum(len(episode.rewards) for episode in own),
                "plans_per_s": round(plans / plan_s, 1),
                "wall_s": round(time.perf_counter() - started_s, 2),
            }
    return results


def grid(methods: Sequence[str], scales: Sequence[float], stops: Sequence[int], units: str) -> list[Cell]:
    """Every combination of method, scale and last pushed step, to tune on."""
    return [
        Cell("tune", method, SteeringConfig(scale, stop, units))
        for method in methods
        for scale in scales
        for stop in stops
    ]


def best_cells(results: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell]) -> dict[str, Cell]:
    """For each method the cell with the highest mean return; the weaker steering where two are equal."""
    best: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda c: (c.steering.scale, -c.steering.stop_steps)):
        mean = float(np.mean(results[cell.key]["returns"]))
        if cell.method not in best or mean > float(np.mean(results[best[cell.method].key]["returns"])):
            best[cell.method] = cell
    return best


def reported(cell: Cell) -> Cell:
    """The same planner on the rollouts that are reported."""
    return replace(cell, phase="report")


@dataclass(frozen=True)
class References:
    """Returns that are 0 and 100 of the normalised score.

    Attributes:
        random_return: Of random actions.
        expert_return: Of the policy that made the expert data.
    """

    random_return: float
    expert_return: float

    def __post_init__(self) -> None:
        if not self.expert_return > self.random_return:
            raise UsageError(
                f"the expert's return, {self.expert_return:,.1f}, is not above that of random actions, "
                f"{self.random_return:,.1f}: train it longer (locomotion_data.total_agent_steps)"
            )

    @classmethod
    def of_the_data(cls, extra: Mapping[str, Any], steps: int, key: str = "episode_steps") -> References:
        """References of rollouts of so many steps at most, from the index of the data; `key` is whose they are.

        Raises:
            UsageError: if the data has none for so many steps.
        """
        curve = extra["reference_curve"]
        if steps not in curve["steps"]:
            raise UsageError(
                f"{key}={steps}: the data has references for {', '.join(map(str, curve['steps']))} steps"
            )
        place = curve["steps"].index(steps)
        return cls(curve["random"][place], curve["expert"][place])

    def score(self, found: Sequence[float]) -> np.ndarray:
        """Normalised scores: 0 as random actions, 100 as the expert."""
        values = np.asarray(found, dtype=np.float64)
        return 100 * (values - self.random_return) / (self.expert_return - self.random_return)


def summary_rows(
    cells: Sequence[Cell], results: Mapping[str, Mapping[str, Any]], references: References
) -> list[dict[str, Any]]:
    """One row per cell: mean and standard error of the score, and of its gain over the unsteered rollouts.

    The gain is taken rollout by rollout (same initial state), its standard error is that of the mean of differences.
    """
    unsteered = {
        phase: references.score(results[f"{phase}/unsteered"]["returns"])
        for phase in {cell.phase for cell in cells}
        if f"{phase}/unsteered" in results
    }
    rows = []
    for cell in cells:
        result = results[cell.key]
        scores = references.score(result["returns"])
        gains = scores - unsteered[cell.phase] if cell.phase in unsteered else np.full(len(scores), np.nan)
        is_steered = cell.method in ("discriminator", "relative")
        rows.append(
            {
                "phase": cell.phase,
                "method": cell.method,
                "scale": cell.steering.scale if is_steered else None,
                "stop_steps": cell.steering.stop_steps if is_steered else None,
                "rollouts": len(scores),
                "score": float(scores.mean()),
                "score_se": standard_error(scores),
                "gain": float(gains.mean()) if cell.method != "unsteered" else None,
                "gain_se": standard_error(gains) if cell.method != "unsteered" else None,
                "return": float(np.mean(result["returns"])),
                "return_se": standard_error(np.asarray(result["returns"])),
                "steps": float(np.mean(result["lengths"])),
                "plans_per_s": result["plans_per_s"],
            }
        )
    return rows


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def difference(
    first: Sequence[float], second: Sequence[float], references: References
) -> tuple[float, float]:
    """Mean and standard error of the difference of scores, rollout by rollout."""
    gaps = references.score(first) - references.score(second)
    return float(gaps.mean()), standard_error(gaps)


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        "| planner | scale | pushed down to step | rollouts | normalised score | gain over unsteered | return | plans/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        scale = "" if row["scale"] is None else f"{row['scale']:g}"
        stop = "" if row["stop_steps"] is None else str(row["stop_steps"])
        gain = "" if row["gain"] is None else f"{row['gain']:+.2f} +- {row['gain_se']:.2f}"
        lines.append(
            f"| {row['method']} | {scale} | {stop} | {row['rollouts']} | {row['score']:.2f} +- {row['score_se']:.2f} | "
            f"{gain} | {row['return']:,.1f} +- {row['return_se']:,.1f} | {row['plans_per_s']:,.0f} |"
        )
    return "\n".join(lines)
