"""What every contender of the replay race does: the episodes, the batch, and the check that all draw the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from launch.bench.harness import Comparison, compare
from launch.bench.reference_replay import LEARNED_WEIGHT, total_rewards
from learner.batch import TensorBatch
from learner.replay import ReplayConfig
from models.episode import Episode

PART, UNIT, TARGET = "replay", "batches/s", 2.0
BATCH_SIZE, N_STEP, GAMMA = 256, 3, 0.99
EPISODE_STEPS, RESOLUTION_PX, ACTION_DIM = 100, 64, 4
Sample = Callable[[], TensorBatch]


class Peer(NamedTuple):
    """One way in which a peer is used.

    Attributes:
        name: Shown in tables.
        wanted_as: Its name in PEERS.
        kind: Class of launch/bench/reference_replay.py.
        arguments: Keyword arguments of that class.
        batches: Batches per turn, so that turns of all contenders take about as long.
    """

    name: str
    wanted_as: str
    kind: type
    arguments: dict[str, Any]
    batches: int


def make_episodes(count: int, seed: int) -> list[Episode]:
    """Episodes of random pixels; the action tells which transition it belongs to (see `checked`).

    They end at a time limit, as those of MetaWorld do: TorchRL's MultiStepTransform keeps the end flags of the
    first of the n steps, so at a true end it would bootstrap where the others do not.
    """
    rng = np.random.default_rng(seed)
    step = np.arange(EPISODE_STEPS)
    episodes = []
    for number in range(count):
        actions = np.zeros((EPISODE_STEPS, ACTION_DIM), np.float32)
        actions[:, 0], actions[:, 1] = number / 2**14, step / 2**14
        shape = (EPISODE_STEPS + 1, RESOLUTION_PX, RESOLUTION_PX, 3)
        episodes.append(
            Episode(
                episode_id=f"e{number:05d}",
                task="door-close",
                frames=rng.integers(0, 256, shape, dtype=np.uint8),
                actions=actions,
                env_rewards=rng.random(EPISODE_STEPS, dtype=np.float32),
                discounts=np.ones(EPISODE_STEPS, np.float32),
                successes=np.zeros(EPISODE_STEPS, bool),
                learned_rewards=rng.standard_normal(EPISODE_STEPS, dtype=np.float32),
            )
        )
    return episodes


def checked(batch: TensorBatch, episodes: Sequence[Episode]) -> dict[str, float]:
    """Compares a batch with transitions computed from the episodes one by one.

    Starts in the last n - 1 steps are left out: peers draw them too, with returns of fewer steps.

    Returns:
        Number of transitions compared and the largest difference of rewards and discounts.

    Raises:
        RuntimeError: if shapes, types or any pixel differ, or a number by more than 1e-5.
    """
    pixels = (BATCH_SIZE, RESOLUTION_PX, RESOLUTION_PX, 3)
    found = [(tuple(value.shape), value.dtype) for value in batch]
    column = ((BATCH_SIZE, 1), torch.float32)
    wanted = [(pixels, torch.uint8), ((BATCH_SIZE, ACTION_DIM), torch.float32), column, column]
    if found != [*wanted, wanted[0]]:
        raise RuntimeError(f"a batch has {found}, expected {[*wanted, wanted[0]]}")
    compared, largest = 0, 0.0
    for row in range(BATCH_SIZE):
        number, start = (round(float(value) * 2**14) for value in batch.action[row, :2])
        if start > EPISODE_STEPS - N_STEP:
            continue
        episode = episodes[number]
        reward, discount = 0.0, 1.0
        for step in range(start, start + N_STEP):
            reward += discount * float(total_rewards(episode)[step])
            discount *= GAMMA * float(episode.discounts[step])
        for value, frame in ((batch.obs, start), (batch.next_obs, start + N_STEP)):
            if not np.array_equal(value[row].numpy(), episode.frames[frame]):
                raise RuntimeError(f"pixels of frame {frame} of episode {number} differ")
        difference = max(abs(float(batch.reward[row]) - reward), abs(float(batch.discount[row]) - discount))
        compared, largest = compared + 1, max(largest, difference)
    if compared < BATCH_SIZE // 2 or largest > 1e-5:
        raise RuntimeError(f"{compared} transitions compared, rewards or discounts differ by {largest:.3g}")
    return {"transitions_compared": compared, "largest_difference": largest}


def store_config(transitions: int) -> ReplayConfig:
    return ReplayConfig(
        capacity_transitions=transitions,
        n_step=N_STEP,
        discount=GAMMA,
        learned_weight=LEARNED_WEIGHT,
        episode_steps=EPISODE_STEPS,
    )


def draw(sample: Sample, batches: int) -> float:
    for _ in range(batches):
        sample()
    return batches


def turn(run: Callable[[], float], rest: Callable[[], None]) -> Callable[[], float]:
    def turn() -> float:
        try:
            return run()
        finally:
            rest()

    return turn


def comparisons(
    rates: dict[str, list[float]], case: str, peers: Sequence[Peer], checks: dict[str, Any]
) -> list[Comparison]:
    return [
        compare(
            rates,
            "ours",
            peer.name,
            part=PART,
            case=case,
            unit=UNIT,
            target=TARGET,
            checks={"ours": checks["ours"], "peer": checks[peer.name]},
        )
        for peer in peers
    ]
