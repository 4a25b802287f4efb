"""The imitate verb, as a user meets it."""

from __future__ import annotations

import pytest

from actors.envs.adroit import EXPERT_POLICIES
from actors.policy_file import load_policy_file
from launch import imitate
from launch.cli import UsageError, compose

REFERENCE = EXPERT_POLICIES / "adroit-pen.npz"
QUICK = [
    "task=adroit-pen",
    "imitation.episodes=1",
    "imitation.rounds=1",
    "imitation.train_steps=20",
    "imitation.hidden_size=8",
    "eval_episodes=2",
]


def run(*overrides):
    return imitate.run(compose("imitate", [*QUICK, *overrides]))


def test_a_student_is_written_and_measured_beside_its_reference(tmp_path, capsys):
    out = tmp_path / "experts" / "pen.npz"
    arguments = (f"reference={REFERENCE}", f"out={out}")
    assert run(*arguments, "required_share=0.0") == 0
    student = load_policy_file(out)
    assert (student.state_size, student.action_size) == (45, 24)
    shown = capsys.readouterr().out
    assert "[imitate, round 1 training] 100%" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["reference", "100.0%", "100.0%"] in lines
    assert any(line[:1] == ["student"] and len(line) == 3 for line in lines)
    with pytest.raises(UsageError, match="nothing is overwritten"):
        run(*arguments)


def test_a_student_that_falls_short_ends_with_an_error(tmp_path, capsys):
    assert run(f"reference={REFERENCE}", f"out={tmp_path / 'pen.npz'}", "required_share=1.0") == 1
    assert "falls short of 100% of the reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "reference is missing"),
        ([f"reference={REFERENCE}", "eval_episodes=0"], "eval_episodes must be at least 1"),
        ([f"reference={REFERENCE}", "imitation.rounds=0"], "rounds is 0"),
        ([f"reference={REFERENCE}", "task=adroit-door"], "does not fit task 'adroit-door'"),
        ([f"reference={REFERENCE}", "seed=-1"], "seed is -1, expected 0 to 16777215"),
        ([f"reference={REFERENCE}", "out=experts/pen"], "out=experts/pen must end in .npz"),
        ([f"reference={EXPERT_POLICIES}"], "RLlib checkpoints can not be read here; give a policy file"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(f"out={tmp_path / 'student.npz'}", *overrides)
    assert not list(tmp_path.iterdir())
