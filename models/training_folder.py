"""What all training loops share: claiming a folder, the loop itself, and randomness that a resume repeats.

A training folder holds the best weights so far, `training.json` (what was asked for), `training_state.pt` (where to
go on), `metrics.jsonl`, `tensorboard/`, and, once finished, `summary.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoints import STATE_FILE, WEIGHTS_FILE, require_same_config
from models.distributed import is_first_worker, require_same_step
from models.files import checksum, hold_folder, read_json, write_json
from models.training_log import Progress, TrainingLog
from models.video_facts import dataset_facts
from models.videos import VideoSet

SETTINGS_FILE = "training.json"
SUMMARY_FILE = "summary.json"


class Intervals(Protocol):
    """Steps between two lines of metrics, two validations and two saves."""

    @property
    def log_every_steps(self) -> int: ...
    @property
    def validate_every_steps(self) -> int: ...
    @property
    def save_every_steps(self) -> int: ...


class TrainingRun(Protocol):
    """State of one training, driven by `run_training`.

    Attributes:
        step: Optimiser steps done.
        total_steps: Optimiser steps planned.
        picture_name: Tag of `pictures` in TensorBoard.
    """

    step: int
    total_steps: int
    picture_name: str

    def start_facts(self) -> Mapping[str, Any]:
        """What the first line of the log says."""
        ...

    def train_step(self) -> None:
        """One optimiser step; counts `step` up."""
        ...

    def numbers(self) -> Mapping[str, float]:
        """Training metrics of the last steps, as plain numbers."""
        ...

    def validate(self) -> Mapping[str, float]:
        """Validation metrics; keeps the weights if they are the best so far."""
        ...

    def pictures(self) -> np.ndarray:
        """(N, H, W, 3) uint8 pictures for TensorBoard."""
        ...

    def save(self) -> None:
        """Writes `training_state.pt`."""
        ...

    def restore(self) -> None:
        """The inverse of `save`."""
        ...

    def best(self) -> Mapping[str, float]:
        """The best validation result and its step, for the summary."""
        ...


def claim_folder(folder: Path, settings: Mapping[str, Any], resume: bool, product: str, kind: str) -> None:
    """Writes the settings of a new folder, or checks those of an old one. Of several workers only the first one does.

    Args:
        folder: Training folder; made if missing.
        settings: What is asked for: nested dicts of JSON values.
        resume: Whether an unfinished training in the folder may be gone on with.
        product: What a finished training gives, for messages: "codec", "video model".
        kind: What is trained, for messages: "codec", "video".

    Raises:
        FileExistsError: if the folder holds a finished training, an unfinished one and `resume` is off, or
            something else.
        ValueError: if it was started with other settings, naming each key.
        RuntimeError: if another process is training in it.
    """
    if not is_first_worker():
        return
    if (folder / SUMMARY_FILE).exists():
        raise FileExistsError(
            f"{folder} already holds a finished {product}; use it as it is, or train into another folder"
        )
    if (folder / SETTINGS_FILE).exists():
        if not resume:
            raise FileExistsError(
                f"{folder} holds an unfinished training; resume it, or choose another folder"
            )
        hold_folder(folder)
        # a folder from before the models it starts from were remembered is taken to have had these
        models = {key: settings[key] for key in ("codec", "weights") if key in settings}
        require_same_config({**models, **read_json(folder / SETTINGS_FILE)}, settings, folder)
        for name in (STATE_FILE, WEIGHTS_FILE):
            for half_written in folder.glob(f".{name}.*"):  # left by a kill in the middle of a save
                half_written.unlink()
        return
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and holds no {kind} training; choose an empty or new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    hold_folder(folder)
    write_json(folder / SETTINGS_FILE, settings)


def is_unfinished(folder: str | Path) -> bool:
    """Whether a training was begun here and has not come to its end."""
    return (Path(folder) / SETTINGS_FILE).exists() and not (Path(folder) / SUMMARY_FILE).exists()


def run_training(
    run: TrainingRun, config: Intervals, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """Trains to the end, from where the folder's state left off, and writes the summary.

    Of several workers only the first one validates and writes; the others wait for it in their next step, and return
    an empty summary.

    Args:
        run: Freshly built.
        config: When to log, validate and save.
        folder: Claimed with `claim_folder`.
        progress: Called with (step, total_steps, metrics) at every line of metrics.

    Returns:
        The summary, as in `summary.json`: steps, wall_s, and the best validation result with its step.
    """
    if (folder / STATE_FILE).exists():
        run.restore()
    require_same_step(run.step)
    if not is_first_worker():
        return _follow(run, config)
    with TrainingLog(folder, progress, total_steps=run.total_steps, resume_step=run.step or -1) as log:
        if run.step == 0:
            log.scalars(0, {"phase": "start", **run.start_facts()})
        while run.step < run.total_steps:
            run.train_step()
            if due(run.step, config.log_every_steps, run.total_steps):
                log.scalars(run.step, {"phase": "train", **run.numbers()})
            if due(run.step, config.validate_every_steps, run.total_steps):
                log.scalars(run.step, {"phase": "validation", **run.validate()})
                log.images(run.step, run.picture_name, run.pictures())
            if due(run.step, config.save_every_steps, run.total_steps):
                run.save()
        summary = {"steps": run.total_steps, "wall_s": round(log.wall_s, 1), **run.best()}
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _follow(run: TrainingRun, config: Intervals) -> dict[str, Any]:
    """The part of the other workers."""
    while run.step < run.total_steps:
        run.train_step()
        if due(run.step, config.log_every_steps, run.total_steps):
            run.numbers()  # the learning rate may follow the mean loss
    return {}


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens every `every` steps, and at the last one, happens after step `step`."""
    return step % every == 0 or step == total


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Makes all randomness inside a function of `numbers`: a resumed step draws what the first try drew."""
    devices = [device] if device.type == "cuda" else []
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def require_finite(loss: float, step: int, model: str, learning_rate: float, also: str = "") -> None:
    """Stops a training that diverged.

    Args:
        loss: Of the last steps.
        step: Where.
        model: "codec", "video model", ...
        learning_rate: The configured one; a lower one is advised.
        also: Further advice, added to the sentence.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the {model}'s loss is {loss} at step {step}. The last saved state is intact, but going on from it "
            f"would end the same way: start again in another folder with a learning_rate below {learning_rate:g}{also}"
        )


