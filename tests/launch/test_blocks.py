"""Blocks on their way: which rollout actor gets the next one, and how many there are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from actors.policy import NoWeightsError
from launch import blocks, failures
from launch.blocks import Block, BlockPipeline
from launch.coordinator import Coordinator
from launch.run_folder import ReplayStart
from launch.watching import StoredEpisodes
from learner.limiter import UpdateRatioLimiter


class FakeActor:
    """Remembers its calls; a call returns tokens in place of references."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name):
        def remote(*arguments):
            self.calls.append((name, *arguments))
            token = f"{name} {arguments[0]}"
            return (token, f"meta {arguments[0]}") if name == "collect" else token

        call = SimpleNamespace(remote=remote)
        call.options = lambda **_: call
        return call


@pytest.fixture
def pipeline(monkeypatch):
    system = SimpleNamespace(rollouts={0: FakeActor(), 1: FakeActor()}, rewards=[], shards=[FakeActor()])
    done = []
    made = BlockPipeline(
        system,
        episodes_per_block=1,
        episode_steps=100,
        first_block=7,
        on_done=lambda block, *_: done.append(block.block_id),
        on_event=lambda text: pytest.fail(text),
    )
    monkeypatch.setattr(blocks.ray, "get", lambda refs: [{}, {}])
    return SimpleNamespace(made=made, done=done, slots=lambda: [b.slot for b in made.in_flight.values()])


def test_each_rollout_actor_has_one_block_to_roll_out_and_one_being_scored(pipeline):
    pipeline.made.start(0, 1000)
    assert pipeline.slots() == [0, 1, 0, 1]
    assert pipeline.made.steps_in_flight == 400
    pipeline.made.start(400, 600)
    assert pipeline.made.steps_in_flight == 400


def test_no_block_starts_that_the_limiter_does_not_allow_whole(pipeline):
    pipeline.made.start(0, 99)
    assert pipeline.slots() == []
    pipeline.made.start(0, 250)
    assert pipeline.slots() == [0, 1]


def test_the_least_busy_actor_gets_the_next_block(pipeline):
    pipeline.made.start(0, 300)
    assert pipeline.slots() == [0, 1, 0]
    second = next(ref for ref, block in pipeline.made.in_flight.items() if block.slot == 1)
    pipeline.made.handle(second)
    assert pipeline.done == ["b0000008"]
    pipeline.made.start(300, 100)
    assert pipeline.slots() == [0, 0, 1]


def test_a_lost_block_goes_to_whoever_can_work_after_a_while(pipeline, monkeypatch):
    events, now_s = [], [100.0]
    pipeline.made._on_event = events.append
    monkeypatch.setattr(blocks.time, "monotonic", lambda: now_s[0])
    pipeline.made.start(0, 100)
    (done,) = pipeline.made.in_flight

    def dead(_refs):
        raise ray.exceptions.ActorUnavailableError("gone", None)

    monkeypatch.setattr(blocks.ray, "get", dead)
    pipeline.made.handle(done)
    assert events == ["block b0000007 is rolled out again after a process died (ActorUnavailableError)"]
    assert (
        pipeline.made.steps_in_flight == 100
    )  # still counted: the limiter must not start another in its place
    pipeline.made.repeat_lost()
    assert pipeline.slots() == []
    now_s[0] += blocks.RETRY_AFTER_S
    pipeline.made.idle = {0}
    pipeline.made.repeat_lost()
    assert pipeline.slots() == [1]
    assert [block.block_id for block in pipeline.made.in_flight.values()] == ["b0000007"]


def test_the_attempts_of_a_block_outlast_the_start_of_a_learner_that_weights_come_from(pipeline, monkeypatch):
    events, now_s = [], [100.0]
    pipeline.made._on_event = events.append
    monkeypatch.setattr(blocks.time, "monotonic", lambda: now_s[0])

    def empty(_refs):
        raise NoWeightsError

    monkeypatch.setattr(blocks.ray, "get", empty)
    monkeypatch.setattr(blocks.ray.exceptions, "RayError", NoWeightsError)
    pipeline.made.start(0, 200)  # two blocks, of which each gets its turn
    with pytest.raises(RuntimeError, match=r"block b0000007 failed: .*NoWeightsError"):
        while now_s[0] < 1000.0:
            for done in list(pipeline.made.in_flight):
                pipeline.made.handle(done)
            now_s[0] += 0.5
            pipeline.made.repeat_lost()
    assert now_s[0] - 100.0 > 60.0
    assert sum("b0000008" in event for event in events) == len(events) // 2 == failures.MAX_ATTEMPTS - 1


def test_a_synchronous_run_starts_no_block_before_a_lost_one_is_back(pipeline, monkeypatch):
    now_s = [100.0]
    pipeline.made._on_event = lambda _: None
    monkeypatch.setattr(blocks.time, "monotonic", lambda: now_s[0])
    coordinator = Coordinator.__new__(Coordinator)
    coordinator.settings = SimpleNamespace(
        total_agent_steps=1000, block_steps=100, cluster=SimpleNamespace(sync=True)
    )
    coordinator.limiter = UpdateRatioLimiter(0.5, min_steps=500, tolerance_steps=500)
    coordinator.replay_start, coordinator.evaluation = ReplayStart(), None
    coordinator._stored = StoredEpisodes([{"total_inserted_steps": 0}])
    coordinator.blocks, coordinator.learner = pipeline.made, SimpleNamespace(in_flight={}, updates=0)
    coordinator._start_blocks()
    (done,) = pipeline.made.in_flight

    def dead(_refs):
        raise ray.exceptions.ActorUnavailableError("gone", None)

    monkeypatch.setattr(blocks.ray, "get", dead)
    pipeline.made.handle(done)
    coordinator._start_blocks()
    assert not pipeline.made.in_flight
    now_s[0] += blocks.RETRY_AFTER_S
    coordinator._start_blocks()
    assert [block.block_id for block in pipeline.made.in_flight.values()] == ["b0000007"]


def test_agent_steps_never_fall_when_acknowledgements_are_handled_out_of_order():
    coordinator = Coordinator.__new__(Coordinator)
    stats = ("total_inserted_steps", "total_inserted_episodes", "size_transitions")
    coordinator._stored = StoredEpisodes([dict.fromkeys(stats, 200), dict.fromkeys(stats, 0)])
    coordinator.replay_start = ReplayStart()
    coordinator._recent = SimpleNamespace(add=lambda *_: None)
    coordinator._watch = SimpleNamespace(block_done=lambda _: None)
    coordinator.learner = SimpleNamespace(updates=0)
    for number, total in ((3, 400), (2, 300)):
        block = Block(f"b{number:07d}", slot=0, shard=0, global_agent_steps=0, episodes=1)
        acknowledgement = {**dict.fromkeys(stats, total), "inserted": [], "duplicates": []}
        coordinator._block_done(block, acknowledgement, {"episodes": []}, [])
    assert coordinator.agent_steps == 400
