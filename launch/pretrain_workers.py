"""Pretraining by several workers: Ray Train runs the same training in each, and starts them again when one dies.

How they share a batch is the models' own matter (`models/distributed.py`); here are only processes, resources and news.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from ray.train import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.cli import UsageError
from launch.pretrain_stages import read_videos_of, train_stage
from launch.ray_access import ray_address
from launch.settings import ClusterSettings
from launch.system import start_ray
from models.distributed import WorkerLostError, is_first_worker
from models.training_log import Progress

# Errors of input or machine, which launch/cli.py prints in one line; all others are faults of the program.
INPUT_ERRORS = (ValueError, OSError, RuntimeError)
POLL_S = 0.5
PATIENCE_S = 60.0


class WorkerFault(Exception):
    """A fault of the program in a worker; its text is the traceback there."""


class Board:
    """An actor through which the workers tell the driver how they are doing."""

    def __init__(self) -> None:
        self._news: list[tuple[Any, ...]] = []
        self._summary: dict[str, Any] | None = None
        self._error: tuple[str, str] | None = None

    def start(self) -> bool:
        """Notes that the workers start; returns whether there is anything left to do."""
        self._news.append(("start",))
        return self._summary is None

    def show(self, step: int, total_steps: int, metrics: dict[str, Any]) -> None:
        """Takes a line of metrics."""
        self._news.append(("metrics", step, total_steps, metrics))

    def finish(self, summary: dict[str, Any]) -> None:
        """Takes the summary of a finished training."""
        self._summary = summary

    def fail(self, message: str, trace: str) -> None:
        """Takes what went wrong: the first worker to say so counts.

        Args:
            message: One line for errors of input or machine, else empty.
            trace: The traceback.
        """
        self._error = self._error or (message, trace)

    def news(self) -> list[tuple[Any, ...]]:
        """What came in since the last call."""
        news, self._news = self._news, []
        return news

    def outcome(self) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
        """Summary and error, each None as long as there is none."""
        return self._summary, self._error


class StopAtErrors(UserCallback):
    """Keeps Ray Train from repeating what is not a death: bad input stays bad."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
        """Called in Ray Train's controller, which gives up when this raises."""
        _, error = ray.get(self._board.outcome.remote())
        if error is not None:
            raise RuntimeError("a worker met an error that would come again")


def train_on_workers(config: DictConfig, workers: int, progress: Progress) -> dict[str, Any]:
    """Trains the model of a stage by several workers on a local Ray or a cluster.

    Args:
        config: Composed configuration of `pretrain.py`, with absolute paths that all nodes can reach.
        workers: Processes that train together.
        progress: Called here with (step, total_steps, metrics).

    Returns:
        The training's summary.

    Raises:
        UsageError: if the cluster cannot hold the workers.
        RuntimeError: an error of input or machine in a worker, or more deaths than `max_restarts`.
        WorkerFault: a fault of the program in a worker.
    """
    if config.max_restarts < 0:
        raise UsageError(f"max_restarts must be at least 0, got {config.max_restarts}")
    # What matters comes through the board; Ray Train's own actors are talkative.
    cluster = ClusterSettings(address=config.address)
    start_ray(cluster, namespace=f"pretrain-{time.time_ns():x}", show_logs=False)
    try:
        resources = _resources(config, workers)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        with tempfile.TemporaryDirectory(prefix="pretrain-") as storage, _shown(board, config, progress):
            failure = _fit(_trainer(config, workers, resources, board, storage))
        summary, error = ray.get(board.outcome.remote())
    finally:
        ray.shutdown()
    if summary is not None:
        return summary
    if error is not None:
        message, trace = error
        raise (RuntimeError(message) if message else WorkerFault(trace)) from failure
    raise RuntimeError(
        f"the workers died more than max_restarts={config.max_restarts} times; the same command goes on from the last "
        f"saved state in {config.out} ({str(failure).strip().splitlines()[-1] if failure else 'no reason given'})"
    ) from failure


