"""Judging tasks with the models of others: what is asked for first, what is measured and what is not made."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from actors.experts import BEHAVIOURS
from launch import pretrain_stages, quality
from launch.cli import UsageError, compose
from launch.pretrain_stages import asked_settings
from models.files import write_json
from reward_service.statistics import fingerprint


def model_with_statistics(folder, known: dict) -> None:
    """A finished model that cannot be loaded, with statistics of `known`: {signature: [task]}."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    entry = {"mean": 0.0, "std": 1.0, "weights": fingerprint(folder)}
    write_json(folder / "statistics.json", {s: dict.fromkeys(tasks, entry) for s, tasks in known.items()})


def commands_until_statistics(monkeypatch, *given: str) -> list[list[str]]:
    """What `quality.py` would run up to the end of its statistics; nothing is judged."""
    commands = []
    monkeypatch.setattr(quality, "run_step", lambda _name, arguments: commands.append(arguments))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "_judge_all", stop)
    with pytest.raises(KeyboardInterrupt):
        quality.quality(compose("quality", list(given)))
    return commands


def test_models_of_other_tasks_get_statistics_and_no_training(tmp_path, monkeypatch):
    video = tmp_path / "checkpoints/video/metaworld7"
    known = {"entropy/one_forward": ["reach", "door-lock"], "likelihood/one_forward": ["reach"]}
    model_with_statistics(video, known)
    *collected, measured = commands_until_statistics(
        monkeypatch,
        *["task_set=metaworld_unseen8", "models_of=metaworld7", "judged=[door-lock]"],
        *[f"data={tmp_path}/data", f"checkpoints={tmp_path}/checkpoints", f"out={tmp_path}/out"],
        "rewards=[diffusion,diffusion_likelihood]",
    )
    assert [c[:2] for c in collected] == [["collect", "task=door-lock"]] * len(BEHAVIOURS)
    assert measured[:2] == ["pretrain", "task=door-lock"]
    assert {"stage=statistics", "reward=diffusion_likelihood"} <= set(measured)
    assert measured[-2:] == [f"data=[{tmp_path}/data/door-lock/expert]", f"out={video}"]
    compose("pretrain", measured[1:])  # the verb takes them


@pytest.mark.parametrize(
    ("preset", "rewards", "known", "measured"),
    [
        # One forward pass gives both modes.
        ("laptop", "diffusion,diffusion_likelihood", [], ["diffusion"]),
        # A training computes the entropy along the chain; the likelihood costs as much again.
        (
            "paper",
            "diffusion,diffusion_likelihood",
            ["entropy/chain-official/skip9/samples1"],
            ["diffusion_likelihood"],
        ),
        ("paper", "diffusion,sparse", ["entropy/chain-official/skip9/samples1"], []),
        ("laptop", "diffusion,'diffusion frame_reward.standardise=false'", ["entropy/one_forward"], []),
        (
            "laptop",
            "'diffusion frame_reward.estimator=chain'",
            ["entropy/one_forward"],
            ["diffusion frame_reward.estimator=chain"],
        ),
    ],
)
def test_statistics_that_judging_looks_up_are_computed_first(
    tmp_path, monkeypatch, preset, rewards, known, measured
):
    for kind in ("codec", "video"):
        model_with_statistics(tmp_path / kind / "reach", {s: ["reach"] for s in known})
    commands = commands_until_statistics(
        monkeypatch,
        *["task=reach", f"preset={preset}", f"rewards=[{rewards}]"],
        *[f"data={tmp_path}/data", f"checkpoints={tmp_path}", f"out={tmp_path}/out"],
    )
    own = [arguments for arguments in commands if "stage=statistics" in arguments]
    found = [
        [a.removeprefix("reward=") for a in c if a.startswith(("reward=", "frame_reward."))] for c in own
    ]
    assert [" ".join(given) for given in found] == measured
    for arguments in own:
        compose("pretrain", arguments[1:])


def test_models_that_are_not_there_are_named_before_anything_is_collected(tmp_path):
    given = [
        "task_set=metaworld_unseen8",
        "models_of=metaworld7",
        f"checkpoints={tmp_path}",
        f"out={tmp_path}/out",
    ]
    with pytest.raises(UsageError, match=rf"not found: {tmp_path}/video/metaworld7, {tmp_path}/videogpt"):
        quality.quality(compose("quality", [*given, "rewards=[diffusion,diffusion_likelihood,viper]"]))
    assert not list(tmp_path.iterdir())


