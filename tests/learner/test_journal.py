"""The journal of an episode store: torn lines, full disks, its length, what is on the disk when."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from learner import journal as journal_module
from learner.ring import ReplayDiskFullError
from tests.learner.helpers import make_episode
from tests.learner.test_replay import CONFIG, contents, frames_of, open_store


def test_torn_last_line_is_dropped_and_a_broken_middle_line_is_named(tmp_path):
    store = open_store(tmp_path)
    store.insert(make_episode(1, 3))
    store.insert(make_episode(2, 3))
    store.close()
    path = tmp_path / "journal.jsonl"
    text = path.read_text()
    for cut in range(text.index("\n") + 1, len(text)):
        path.write_text(text[:cut])
        store = open_store(tmp_path)
        assert store.ids == ["e1"]
        assert store.insert(make_episode(2, 3))  # the retry of an insert that was not acknowledged
        assert contents(store) == {"e1": frames_of(1, 3), "e2": frames_of(2, 3)}
        store.close()
    path.write_text(text.replace('"op"', '"xx"', 1))
    with pytest.raises(ValueError, match=r"journal\.jsonl line 1"):
        open_store(tmp_path)


def test_full_disk_in_the_journal_leaves_it_readable(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.insert(make_episode(1, 4))
    real = os.write

    def half(fd, data):
        real(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module.os, "write", half)
    with pytest.raises(ReplayDiskFullError):
        store.insert(make_episode(2, 4))
    monkeypatch.undo()
    assert store.insert(make_episode(3, 4))
    store.close()
    store = open_store(tmp_path)
    assert contents(store) == {"e1": frames_of(1, 4), "e3": frames_of(3, 4)}
    store.close()


def test_journal_stays_bounded_and_remembers_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "IDS_PER_LINE", 50)
    store = open_store(tmp_path)
    longest = 0
    for number in range(600):
        episode = make_episode(number % 20, 5)
        store.insert(type(episode)(**{**episode.__dict__, "episode_id": f"e{number}"}))
        longest = max(longest, (tmp_path / "journal.jsonl").read_text().count("\n"))
    assert longest < 150  # 600 commits and 598 evictions were written
    store.close()
    store = open_store(tmp_path)
    assert all(f"e{number}" in store for number in range(600))
    assert store.ids == ["e598", "e599"] and store.total_inserted_steps == 3000
    assert contents(store)["e599"] == frames_of(19, 5)
    store.close()


def test_names_of_files_are_on_the_disk_too_where_it_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "IDS_PER_LINE", 10)
    folders, fsync = [], os.fsync

    def remember(handle):
        folders.append(Path(os.readlink(f"/proc/self/fd/{handle}")) == tmp_path)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", remember)
    open_store(tmp_path).close()
    assert not any(folders)
    store = open_store(tmp_path, replace(CONFIG, sync=True))
    assert folders.pop()
    folders.clear()
    for number in range(20):
        store.insert(make_episode(number, 5))
    assert folders[:2] == [False, True]  # the journal in short form, then its name
    store.close()


def test_what_a_kill_left_of_a_journal_in_short_form_is_removed(tmp_path):
    open_store(tmp_path).close()
    (tmp_path / ".journal.jsonl.a1b2").write_text("")
    open_store(tmp_path).close()
    assert not list(tmp_path.glob(".journal*"))
