"""What a person at a terminal sees of a training."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launch import console
from launch.console import TrainingView


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr(console, "Console", lambda: Console(file=written, force_terminal=True, width=100))
    return written


def test_a_live_table_shows_what_happens_before_its_first_row_and_after_its_last(screen):
    view = TrainingView("door-close", "live")
    view.event("waiting for a node")
    view._live.refresh()
    assert "waiting for a node" in screen.getvalue()
    view.update({"agent_steps": 1200}, 0.5)
    view.event("go on with: resume=run")
    screen.truncate(0)
    view.close()
    left = screen.getvalue()
    assert "go on with: resume=run" in left and "1,200" in left and "50%" in left


def test_brackets_in_what_happened_are_shown_as_they_are(screen):
    view = TrainingView("door-close", "live")
    view.event("no such bucket [/data/x]: bonus.videos=[a,b]")
    view.close()
    assert "no such bucket [/data/x]: bonus.videos=[a,b]" in screen.getvalue()