def _resources(config: DictConfig, workers: int) -> dict[str, float]:
    """What one worker asks Ray for: a GPU where there is one for each, or device=cuda wants it.

    Raises:
        UsageError: if the cluster has too little, which would make the workers wait for ever.
    """
    there = ray.cluster_resources()
    use_gpu = config.device == "cuda" or (config.device == "auto" and there.get("GPU", 0.0) >= workers)
    one = {"CPU": float(config.threads or 1), **({"GPU": 1.0} if use_gpu else {})}
    for resource, amount in one.items():
        if workers * amount > there.get(resource, 0.0):
            raise UsageError(
                f"too few {resource}s: workers={workers} ask for {workers * amount:g} {resource}, the cluster has "
                f"{there.get(resource, 0.0):g}. Lower workers{' or threads' if resource == 'CPU' else ''}, or add nodes"
            )
    return one


def _trainer(
    config: DictConfig, workers: int, resources: dict[str, float], board: Any, storage: str
) -> TorchTrainer:
    """Ray Train's part: processes, their process group, and new ones after a death.

    Its own storage stays empty: the training folder holds the state, whoever goes on with it.
    """
    use_gpu = "GPU" in resources
    # The workers of a local Ray talk to each other where nobody else listens.
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if ray_address(config.address) == "local" else {}
    return TorchTrainer(
        _work,
        train_loop_config={"config": OmegaConf.to_container(config, resolve=True), "board": board},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="pretrain",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=config.max_restarts),
            callbacks=[StopAtErrors(board)],
            worker_runtime_env={"env_vars": environment},
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _fit(trainer: TorchTrainer) -> Exception | None:
    """Runs it to the end; returns why Ray Train gave up, if it did.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, which Ray turns into an exit without a word.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return error
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)
    return None


def _work(given: dict[str, Any]) -> None:
    """One worker, inside the process group of all."""
    config, board = OmegaConf.create(given["config"]), given["board"]
    assert isinstance(config, DictConfig)
    torch.set_num_threads(int(config.threads or 1))

    def show(step: int, total_steps: int, metrics: dict[str, Any]) -> None:
        board.show.remote(step, total_steps, metrics)

    if is_first_worker():
        # A worker that died after the last step has nothing to go on with.
        unfinished = ray.get(board.start.remote())
    else:
        unfinished = ray.get(board.outcome.remote())[0] is None
    if not unfinished:
        return
    try:
        summary = train_stage(config, read_videos_of(config), Path(config.out), get_device(), show)
    except WorkerLostError:
        raise
    except Exception as error:
        message = str(error) if isinstance(error, INPUT_ERRORS) else ""
        ray.get(board.fail.remote(message, traceback.format_exc()))
        raise
    if is_first_worker():
        ray.get(board.finish.remote(summary))


@contextmanager
def _shown(board: Any, config: DictConfig, progress: Progress) -> Iterator[None]:
    """Shows what comes in at the board, for as long as the block runs."""
    done = threading.Event()
    thread = threading.Thread(target=_show_news, args=(board, config, progress, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show_news(board: Any, config: DictConfig, progress: Progress, done: threading.Event) -> None:
    starts, asked_s = 0, time.monotonic()
    while True:
        last = done.is_set()  # what came in before the end is still shown
        for kind, *values in ray.get(board.news.remote()):
            if kind == "metrics":
                progress(*values)
                continue
            starts += 1
            if starts > 1:
                print(f"[{config.stage}] a worker died; all go on from the last saved state", flush=True)
        if not starts and time.monotonic() - asked_s > PATIENCE_S:
            asked_s = time.monotonic()
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
            print(
                f"[{config.stage}] waiting for {config.workers} workers to start; free now: {free}",
                flush=True,
            )
        if last:
            return
        done.wait(POLL_S)
