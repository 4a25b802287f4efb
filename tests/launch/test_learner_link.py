"""The driver's counters of the learner, with answers in any order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

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


class MortalLearner:
    """A learner whose process died after `done` updates; what it is now says `state`."""

    def __init__(self, state: str, done: int) -> None:
        self.loaded: list[str] = []
        self.ping = SimpleNamespace(remote=lambda: Answer({"state": state, "updates": done}))
        self.load = SimpleNamespace(remote=lambda path: self.loaded.append(path) or Answer(30))
        self.run_updates = SimpleNamespace(remote=lambda *_: Answer({}))


@pytest.mark.parametrize(
    ("state", "done", "loaded", "updates", "event"),
    [
        (
            "fresh",
            0,
            ["step_1"],
            30,
            "learner restarted after a process died (ActorDiedError); continues at update 30",
        ),
        ("ready", 57, [], 57, "learner goes on at update 57 after a process died (ActorDiedError)"),
    ],
)
def test_a_learner_that_failed_goes_on_from_its_checkpoint_or_from_its_own_count(
    monkeypatch, state, done, loaded, updates, event
):
    actor, events = MortalLearner(state, done), []
    folder = SimpleNamespace(latest_checkpoint=lambda tell: "step_1")
    link = LearnerLink(actor, folder, on_recovery=events.append)
    link.start(20, agent_steps=100)
    (call,) = link.in_flight

    def get(ref, **_):
        if ref is call:
            raise ray.exceptions.ActorDiedError
        return ref.value

    monkeypatch.setattr(learner_link.ray, "get", get)
    monkeypatch.setattr(learner_link.ray, "wait", lambda refs, **_: (refs, []))
    link.handle(call)
    assert (actor.loaded, link.updates, link.updates_in_flight) == (loaded, updates, 0)
    assert events == [event]


def test_a_learner_that_dies_once_more_while_it_is_restored_is_brought_back(monkeypatch):
    actor, events, loads = MortalLearner("fresh", 0), [], []
    actor.load = SimpleNamespace(remote=lambda path: loads.append(path) or f"load {len(loads)}")
    link = LearnerLink(actor, SimpleNamespace(latest_checkpoint=lambda tell: "step_1"), events.append)
    link.start(20, agent_steps=100)
    (call,) = link.in_flight

    def get(ref, **_):
        if ref is call or ref == "load 1":
            raise ray.exceptions.ActorDiedError
        return 30 if ref == "load 2" else ref.value

    monkeypatch.setattr(learner_link.ray, "get", get)
    monkeypatch.setattr(learner_link.ray, "wait", lambda refs, **_: (refs, []))
    link.handle(call)
    assert (loads, link.updates) == (["step_1", "step_1"], 30) and len(events) == 1


def test_a_learner_that_dies_every_time_before_it_gets_further_ends_the_run(monkeypatch):
    """It comes back at update 30, reaches 50, and dies over the next 20, again and again; further on, it may die again."""
    actor, events = MortalLearner("fresh", 0), []
    link = LearnerLink(actor, SimpleNamespace(latest_checkpoint=lambda tell: "step_1"), events.append)
    dead: set[object] = set()

    def get(ref, **_):
        if ref in dead:
            raise ray.exceptions.ActorDiedError
        return {"metrics": {}, "batch_wait_s": 0.0} if ref.value == {} else ref.value

    def reach_and_die(updates: int) -> None:
        while link.updates < updates:
            link.start(20, agent_steps=100)
            link.handle(next(iter(link.in_flight)))
        link.start(20, agent_steps=100)
        (call,) = link.in_flight
        dead.add(call)
        link.handle(call)

    monkeypatch.setattr(learner_link.ray, "get", get)
    monkeypatch.setattr(learner_link.ray, "wait", lambda refs, **_: (refs, []))
    for _ in range(19):
        reach_and_die(50)
    reach_and_die(70)
    for _ in range(18):
        reach_and_die(50)
    assert len(events) == 38 and link.updates == 30
    with pytest.raises(
        RuntimeError, match=r"died 20 times without getting beyond update 70, .*ActorDied.* resume="
    ):
        reach_and_die(70)


def test_a_slow_learner_is_waited_for_at_a_checkpoint(monkeypatch):
    """Two calls of 50 updates at 0.4 updates/s and a slow disk, with 120 s to come back after a death."""
    learner, now_s, looks = CountingLearner(), [0.0], []
    saved = Answer({})
    learner.save = SimpleNamespace(remote=lambda *_: saved)
    link = LearnerLink(learner, None, pytest.fail, lambda: looks.append(now_s[0]), recovery_timeout_s=120.0)
    link.start(50, agent_steps=100)
    link.start(50, agent_steps=100)
    done_at_s = dict(zip(link.in_flight, (125.0, 250.0))) | {saved: 400.0}

    def wait(refs, timeout, **_):
        now_s[0] += timeout
        ready = [ref for ref in refs if done_at_s[ref] <= now_s[0]]
        return ready, [ref for ref in refs if ref not in ready]

    monkeypatch.setattr(learner_link.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(learner_link.ray, "wait", wait)
    monkeypatch.setattr(learner_link.ray, "get", lambda ref, **_: ref.value)
    link.save("folder")
    assert (link.updates, now_s[0], len(looks)) == (100, 400.0, 399)


def test_a_learner_that_dies_after_writing_a_checkpoint_writes_it_again(monkeypatch, tmp_path):
    path, written, events = tmp_path / "learner.pt", [], []

    def save(folder, expected):
        assert folder == str(tmp_path) and not path.exists()
        path.touch()
        written.append(expected)
        return Answer({})

    def get(ref, **_):
        if ref.value == {} and len(written) == 1:
            raise ray.exceptions.ActorDiedError
        return ref.value

    actor = MortalLearner("fresh", 0)
    actor.save = SimpleNamespace(remote=save)
    monkeypatch.setattr(learner_link.ray, "get", get)
    monkeypatch.setattr(learner_link.ray, "wait", lambda refs, **_: (refs, []))
    link = LearnerLink(actor, SimpleNamespace(latest_checkpoint=lambda tell: "step_1"), events.append)
    link.updates = 50
    link.save(tmp_path)
    assert written == [50, 30] and path.exists() and len(events) == 1


def test_a_learner_that_waits_for_a_replay_shard_without_a_node_is_looked_after(monkeypatch):
    """A lost evaluation asks whether the learner lives: what it waits for may be hopeless."""
    learner = CountingLearner()
    learner.publish = SimpleNamespace(remote=lambda expected: pytest.fail("waits for the calls in flight"))

    def look():
        raise RuntimeError("replay-0 has waited 120 s for a node")

    monkeypatch.setattr(learner_link.ray, "wait", lambda refs, **_: ([], refs))
    link = LearnerLink(learner, None, pytest.fail, look)
    link.start(50, agent_steps=100)
    with pytest.raises(RuntimeError, match="replay-0 has waited"):
        link.recover_if_restarted()
