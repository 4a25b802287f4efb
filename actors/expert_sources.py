"""Experts from elsewhere: policy files, Stable-Baselines3, RLlib checkpoints, any Python callable.

All become a callable, state (S,) -> action (A,) float32 in [-1, 1], checked against the task's environment.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actors.envs.registry import EnvConfig, domain_of, make_env
from actors.policy_file import load_policy_file
from actors.sb3_policy import load_sb3_policy
from models.videos import RenderSettings

Policy = Callable[[np.ndarray], np.ndarray]
FORMS = (
    "a policy file (.npz), a Stable-Baselines3 file (.zip), an RLlib checkpoint (folder, needs trust_expert=true), "
    "a folder of train_expert.py, or 'module:function'"
)
# A folder that train_expert.py made holds its policy as plain arrays; nothing else of it is needed.
EXPERT_FILE = "expert.npz"


def load_expert(
    spec: str,
    task: str,
    *,
    trust: bool = False,
    load_checkpoint: Callable[[Path], Policy] | None = None,
) -> Policy:
    """Loads an expert and tries it on the first state of an episode.

    Args:
        spec: - path of a policy file (`actors.policy_file`), `.npz`: plain arrays;
            - path of a Stable-Baselines3 file, `.zip`: read without unpickling (`actors.sb3_policy`);
            - folder made by train_expert.py: its `expert.npz`;
            - folder of an RLlib checkpoint: needs `trust` and `load_checkpoint`, because it is unpickled;
            - "module:function": imported and called with the task; returns the expert. If the expert has a method
              `reset()`, it is called before each episode.
        task: Task name.
        trust: The checkpoint comes from a source whose code you would run.
        load_checkpoint: Reads an RLlib checkpoint folder; injected, so that Ray is not imported here.

    Returns:
        A callable: state (S,) -> action (A,) float32 in [-1, 1]. `str` of it says what it is.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: if it can not be read, is refused, or does not fit the environment; names both sizes.
    """
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".npz":
        policy: Any = load_policy_file(path)
    elif path.is_file() and path.suffix == ".zip":
        policy = load_sb3_policy(path)
    elif path.is_dir() and (path / EXPERT_FILE).is_file():
        policy = load_policy_file(path / EXPERT_FILE)
    elif path.is_dir():
        policy = _load_checkpoint(path, trust, load_checkpoint)
    elif path.exists():
        raise ValueError(f"expert {spec!r} is of an unknown kind; expected {FORMS}")
    elif _is_function_name(spec):
        policy = _call_function(spec, task)
    else:
        raise FileNotFoundError(f"expert {spec!r} does not exist; expected {FORMS}")
    return CheckedExpert(policy, spec, task)


class CheckedExpert:
    """An expert whose actions have the shape and range that the environment takes."""

    def __init__(self, policy: Policy, name: str, task: str) -> None:
        """Compares sizes with the environment, and asks for one action.

        Raises:
            ValueError: saying what differs.
        """
        self._policy, self._name, self._task = policy, name, task
        first_state = _first_state(task)
        self._action_size = domain_of(task).tasks[task]
        for what, mine, theirs in (
            ("states", getattr(policy, "state_size", None), len(first_state)),
            ("actions", getattr(policy, "action_size", None), self._action_size),
        ):
            if mine is not None and mine != theirs:
                raise ValueError(
                    f"expert {name!r} does not fit task {task!r}: it has {what} of {mine} numbers, the environment "
                    f"{theirs}. Was it trained on another task, or on observations other than the simulator's state?"
                )
        try:
            action = policy(first_state.copy())
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"expert {name!r} fails on a state of task {task!r} ({len(first_state)} numbers): {error}"
            ) from error
        self._checked(action)

    def __str__(self) -> str:
        return str(self._policy) if type(self._policy).__str__ is not object.__str__ else self._name

    def reset(self) -> None:
        """Tells an expert with a memory that an episode begins."""
        reset = getattr(self._policy, "reset", None)
        if callable(reset):
            reset()

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Action (A,) float32, clipped to [-1, 1].

        Raises:
            ValueError: if the policy returns another shape, or numbers that are not finite.
        """
        return self._checked(self._policy(state))

    def _checked(self, given: np.ndarray) -> np.ndarray:
        action = np.asarray(given, dtype=np.float32)
        if action.shape != (self._action_size,) or not np.isfinite(action).all():
            raise ValueError(
                f"expert {self._name!r} returned {np.array2string(action, threshold=8)} (shape {action.shape}) on task "
                f"{self._task!r}; expected {self._action_size} finite numbers in [-1, 1]"
            )
        return np.clip(action, -1.0, 1.0)


@functools.lru_cache(maxsize=8)
def _first_state(task: str) -> np.ndarray:
    """The low-dimensional state (S,) that an episode begins with; nothing is drawn."""
    env = make_env(EnvConfig(task, render=RenderSettings(camera=domain_of(task).camera)))
    env.reset_state(seed=0)
    state: np.ndarray = env.state
    env.close()
    return state


def _load_checkpoint(path: Path, trust: bool, load: Callable[[Path], Policy] | None) -> Policy:
    if load is None:
        raise ValueError(
            f"expert {str(path)!r} is a folder without {EXPERT_FILE}, and RLlib checkpoints can not be read here; give a "
            "policy file (.npz), a Stable-Baselines3 file (.zip), a folder of train_expert.py, or 'module:function'"
        )
    if not trust:
        raise ValueError(
            f"expert {str(path)!r} is a folder without {EXPERT_FILE}, so it would be read as an RLlib checkpoint. "
            "That unpickles files, which runs whatever code they contain. If you trust where it comes from, give "
            "trust_expert=true; a policy file (.npz) needs no trust"
        )
    return load(path)


def _is_function_name(spec: str) -> bool:
    module, separator, function = spec.partition(":")
    return bool(separator) and function.isidentifier() and all(p.isidentifier() for p in module.split("."))


def _call_function(spec: str, task: str) -> Policy:
    module, _, name = spec.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"expert {spec!r}: cannot import {module!r} ({error}); put its folder on PYTHONPATH"
        ) from error
    function = getattr(loaded, name, None)
    if not callable(function):
        raise ValueError(f"expert {spec!r}: {module!r} has no function {name!r}")
    policy = function(task)
    if not callable(policy):
        raise ValueError(
            f"expert {spec!r}: {name}({task!r}) returned {policy!r}; expected a callable, state (S,) -> action (A,)"
        )
    return policy
