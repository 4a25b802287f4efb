"""Verbs run as commands: what fails is named, and who is told to stop lets the command end well."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from launch import steps

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").write_text("whole")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("started").touch()
time.sleep(60)
"""


@pytest.fixture
def verb(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "launch").mkdir()
    return tmp_path / "launch/verb.py"


def test_sigterm_reaches_the_command_and_is_waited_for(verb, tmp_path):
    verb.write_text(SAVES)

    def stop():
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="stopped by SIGTERM within 'a run'"):
        steps.run_step("a run", ["verb"])
    assert (tmp_path / "saved").read_text() == "whole"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_fails_is_named(verb):
    verb.write_text("import sys; sys.exit(int(sys.argv[1]))")
    assert steps.run_step("fine", ["verb", "0"]).seconds > 0
    with pytest.raises(RuntimeError, match="'broken' failed with exit code 3"):
        steps.run_step("broken", ["verb", "3"])
