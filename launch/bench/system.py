"""The whole training on Ray against the same work in one process that takes turns (`reference_system`).

Both sides are brought past the first updates, then take turns: a window of so many agent steps and exactly the updates
that belong to them. Starting Ray, the first evaluation and filling the replay are not counted on either side.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launch.bench.harness import Comparison, Contender, Row, compare, race
from launch.bench.reference_official import OfficialTraining
from launch.bench.reference_system import SequentialTraining
from launch.bench.settings import BenchSettings
from launch.bench.workload import make_workload, prepare_ray

# One process that takes turns: with our own parts and all threads, the same with one thread, with the original's parts.
PEERS = ("sequential", "one_thread", "official")
TARGET = 1.7
# An update at paper sizes takes most of a second: less is done before the windows start. One thread a process, since the
# reward has work for a core of its own.
SHORT_WARM_UP = (
    *("limiter.min_steps=100", "agent.num_expl_steps=100"),
    *("limiter.tolerance_steps=300", "updates_per_call=5", "learner.num_threads=1"),
)
# Of ours, also where it takes turns; `official` stays in float32.
BFLOAT16 = ("frame_reward.precision=bfloat16", "learner.precision=bfloat16")
WARM_UPDATES = 5  # Of a peer, so that nothing is done for the first time in a turn.
MOST_ROUNDS = 2  # A turn takes up to a minute.
OURS = "ray"


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison.

    Attributes:
        name: Key of the comparison.
        preset: Preset of sizes.
        overrides: More keys of the verb train.
        window_steps: Agent steps of one turn, whole episodes.
        rounds: Turns of each side.
        sustained_steps: Agent steps of one more, longer window of the system alone, or 0.
        reward: Reward of the training.
    """

    name: str
    preset: str
    overrides: tuple[str, ...]
    window_steps: int
    rounds: int
    sustained_steps: int = 0
    reward: str = "diffusion_likelihood"


def cases(settings: BenchSettings) -> list[Case]:
    """What is compared; `smoke` keeps the laptop sizes only and fills the replay with less."""
    short = ("limiter.min_steps=200", "agent.num_expl_steps=200")
    if settings.smoke:
        return [Case("preset=laptop", "laptop", short, window_steps=300, rounds=1)]
    rounds = min(settings.rounds, MOST_ROUNDS)
    return [
        Case("preset=laptop", "laptop", (), window_steps=500, rounds=rounds, sustained_steps=9000),
        Case("preset=paper", "paper", SHORT_WARM_UP, 200, rounds, reward="diffusion"),
        Case("preset=paper, bfloat16", "paper", SHORT_WARM_UP + BFLOAT16, 200, rounds, reward="diffusion"),
    ]


def measure(settings: BenchSettings) -> list[Comparison | Row]:
    """Ratios of agent steps per second, and who used how much of the processor meanwhile."""
    prepare_ray()
    results: list[Comparison | Row] = []
    for case in cases(settings):
        settings.report(f"{case.name}: {case.window_steps} agent steps a turn")
        with tempfile.TemporaryDirectory(prefix="drr-bench-") as folder:
            results += _measure_case(case, settings, Path(folder))
    return results


def _measure_case(case: Case, settings: BenchSettings, folder: Path) -> list[Comparison | Row]:
    from launch.bench.ray_training import ray_training  # Ray reads its settings when it is imported.

    device = ("cluster.learner_gpus=0.5", "cluster.reward_gpus=0.5") if settings.device == "cuda" else ()
    overrides = [*case.overrides, *device]
    workload = make_workload(folder, case.preset, overrides, settings.seed, case.reward)
    updates = round(case.window_steps * workload.settings.limiter.updates_per_step)
    threads = {name: count for name, count in _threads(settings).items() if settings.wants(name)}
    sequential = SequentialTraining(workload.settings, folder / "sequential", settings.device)
    trainings = dict.fromkeys(threads, sequential)
    if "official" in threads:
        trainings["official"] = OfficialTraining(
            workload.settings, folder / "official", settings.device, settings.threads
        )
    with ray_training(workload) as system:
        system.warm_up()
        for training in dict.fromkeys([sequential, *trainings.values()]):
            training.run(workload.settings.block_steps, 0)
            training.run(workload.settings.block_steps, WARM_UPDATES)
        sides = {OURS: Side(system, settings.threads)}
        sides |= {name: Side(trainings[name], count) for name, count in threads.items()}

        def contender(name: str) -> Contender:
            return Contender(name, lambda: sides[name].turn(case.window_steps, updates))

        rates = race([contender(name) for name in sides], case.rounds, 0, settings.report)
        sustained = _sustained(case, system, workload.settings.limiter.updates_per_step)
    for training in dict.fromkeys([sequential, *trainings.values()]):
        training.close()
    ours = sides.pop(OURS)
    common = {"part": "system", "case": case.name, "unit": "agent steps/s", "target": TARGET}
    return [
        *(
            compare(rates, OURS, name, checks=_checks(ours, side) | _reward_of(trainings[name]), **common)
            for name, side in sides.items()
        ),
        *sustained,
        Row("system", f"{case.name}: {OURS}, share of a core", ours.shares()),
        *(
            Row("system", f"{case.name}: {name}, share of the time", side.shares())
            for name, side in sides.items()
        ),
    ]


