"""Makes a small state policy that imitates a reference: rollouts, relabelling (DAgger) and behaviour cloning.

Plain cloning drifts into states that the reference never met. DAgger (Ross et al., arXiv 1011.0686) lets the student
act from the second round on, and asks the reference what it would have done: these labels join the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from actors.envs.registry import EnvConfig, make_env
from actors.policy_file import SCALE_EPSILON, FilePolicy
from actors.seeding import indexed_seed

Policy = Callable[[np.ndarray], np.ndarray]
# (phase, done, asked for, numbers)
Progress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class ImitationConfig:
    """How a student is made.

    Attributes:
        episodes: Episodes in each round, 1 or more.
        rounds: Rounds of collecting and training, 1 or more. The reference acts in the first, the student in the rest.
        noise_stddev: Standard deviation of the Gaussian noise on every second episode's actions, 0 or more.
        hidden_size: Width of both hidden layers, 1 or more.
        train_steps: Gradient steps in each round, 1 or more; three times as many in the last.
        batch_states: States in a gradient step, 1 or more.
        learning_rate: Adam's, above 0; falls to zero over each round as a cosine.
    """

    episodes: int = 40
    rounds: int = 5
    noise_stddev: float = 0.1
    hidden_size: int = 64
    train_steps: int = 4000
    batch_states: int = 512
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        for key in ("episodes", "rounds", "hidden_size", "train_steps", "batch_states"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}, expected 1 or more")
        if self.noise_stddev < 0:
            raise ValueError(f"noise_stddev is {self.noise_stddev}, expected 0 or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected a number above 0")


@dataclass(frozen=True)
class Success:
    """How often a policy solves a task.

    Attributes:
        episodes: Episodes run.
        any: Fraction with a success at any step.
        end: Fraction with a success at the last step.
    """

    episodes: int
    any: float
    end: float


def measure_success(
    env_config: EnvConfig,
    policy: Policy,
    episodes: int,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> Success:
    """Runs a policy, without drawing, on scenes that no collected episode has.

    Args:
        env_config: Task, action repeat and time limit.
        policy: State (S,) -> action (A,).
        episodes: How many, 1 or more.
        seed: Base of the scene seeds (`actors.seeding`, purpose "evaluation"); equal for policies to be compared.
        on_progress: Called after each episode with the number done.
    """
    env = make_env(env_config)
    any_success, end_success = 0, 0
    for episode in range(episodes):
        steps = list(_run(env, indexed_seed("evaluation", seed, episode), policy))
        any_success += any(success for _, success in steps)
        end_success += steps[-1][1]
        if on_progress is not None:
            on_progress(episode + 1)
    env.close()
    return Success(episodes, any_success / episodes, end_success / episodes)


def _run(env: Any, seed: int, policy: Policy) -> Iterator[tuple[np.ndarray, bool]]:
    """Yields (state before the action, success after it) for each agent step of one episode."""
    env.reset_state(seed)
    _forget(policy)
    truncated = False
    while not truncated:
        state = env.state
        _, truncated, info = env.advance(policy(state))
        yield state, info["success"]


def _forget(policy: Policy) -> None:
    """Tells a policy with a memory that an episode begins."""
    reset = getattr(policy, "reset", None)
    if callable(reset):
        reset()


def _answers(reference: Policy, states: list[np.ndarray]) -> list[np.ndarray]:
    """What a reference does in the states of one episode; one with a memory meets them in their order."""
    _forget(reference)
    return [reference(state) for state in states]


def imitate(
    env_config: EnvConfig,
    reference: Policy,
    config: ImitationConfig,
    seed: int,
    on_progress: Progress | None = None,
) -> FilePolicy:
    """Trains a student of a reference policy.

    Args:
        env_config: Task, action repeat and time limit; nothing is drawn.
        reference: State (S,) -> action (A,) in [-1, 1]. If it has a method `reset()`, that is called before each episode.
        config: How.
        seed: Base of the scene seeds, of the noise and of the network, 0 to 2**24 - 1.
        on_progress: Called with ("round 1 episodes" | "round 1 training", done, asked for, numbers).

    Returns:
        The student. Its `log_std` is the logarithm of the root mean square difference from the reference.
    """
    report = on_progress or (lambda *_: None)
    env = make_env(env_config)
    rng = np.random.default_rng([seed, 1])
    states: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    student: FilePolicy | None = None
    for number in range(config.rounds):
        for i in range(config.episodes):
            episode_seed = indexed_seed("video", seed, number * config.episodes + i)
            stddev = config.noise_stddev if i % 2 else 0.0
            actor = student or reference
            _forget(actor)  # Under its noise `_run` does not see a memory.
            met = [state for state, _ in _run(env, episode_seed, _with_noise(actor, stddev, rng))]
            states += met
            answers += _answers(reference, met)
            report(f"round {number + 1} episodes", i + 1, config.episodes, {"states": float(len(states))})
        inputs = np.stack(states)
        labels = np.stack(answers)
        steps = config.train_steps * (3 if number == config.rounds - 1 else 1)
        student = _clone(
            inputs,
            labels,
            config,
            steps,
            seed,
            lambda *args, n=number + 1: report(f"round {n} training", *args),
        )
    env.close()
    assert student is not None
    return student


def _with_noise(policy: Policy, stddev: float, rng: np.random.Generator) -> Policy:
    def act(state: np.ndarray) -> np.ndarray:
        action = policy(state)
        return np.clip(action + stddev * rng.standard_normal(action.shape), -1.0, 1.0).astype(np.float32)

    return act


def _clone(
    states: np.ndarray,
    actions: np.ndarray,
    config: ImitationConfig,
    steps: int,
    seed: int,
    report: Callable[[int, int, dict[str, float]], None],
) -> FilePolicy:
    """Behaviour cloning: least squares between normalised actions, with Adam.

    Args:
        states: (N, S).
        actions: (N, A), what the reference does there.
        config: Network and optimiser.
        steps: Gradient steps.
        seed: Of weights and batches.
        report: Called every 100 steps with (done, steps, {"rms": root mean square action error}).
    """
    in_shift, in_scale = states.mean(0), np.maximum(states.std(0), 1e-3)
    out_shift, out_scale = actions.mean(0), np.maximum(actions.std(0), 1e-2)
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(((states - in_shift) / (in_scale + SCALE_EPSILON)).astype(np.float32))
    y = torch.from_numpy(((actions - out_shift) / out_scale).astype(np.float32))
    scale = torch.from_numpy(out_scale.astype(np.float32))
    network = _network(x.shape[1], config.hidden_size, y.shape[1], generator)
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (min(config.batch_states, len(x)),), generator=generator)
        # Errors count in units of the action, as they do for the hand.
        loss = ((network(x[rows]) - y[rows]) * scale).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            report(step, steps, {"rms": loss.item() ** 0.5})
    with torch.no_grad():
        error = ((network(x) - y) * scale).square().mean(0).sqrt().numpy()
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    arrays: dict[str, Any] = {}
    for i, layer in enumerate(layers):
        arrays[f"w{i}"], arrays[f"b{i}"] = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    arrays |= {"in_shift": in_shift, "in_scale": in_scale, "out_shift": out_shift, "out_scale": out_scale}
    arrays["log_std"] = np.log(np.maximum(error, 1e-6))
    arrays["nonlinearity"] = np.array("tanh")
    arrays["layer_sizes"] = np.array(
        [x.shape[1], config.hidden_size, config.hidden_size, y.shape[1]], np.int32
    )
    return FilePolicy(arrays, "student")


def _network(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return network
