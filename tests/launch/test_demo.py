"""The demo: which commands it runs, what it refuses before the first of them, and how it goes on after a kill."""

from __future__ import annotations

import pytest

from launch import demo
from launch.cli import UsageError, compose
from models.files import write_json

NAMES = [
    *("expert videos", "random videos", "half videos", "noisy videos", "codec", "video model"),
    *("reward quality", "reinforcement learning", "evaluation"),
]


def config_of(out, *given: str):
    config = compose("demo", [f"out={out}", *given])
    config.overrides = list(given)
    return config


@pytest.fixture
def ran(monkeypatch):
    """Names and commands of the steps that ran; the third one from the end is cut off."""
    steps: list[tuple[str, list[str]]] = []

    def run(name, arguments):
        steps.append((name, arguments))
        if name == "reward quality":
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_step", run)
    return steps


def test_a_demo_that_was_cut_off_goes_on(tmp_path, ran, capsys):
    out = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(config_of(out, "env.render.camera=close"))
    assert [name for name, _ in ran] == NAMES[:7]
    for _, (verb, *arguments) in ran:
        composed = compose(verb, arguments)
        if verb == "collect":
            assert composed.env.render.camera == "close"
    for name in (
        "data/expert/index.json",
        "data/random/index.json",
        "codec/summary.json",
        "video/summary.json",
    ):
        (out / name).parent.mkdir(parents=True)
        write_json(out / name, {})
    ran.clear()
    with pytest.raises(KeyboardInterrupt):  # the video model has no statistics yet
        demo.run_demo(config_of(out, "env.render.camera=close"))
    assert [name for name, _ in ran] == ["half videos", "noisy videos", "video model", "reward quality"]
    assert f"going on in {out}" in (said := capsys.readouterr().out) and "codec: done before" in said
    with pytest.raises(ValueError, match="seed: 1 there, 5 asked for"):
        demo.run_demo(config_of(out, "env.render.camera=close", "seed=5"))
    with pytest.raises(ValueError, match=r"env\.render\.camera: 'close' there"):
        demo.run_demo(config_of(out))


def test_a_training_that_was_cut_off_is_resumed(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(demo, "run_step", lambda name, arguments: steps.append(arguments))
    made = demo.Demo(config_of(tmp_path / "demo", "final_episodes=2"), tmp_path / "demo")
    monkeypatch.setattr(demo, "state_of", lambda _: "interrupted")
    made.run()
    assert steps[-2] == ["train", f"resume={tmp_path}/demo/run"]
    assert compose("evaluate", steps[-1][1:]).videos == 2


def test_a_demo_runs_wherever_the_project_lies(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(demo, "run_step", lambda name, arguments: steps.append(arguments))
    out = tmp_path / "Müller's (2), a=b"
    demo.Demo(config_of(tmp_path), out).run()
    composed = [compose(verb, arguments) for verb, *arguments in steps]
    assert composed[0].out == f"{out}/data/expert" and composed[-1].run == f"{out}/run"
    assert composed[6].against[0] == f"{out}/data/random" and composed[6].against[-1] == "frozen"
    monkeypatch.setattr(demo, "state_of", lambda _: "interrupted")
    demo.Demo(config_of(tmp_path), out).run()
    assert compose("train", steps[-2][1:]).resume == f"{out}/run"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward_name=difusion", "did you mean 'diffusion'"),
        ("reward_name=viper", "needs a model that the demo does not train"),
        ("final_episodes=0", "final_episodes must be at least 1, got 0"),
    ],
)
def test_bad_values_are_refused_before_anything_is_made(tmp_path, ran, override, message):
    with pytest.raises(UsageError, match=message):
        demo.run_demo(config_of(tmp_path / "demo", override))
    assert not ran and not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path, ran):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists; nothing is overwritten"):
        demo.run_demo(config_of(tmp_path))
    assert not ran
