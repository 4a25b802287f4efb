"""Which frames each row sees, as literal tables; and the steps of the chain."""

from __future__ import annotations

import pytest

from reward_service.estimators import ChainStep, chain_steps
from reward_service.histories import leaking_history, likelihood_history


def test_likelihood_row_sees_frames_before_its_own():
    assert likelihood_history(4, 2).tolist() == [[0, 0], [0, 0], [0, 1], [1, 2]]
    assert likelihood_history(5, 1).tolist() == [[0], [0], [1], [2], [3]]


def test_leaking_rows_without_history_see_copies_of_their_own_frame():
    assert leaking_history(4, 2).tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 2], [1, 2, 3]]


def test_frame_skip_spaces_the_history():
    assert likelihood_history(4, 1, 3, "first").tolist() == [[0], [0], [0], [0]]
    assert likelihood_history(4, 2, 3, "clock", content_len=2).tolist() == [
        [0, -1],
        [0, -2],
        [0, -3],
        [0, -3],
    ]
    assert likelihood_history(6, 2, 2).tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [0, 2], [1, 3]]
    assert leaking_history(6, 2, 2)[3:].tolist() == [[3, 3, 3], [0, 2, 4], [1, 3, 5]]


def test_official_chain_takes_the_one_step_posterior_ahead_of_the_network():
    steps = chain_steps(100, 9, "official")
    assert [s.network for s in steps] == [99, 89, 79, 69, 59, 49, 39, 29, 19, 9, 0]
    assert [s.source for s in steps] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 9, 0]
    assert all(s.target == s.source - 1 for s in steps)


def test_exact_chain_jumps_from_network_step_to_network_step():
    assert chain_steps(10, 3, "exact") == [
        ChainStep(9, 9, 5),
        ChainStep(5, 5, 1),
        ChainStep(1, 1, 0),
        ChainStep(0, 0, -1),
    ]
    assert chain_steps(5, 4, "exact") == [ChainStep(4, 4, 0), ChainStep(0, 0, -1)]


def test_without_skipping_both_chains_are_the_same():
    assert chain_steps(7, 0, "official") == chain_steps(7, 0, "exact")


@pytest.mark.parametrize("skip_step", [-1, 10])
def test_skip_step_outside_the_chain_is_refused(skip_step):
    with pytest.raises(ValueError, match=f"skip_step is {skip_step}, expected 0 to 9"):
        chain_steps(10, skip_step, "exact")
