"""Copies of a replay store in pieces: the same store elsewhere, whatever was evicted meanwhile."""

from __future__ import annotations

import numpy as np
import pytest

from learner.replay import EpisodeStore, ReplayConfig
from learner.replay_copy import Piece, export_piece, restore_store
from tests.learner.helpers import ACTION_DIM, make_episode

CONFIG = ReplayConfig(capacity_transitions=60, episode_steps=10)


def make_store(folder, numbers):
    store = EpisodeStore(folder, CONFIG, 4, ACTION_DIM)
    for number in numbers:
        store.insert(make_episode(number, 7 + number % 4))
    return store


def copy_of(store, folder, most_steps=20, meanwhile=()):
    """Exports piece by piece, inserting an episode after each, and restores."""
    folder.mkdir()
    meanwhile, pieces, after = list(meanwhile), [], None
    while True:
        path = folder / f"{len(pieces)}.npz"
        answer = export_piece(store, after, path, most_steps)
        if answer["piece"] is not None:
            after = Piece(**answer["piece"])
            pieces.append(path)
        if answer["is_complete"]:
            break
        if meanwhile:
            number = meanwhile.pop(0)
            store.insert(make_episode(number, 7 + number % 4))
    assert len(pieces) > 1 and not meanwhile
    restore_store(folder / "store", answer, pieces)
    return EpisodeStore(folder / "store", CONFIG, 4, ACTION_DIM)


def assert_same(one, two):
    for name in ("ids", "past", "total_inserted_steps", "total_inserted_episodes", "size_transitions"):
        assert getattr(one, name) == getattr(two, name), name
    assert one.index.evicted == two.index.evicted
    for got, expected in zip(
        one.sample(32, np.random.default_rng(0)), two.sample(32, np.random.default_rng(0))
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("stored", [4, 15], ids=["nothing evicted", "full"])
@pytest.mark.parametrize("meanwhile", [(), (20, 21)], ids=["still", "growing"])
def test_a_copy_holds_and_draws_the_same_and_goes_on_the_same(tmp_path, stored, meanwhile):
    store = make_store(tmp_path / "store", range(stored))
    copy = copy_of(store, tmp_path / "copy", meanwhile=meanwhile)
    assert_same(copy, store)
    for number in range(30, 38):
        for one in (store, copy):
            assert one.insert(make_episode(number, 9))
        assert_same(copy, store)
    assert not copy.insert(make_episode(0, 7))  # Known, even where it was evicted before the copy was made.


def test_only_new_episodes_are_written(tmp_path):
    store = make_store(tmp_path / "store", range(3))
    path = tmp_path / "piece.npz"
    first = export_piece(store, None, path, 1000)
    assert first["piece"] == {"first": 0, "end": 3, "last_id": "e2"} and first["is_complete"]
    path.unlink()
    nothing = export_piece(store, Piece(**first["piece"]), path, 1000)
    assert nothing["piece"] is None and nothing["follows"] and nothing["is_complete"] and not path.exists()
    store.insert(make_episode(3, 10))
    assert export_piece(store, Piece(**first["piece"]), path, 1000)["piece"] == {
        **{"first": 3, "end": 4, "last_id": "e3"}
    }


def test_a_store_that_lost_its_newest_episodes_is_written_again(tmp_path):
    store = make_store(tmp_path / "store", [0, 1, 7])
    for foreign in (Piece(0, 3, "e2"), Piece(0, 9, "e8")):
        answer = export_piece(store, foreign, tmp_path / "piece.npz", 1000)
        assert not answer["follows"] and answer["piece"]["first"] == 0


def test_only_a_new_folder_becomes_a_copy(tmp_path):
    store = make_store(tmp_path / "store", range(3))
    answer = export_piece(store, None, tmp_path / "piece.npz", 1000)
    store.close()
    with pytest.raises(ValueError, match="not empty"):
        restore_store(tmp_path / "store", answer, [tmp_path / "piece.npz"])
