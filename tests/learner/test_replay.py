"""The episode store: ring, idempotency, refusal, and recovery from kills."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner import journal as journal_module
from learner import ring
from learner.replay import EpisodeStore, ReplayConfig
from learner.replay_actor import ReplayShard
from learner.ring import ReplayDiskFullError, RowFile
from tests.learner.helpers import make_episode

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ReplayConfig(capacity_transitions=10, episode_steps=5, n_step=1)  # 12 rows


def open_store(folder, config=CONFIG) -> EpisodeStore:
    return EpisodeStore(folder, config, 4, 2)


def contents(store: EpisodeStore) -> dict[str, list[int]]:
    """First pixels of every live episode's frames, read through the ring."""
    found = {}
    for episode_id, start, steps in zip(store.ids, store.index.start_rows, store.index.steps, strict=True):
        rows = (start + np.arange(steps)) % store.config.rows
        batch = store.transitions(rows)
        found[episode_id] = [*batch.obs[:, 0, 0, 0].tolist(), int(batch.next_obs[-1, 0, 0, 0])]
    return found


def frames_of(number: int, steps: int) -> list[int]:
    return [10 * number + k for k in range(steps + 1)]


def test_ring_wraps_around_and_evicts_the_oldest(tmp_path):
    store = open_store(tmp_path)
    rows = []
    for number, steps in ((1, 4), (2, 4), (3, 3), (4, 5), (5, 2)):
        store.insert(make_episode(number, steps))
        rows.append((list(store.ids), store.index.start_rows.tolist(), store.size_transitions))
    assert (
        rows
        == [
            (["e1"], [0], 4),
            (["e1", "e2"], [0, 5], 8),
            (["e2", "e3"], [5, 10], 7),  # e3 fills rows 10, 11, 0, 1
            (["e3", "e4"], [10, 2], 8),
            (["e3", "e4", "e5"][1:], [2, 8], 7),
        ]
    )
    assert contents(store) == {"e4": frames_of(4, 5), "e5": frames_of(5, 2)}
    assert (store.total_inserted_steps, store.total_inserted_episodes) == (18, 5)
    store.close()


def test_wrapped_episode_is_read_back_whole(tmp_path):
    store = open_store(tmp_path)
    for number, steps in ((1, 4), (2, 4), (3, 3)):
        store.insert(make_episode(number, steps))
    assert contents(store) == {"e2": frames_of(2, 4), "e3": frames_of(3, 3)}
    batch = store.transitions(np.array([11]))
    np.testing.assert_allclose(batch.action[0], [0.03, 0.01])
    assert batch.reward[0, 0] == pytest.approx(3.1 + 0.05 * 101)
    store.close()