def video_settings(
    config: Any, model_config: Any, videos: Sequence[VideoSet], codec_folder: str | Path
) -> dict[str, Any]:
    """Settings of a training on windows of videos: both config dataclasses, what the videos are, and which codec.

    Raises:
        ValueError: if there are no training or no validation videos, or they do not belong together.
    """
    counts = {f"{s}_videos": sum(len(v.split(s)) for v in videos) for s in ("train", "validation")}
    for name, count in counts.items():
        if not count:
            raise ValueError(
                f"{name} is 0: collect more videos, every fifth goes to the validation split by default"
            )
    data = {**dataset_facts(videos), **counts}
    # the tokens of another codec mean other pictures
    codec = {"weights": checksum(Path(codec_folder) / WEIGHTS_FILE)}
    return {"training": asdict(config), "model": asdict(model_config), "data": data, "codec": codec}


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float | None) -> Tensor:
    """Scales gradients down to a total norm of at most `largest`.

    Args:
        parameters: Those without a gradient are left out.
        largest: None only measures. (An infinite limit would turn an infinite norm into gradients that are NaN.)

    Returns:
        The total norm before clipping, a scalar.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if largest is not None:
        return torch.nn.utils.clip_grad_norm_(trained, largest)
    norms = [torch.linalg.vector_norm(p.grad) for p in trained if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))
