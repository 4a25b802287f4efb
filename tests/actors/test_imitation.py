"""Imitation: the student learns what the reference does, in states it meets itself; success is counted right."""

from __future__ import annotations

import numpy as np
import pytest

from actors import imitation
from actors.envs.registry import EnvConfig
from actors.experts import ScriptedExpert
from actors.imitation import ImitationConfig, imitate, measure_success
from models.videos import RenderSettings

PEN = EnvConfig("adroit-pen", 2, 50, RenderSettings(camera="paper"))
SHORT = EnvConfig("adroit-pen", 2, 10, RenderSettings(camera="paper"))
QUICK = ImitationConfig(episodes=4, rounds=2, train_steps=300, hidden_size=32)


def simple_reference(state):
    """A smooth function of a few joints."""
    return np.clip(np.tanh(3 * state[:24]) * 0.8 + 0.1, -1, 1).astype(np.float32)


def test_the_student_does_what_the_reference_does():
    phases = []
    student = imitate(SHORT, simple_reference, QUICK, 0, lambda phase, *rest: phases.append((phase, *rest)))
    assert (student.state_size, student.action_size) == (45, 24)
    names = list(dict.fromkeys(phase for phase, *_ in phases))
    assert names == ["round 1 episodes", "round 1 training", "round 2 episodes", "round 2 training"]
    assert phases[-1][1:3] == (900, 900)  # the last round trains three times as long

    from actors.envs.registry import make_env

    env = make_env(SHORT)
    env.reset_state(12345)
    errors = []
    for _ in range(10):
        errors.append(student(env.state) - simple_reference(env.state))
        env.advance(student(env.state))
    assert np.sqrt(np.square(errors).mean()) < 0.15
    # log_std is how far it is from the reference on the data.
    assert np.exp(student.arrays["log_std"]).mean() < 0.1


class Once:
    """A reference that moves in the first half of an episode only, as it counts; it must be told of a new one."""

    def __init__(self) -> None:
        self.steps = 0

    def reset(self) -> None:
        self.steps = 0

    def __call__(self, state):
        self.steps += 1
        return np.full(24, 0.5 if self.steps <= 5 else -0.5, np.float32)


def test_a_reference_with_a_memory_begins_anew_with_each_episode(monkeypatch):
    trained_on = []

    def clone(states, actions, *rest):
        trained_on.append(actions[:, 0])
        return lambda state: np.zeros(24, np.float32)

    monkeypatch.setattr(imitation, "_clone", clone)
    imitate(SHORT, Once(), ImitationConfig(episodes=2, rounds=2, noise_stddev=0.0), 0)
    episode = [0.5] * 5 + [-0.5] * 5
    np.testing.assert_array_equal(trained_on[0], episode * 2)
    np.testing.assert_array_equal(trained_on[1], episode * 4)


def test_a_reference_with_a_memory_acts_from_the_beginning_of_each_episode(monkeypatch):
    acted = []
    with_noise = imitation._with_noise

    def recorded(policy, *noise):
        act = with_noise(policy, *noise)

        def acting(state):
            acted.append(float(act(state)[0]))
            return np.full(24, acted[-1], np.float32)

        return acting

    monkeypatch.setattr(imitation, "_with_noise", recorded)
    quick = ImitationConfig(episodes=2, rounds=1, noise_stddev=0.0, train_steps=1, hidden_size=4)
    imitate(SHORT, Once(), quick, 0)
    assert acted == ([0.5] * 5 + [-0.5] * 5) * 2


def test_the_same_seed_gives_the_same_student():
    config = ImitationConfig(episodes=1, rounds=1, train_steps=20, hidden_size=4)
    first, second = (imitate(SHORT, simple_reference, config, 3).to_arrays() for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])


def test_success_at_any_step_and_at_the_last_step():
    calls = []
    expert = measure_success(PEN, ScriptedExpert("adroit-pen").act, 4, 0, calls.append)
    assert expert.episodes == 4 and expert.any >= expert.end >= 0.75 and calls == [1, 2, 3, 4]
    lazy = measure_success(PEN, lambda state: np.ones(24, np.float32), 4, 0)
    assert lazy.any < 0.5


@pytest.mark.parametrize(
    "change",
    [{"episodes": 0}, {"rounds": 0}, {"noise_stddev": -1}, {"learning_rate": 0.0}, {"train_steps": 0}],
)
def test_bad_settings_are_named(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is {next(iter(change.values()))}"):
        ImitationConfig(**change)
