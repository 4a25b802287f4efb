"""The update ratio, in both directions, by literal numbers."""

from __future__ import annotations

import pytest

from learner.limiter import UpdateRatioLimiter


@pytest.mark.parametrize(
    ("agent_steps", "updates", "due"),
    [
        (0, 0, 0),
        (100, 0, 0),
        (101, 0, 0),
        (102, 0, 1),
        (200, 0, 50),
        (200, 30, 20),
        (200, 50, 0),
        (199, 60, 0),
    ],
)
def test_updates_due(agent_steps, updates, due):
    assert UpdateRatioLimiter(0.5, min_steps=100, tolerance_steps=10).updates_due(agent_steps, updates) == due


@pytest.mark.parametrize(
    ("submitted", "updates", "allowed"),
    [(0, 0, 110), (100, 0, 10), (110, 0, 0), (150, 0, 0), (110, 1, 2), (200, 50, 10), (205, 50, 5)],
)
def test_steps_allowed(submitted, updates, allowed):
    assert (
        UpdateRatioLimiter(0.5, min_steps=100, tolerance_steps=10).steps_allowed(submitted, updates)
        == allowed
    )


def test_more_than_one_update_per_step_and_exact_fractions():
    assert UpdateRatioLimiter(2.0, 0, 1).updates_due(7, 0) == 14
    assert UpdateRatioLimiter(2.0, 0, 1).steps_allowed(7, 13) == 0
    assert UpdateRatioLimiter(0.29, 0, 10).updates_due(100, 0) == 29
    assert UpdateRatioLimiter(0.1, 0, 10).steps_allowed(30, 3) == 10


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.5, 1.0, 3.0])
def test_blocks_and_updates_never_wait_for_each_other(ratio):
    block = 25
    limiter = UpdateRatioLimiter(ratio, min_steps=60, tolerance_steps=block + int(1 / ratio) + 1)
    steps = updates = 0
    for _ in range(200):
        moved = limiter.steps_allowed(steps, updates) >= block
        steps += block if moved else 0
        due = limiter.updates_due(steps, updates)
        updates += due
        assert moved or due
    assert updates == int((steps - 60) * ratio + 1e-9)


@pytest.mark.parametrize(
    ("ratio", "least"), [(0.5, 26), (1.0, 25), (3.0, 25), (0.1, 34), (0.29, 29), (1.5, 26)]
)
def test_the_least_tolerance_never_stops_blocks_of_any_length_and_one_step_less_may(ratio, least):
    assert UpdateRatioLimiter(ratio, 60, 40).least_tolerance_steps(25) == least

    def stops(tolerance_steps: int, start_steps: int) -> bool:
        limiter = UpdateRatioLimiter(ratio, min_steps=60, tolerance_steps=tolerance_steps)
        updates = limiter.updates_due(start_steps, 0)
        return limiter.steps_allowed(start_steps, updates) < 25

    assert not any(stops(least, start_steps) for start_steps in range(60, 400))
    assert any(stops(least - 1, start_steps) for start_steps in range(60, 400))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"limiter\.updates_per_step=0"):
        UpdateRatioLimiter(0)
    with pytest.raises(ValueError, match="of at least 1e-06"):
        UpdateRatioLimiter(1e-7)
    with pytest.raises(ValueError, match=r"limiter\.tolerance_steps=1 .*at least 2"):
        UpdateRatioLimiter(0.5, tolerance_steps=1)