def test_an_id_is_stored_once_even_after_its_eviction_and_a_restart(tmp_path):
    store = open_store(tmp_path)
    assert [store.insert(make_episode(number, 5)) for number in (1, 1, 2, 3, 1)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    store.close()
    store = open_store(tmp_path)
    assert store.ids == ["e2", "e3"] and "e1" in store
    assert not store.insert(make_episode(1, 5)) and not store.insert(make_episode(3, 5))
    assert (store.total_inserted_steps, store.total_inserted_episodes) == (15, 3)
    store.close()


def test_restart_gives_the_same_samples(tmp_path):
    store = open_store(tmp_path)
    for number in range(5):
        store.insert(make_episode(number, 3))
    before = store.sample(20, np.random.default_rng(3))
    store.close()
    store = open_store(tmp_path)
    for old, new in zip(before, store.sample(20, np.random.default_rng(3)), strict=True):
        np.testing.assert_array_equal(old, new)
    store.close()


def success_episode(number: int, steps: int):
    return replace(make_episode(number, steps), successes=np.arange(steps) == steps - 1)


def test_a_share_of_a_batch_comes_from_episodes_with_a_success(tmp_path):
    """Of 10 episodes of 5 steps, numbers 3 and 8 are successes: uniform draws would give them a fifth."""
    config = replace(CONFIG, capacity_transitions=50, success_share=0.5)
    store = open_store(tmp_path, config)
    for number in range(8):
        store.insert((success_episode if number == 3 else make_episode)(number, 5))
    drawn = store.sample(4000, np.random.default_rng(0)).obs[:, 0, 0, 0]
    assert np.mean(drawn // 10 == 3) == pytest.approx(0.5 + 0.5 / 8, abs=0.03)
    assert set(drawn) == {10 * number + k for number in range(8) for k in range(5)}
    store.close()
    store = open_store(tmp_path, config)  # which were successes is read from the files again
    for number in (8, 9):
        store.insert((success_episode if number == 8 else make_episode)(number, 5))
    drawn = store.sample(4000, np.random.default_rng(0)).obs[:, 0, 0, 0] // 10
    for number in (3, 8):
        assert np.mean(drawn == number) == pytest.approx(0.5 / 2 + 0.5 / 10, abs=0.03)
    for number in range(10, 14):  # evicts 0 to 3
        store.insert(make_episode(number, 5))
    drawn = store.sample(4000, np.random.default_rng(0)).obs[:, 0, 0, 0] // 10
    assert np.mean(drawn == 8) == pytest.approx(0.5 + 0.5 / 10, abs=0.03) and drawn.min() == 4
    store.close()


@pytest.mark.parametrize("factor, share", [(2.0, 0.25), (100.0, 0.5)])
def test_the_first_success_does_not_fill_a_batch_alone(tmp_path, factor, share):
    """One of 8 episodes is a success: at most `factor` eighths of a batch are drawn from it, and never more than a half."""
    config = replace(CONFIG, capacity_transitions=50, success_share=0.5, success_factor=factor)
    store = open_store(tmp_path, config)
    for number in range(8):
        store.insert((success_episode if number == 3 else make_episode)(number, 5))
    drawn = store.sample(4000, np.random.default_rng(0)).obs[:, 0, 0, 0] // 10
    assert np.mean(drawn == 3) == pytest.approx(share + (1 - share) / 8, abs=0.03)
    store.close()


def test_without_a_success_a_share_changes_nothing(tmp_path):
    batches = []
    for share in (0.0, 0.9):
        store = open_store(tmp_path / str(share), replace(CONFIG, success_share=share))
        store.insert(make_episode(1, 5))
        batches.append(store.sample(20, np.random.default_rng(3)))
        store.close()
    for plain, shared in zip(*batches, strict=True):
        np.testing.assert_array_equal(plain, shared)
    with pytest.raises(ValueError, match=r"replay.success_share=1.0 is not allowed"):
        replace(CONFIG, success_share=1.0)
    with pytest.raises(
        ValueError,
        match=r"replay.success_factor=0.5 is not allowed: expected a number of at least 1, or null",
    ):
        replace(CONFIG, success_factor=0.5)


def test_other_shape_or_capacity_is_refused_by_name(tmp_path):
    open_store(tmp_path).close()
    with pytest.raises(ValueError, match="capacity_transitions is 10, asked for 11"):
        open_store(tmp_path, ReplayConfig(capacity_transitions=11, episode_steps=5))
    with pytest.raises(ValueError, match=r"resolution_px is 4, asked for 8; action_dim is 2, asked for 3"):
        EpisodeStore(tmp_path, CONFIG, 8, 3)
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match=r"frames has shape \(8, 8, 3\)"):
        store.insert(make_episode(1, 3, resolution_px=8))
    with pytest.raises(ValueError, match="11 steps, more than"):
        store.insert(make_episode(1, 11))
    with pytest.raises(RuntimeError, match="insert episodes before sampling"):
        store.sample(1, np.random.default_rng(0))
    store.close()


def test_lost_data_file_is_refused(tmp_path):
    store = open_store(tmp_path)
    store.insert(make_episode(1, 3))
    store.close()
    (tmp_path / "frames.bin").unlink()
    with pytest.raises(ValueError, match=r"frames\.bin has 0 bytes"):
        open_store(tmp_path)


def test_a_lost_journal_is_refused_and_no_row_is_overwritten(tmp_path):
    open_store(tmp_path).close()
    journal = tmp_path / "journal.jsonl"
    journal.unlink()
    with pytest.raises(ValueError, match=r"journal\.jsonl is missing, .* restore it, or move .* away"):
        open_store(tmp_path)
    assert not journal.exists()
    journal.touch()  # as after a kill between the two
    open_store(tmp_path).close()


def test_two_processes_cannot_write_one_store(tmp_path, monkeypatch):
    monkeypatch.setattr("learner.replay.LOCK_WAIT_S", 0.2)
    store = open_store(tmp_path)
    with pytest.raises(RuntimeError, match="open in another process"):
        open_store(tmp_path)
    store.close()


def test_a_copy_taken_at_any_write_is_consistent(tmp_path, monkeypatch):
    """A kill between any two writes is what a copy of the folder at that moment shows."""
    source, copies = tmp_path / "store", []

    def copying(write):
        def wrapped(*args, **kwargs):
            for after in (False, True):
                result = write(*args, **kwargs) if after else None
                target = tmp_path / f"copy{len(copies)}"
                shutil.copytree(source, target)
                copies.append((target, list(acknowledged)))
            return result

        return wrapped

    store, acknowledged = open_store(source), []
    monkeypatch.setattr(os, "pwrite", copying(os.pwrite))
    monkeypatch.setattr(journal_module.os, "write", copying(os.write))
    for number, steps in ((1, 4), (2, 4), (3, 3), (4, 5)):
        store.insert(make_episode(number, steps))
        acknowledged.append((number, steps))
    store.close()
    monkeypatch.undo()
    assert len(copies) > 40
    for folder, done in copies:
        check_recovered(folder, done)


def check_recovered(folder: Path, acknowledged: list[tuple[int, int]]) -> None:
    """Nothing acknowledged is unknown, and every live episode has its own frames."""
    store = open_store(folder)
    lengths = {1: 4, 2: 4, 3: 3, 4: 5}
    assert contents(store) == {eid: frames_of(int(eid[1:]), lengths[int(eid[1:])]) for eid in store.ids}
    assert all(f"e{number}" in store for number, _ in acknowledged)
    if acknowledged:
        # The newest acknowledged episode can only be missing if its rows are being reused.
        assert f"e{acknowledged[-1][0]}" in store.ids
    assert store.insert(make_episode(9, 2)) and contents(store)["e9"] == frames_of(9, 2)
    store.close()


WRITER = """
import sys
from learner.replay import EpisodeStore, ReplayConfig
from tests.learner.helpers import make_episode
store = EpisodeStore(sys.argv[1], ReplayConfig(capacity_transitions=40, episode_steps=5, n_step=1), 32, 2)
for number in range(100_000):
    store.insert(make_episode(number % 20, 4 + number % 3, 32).__class__(
        **{**make_episode(number % 20, 4 + number % 3, 32).__dict__, "episode_id": f"e{number}"}))
    print(number, flush=True)
"""


@pytest.mark.parametrize("lines_before_kill", [3, 57, 400])
def test_sigkill_loses_nothing_acknowledged(tmp_path, lines_before_kill):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = -1
    for line in process.stdout:
        last = int(line)
        if last >= lines_before_kill:
            process.send_signal(signal.SIGKILL)
            break
    rest = process.stdout.read().split()
    process.wait()
    last = int(rest[-1]) if rest and rest[-1].isdigit() else last
    config = ReplayConfig(capacity_transitions=40, episode_steps=5, n_step=1)
    store = EpisodeStore(tmp_path, config, 32, 2)
    assert all(f"e{number}" in store for number in range(last + 1))
    assert store.total_inserted_episodes in (last + 1, last + 2)
    for episode_id, frames in contents(store).items():
        number = int(episode_id[1:])
        assert frames == frames_of(number % 20, 4 + number % 3)
    store.close()


def test_full_disk_is_an_error_and_nothing_is_acknowledged(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.insert(make_episode(1, 4))
    real = os.pwrite

    def full(fd, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ReplayDiskFullError, match="free disk space"):
        store.insert(make_episode(2, 4))
    monkeypatch.setattr(os, "pwrite", real)
    assert "e2" not in store and contents(store) == {"e1": frames_of(1, 4)}
    assert store.insert(make_episode(2, 4))
    store.close()


def test_preallocation_reports_a_full_disk_at_the_start(tmp_path, monkeypatch):
    def full(fd, offset, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ReplayDiskFullError, match=r"capacity_transitions"):
        RowFile(tmp_path / "x.bin", 10, (4,), np.uint8, preallocate=True)


def test_a_store_larger_than_memory_asks_the_disk_for_all_rows_of_a_batch_first(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    for number in (1, 2, 3):
        store.insert(make_episode(number, 4))
    assert store.read_ahead is None
    plain = store.sample(8, np.random.default_rng(0))
    store.close()
    monkeypatch.setattr(ring, "LARGE_SHARE_OF_MEMORY", 0.0)
    store, asked = open_store(tmp_path), []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, offset, length, advice: asked.append((offset, length))
    )
    for name, values in store.sample(8, np.random.default_rng(0))._asdict().items():
        np.testing.assert_array_equal(values, getattr(plain, name))
    rows = [
        int(np.flatnonzero(store._files["frames"].data[:, 0, 0, 0] == frame[0, 0, 0])[-1])
        for frame in plain.obs
    ]
    assert asked == [(row * 48, 2 * 48) for row in rows]
    store.close()


def test_shard_attaches_frame_rewards_and_acknowledges(tmp_path):
    shard = ReplayShard(tmp_path, {"capacity_transitions": 20, "n_step": 1, "learned_weight": 1.0}, 4, 2)
    blocks = [make_episode(1, 3), make_episode(2, 2)]
    rewards = [np.array([9, 1, 2, 3], np.float32), np.array([9, 4, 5], np.float32)]
    ack = shard.insert("b1", blocks, rewards)
    assert (ack["block_id"], ack["inserted"], ack["duplicates"]) == ("b1", ["e1", "e2"], [])
    assert (ack["inserted_steps"], ack["size_transitions"], ack["size_starts"]) == (5, 5, 5)
    again = shard.insert("b1", blocks, rewards)
    assert (again["inserted"], again["duplicates"], again["inserted_steps"]) == ([], ["e1", "e2"], 0)
    learned = shard._store._files["learned_rewards"].data[:7].tolist()
    assert learned == [1, 2, 3, 0, 4, 5, 0]
    with pytest.raises(ValueError, match="rewards of 1 episodes for 2"):
        shard.insert("b2", blocks, rewards[:1])
    with pytest.raises(ValueError, match="must be finite"):
        shard.insert("b3", [make_episode(3, 1)], [np.array([0, np.nan], np.float32)])
    same = [shard.sample(4, seed=11) for _ in range(2)]
    np.testing.assert_array_equal(same[0].obs, same[1].obs)
    shard.close()
