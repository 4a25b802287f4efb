"""Quality measures on cases that can be counted by hand, and corruptions of frames."""

from __future__ import annotations

import numpy as np
import pytest

from reward_service.corruptions import CORRUPTIONS
from reward_service.quality import (
    auc,
    auc_per_episode,
    auc_per_frame,
    auc_per_step,
    compare,
    progress_correlation,
)


def a(*values):
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ((3, 4), (1, 2), 1.0),
        ((1, 2), (3, 4), 0.0),
        ((1, 3), (2,), 0.5),
        ((2, 4), (1, 3), 0.75),  # 2>1, 4>1, 4>3 of four pairs
        ((1,), (1,), 0.5),
        ((1, 2), (1, 1), 0.75),  # ties count one half: (0.5 + 0.5 + 1 + 1) / 4
        ((5, 5, 5), (5, 5), 0.5),
    ],
)
def test_auc(positive, negative, expected):
    assert auc(a(*positive), a(*negative)) == pytest.approx(expected)


def test_auc_equals_counting_all_pairs():
    rng = np.random.default_rng(0)
    p, n = rng.integers(0, 9, 60), rng.integers(0, 7, 45)
    pairs = (p[:, None] > n).mean() + 0.5 * (p[:, None] == n).mean()
    assert auc(p, n) == pytest.approx(pairs)


def test_per_frame_pools_per_step_aligns_per_episode_averages():
    """A reward that only grows with time: frames look separable by pooling, not at the same step."""
    expert, stranger = [a(1, 2, 3, 4), a(1, 2)], [a(1, 2, 3), a(1, 2, 3)]
    assert auc_per_step(expert, stranger).tolist() == [0.5, 0.5, 0.5]
    assert auc_per_frame([a(3, 4)], [a(1), a(2)]) == 1.0
    # means: expert 2.5, 1.5; stranger 2, 2
    assert auc_per_episode(expert, stranger) == 0.5


def test_short_successful_episodes_are_not_punished_for_their_length():
    assert auc_per_episode([a(1, 1)], [a(0.5, 0.5, 0.5, 0.5, 0.5)]) == 1.0


def test_progress_correlation():
    assert progress_correlation([a(1, 2, 3), a(5, 6)])["per_episode"] == pytest.approx(1.0)
    assert progress_correlation([a(3, 2, 1)]) == pytest.approx({"per_episode": -1.0, "pooled": -1.0})
    assert progress_correlation([a(1, 2, 3), a(3, 2, 1)]) == pytest.approx(
        {"per_episode": 0.0, "pooled": 0.0}
    )
    assert progress_correlation([a(2, 2, 2)])["per_episode"] == 0.0
    # rank 1,3,2 against 1,2,3: 1 - 6 * 2 / 24
    assert progress_correlation([a(0.1, 9.0, 0.2)])["per_episode"] == pytest.approx(0.5)
    # within each episode perfect, pooled not: the second episode lies above the first
    assert 0 < progress_correlation([a(1, 2), a(10, 20)])["pooled"] < 1


def test_compare_holds_every_measure():
    result = compare([a(1, 2, 3)], [a(0, 0, 0)])
    assert result == {
        "auc_per_frame": 1.0,
        "auc_per_step": 1.0,
        "auc_per_episode": 1.0,
        "mean_positive": 2.0,
        "mean_negative": 0.0,
        "progress_per_episode": pytest.approx(1.0),
        "progress_pooled": pytest.approx(1.0),
    }


def test_empty_and_broken_input_is_refused():
    with pytest.raises(ValueError, match="the negative set is empty"):
        auc(a(1), a())
    with pytest.raises(ValueError, match="the positive set holds nan at position 1"):
        auc(a(1, np.nan), a(1))
    with pytest.raises(ValueError, match="the positive set has no episodes"):
        compare([], [a(1, 2)])
    with pytest.raises(ValueError, match="at least two frames"):
        progress_correlation([a(1)])


def test_corruptions_keep_shape_and_input():
    frames = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    original = frames.copy()
    frozen, backwards = CORRUPTIONS["frozen"](frames), CORRUPTIONS["reversed"](frames)
    assert (frozen == original[0]).all() and frozen.shape == original.shape
    assert (backwards == original[[2, 1, 0]]).all() and backwards.flags.c_contiguous
    frozen[:] = 0
    assert (frames == original).all()
