"""The learner: agent and bonus, fed with prefetched batches, with exact save and load."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from learner.batch import Batch
from learner.bonus import BonusConfig, make_bonus
from learner.captured import record_cuda_graph
from learner.drqv2 import DrQV2Agent
from learner.drqv2_config import DrQV2Config
from learner.preparation import Preparation, Prepared
from learner.second_thread import SecondThread, has_free_core
from models.checkpoints import save_tensors
from models.precision import PRECISIONS, bfloat16_pays

FILE_NAME = "learner.pt"


@dataclass(frozen=True)
class LearnerConfig:
    """How the learner runs; nothing here but `precision` changes what it learns from a batch, and nothing but
    `publish_every_updates` which policy collects the data.

    Attributes:
        prefetch_batches: Batches fetched ahead of the update that needs them, at least 0.
        metrics_every_updates: Updates between two readings of the metrics, at least 1.
        num_threads: CPU threads of torch in the learner's process, or None for torch's own choice.
        compile: Compile the networks with torch.compile (slow start; pays off on long GPU runs).
        publish_every_updates: Updates between two publications of the policy's weights, at least 1.
        precision: "float32", or "bfloat16" for the convolutions of the agent's encoder (weights and everything after
            the encoder stay float32), or "auto": bfloat16 where the hardware is faster at it (GPUs, CPUs with AMX).
        cuda_graph: Record the agent's update once and launch it as a whole: true (needs a GPU), false, or "auto"
            (where there is one).
        second_thread: Do what can be done beside the agent's update beside it: the bonus of the next batches, target
            values, gradients of weights; true, false, or "auto" (on a CPU of which `num_threads` leaves a core free).
    """

    prefetch_batches: int = 4
    metrics_every_updates: int = 10
    num_threads: int | None = None
    compile: bool = False
    publish_every_updates: int = 100
    precision: str = "float32"
    cuda_graph: bool | str = "auto"
    second_thread: bool | str = "auto"

    def __post_init__(self) -> None:
        least = {"prefetch_batches": 0, "metrics_every_updates": 1, "publish_every_updates": 1}
        if self.num_threads is not None:
            least["num_threads"] = 1
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"learner.{name}={getattr(self, name)!r} is not allowed: "
                    f"expected a whole number of at least {minimum}"
                )
        switch = ("auto", True, False)
        choices = {"precision": ("auto", *PRECISIONS), "cuda_graph": switch, "second_thread": switch}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"learner.{name}={getattr(self, name)!r} is not allowed: expected one of {allowed}"
                )

    def precision_on(self, device: torch.device) -> str:
        """What "auto" means on a device."""
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if bfloat16_pays(device) else "float32"

    def works_beside(self, device: torch.device) -> bool:
        """Whether there is a second thread on a device.

        Raises:
            ValueError: if there cannot be one, but must.
        """
        if self.second_thread is True and device.type != "cpu":
            raise ValueError(
                f"learner.second_thread=true is not allowed with the learner on {device.type!r}: use auto or false there"
            )
        return has_free_core(device) if self.second_thread == "auto" else bool(self.second_thread)

    def captures(self, device: torch.device) -> bool:
        """Whether updates are recorded on a device.

        Raises:
            ValueError: if they cannot be, but must.
        """
        if self.cuda_graph is True and device.type != "cuda":
            raise ValueError(
                f"learner.cuda_graph=true is not allowed with the learner on {device.type!r}: use auto or false, "
                "or put the learner on a GPU"
            )
        return self.cuda_graph is not False and device.type == "cuda"


def load_actor_weights(folder: str | Path) -> tuple[int, dict[str, np.ndarray]]:
    """The policy in a checkpoint, for evaluation without a learner.

    Args:
        folder: Folder that `Learner.save` wrote into.

    Returns:
        Updates done, and the weights as `Policy.load` takes them.

    Raises:
        FileNotFoundError: if there is no `learner.pt`.
    """
    state = torch.load(Path(folder) / FILE_NAME, map_location="cpu", weights_only=True)
    agent = state["agent"]
    last = {f"{part}.{name}": value for part in ("encoder", "actor") for name, value in agent[part].items()}
    weights = agent.get("acting_average") or last
    return state["updates"], {name: value.numpy() for name, value in weights.items()}


class Learner:
    """Owns the agent, its optimisers and the bonus; counts updates.

    Args:
        resolution_px: Height and width of the frames.
        action_dim: Length A of the action vector.
        agent_config: Hyperparameters of DrQ-v2.
        bonus_config: The learned bonus.
        fetch_batch: Returns the batch of an update index; called from threads, several at a time. Must
            depend on the index and the replay's contents only.
        config: How to run.
        seed: Seed of initial weights, shifts and noise.
        device: Torch device.
    """

    def __init__(
        self,
        resolution_px: int,
        action_dim: int,
        agent_config: DrQV2Config,
        bonus_config: BonusConfig,
        fetch_batch: Callable[[int], Batch],
        config: LearnerConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config or LearnerConfig()
        self.device = torch.device(device)
        record = record_cuda_graph if self.config.captures(self.device) else None
        beside = self.config.works_beside(self.device)
        self._second_thread = SecondThread(beside)
        self.agent = DrQV2Agent(
            *(resolution_px, action_dim, agent_config, self.device, seed),
            *(self.config.precision_on(self.device), record, self._second_thread),
        )
        self.bonus = make_bonus(bonus_config, resolution_px, self.device, seed + 1)
        if self.config.compile:
            self.agent.compile()
        self.updates = 0
        self._preparation = Preparation(
            *(fetch_batch, self.bonus, self.device, self.config.prefetch_batches),
            bonus_thread=beside,
        )
        self._identity = {
            "resolution_px": resolution_px,
            "action_dim": action_dim,
            "seed": seed,
            **{f"agent.{key}": value for key, value in asdict(agent_config).items()},
            **{f"bonus.{key}": value for key, value in asdict(bonus_config).items()},
        }

    def run_updates(
        self, num_updates: int, agent_steps: int, after_update: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Runs gradient steps, preparing the next batches of this call meanwhile.

        Args:
            num_updates: Number of updates, at least 0.
            agent_steps: Global agent steps so far; sets the stddev of the noise.
            after_update: Called after every update, for example to publish weights.

        Returns:
            Mean over the measured updates of every metric; empty if there were none.

        Raises:
            FloatingPointError: if the agent has diverged.
        """
        history: dict[str, list[torch.Tensor]] = defaultdict(list)
        with closing(self._preparation.take(self.updates, self.updates + num_updates)) as all_prepared:
            for prepared in all_prepared:
                metrics = self._update(prepared, agent_steps)
                if self.updates % self.config.metrics_every_updates == 0 or self.updates == 1:
                    for name, value in metrics.items():
                        history[name].append(value.clone())  # the next update may write into it
                if after_update is not None:
                    after_update()
        # Reading a value waits for the device, so that happens once, at the end.
        means = {name: float(torch.stack(values).mean()) for name, values in history.items()}
        _require_finite(means, self.updates)
        return means

    def _update(self, prepared: Prepared, agent_steps: int) -> dict[str, torch.Tensor]:
        """One update of the agent; the bonus at s_{t+n} was computed before it was trained on the same batch."""
        metrics = self.agent.update(prepared.batch, agent_steps, prepared.bonus, self.bonus.weight)
        self.updates += 1
        return prepared.metrics | metrics

    @property
    def needs_load(self) -> bool:
        """Whether a failure left the bonus ahead of the agent, so that only a checkpoint brings them together again."""
        return self._preparation.bonus_index != self.updates

    @property
    def batch_wait_s(self) -> float:
        """Seconds spent waiting for batches so far."""
        return self._preparation.wait_s

    def weights(self) -> tuple[int, dict[str, np.ndarray]]:
        """The number of updates as version, and the policy's weights as numpy arrays."""
        return self.updates, self.agent.actor_weights()

    def save(self, folder: str | Path) -> Path:
        """Writes `learner.pt` into an existing folder, atomically.

        Raises:
            FileExistsError: if the folder has one already; checkpoints are never overwritten.
            OSError: naming the file, if the disk is full.
        """
        path = Path(folder) / FILE_NAME
        if path.exists():
            raise FileExistsError(f"{path} exists already; save every checkpoint into a folder of its own")
        state = {
            "identity": self._identity,
            "updates": self.updates,
            "agent": self.agent.state_dict(),
            "bonus": self.bonus.state_dict(),
        }
        save_tensors(path, state)
        return path

    def load(self, folder: str | Path) -> None:
        """Restores a checkpoint; training goes on exactly as if it had not stopped.

        Raises:
            FileNotFoundError: if there is no `learner.pt`.
            ValueError: naming the settings that differ from the checkpoint's.
        """
        path = Path(folder) / FILE_NAME
        state = torch.load(path, map_location=self.device, weights_only=True)
        stored = state["identity"]
        # A setting that the checkpoint does not name is younger than it.
        wrong = [
            f"{key} is {stored[key]!r} there and {value!r} here"
            for key, value in self._identity.items()
            if stored.get(key, value) != value
        ]
        if wrong:
            raise ValueError(f"checkpoint {path} does not fit: {'; '.join(wrong)}; use the same settings")
        self.agent.load_state_dict(state["agent"])
        self.bonus.load_state_dict(state["bonus"])
        self.updates = self._preparation.bonus_index = state["updates"]

    def close(self) -> None:
        """Ends the threads."""
        self._preparation.close()
        self._second_thread.close()


def _require_finite(means: Mapping[str, float], updates: int) -> None:
    """Stops an agent that has diverged: its actions are no numbers, and simulators answer those with anything, even success."""
    bad = {name: value for name, value in means.items() if not math.isfinite(value)}
    if bad:
        listed = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise FloatingPointError(
            f"the agent has diverged within the last updates up to {updates}: {listed}. The last checkpoint is from before or "
            "is damaged in the same way: begin a new run with a lower agent.lr, or look at the rewards in its replay"
        )
