"""Telling a dead process (retry) from a fault of the program or its input (stop and say so)."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from actors.policy import NoWeightsError
from learner.learner_actor import LearnerRestartedError

# Of one piece of work: when processes have died over it so often, something is wrong that a restart does not mend.
MAX_ATTEMPTS = 20
DEAD_ANSWER_TIMEOUT_S = 10.0  # Ray answers at once for an actor that is dead.

PROCESS_FAILURES = (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
    # What those who are left notice of a death: a learner that has forgotten its updates, an empty weight store.
    LearnerRestartedError,
    NoWeightsError,
)


def root_cause(error: BaseException) -> BaseException:
    """The exception behind Ray's wrappers."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        if isinstance(inner, BaseException):
            error = inner
    return error


def is_process_failure(error: BaseException) -> bool:
    """Whether a process or node died, as opposed to an exception raised by our own code."""
    return isinstance(error, PROCESS_FAILURES) or isinstance(root_cause(error), PROCESS_FAILURES)


def describe(error: BaseException) -> str:
    """One line that a person can act on."""
    cause = root_cause(error)
    if "creation task" in str(cause):  # An actor whose constructor raised: the last line names the reason.
        return str(cause).strip().splitlines()[-1].strip()
    if isinstance(cause, PROCESS_FAILURES):
        return f"a process died ({type(cause).__name__})"
    text = str(cause).strip()
    if isinstance(cause, RayTaskError):
        text = text.splitlines()[-1] if text else text
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def why_dead(actor: Any) -> str:
    """Why an actor that Ray does not start again has died, in one line.

    Args:
        actor: Handle of an actor with a method `ping`.
    """
    try:
        ray.get(actor.ping.remote(), timeout=DEAD_ANSWER_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        return describe(error)
    return "Ray does not say why"


def get_or_explain(ref: object, what: str, timeout_s: float, hint: str) -> object:
    """`ray.get` with a time limit and a message that names what was waited for.

    Raises:
        RuntimeError: on a timeout or when the call failed.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise RuntimeError(f"{what} did not start within {timeout_s:.0f} s: {hint}") from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"{what} failed: {describe(error)}") from error
