"""The verbs as a user runs them: collect, pretrain, score, and what they refuse."""

from __future__ import annotations

import csv
import json

import pytest

from models.videos import read_videos
from tests.launch.conftest import refused, run_here, run_verb


def test_collected_videos_are_successes_with_an_index(tiny):
    videos = read_videos(tiny / "data" / "expert")
    assert (videos.task, videos.mode, len(videos.episodes)) == ("door-close", "expert", 10)
    assert all(episode.is_success for episode in videos.episodes)
    assert len(videos.split("validation")) == 2
    assert all(record["seed"] is not None for record in videos.records)


def test_videos_do_not_depend_on_the_number_of_processes(tmp_path):
    common = ["env.episode_steps=5", "behaviour=random", "episodes=3", "validation_every=0"]
    run_verb("collect", *common, "workers=1", f"out={tmp_path}/one")
    run_verb("collect", *common, "workers=2", f"out={tmp_path}/two")
    one, two = read_videos(tmp_path / "one"), read_videos(tmp_path / "two")
    assert [e.frames.tobytes() for e in one.episodes] == [e.frames.tobytes() for e in two.episodes]
    assert one.records == two.records


def test_score_writes_a_row_per_frame_and_the_aucs(tiny, tmp_path):
    out = tmp_path / "score"
    run_here(
        "score",
        f"checkpoint={tiny}/video",
        f"videos={tiny}/data/expert",
        "split=validation",
        f"against=[{tiny}/data/random,frozen]",
        f"out={out}",
    )
    with (out / "rewards.csv").open() as file:
        rows = list(csv.DictReader(file))
    experts = read_videos(tiny / "data" / "expert").split("validation")
    assert sum(row["set"] == "expert" for row in rows) == sum(len(e.frames) for e in experts)
    summary = json.loads((out / "summary.json").read_text())
    assert [row["name"] for row in summary["against"]] == ["random", "frozen"]
    assert all(0.0 <= row["auc_per_episode"] <= 1.0 for row in summary["against"])
    assert (out / "rewards.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("verb", "overrides", "message"),
    [
        ("collect", ["task=dor-close"], "did you mean 'door-close'"),
        ("collect", ["behaviour=exprt"], "'exprt' is unknown; use one of expert"),
        ("collect", ["episodes=0"], "episodes must be at least 1, got 0"),
        ("pretrain", ["stage=codek"], "did you mean 'codec'"),
        ("pretrain", ["data={tmp}"], "no video folder at or below"),
        ("pretrain", ["stage=video", "reward=viper"], "leave reward= out"),
        ("pretrain", ["stage=statistics", "reward=amp"], "reward=amp has no statistics"),
        ("pretrain", ["data={tiny}/data/expert", "stage=video", "codec_checkpoint={tmp}/none"], "none"),
        ("pretrain", ["data={tiny}/data/expert", "stage=codec", "out={tiny}/codec"], "finished"),
        ("pretrain", ["workers=0"], "workers must be a whole number of at least 1"),
        ("pretrain", ["stage=relative", "workers=2"], "stage=relative runs in one process"),
        ("pretrain", ["video_training.batch_windows=9", "workers=2"], "2 workers cannot share equally"),
        ("score", ["videos={tmp}"], "index.json is missing"),
        ("score", ["videos={tiny}/data/expert", "checkpoint={tmp}/none"], "none"),
        ("score", ["videos={tiny}/data/expert", "reward=difusion"], "did you mean 'diffusion'"),
        ("score", ["videos={tiny}/data/expert", "reward=rnd"], "gives a video no fixed value"),
        ("collect", ["task_set=metaworld8"], "did you mean 'metaworld7'"),
        ("collect", ["source=videos", "path={tmp}", "name=tea", "episodes=3"], "episodes mean nothing there"),
        ("collect", ["only_failures=true"], "leave them out, or say source=run"),
        ("collect", ["keep_failures=true", "fps=3"], "fps, keep_failures mean nothing there"),
        ("collect", ["source=minari:D4RL/door/expert-v2", "seed=1"], "seed mean nothing there"),
        ("collect", ["source=youtube"], "unknown source 'youtube'; Valid: minari, run, videos"),
        ("quality", ["rewards=[vipr]"], "did you mean 'viper'"),
        ("train", ["reward.checkpoint={tmp}/none"], "none"),
        (
            "train",
            ["task=adroit-door", "reward.checkpoint={tiny}/video"],
            "was trained on 'metaworld' videos (door-close)",
        ),
        ("train", ["reward=viper", "reward.checkpoint={tiny}/video"], "expected 'videogpt'"),
        ("train", ["reward=amp", "task=reach", "bonus.videos={tiny}/data/expert"], "task='door-close'"),
        (
            "train",
            ["task=drawer-open", "reward.checkpoint={tiny}/video"],
            "frame_reward.statistics_task=domain",
        ),
        ("train", ["task=reach", "reward.checkpoint={tiny}/video"], "reach"),
        ("train", ["reward.checkpoint={tiny}/video", "env.render.quality=full"], "rendered differently"),
        ("train", ["reward=sparse", "env.render.quality=fst"], "'fst' is unknown"),
        ("train", ["resume={tmp}"], "not a run folder"),
        ("train", ["reward=sparse", "out={tiny}/data"], "already exists"),
        ("evaluate", ["run={tmp}"], "not a run folder"),
        ("evaluate", [], "missing: run=; see --help"),
        ("convert", ["domain=adroit"], "missing: kind=, source=; see --help"),
        ("benchmark", ["what=[reward,estimators]"], "give checkpoint="),
    ],
)
def test_bad_input_is_refused_with_what_to_do(tiny, tmp_path, verb, overrides, message):
    given = [o.format(tmp=tmp_path, tiny=tiny) for o in overrides]
    if verb in ("collect", "train") and not any(o.startswith(("out=", "resume=")) for o in given):
        given.append(f"out={tmp_path}/out")
    assert message in refused(verb, *given)


