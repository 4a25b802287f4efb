"""Training of a diffuser, resumable at any moment (Diffuser, arXiv 2205.09991; arXiv 2306.01804).

A training folder holds `config.json` + `weights.pt` (the best averaged diffuser so far, its normaliser inside),
`training.json` (what was asked for), `training_state.pt` (where to go on), `metrics.jsonl`, `tensorboard/`, and, once
finished, `summary.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.diffuser.averaged_run import AveragedRun
from models.diffuser.config import DiffuserConfig, DiffuserTrainingConfig
from models.diffuser.diffuser import Diffuser, load_diffuser, save_diffuser
from models.diffuser.normaliser import Normaliser
from models.diffuser.raster import density_picture
from models.diffuser.window_batches import WindowBatches, joint_vectors
from models.precision import forbid_tf32
from models.training_folder import claim_folder, run_training, seeded
from models.training_log import Progress
from models.trajectories import TrajectorySet

__all__ = ["train_diffuser"]

VALIDATION_BATCH = 128
PICTURE_WINDOWS = 32


def train_diffuser(
    config: DiffuserTrainingConfig,
    model_config: DiffuserConfig,
    data: TrajectorySet,
    folder: str | Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    *,
    base: str | Path | None = None,
    resume: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a diffuser on windows of trajectories, or goes on with a training that was cut off.

    Args:
        config: How to train.
        model_config: Sizes; `observation_dim` and `action_dim` are taken from the data.
        data: All trajectories; the training split is learned from, the validation split validated on.
        folder: Training folder; afterwards `load_diffuser(folder)` gives the best averaged model.
        device: Where to train.
        progress: Called with (step, total_steps, metrics) at every line of metrics.
        base: Folder of the base diffuser that an expert belongs to; its normaliser is used, so that the two models
            speak of the same vectors. None fits a normaliser to the training split.
        resume: Whether an unfinished training in the folder may be gone on with.
        extra: More facts for `config.json`.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, best validation loss and its step.

    Raises:
        FileExistsError: if the folder holds a finished training, or an unfinished one and `resume` is off.
        FileNotFoundError: if there is no base.
        ValueError: if data, base and sizes do not fit together, or the folder was started with another
            configuration (the keys are named).
        FloatingPointError: if the loss is no longer finite.
    """
    forbid_tf32()
    folder, device = Path(folder), torch.device(device)
    index = data.index
    model_config = replace(
        model_config, observation_dim=index["observation_dim"], action_dim=index["action_dim"]
    )
    if config.initialise_from_base and base is None:
        raise ValueError(
            "initialise_from_base is on, but there is no base diffuser: give one with base=<folder>"
        )
    base_model = _load_base(base, model_config, data) if base is not None else None
    splits = {
        s: data.split(s).windows(model_config.horizon, model_config.padding) for s in ("train", "validation")
    }
    facts = {
        **{key: index[key] for key in ("domain", "task", "mode", "goal", "transitions", "trajectories")},
        "data": str(data.folder),
        "normaliser_from": None if base is None else str(base),
        **(extra or {}),
    }
    settings = {"training": asdict(config), "model": asdict(model_config), "data": facts}
    claim_folder(folder, settings, resume, "diffuser", "diffuser")
    with seeded(device, config.seed):
        normaliser = (
            base_model.normaliser
            if base_model is not None
            else Normaliser.fit(data.split("train"), model_config.normaliser)
        )
        model = Diffuser(model_config, normaliser)
        if base_model is not None and config.initialise_from_base:
            model.network.load_state_dict(base_model.network.state_dict())
    vectors = joint_vectors(data, model.to(device).normaliser)
    batches = {name: WindowBatches(vectors, windows) for name, windows in splits.items()}
    run = _DiffuserRun(config, model, batches, folder, device, facts)
    return run_training(run, config, folder, progress)


def _load_base(folder: str | Path, config: DiffuserConfig, data: TrajectorySet) -> Diffuser:
    """The base diffuser of an expert.

    Raises:
        ValueError: naming each key in which the two models would differ.
    """
    base, facts = load_diffuser(folder)
    mine, theirs = asdict(config), asdict(base.config)
    different = [
        f"{key}: {theirs[key]!r} there, {mine[key]!r} here" for key in mine if mine[key] != theirs[key]
    ]
    if facts["task"] != data.index["task"]:
        different.append(f"task: {facts['task']!r} there, {data.index['task']!r} here")
    if different:
        raise ValueError(
            f"an expert must be built as its base {folder} ({'; '.join(different)}): use the same values, or train "
            "the base again"
        )
    return base


class _DiffuserRun(AveragedRun):
    """State of one training of a diffuser."""

    model: Diffuser
    average: Diffuser
    picture_name = "held_out_against_samples"

    def __init__(
        self,
        config: DiffuserTrainingConfig,
        model: Diffuser,
        batches: Mapping[str, WindowBatches],
        folder: Path,
        device: torch.device,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(config, model, folder, device, "diffuser")
        self.batches, self.facts = batches, facts

    def start_facts(self) -> dict[str, Any]:
        """What the first line of the log says."""
        counts = {f"{name}_windows": len(batches) for name, batches in self.batches.items()}
        return {**super().start_facts(), **counts}

    def _loss(self, model: Diffuser, windows: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return model.loss(windows)

    def batch_loss(self) -> Tensor:
        """Loss of random training windows at random diffusion steps."""
        return self._loss(self.model, self.batches["train"].draw(self.config.batch_windows))

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """Loss of the average on held-out windows, with the same noise every time."""
        windows = self.batches["validation"].even(self.config.validation_windows)
        losses = [self._loss(self.average, part) * len(part) for part in windows.split(VALIDATION_BATCH)]
        return {"validation_loss": float(torch.stack(losses).sum()) / len(windows)}

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Writes the averaged diffuser as the folder's model."""
        save_diffuser(self.folder, self.average, {**self.facts, **facts}, overwrite=True)

    @torch.no_grad()
    def pictures(self) -> np.ndarray:
        """(2, 96, 96, 3) uint8: the first two coordinates of observations, held out and sampled."""
        config = self.average.config
        windows = self.batches["validation"].even(PICTURE_WINDOWS)
        with seeded(self.device, self.config.seed):
            given = {step: windows[:, step, config.action_dim :] for step in config.given_steps}
            samples = self.average.sample(given, len(windows))
        first = config.action_dim
        second = min(first + 1, config.transition_dim - 1)
        reach = 1.05 if config.normaliser == "min_max" else 3.0
        return np.stack(
            [density_picture(w[..., first], w[..., second], -reach, reach) for w in (windows, samples)]
        )
