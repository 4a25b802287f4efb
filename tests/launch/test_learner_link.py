"""The driver's counters of the learner, with answers in any order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launch import learner_link
from launch.learner_link import LearnerLink


class Answer:
    """What a call will return; hashable, as an object reference is."""

    def __init__(self, value: dict) -> None:
        self.value = value


class CountingLearner:
    """Does what the learner actor does with its counter: a call with another expectation is an error."""

    def __init__(self) -> None:
        self.updates = 0
        self.run_updates = SimpleNamespace(remote=self._run)

    def _run(self, num_updates: int, agent_steps: int, expected: int) -> Answer:
        assert expected == self.updates
        self.updates += num_updates
        return Answer({"updates": self.updates, "metrics": {}, "batch_wait_s": 0.0})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_answers_of_two_calls_may_come_in_either_order(monkeypatch, order):
    monkeypatch.setattr(learner_link.ray, "get", lambda ref, **_: ref.value)
    link = LearnerLink(CountingLearner(), folder=None, on_recovery=pytest.fail)
    link.start(20, agent_steps=100)
    link.start(30, agent_steps=100)
    calls = list(link.in_flight)
    link.handle(calls[order[0]])
    assert link.updates + link.updates_in_flight == 50
    link.start(5, agent_steps=110)  # expected = 50, whichever answer is still to come
    link.handle(calls[order[1]])
    assert (link.updates, link.updates_in_flight) == (50, 5)
