"""Collects videos of one task and one behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from actors.envs.registry import EnvConfig, domain_of, make_env
from actors.experts import BEHAVIOURS, Behaviour, Policy, require_behaviour
from actors.recording import EpisodeRecorder
from actors.seeding import indexed_seed
from models.episode import Episode

# (episodes done, episodes asked for, attempts made)
Progress = Callable[[int, int, int], None]
ATTEMPTS_PER_STREAM = 2**16


class TooFewSuccessesError(RuntimeError):
    """The expert fails too often to make the videos asked for."""


def collect_episodes(
    config: EnvConfig,
    behaviour: str,
    episodes: int,
    seed: int,
    on_progress: Progress | None = None,
    stream: int = 0,
    max_failures: int | None = None,
    expert: Policy | None = None,
) -> Iterator[tuple[Episode, int]]:
    """Yields episodes of one behaviour, one at a time.

    Expert episodes end with a success: a failed attempt is made again with the next seed. An expert episode whose
    success does not last to its end is cut just after the first success, or counts as failed where the domain says so
    (`Domain.cuts_expert_videos`). Other behaviours are kept as they come.

    Args:
        config: Task and renderer setting.
        behaviour: One of `actors.experts.BEHAVIOURS`.
        episodes: How many episodes to yield, 1 or more.
        seed: Base of the episode seeds (`actors.seeding`, purpose "video"), 0 to 2**24 - 1.
        on_progress: Called after each attempt with (done, asked for, attempts).
        stream: Number of this collector, 0 to 255, when several share a seed; each has its own scenes.
        max_failures: Failed expert attempts before giving up; default 20 + `episodes`.
        expert: Used instead of the domain's own expert.

    Yields:
        (episode, its environment seed).

    Raises:
        ValueError: if an argument is out of range.
        TooFewSuccessesError: if the expert fails more than `max_failures` times.
    """
    require_behaviour(behaviour)
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}, expected 1 or more")
    if not 0 <= stream < 256:
        raise ValueError(f"stream is {stream}, expected 0 to 255")
    indexed_seed("video", seed, 0)  # refuses a bad seed before any work
    allowed = 20 + episodes if max_failures is None else max_failures
    return _collect(config, behaviour, episodes, seed, on_progress, stream, allowed, expert)


def _collect(
    config: EnvConfig,
    behaviour: str,
    episodes: int,
    seed: int,
    on_progress: Progress | None,
    stream: int,
    max_failures: int,
    expert: Policy | None,
) -> Iterator[tuple[Episode, int]]:
    env = make_env(config)
    done = attempts = 0
    while done < episodes:
        env_seed = indexed_seed("video", seed, stream * ATTEMPTS_PER_STREAM + attempts)
        replayed = None
        if behaviour == "misdirected":
            other_scene = indexed_seed("video", seed, stream * ATTEMPTS_PER_STREAM + attempts + 1)
            replayed = list(_run_episode(env, config, "expert", other_scene, expert).actions)
        episode = _run_episode(env, config, behaviour, env_seed, expert, replayed)
        attempts += 1
        is_kept = behaviour != "expert" or bool(episode.successes[-1])
        done += is_kept
        if on_progress is not None:
            on_progress(done, episodes, attempts)
        if is_kept:
            yield episode, env_seed
        elif attempts - done > max_failures:
            raise TooFewSuccessesError(
                f"the expert of {config.task!r} succeeded in {done} of {attempts} attempts, expected {episodes} "
                f"successes with at most {max_failures} failures. Is action_repeat={config.action_repeat} with "
                f"episode_steps={config.episode_steps} long enough for the task?"
            )
    env.close()


def _run_episode(
    env: Any,
    config: EnvConfig,
    behaviour: str,
    seed: int,
    expert: Policy | None = None,
    replayed: Sequence[np.ndarray] | None = None,
) -> Episode:
    """One full episode; an expert episode is cut where its domain says so."""
    first_frame, _ = env.reset(seed=seed)
    recorder = EpisodeRecorder(f"{config.task}/{behaviour}/{seed}", config.task, first_frame)
    rng = np.random.default_rng([seed, BEHAVIOURS.index(behaviour)])
    policy = Behaviour(behaviour, config.task, env.action_space.shape[0], rng, expert, replayed)
    truncated = terminated = False
    while not (truncated or terminated):
        action = policy.act(env.state)
        frame, reward, terminated, truncated, info = env.step(action)
        recorder.add(action, frame, reward, info)
    episode = recorder.build()
    if behaviour == "expert" and domain_of(config.task).cuts_expert_videos:
        return recorder.build(trimmed_length(episode.successes))
    return episode


def trimmed_length(successes: np.ndarray) -> int:
    """Agent steps to keep of an expert video.

    Args:
        successes: (T,) bool.

    Returns:
        T where the last step is a success or none is; else the number of steps up to and including the first success.
    """
    if successes[-1] or not successes.any():
        return len(successes)
    return int(np.argmax(successes)) + 1