@pytest.mark.ray
def test_a_machine_that_is_too_small_is_refused_without_a_traceback(tmp_path):
    too_many = ["reward=sparse", "rollout.num_actors=64", f"out={tmp_path}/out"]
    done = run_verb("train", *too_many, check=False, timeout_s=90)
    assert done.returncode == 2
    assert "there is no room for rollout-" in done.stderr
    assert "Traceback" not in done.stderr


def test_quality_judges_every_kind_of_reward(tiny, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/door-close").mkdir()
    (tmp_path / "checkpoints/video").mkdir(parents=True)
    (tmp_path / "checkpoints/codec").mkdir()
    (tmp_path / "data/door-close/expert").symlink_to(tiny / "data/expert")
    for kind in ("codec", "video"):
        (tmp_path / f"checkpoints/{kind}/door-close").symlink_to(tiny / kind)
    out = tmp_path / "out"
    run_verb(
        "quality",
        "rewards=[diffusion_likelihood,rnd,amp,sparse]",
        f"data={tmp_path}/data",
        f"checkpoints={tmp_path}/checkpoints",
        "other_episodes=2",
        "wander_episodes=2",
        "linger_episodes=2",
        "bonus_updates=4",
        "device=cpu",
        f"out={out}",
    )
    rows = json.loads((out / "quality.json").read_text())["rows"]
    assert [row["reward"] for row in rows] == ["diffusion_likelihood", "rnd", "amp", "sparse"]
    kinds = ["random", "half", "noisy", "wander", "misdirected", "linger", "reversed", "frozen"]
    assert [list(row["against"]) for row in rows] == [kinds, kinds, kinds, kinds[:6]]
    # The sparse reward of successful experts beats random actions, which never close the door.
    assert rows[-1]["against"]["random"]["auc_per_episode"] == 1.0
    assert "| door-close | sparse |" in (out / "quality.md").read_text()
    # A frame has the same RND value in any order. (Of episodes there are two, whose ties rounding breaks.)
    assert rows[1]["against"]["reversed"]["auc_per_frame"] == pytest.approx(0.5, abs=0.02)
