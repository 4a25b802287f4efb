"""Which actors find a node, and what a run says about those that do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launch import placement, rollout_pool, supervisor
from launch.cli import UsageError, compose
from launch.placement import Need, NotRunning, needs_of, require_resources, unplaced
from launch.rollout_pool import GIVE_UP_AFTER_S, GROW_AFTER_FAILURE_S, GROW_EVERY_S, RolloutPool
from launch.settings import RolloutSettings, train_settings
from launch.supervisor import Supervisor


def settings(*overrides: str):
    return train_settings(compose("train", ["reward=sparse", *overrides]))


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ([{"CPU": 4, "GPU": 1}], []),
        ([{"CPU": 2}, {"CPU": 2, "GPU": 1}], []),
        ([{"CPU": 4}], ["learner"]),  # enough CPUs, no GPU
        ([{"CPU": 1, "GPU": 1}, {"CPU": 1}, {"CPU": 1}, {"CPU": 1}], ["learner"]),  # 4 CPUs, on no node 2
        ([{"CPU": 3, "GPU": 1}], ["b"]),
        ([], ["learner", "a", "b"]),
    ],
)
def test_actors_are_placed_node_by_node(nodes, left):
    needs = [Need("a", 1), Need("learner", 2, 1), Need("b", 1)]
    assert [need.name for need in unplaced(needs, nodes)] == left


def test_every_actor_is_counted():
    given = settings("reward=diffusion", "reward.checkpoint=x", "reward.num_actors=2", "replay.num_shards=3")
    names = [need.name for need in needs_of(given)]
    assert names == [
        "learner",
        "reward-0",
        "reward-1",
        "replay-0",
        "replay-1",
        "replay-2",
        "evaluator",
        "rollout-0",
    ]
    assert len(needs_of(settings("cluster=multi_node"))) == 5  # auto begins with one rollout actor


def test_a_run_that_does_not_fit_is_refused_by_name(monkeypatch):
    nodes = [{"CPU": 2.0}, {"CPU": 0.5, "GPU": 1.0}]
    monkeypatch.setattr(placement, "node_resources", lambda: nodes)
    require_resources(settings("rollout.num_actors=2"))
    with pytest.raises(UsageError) as refused:
        require_resources(settings("rollout.num_actors=9"))
    message = str(refused.value)
    assert "of 12 actors there is no room for rollout-" in message
    assert "(0.5 CPU)" in message and "and 4 more" in message
    assert "the cluster has 2 nodes: 2 CPU; 0.5 CPU, 1 GPU" in message
    require_resources(settings("rollout.num_actors=9", "cluster.wait_for_resources_s=1"))


class Cluster:
    """Free CPUs of nodes, taken by the actors that a pool makes."""

    def __init__(self, *free: float) -> None:
        self.free = [{"CPU": cpus} for cpus in free]
        self.killed: list[str] = []

    def make(self, slot: int) -> str:
        node = next(node for node in self.free if node["CPU"] >= 1)
        node["CPU"] -= 1
        return f"actor {slot}"

    def pool(self, monkeypatch, handles, **rollout) -> RolloutPool:
        monkeypatch.setattr(rollout_pool.ray, "kill", lambda handle, no_restart: self.killed.append(handle))
        monkeypatch.setattr(rollout_pool.time, "monotonic", lambda: 0.0)
        return RolloutPool(handles, RolloutSettings(**rollout), 1.0, self.make, lambda: self.free)


def test_the_pool_grows_into_free_cpus_of_each_node(monkeypatch):
    cluster, handles = Cluster(2.5, 0.9, 1.0), {0: "actor 0"}
    pool = cluster.pool(monkeypatch, handles, num_actors="auto")
    assert pool.adjust(set(), GROW_EVERY_S - 1) == []
    assert pool.adjust(set(), GROW_EVERY_S) == ["3 more rollout actors for free CPUs: 4 now"]
    assert pool.adjust(set(), 3 * GROW_EVERY_S) == []
    cluster.free.append({"CPU": 8.0})
    assert pool.adjust({3}, 5 * GROW_EVERY_S) == [
        "7 more rollout actors for free CPUs: 11 now"
    ]  # one waits for a CPU
    assert sorted(handles) == list(range(11))


def test_the_pool_keeps_to_its_limit_and_a_fixed_number_to_itself(monkeypatch):
    cluster, handles = Cluster(9.0), {0: "actor 0"}
    pool = cluster.pool(monkeypatch, handles, num_actors="auto", max_actors=3)
    pool.adjust(set(), GROW_EVERY_S)
    assert len(handles) == 3
    fixed = {0: "actor 0"}
    assert cluster.pool(monkeypatch, fixed, num_actors=1).adjust({0}, 1000.0) == []
    assert fixed == {0: "actor 0"} and cluster.killed == []


def test_the_pool_gives_up_actors_whose_node_is_gone(monkeypatch):
    cluster, handles = Cluster(0.0), {0: "actor 0", 1: "actor 1", 2: "actor 2"}
    pool = cluster.pool(monkeypatch, handles, num_actors="auto")
    assert pool.adjust({1, 2}, 10.0) == []
    assert pool.adjust({2}, 10.0 + GIVE_UP_AFTER_S) == []
    assert pool.adjust({1, 2}, 11.0 + GIVE_UP_AFTER_S) == ["1 rollout actors without a node given up: 2 left"]
    assert (cluster.killed, sorted(handles)) == (["actor 2"], [0, 1])  # 1 had a node in between


def test_the_pool_makes_room_for_others(monkeypatch):
    cluster, handles = Cluster(0.0), {slot: f"actor {slot}" for slot in range(5)}
    pool = cluster.pool(monkeypatch, handles, num_actors="auto")
    events = pool.adjust({1}, GROW_EVERY_S, others_need_cpus=1.5)
    assert events == ["3 rollout actors given up for other actors that wait: 2 left"]
    assert cluster.killed == ["actor 1", "actor 4", "actor 3"]  # first the one that has no CPU to give
    assert pool.adjust(set(), GROW_EVERY_S + 1, others_need_cpus=1.5) == []  # Ray needs a moment
    pool.adjust(set(), 2 * GROW_EVERY_S, others_need_cpus=1.5)
    assert sorted(handles) == [0]  # the last one stays


@pytest.fixture
def watched(monkeypatch):
    """A supervisor of a run with two rollout actors, its clock, and what Ray would answer."""
    state = SimpleNamespace(now_s=100.0, down=NotRunning(), events=[])
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: state.now_s)
    monkeypatch.setattr(supervisor, "cluster_text", lambda: "1 node: 2 CPU")
    rollouts = {0: "a", 1: "b"}
    system = SimpleNamespace(
        rollouts=rollouts,
        by_name=lambda: {"learner": "l", **{f"rollout-{slot}": actor for slot, actor in rollouts.items()}},
    )
    monkeypatch.setattr(supervisor, "why_dead", lambda actor: f"OSError: no libEGL for {actor}")
    given = settings("rollout.num_actors=2", "cluster.rollout_cpus=1")
    state.made = Supervisor(given, system, state.events.append, lambda: state.down)
    state.blocks = SimpleNamespace(idle=set())

    def look(
        seconds: float, *without_node: str, starting: tuple[str, ...] = (), dead: tuple[str, ...] = ()
    ) -> list[str]:
        state.now_s += seconds
        state.down = NotRunning(
            frozenset([*without_node, *starting]), frozenset(without_node), frozenset(dead)
        )
        state.events.clear()
        state.made.look(state.blocks)
        return list(state.events)

    state.look = look
    return state


def test_an_actor_that_waits_is_named_once_and_gets_no_blocks(watched):
    assert watched.look(3, "rollout-1", starting=("rollout-0",)) == []
    assert watched.blocks.idle == {0, 1}
    assert watched.look(19, "rollout-1") == []
    assert watched.blocks.idle == {1}
    assert watched.look(3, "rollout-1") == [
        "rollout-1 has waited 22 s for a node with 1 CPU; the cluster has 1 node: 2 CPU. Training goes on with 1 rollout actors"
    ]
    assert watched.look(300, "rollout-1") == []
    assert watched.look(3) == ["rollout-1 has a node again"]
    assert watched.blocks.idle == set()


def test_a_run_without_its_learner_ends_in_an_error_and_not_in_silence(watched):
    watched.look(3, "learner")
    assert watched.look(25, "learner") == [
        "learner has waited 25 s for a node with 1 CPU; the cluster has 1 node: 2 CPU. Training waits for it, 120 s at most"
    ]
    with pytest.raises(RuntimeError, match=r"learner has waited 120 s .* go on with resume="):
        watched.look(100, "learner")


def test_a_run_that_no_rollout_actor_is_left_of_ends_in_an_error_as_well(watched):
    watched.look(3, "rollout-0", "rollout-1")
    assert watched.look(25, "rollout-0", "rollout-1")[0].endswith("Training waits for it, 120 s at most")
    with pytest.raises(RuntimeError, match=r"rollout-0 has waited 120 s .* go on with resume="):
        watched.look(100, "rollout-0", "rollout-1")


def test_a_rollout_actor_that_cannot_be_started_again_is_left_out_until_none_is_left(watched):
    assert watched.look(3, dead=("rollout-1", "rollout-7")) == [  # 7 was given up before
        "rollout-1 cannot be started again: OSError: no libEGL for b. Training goes on with 1 rollout actors"
    ]
    assert watched.look(3, dead=("rollout-1", "rollout-7")) == []
    with pytest.raises(RuntimeError, match=r"rollout-0 cannot be started again: .* go on with resume="):
        watched.look(3, dead=("rollout-0", "rollout-1"))


def test_a_learner_that_cannot_be_started_again_ends_the_run_with_its_reason(watched):
    with pytest.raises(RuntimeError, match="learner cannot be started again: OSError: no libEGL for l"):
        watched.look(3, dead=("learner",))


@pytest.mark.parametrize(("gpu_node", "left"), [({"CPU": 0.5}, 5), ({"CPU": 0.5, "GPU": 1.0}, 4)])
def test_actors_are_given_up_for_a_learner_that_lacks_a_cpu_but_not_for_one_that_lacks_a_gpu(
    monkeypatch, gpu_node, left
):
    monkeypatch.setattr(rollout_pool.ray, "kill", lambda handle, no_restart: None)
    given = settings("rollout.num_actors=auto", "cluster.rollout_cpus=1", "cluster.learner_gpus=1")
    rollouts, events = {slot: f"actor {slot}" for slot in range(5)}, []
    system = SimpleNamespace(rollouts=rollouts)
    waiting = NotRunning(frozenset(["learner"]), frozenset(["learner"]))
    made = Supervisor(given, system, events.append, lambda: waiting, lambda: [{"CPU": 0.5}, gpu_node])
    now_s = supervisor.time.monotonic()
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now_s + GROW_EVERY_S)
    made.look()
    assert len(rollouts) == left and len(events) == 5 - left


def test_the_pool_does_not_fill_a_node_on_which_actors_fail(monkeypatch):
    cluster, handles = Cluster(2.0), {0: "actor 0", 1: "actor 1"}
    pool = cluster.pool(monkeypatch, handles, num_actors="auto")
    pool.retire(1, 100.0)
    assert pool.adjust(set(), 100.0 + GROW_AFTER_FAILURE_S - 1) == [] and list(handles) == [0]
    assert pool.adjust({0}, 101.0, others_need_cpus=1.0) == []  # the last one stays
    assert pool.adjust(set(), 100.0 + GROW_AFTER_FAILURE_S) == ["2 more rollout actors for free CPUs: 3 now"]
    assert sorted(handles) == [0, 2, 3]