def _reward_of(training: SequentialTraining) -> dict[str, bool]:
    """Whether the official loop scores with the published chain; nothing for the peers built from our parts."""
    if not isinstance(training, OfficialTraining):
        return {}
    return {"scores_with_the_published_chain": training.has_official_reward}


def _sustained(case: Case, system: Any, updates_per_step: float) -> list[Row]:
    """Rates of the system alone over a longer window."""
    if not case.sustained_steps:
        return []
    updates = round(case.sustained_steps * updates_per_step)
    start_s = time.monotonic()
    system.run(case.sustained_steps, updates)
    elapsed_s = time.monotonic() - start_s
    rates = {"agent_steps_per_s": case.sustained_steps / elapsed_s, "updates_per_s": updates / elapsed_s}
    return [Row("system", f"{case.name}: {OURS}, sustained", {"seconds": elapsed_s, **rates})]


def _threads(settings: BenchSettings) -> dict[str, int]:
    """Threads of torch of each peer. On Ray they are the preset's own, one a process on two cores.

    A smoke run leaves out the slowest peer, unless it is asked for by name.
    """
    threads = {"sequential": settings.threads, "one_thread": 1, "official": settings.threads}
    if settings.smoke and settings.against is None:
        del threads["official"]
    return threads


class Side:
    """Turns of one side, with what was done in them.

    Args:
        training: `RayTraining` or `SequentialTraining`.
        threads: Threads of torch in this process while it has its turn.
    """

    def __init__(self, training: Any, threads: int) -> None:
        self._training, self.threads = training, threads
        self.agent_steps = self.updates = self.episodes = 0
        self._wall_s = 0.0
        self._seconds: Counter[str] = Counter()

    def turn(self, agent_steps: int, updates: int) -> float:
        """Does one turn; returns the agent steps done."""
        torch.set_num_threads(self.threads)
        training = self._training
        steps, done, episodes = training.agent_steps, training.updates, training.episodes
        seconds, start_s = Counter(training.seconds), time.monotonic()
        training.run(agent_steps, updates)
        self._wall_s += time.monotonic() - start_s
        self._seconds.update({name: s - seconds[name] for name, s in training.seconds.items()})
        self.agent_steps += training.agent_steps - steps
        self.updates += training.updates - done
        self.episodes += training.episodes - episodes
        return float(training.agent_steps - steps)

    def shares(self) -> dict[str, float]:
        """Seconds of each part (of each process on Ray) per second of the turns."""
        return {name: seconds / self._wall_s for name, seconds in self._seconds.items()}


def _checks(ours: Side, peer: Side) -> dict[str, Any]:
    """What both sides did in all their turns.

    Raises:
        RuntimeError: if it was not the same.
    """
    counts = [(side.agent_steps, side.updates, side.episodes) for side in (ours, peer)]
    if counts[0] != counts[1]:
        raise RuntimeError(
            f"(agent steps, updates, episodes) are {counts[0]} on Ray and {counts[1]} one after the other: no race"
        )
    names = ("agent_steps", "updates", "episodes_rolled_out_and_scored")
    return {f"{name}_of_each_side": count for name, count in zip(names, counts[0])} | {
        "peer_threads": peer.threads
    }