def test_videos_of_another_view_are_refused_and_missing_ones_are_of_the_one_asked_for(tmp_path):
    config, videos = compose("quality", ["camera=close"]), quality.Videos(tmp_path)
    commands = quality.collecting(config, "reach", videos)
    assert len(commands) == len(BEHAVIOURS)
    assert all(compose("collect", c[1:]).env.render.camera == "close" for _, c in commands)
    render = {"camera": "corner2", "quality": "fast"}
    (tmp_path / "reach/expert").mkdir(parents=True)
    write_json(tmp_path / "reach/expert/index.json", {"render": render})
    with pytest.raises(UsageError, match=r"camera=close, but the videos in .*/reach/expert are of 'corner2'"):
        quality.collecting(config, "reach", videos)
    assert len(quality.collecting(compose("quality", []), "reach", videos)) == len(BEHAVIOURS) - 1
    with pytest.raises(UsageError, match=r"env.render.quality=full, but the videos in .* are of 'fast'"):
        quality.collecting(compose("quality", ["preset=paper"]), "reach", videos)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("expert_overrides=['video_training.hold_frame=101']", "unknown key 'video_training.hold_frame'"),
        ("base_overrides=['video.history=last']", "video: "),
        ("rewards=['relative frame_reward.masks=some']", "frame_reward: masks"),
        ("env.render.camera=close", "the view of the videos is camera="),
        ("other_episodes=1", "other_episodes is 1, expected at least 2"),
    ],
)
def test_what_a_later_command_would_refuse_is_refused_first(tmp_path, monkeypatch, override, message):
    monkeypatch.setattr(quality, "run_step", lambda *_: pytest.fail("a command has run"))
    folders = [f"data={tmp_path}/data", f"checkpoints={tmp_path}/models", f"out={tmp_path}/out"]
    config = compose("quality", [*folders, "rewards=[relative]", override])
    config.overrides = [override]
    with pytest.raises(UsageError, match=re.escape(message)):
        quality.quality(config)
    assert not list(tmp_path.iterdir())


def test_models_that_are_there_are_used_and_what_they_were_trained_with_is_said(tmp_path):
    videos, folder = quality.Videos(tmp_path / "data"), tmp_path / "codec/reach"
    frozen = {"diffusion": tmp_path / "video/reach"}
    config = compose("quality", ["codec_steps=7"])
    (_, codec), (_, video) = quality.training(config, ["reach"], videos, tmp_path, "reach", frozen)[0]
    assert "stage=codec" in codec and "stage=video" in video
    folder.mkdir(parents=True)
    write_json(folder / "training.json", asked_settings(compose("pretrain", codec[1:])))
    write_json(folder / "summary.json", {})
    left, otherwise = quality.training(config, ["reach"], videos, tmp_path, "reach", frozen)
    assert [name for name, _ in left] == ["video of reach"] and not otherwise
    changed = compose("quality", ["codec_steps=8", "seed=3"])
    _, otherwise = quality.training(changed, ["reach"], videos, tmp_path, "reach", frozen)
    assert otherwise == {
        str(folder): [
            "training.train_steps is 7, 8 would be asked for",
            "training.seed is 0, 3 would be asked for",
        ]
    }
    (tmp_path / "video/reach").mkdir(parents=True)
    write_json(tmp_path / "video/reach/summary.json", {})  # trained, but cut off before its statistics
    assert [
        name for name, _ in quality.training(config, ["reach"], videos, tmp_path, "reach", frozen)[0]
    ] == ["video of reach"]


