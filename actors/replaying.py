"""Draws what another recorder recorded: recorded actions or states, played into our environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.envs.registry import EnvConfig, make_env
from models.episode import Episode

REPLAYS = ("actions", "state")
# Between a recorded observation and ours in the same state; other versions of the simulator round differently.
OBSERVATION_TOLERANCE = 1e-3
State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Recording:
    """One recorded episode; the simulator took one step for each action.

    Attributes:
        name: Used in messages and as the episode's id.
        actions: (N, A) float.
        first_observation: (S,) float state vector that the episode began with, or None.
        states: Physical states before each action, and perhaps after the last one: key -> (N or N + 1, ...); or None.
        first_state: Physical state of the beginning: key -> array; or None.
        seed: Of the reset that began the episode, or None.
    """

    name: str
    actions: np.ndarray
    first_observation: np.ndarray | None = None
    states: State | None = None
    first_state: State | None = None
    seed: int | None = None


class Replayer:
    """Plays recordings of one task into one environment."""

    def __init__(self, config: EnvConfig, replay: str) -> None:
        """Builds the environment.

        Args:
            config: Task and renderer setting; `action_repeat` recorded actions become one agent step.
            replay: "actions": from the first state on, the simulator acts as it did when recorded; "state": it is put
                into every recorded state, so that nothing drifts.

        Raises:
            ValueError: if the way is unknown, or the task's environment cannot be put into a state.
        """
        if replay not in REPLAYS:
            raise ValueError(f"minari_replay is {replay!r}; use one of {', '.join(REPLAYS)}")
        # Recorded episodes may be longer than ours.
        unending = {"episode_steps": 2**31 - 1, "success_is_final": False, "success_hold_steps": None}
        self._env = make_env(replace(config, action_repeat=1, **unending))
        if not hasattr(self._env, "set_state"):
            raise ValueError(
                f"the environment of task {config.task!r} cannot be put into a recorded state; recordings can be "
                "replayed for tasks of Adroit"
            )
        self._config, self._replay = config, replay
        self._env.reset_state(0)
        self._keys = tuple(self._env.get_state())

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Names of the parts of a physical state."""
        return self._keys

    def play(self, recording: Recording) -> Episode:
        """Plays one recording: (T + 1) frames for T = N // action_repeat agent steps; success and rewards are ours.

        An agent step's action is the mean of its recorded actions, each clipped to [-1, 1].

        Raises:
            ValueError: if the recording lacks a state, is too short, has actions of another size, or its first state
                does not give its first observation.
        """
        actions = self._checked_actions(recording)
        repeat = self._config.action_repeat
        length = len(actions) // repeat
        if self._replay == "state":
            self._require_states(recording)
            length = min(length, (len(next(iter(recording.states.values()))) - 1) // repeat)  # type: ignore[union-attr]
        if length < 1:
            raise ValueError(
                f"{recording.name} has {len(actions)} recorded steps, expected {repeat} or more, or as many states"
            )
        self._begin(recording)
        frames, rewards, successes = [self._env.render()], [], []
        for step in range(length):
            count = sum(self._advance(recording, actions, step * repeat + i) for i in range(repeat))
            self._go_to(recording, (step + 1) * repeat)
            frames.append(self._env.render())
            rewards.append(float(count))
            successes.append(count > 0)
        mean = actions[: length * repeat].reshape(length, repeat, -1).mean(axis=1)
        return Episode(
            episode_id=recording.name,
            task=self._config.task,
            frames=np.stack(frames),
            actions=mean.astype(np.float32),
            env_rewards=np.asarray(rewards, np.float32),
            discounts=np.ones(length, np.float32),
            successes=np.asarray(successes, bool),
        )

    def _checked_actions(self, recording: Recording) -> np.ndarray:
        actions = np.asarray(recording.actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != self._config.action_dim or not np.isfinite(actions).all():
            raise ValueError(
                f"{recording.name} has actions of shape {actions.shape}, task {self._config.task!r} takes finite "
                f"(steps, {self._config.action_dim})"
            )
        return np.clip(actions, -1.0, 1.0)

    def _require_states(self, recording: Recording) -> None:
        if recording.states is None:
            raise ValueError(
                f"{recording.name} has no state ({', '.join(self._keys)}) for each step, which minari_replay=state "
                "needs; try minari_replay=actions, which needs only the first one"
            )

    def _begin(self, recording: Recording) -> None:
        """Puts the environment where the recording began, and makes sure of it."""
        self._env.reset_state(0)
        if recording.states is not None:
            self._go_to(recording, 0, always=True)
        elif recording.first_state is not None:
            self._env.set_state(recording.first_state)
        elif recording.seed is not None:
            self._env.reset_state(recording.seed)
        else:
            raise ValueError(
                f"{recording.name} does not say how it began: neither a state ({', '.join(self._keys)}) in its infos or "
                "reset options nor a seed was recorded, so its actions cannot be replayed"
            )
        observed = recording.first_observation
        if observed is None:
            return
        ours = self._env.state
        if observed.shape != ours.shape:
            raise ValueError(
                f"{recording.name} has observations of shape {observed.shape}, the state of task {self._config.task!r} "
                f"has {ours.shape}"
            )
        error = float(np.abs(ours - observed).max())
        if not error <= OBSERVATION_TOLERANCE:
            raise ValueError(
                f"{recording.name}: our first state differs from the recorded one by {error:.3g} (allowed "
                f"{OBSERVATION_TOLERANCE:g}): it was recorded with another version of the environment, or from a state "
                "that it does not say"
            )

    def _advance(self, recording: Recording, actions: np.ndarray, step: int) -> int:
        """One recorded action; returns 1 for a success."""
        self._go_to(recording, step)
        _, _, info = self._env.advance(actions[step])
        return int(info["success_count"])

    def _go_to(self, recording: Recording, step: int, always: bool = False) -> None:
        if self._replay == "state" or always:
            states: Any = recording.states
            self._env.set_state({key: states[key][step] for key in self._keys})

    def close(self) -> None:
        """Lets go of the simulator."""
        self._env.close()
