"""Reading a store's files from another process: the same batches, and never a row that was reused meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner import local_reads
from learner.batch import Batch
from learner.index import EpisodeIndex
from learner.local_reads import LocalStore, machine_id, open_local, take_snapshot
from learner.nstep import count_starts
from learner.replay import EpisodeStore, ReplayConfig
from learner.replay_actor import ReplayShard
from learner.sharding import ShardSize
from tests.learner.helpers import make_episode

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ReplayConfig(capacity_transitions=30, episode_steps=5, n_step=2)

pytestmark = pytest.mark.skipif(machine_id() is None, reason="local reads need Linux on x86-64")


def assert_same(first: Batch, second: Batch) -> None:
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


@pytest.fixture
def shard(tmp_path):
    shard = ReplayShard(tmp_path, CONFIG, 4, 2)
    yield shard
    shard.close()


def local(shard: ReplayShard) -> LocalStore:
    _, snapshot = shard.snapshot(machine_id())
    assert snapshot is not None
    return LocalStore(snapshot)


def test_a_reader_draws_what_the_shard_draws(shard):
    """Before the ring is full, after evictions, and across the end of the ring."""
    for number in range(23):
        shard.insert(f"b{number}", [make_episode(number, 1 + number % 7)])
        reader = local(shard)
        for seed in range(5):
            if shard.stats()["size_starts"]:
                assert_same(reader.sample(64, seed), shard.sample(64, seed))
    assert shard.stats()["total_inserted_episodes"] > shard.stats()["size_episodes"] + 5


@pytest.mark.parametrize("factor, most", [(None, 1.0), (1.0, 0.5)])
def test_a_reader_draws_as_many_successes_as_the_shard(tmp_path, factor, most):
    shard = ReplayShard(tmp_path, replace(CONFIG, success_share=0.5, success_factor=factor), 4, 2)
    for number in range(9):
        success = np.full(5, number == 6)
        shard.insert(f"b{number}", [replace(make_episode(number, 5), successes=success)])
    batch = local(shard).sample(400, seed=1)
    assert_same(batch, shard.sample(400, seed=1))
    assert most - 0.5 < np.mean(batch.obs[:, 0, 0, 0] // 10 == 6) < most
    shard.close()


def test_a_reader_keeps_to_its_snapshot_until_it_is_given_a_newer_one(shard):
    shard.insert("b1", [make_episode(1, 4)])
    reader = local(shard)
    before = reader.sample(16, seed=3)
    shard.insert("b2", [make_episode(2, 4)])
    assert_same(reader.sample(16, seed=3), before)
    _, snapshot = shard.snapshot(machine_id())
    assert open_local(snapshot, reader) is reader
    assert_same(reader.sample(16, seed=3), shard.sample(16, seed=3))


def test_rows_that_were_given_up_are_refused_and_others_are_not(shard):
    for number in range(6):
        shard.insert(f"b{number}", [make_episode(number, 5)])  # full
    reader = local(shard)
    drawn = {seed: int(reader.sample(1, seed).obs[0, 0, 0, 0]) // 10 for seed in range(40)}
    shard.insert("b7", [make_episode(7, 5)])  # evicts episode 0
    for seed, episode in drawn.items():
        batch = reader.sample(1, seed)
        assert (batch is None) == (episode == 0)
        if batch is not None:
            assert int(batch.obs[0, 0, 0, 0]) // 10 == episode


def test_a_restarted_writer_counts_on(shard, tmp_path):
    for number in range(9):
        shard.insert(f"b{number}", [make_episode(number, 5)])
    reader = local(shard)
    before = reader.sample(32, seed=1)
    shard.close()
    again = ReplayShard(tmp_path, CONFIG, 4, 2)
    assert_same(reader.sample(32, seed=1), before)
    again.insert("b10", [make_episode(10, 5)])
    assert reader.sample(64, seed=1) is None  # some of 64 draws are of the episode that went
    shard._store = again._store


def test_a_kill_before_the_counter_is_raised_is_made_good_at_the_restart(tmp_path, monkeypatch):
    store = EpisodeStore(tmp_path, CONFIG, 4, 2)
    for number in range(6):
        store.insert(make_episode(number, 5))
    reader = LocalStore(take_snapshot(store))
    monkeypatch.setattr(store._evictions, "publish", lambda evicted: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.insert(make_episode(7, 5))
    assert reader.sample(64, seed=1) is not None  # the rows are still as they were
    store.close()
    store = EpisodeStore(tmp_path, CONFIG, 4, 2)
    assert reader.sample(64, seed=1) is None
    store.close()


def test_other_machines_and_unreadable_files_are_left_to_the_shard(shard, tmp_path, monkeypatch, caplog):
    shard.insert("b1", [make_episode(1, 4)])
    assert shard.snapshot("another machine") == (ShardSize(3, 0), None)
    assert shard.snapshot(None) == (ShardSize(3, 0), None)
    _, snapshot = shard.snapshot(machine_id())
    assert open_local(None, None) is None
    elsewhere = snapshot._replace(folder=str(tmp_path / "elsewhere"))
    assert open_local(elsewhere, None) is open_local(elsewhere, None) is None
    assert sum("asked over Ray, which is slower" in message for message in caplog.messages) == 1
    assert open_local(snapshot._replace(file=(1, 2)), None) is None
    monkeypatch.setattr(local_reads.platform, "machine", lambda: "aarch64")
    assert machine_id() is None


def test_growing_and_shrinking_the_index_equals_building_it_anew():
    rng = np.random.default_rng(0)
    grown, live, evicted = EpisodeIndex(3), [], 0
    for _ in range(400):
        if live and rng.random() < 0.45:
            count = int(rng.integers(1, min(4, len(live)) + 1))
            grown.drop_first(count)
            live, evicted = live[count:], evicted + count
        else:
            live.append((int(rng.integers(1000)), int(rng.integers(1, 9))))
            grown.append(*live[-1])
        rows, steps = [row for row, _ in live], [step for _, step in live]
        anew = EpisodeIndex(3, rows, steps, evicted)
        assert len(grown) == len(live) and grown.evicted == evicted
        assert grown.size_transitions == sum(steps)
        assert grown.size_starts == anew.size_starts == int(count_starts(np.array(steps), 3).sum())
        if grown.size_starts:
            drawn, oldest = grown.draw(20, np.random.default_rng(1))
            expected, expected_oldest = anew.draw(20, np.random.default_rng(1))
            np.testing.assert_array_equal(drawn, expected)
            assert oldest == expected_oldest


# Every pixel and number of an episode says which one it is, so a mixed transition shows.
WRITER = """
import sys
import numpy as np
from learner.replay import EpisodeStore, ReplayConfig
from models.episode import Episode
store = EpisodeStore(sys.argv[1], ReplayConfig(capacity_transitions=60, episode_steps=5, n_step=2), 64, 2)
print("ready", flush=True)
for number in range(int(sys.argv[2])):
    steps = 4 + number % 3
    value = np.float32(number % 251)
    store.insert(Episode(f"e{number}", "door-close", np.full((steps + 1, 64, 64, 3), number % 251, np.uint8),
        np.full((steps, 2), value / 251), np.full(steps, value), np.ones(steps, np.float32), np.zeros(steps, bool)))
    if number == 20:
        print("full", flush=True)
