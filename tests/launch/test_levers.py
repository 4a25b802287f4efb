"""Levers of reward quality: what quality.py is given for each, and the table of what came out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import levers
from launch.cli import UsageError, compose

MORE = "more=['skip and chain: video.frame_skip=1 frame_reward.estimator=chain']"
TWO = (MORE, "only=[as the preset, skip and chain]")


def quality_rows(reward, aucs, progress):
    kinds = ("random", "half", "noisy", "wander", "misdirected", "linger", "reversed", "frozen")
    return [
        {
            "task": f"task {number}",
            "reward": reward,
            "progress": value,
            "against": {kind: {"auc_per_episode": auc, "auc_per_frame": 0.5} for kind in kinds},
        }
        for number, (auc, value) in enumerate(zip(aucs, progress))
    ]


def test_each_lever_is_judged_once_with_its_own_model(tmp_path, monkeypatch):
    given = [
        f"checkpoints={tmp_path}/levers",
        f"out={tmp_path}/out",
        "rewards=[diffusion]",
        "video_steps=7",
        "camera=close",
    ]
    commands = []

    def judge(_name, arguments):
        commands.append(arguments)
        folder = next(a.partition("=")[2] for a in arguments if a.startswith("out="))
        Path(folder).mkdir(parents=True)
        rows = quality_rows("diffusion", (1.0, 0.5), (0.5, -0.25))
        (Path(folder) / "quality.json").write_text(json.dumps({"rows": rows}))
        (Path(folder) / "quality.md").write_text("")

    monkeypatch.setattr(levers, "run_step", judge)
    assert levers.pull_levers(compose("levers", [*given, *TWO])) == 0
    plain, changed = commands
    assert plain[0] == "quality" and "rewards=[diffusion]" in plain and "video_overrides=[]" in plain
    assert not any(argument.startswith("codec_checkpoint") for argument in plain)  # made by the first one
    assert "rewards=['diffusion frame_reward.estimator=chain']" in changed
    assert "video_overrides=['video.frame_skip=1']" in changed
    assert f"codec_checkpoint={tmp_path}/levers/as_the_preset/codec/metaworld7" in changed
    for arguments in commands:  # the verb takes them
        assert compose("quality", arguments[1:]).camera == "close"
    expected = "| skip and chain | diffusion |" + " 0.75 (0.50) |" * 8 + " +0.12 (-0.25) |"
    assert expected in (tmp_path / "out.md").read_text()
    commands.clear()
    assert levers.pull_levers(compose("levers", [*given, *TWO])) == 0
    assert levers.pull_levers(compose("levers", [*given, MORE, "only=[as the preset]"])) == 0
    assert (
        commands == [] and expected in (tmp_path / "out.md").read_text()
    )  # what is finished stays in the table
    with pytest.raises(UsageError, match="one serves all levers"):
        levers.pull_levers(compose("levers", [*given, "only=[frame skip 6]"]))
    codec = tmp_path / "levers/as_the_preset/codec/metaworld7"
    codec.mkdir(parents=True)
    (codec / "summary.json").write_text("{}")
    assert levers.pull_levers(compose("levers", [*given, "only=[frame skip 6]"])) == 0
    assert f"codec_checkpoint={codec}" in commands[0]


def test_a_codec_that_is_given_serves_all_levers(tmp_path):
    config = compose("levers", [*TWO, "codec_checkpoint=c/codec"])
    arguments = levers.quality_arguments(config, tmp_path / "as_the_preset", [], "c/codec")
    assert "codec_checkpoint=c/codec" in arguments


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards=[difusion]", "did you mean 'diffusion'"),
        ("more=['frame_skip_1: seed=2']", "two levers would have one"),
        ("more=[wide]", "expected 'name: overrides'"),
        ("only=[frame skip 2]", "did you mean 'frame skip 6' or 'frame skip 1'"),
    ],
)
def test_bad_levers_are_refused(override, message):
    with pytest.raises(UsageError, match=message):
        levers.pull_levers(compose("levers", [override]))