def test_judging_that_was_cut_off_can_be_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "collecting", lambda *_: [])
    monkeypatch.setattr(quality, "table", lambda _: "table")
    config = compose("quality", ["task=reach", "rewards=[sparse]", f"out={tmp_path}/out"])

    def cut_off(*arguments):
        arguments[-1]([{"task": "reach"}])
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "_judge_all", cut_off)
    with pytest.raises(KeyboardInterrupt):
        quality.quality(config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quality.json"]
    other = compose("quality", ["task=reach", "rewards=[sparse,rnd]", f"out={tmp_path}/out"])
    other.overrides = ["task=reach", "rewards=[sparse,rnd]"]
    with pytest.raises(UsageError, match="already exists; nothing is overwritten"):
        quality.quality(other)
    monkeypatch.setattr(quality, "_judge_all", lambda *_: [])
    monkeypatch.setattr(quality, "means", lambda *_: [])
    assert quality.quality(config) == 0
    with pytest.raises(UsageError, match="already exists; nothing is overwritten"):
        quality.quality(config)


def test_videos_of_a_policy_are_judged_where_there_are_some(tmp_path):
    (tmp_path / "reach/policy").mkdir(parents=True)
    (tmp_path / "reach/policy/index.json").write_text("{}")
    videos = quality.Videos(tmp_path)
    assert videos.behaviours("reach") == (*BEHAVIOURS, "policy")
    assert videos.behaviours("dial-turn") == BEHAVIOURS
    assert tmp_path / "reach/policy" in videos.learned_by("base", ["reach"])
    assert videos.learned_by("video", ["reach"]) == [tmp_path / "reach/expert"]
    # What only shows whether a reward knows what the arm moves to is never learned from.
    assert "misdirected" in BEHAVIOURS and tmp_path / "reach/misdirected" not in videos.learned_by(
        "base", ["reach"]
    )
    codec = videos.learned_by("codec", ["reach"])
    assert codec == [tmp_path / "reach" / behaviour for behaviour in ("expert", "random", "wander")]


def test_videos_of_a_policy_may_lie_elsewhere_but_must_be_there(tmp_path):
    (tmp_path / "first/reach").mkdir(parents=True)
    (tmp_path / "first/reach/index.json").write_text("{}")
    videos = quality.Videos(tmp_path / "data", tmp_path / "first")
    assert videos.learned_by("base", ["reach"])[-1] == tmp_path / "first/reach"
    assert videos.folder("reach", "expert") == tmp_path / "data/reach/expert"
    with pytest.raises(UsageError, match=r"policy_data=.*, but .*/first/dial-turn has no videos"):
        quality.quality(
            compose("quality", ["task=dial-turn", f"policy_data={tmp_path}/first", f"out={tmp_path}/q"])
        )


def test_models_are_trained_with_the_overrides_of_their_kind(tmp_path, monkeypatch):
    commands = {}

    def run(name, arguments):
        commands[name.split()[0]] = arguments
        if name.startswith("relative of"):
            raise KeyboardInterrupt  # what comes next reads models

    monkeypatch.setattr(quality, "run_step", run)
    given = [f"data={tmp_path}/data", f"checkpoints={tmp_path}/models", "task=reach", "rewards=[relative]"]
    given += ["codec_overrides=['codec.num_codes=64','video.num_codes=64']"]
    config = compose("quality", [*given, "expert_overrides=['video_training.hold_frames=101']"])
    with pytest.raises(KeyboardInterrupt):
        quality.quality(config)
    wander = compose("collect", commands["wander"][1:])
    assert (wander.episodes, wander.validation_every) == (96, 8)
    assert compose("pretrain", commands["codec"][1:]).codec.num_codes == 64
    for kind, hold_frames in (("base", None), ("relative", 101)):
        given = compose("pretrain", commands[kind][1:])
        video, held = given.video, given.video_training.hold_frames
        assert held == hold_frames
        assert (video.num_codes, video.history, video.num_history_frames) == (64, "first", 1)

    def row(task: str, **auc: float) -> dict:
        against = {kind: {"auc_per_episode": value, "auc_per_frame": value} for kind, value in auc.items()}
        return {"task": task, "reward": "diffusion", "against": against, "progress": 0.5}

    rows = [row("reach", random=1.0, policy=0.25), row("dial-turn", random=0.5)]
    (mean,) = quality.means(rows, "metaworld7")
    assert mean["against"]["random"]["auc_per_frame"] == 0.75
    assert mean["against"]["policy"]["auc_per_frame"] == 0.25
    head, _, first, second = quality.table(rows).split("\n")
    assert head.endswith("| policy | progress |")
    assert first.endswith("| 0.25 / 0.25 | +0.50 |") and second.endswith("| - | +0.50 |")
    assert "policy" not in quality.table(rows[1:])


def test_videos_that_are_only_judged_are_left_out_of_trainings(tmp_path, monkeypatch, capsys):
    sets = [
        SimpleNamespace(folder=tmp_path / mode, mode=mode) for mode in ("expert", "misdirected", "random")
    ]
    monkeypatch.setattr(pretrain_stages, "read_all", lambda *_: sets)
    config = compose("pretrain", ["task=reach", "stage=relative", f"data={tmp_path}"])
    assert [video.mode for video in pretrain_stages.read_videos_of(config)] == ["expert", "random"]
    assert f"left out: {tmp_path}/misdirected" in capsys.readouterr().out
    del sets[0], sets[1]
    with pytest.raises(UsageError, match="only videos that are judged"):
        pretrain_stages.read_videos_of(config)