"""


def test_no_batch_mixes_episodes_while_a_writer_goes_round_the_ring(tmp_path):
    """The writer replaces the whole ring hundreds of times while batches are read."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "6000"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline(), process.stdout.readline()] == ["ready\n", "full\n"]
    config = ReplayConfig(capacity_transitions=60, episode_steps=5, n_step=2)
    whole = refused = torn = 0
    seed = 0
    while process.poll() is None:
        snapshot = snapshot_of_a_running_writer(tmp_path, config)
        reader = LocalStore(snapshot)
        for _ in range(4):
            seed += 1
            batch = reader.sample(16, seed)
            if batch is None:
                refused += 1
            else:
                whole += 1
                assert is_whole(batch)
            index = reader._index
            rows, _ = index.draw(16, np.random.default_rng(seed))
            torn += not is_whole(local_reads.read_transitions(reader._data, rows, config))
    assert process.returncode == 0
    assert whole > 20 and refused > 20
    assert torn > 0  # without the check, mixed transitions would have been handed out


def snapshot_of_a_running_writer(folder: Path, config: ReplayConfig) -> local_reads.StoreSnapshot:
    """What the shard would answer, read from its journal as it is at this moment."""
    live: dict[str, tuple[int, int]] = {}
    evicted = 0
    text = (folder / "journal.jsonl").read_bytes()
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        entry = json.loads(line)
        if entry["op"] == "commit":
            live[entry["id"]] = entry["start_row"], entry["steps"]
        elif entry["op"] == "evict":
            del live[entry["id"]]
            evicted += 1
        else:
            evicted += len(entry["ids"])
    start_rows, steps = (np.array(column, dtype=np.int64) for column in zip(*live.values()))
    path = folder / "evictions.bin"
    file = (path.stat().st_dev, path.stat().st_ino)
    succeeded = np.zeros(len(steps), bool)
    return local_reads.StoreSnapshot(str(folder), file, config, 64, 2, evicted, start_rows, steps, succeeded)


def is_whole(batch: Batch) -> bool:
    frames = np.stack([batch.obs, batch.next_obs], axis=1).reshape(len(batch.obs), -1)
    number = frames[:, :1]
    reward = batch.reward / np.float32(1.99)
    return bool(
        (frames == number).all()
        and np.allclose(batch.action * 251, number, atol=1e-3)
        and np.allclose(reward, number, atol=1e-2)
    )
