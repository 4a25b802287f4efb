"""Behaviours that videos are made of: the scripted expert, and what a reward must tell from it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np

from actors.envs.registry import domain_of
from actors.noise import correlated

BEHAVIOURS = ("expert", "random", "half", "noisy", "wander", "misdirected", "linger")
# Only judged, never learned from: what a reward says about them shows whether it knows what the arm moves to.
JUDGED_ONLY = ("misdirected",)
LEARNED_FROM = tuple(behaviour for behaviour in BEHAVIOURS if behaviour not in JUDGED_ONLY)
HALF_EXPERT_STEPS = 12
# Of a wanderer's actions, from one agent step to the next.
WANDER_CORRELATION = 0.95
# By domain. An Adroit hand loses its grip sooner than a gripper: with 0.2 the expert still solves a quarter (door) to
# five sixths (pen) of the scenes, with 0.4 none of door and relocate.
NOISE_STDDEV = {"metaworld": 1.0, "adroit": 0.2}
# A lingering arm stops after one of these numbers of agent steps, and then trembles with this share of that noise.
LINGER_AFTER_STEPS = (2, 40)
LINGER_NOISE = 0.3
# What of the last action keeps an arm where it is. MetaWorld's actions are displacements and the gripper's force, Adroit's joint angles.
STILL = {"metaworld": (0.0, 0.0, 0.0, 1.0), "adroit": (1.0,)}

# Behaviours that do not ask the expert for actions.
UNSKILLED = ("random", "wander", "misdirected")

Policy = Callable[[np.ndarray], np.ndarray]
# Experts by domain: "module:function", (task) -> (low-dimensional state -> action).
EXPERTS = {
    "metaworld": "actors.envs.metaworld:expert_policy",
    "adroit": "actors.envs.adroit:expert_policy",
}


class ScriptedExpert:
    """The expert of a task, from the low-dimensional state of its environment: its domain's own, or a given one."""

    def __init__(self, task: str, policy: Policy | None = None) -> None:
        """Looks the policy up.

        Args:
            task: Task name.
            policy: Used instead of the domain's own, for example from `actors.expert_sources.load_expert`.

        Raises:
            ValueError: if the task is unknown, or its domain has no expert.
        """
        domain = domain_of(task).name
        if policy is not None:
            self._act: Policy = policy
            if hasattr(policy, "reset"):  # A memory begins anew with each episode.
                policy.reset()
            return
        if domain not in EXPERTS:
            raise ValueError(
                f"no expert for domain {domain!r} of task {task!r}; domains with one: {', '.join(EXPERTS)}"
            )
        module, name = EXPERTS[domain].split(":")
        self._act = getattr(importlib.import_module(module), name)(task)

    def act(self, state: np.ndarray) -> np.ndarray:
        """Action (A,) float32 in [-1, 1] for one low-dimensional state."""
        return self._act(state)


class Behaviour:
    """One way of acting in one episode.

    - expert: the scripted policy, or the given one.
    - random: uniform actions.
    - half: the expert for its first 12 agent steps, uniform actions from then on.
    - noisy: the expert plus Gaussian noise, clipped; standard deviation 1 (MetaWorld) or 0.2 (Adroit).
    - wander: Gaussian actions of standard deviation 1, clipped, with a correlation of 0.95 from step to step (an AR(1)
      process). Uniform actions take back what they have just done and stay near the start; these go everywhere, as
      beginners with correlated exploration do, also out of the picture.
    - linger: the expert until an agent step drawn from 2..40, from then on it stays where it is and trembles: noise of 0.3
      times that of "noisy". A policy that gathers a reward of each frame does so where an early pose is worth as much as
      a late one.
    - misdirected: what the expert did in another scene, whatever this one looks like: `replayed`. A reward that knows how
      an expert's arm moves, but not that it moves to something, cannot tell it from the expert.
    """

    def __init__(
        self,
        name: str,
        task: str,
        action_dim: int,
        rng: np.random.Generator,
        expert: Policy | None = None,
        replayed: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Prepares an episode.

        Args:
            name: One of `BEHAVIOURS`.
            task: Task name.
            action_dim: Length A of an action.
            rng: Source of the random actions and the noise.
            expert: Used instead of the domain's own expert: state (S,) -> action (A,).
            replayed: Actions (A,) of "misdirected", one for each agent step; the last one is repeated.

        Raises:
            ValueError: if the behaviour or the task is unknown, or it is "misdirected" and `replayed` has no actions.
        """
        require_behaviour(name)
        if name == "misdirected" and not replayed:
            raise ValueError(
                "behaviour 'misdirected' replays an expert's actions in another scene: it needs some"
            )
        self._replayed = replayed
        self._name, self._action_dim, self._rng = name, action_dim, rng
        domain = domain_of(task).name
        self._noise_stddev, self._still = NOISE_STDDEV[domain], np.array(STILL[domain])
        self._expert = None if name in UNSKILLED else ScriptedExpert(task, expert)
        self._step = 0
        self._wandering: np.ndarray | None = None
        self._linger_after = (
            int(rng.integers(*LINGER_AFTER_STEPS, endpoint=True)) if name == "linger" else None
        )
        self._last = np.zeros(action_dim)

    def act(self, state: np.ndarray) -> np.ndarray:
        """Action (A,) float32 in [-1, 1] of the next agent step."""
        is_random = self._name == "random" or (self._name == "half" and self._step >= HALF_EXPERT_STEPS)
        self._step += 1
        if self._replayed is not None:
            return self._replayed[min(self._step, len(self._replayed)) - 1]
        if self._name == "wander":
            fresh = self._rng.standard_normal(self._action_dim)
            self._wandering = correlated(self._wandering, fresh, WANDER_CORRELATION)
            return np.clip(self._wandering, -1.0, 1.0).astype(np.float32)
        if is_random or self._expert is None:
            return self._rng.uniform(-1.0, 1.0, self._action_dim).astype(np.float32)
        if self._linger_after is not None and self._step > self._linger_after:
            stddev = LINGER_NOISE * self._noise_stddev
            action = self._still * self._last + stddev * self._rng.standard_normal(self._action_dim)
            return np.clip(action, -1.0, 1.0).astype(np.float32)
        self._last = action = self._expert.act(state)
        if self._name == "noisy":
            action = action + self._noise_stddev * self._rng.standard_normal(self._action_dim)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def require_behaviour(name: str) -> None:
    """Refuses an unknown behaviour (ValueError) and lists the known ones."""
    if name not in BEHAVIOURS:
        raise ValueError(f"behaviour {name!r} is unknown; use one of {', '.join(BEHAVIOURS)}")
