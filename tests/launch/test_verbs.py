"""The verbs as a user runs them: collect, pretrain, score, and what they refuse."""

from __future__ import annotations

import csv
import json

import pytest

from models.videos import read_videos
from tests.launch.conftest import run_verb


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
    run_verb(
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
        ("pretrain", ["data={tiny}/data/expert", "stage=video", "codec_checkpoint={tmp}/none"], "none"),
        ("pretrain", ["data={tiny}/data/expert", "stage=codec", "out={tiny}/codec"], "finished"),
        ("score", ["videos={tmp}"], "index.json is missing"),
        ("score", ["videos={tiny}/data/expert", "checkpoint={tmp}/none"], "none"),
        ("score", ["videos={tiny}/data/expert", "reward=difusion"], "did you mean 'diffusion'"),
        ("train", ["reward.checkpoint={tmp}/none"], "none"),
        ("train", ["task=reach", "reward.checkpoint={tiny}/video"], "reach"),
        ("train", ["reward.checkpoint={tiny}/video", "env.render.quality=full"], "rendered differently"),
        ("train", ["reward=sparse", "rollout.num_actors=64"], "too few CPUs"),
        ("train", ["reward=sparse", "env.render.quality=fst"], "'fst' is unknown"),
        ("train", ["resume={tmp}"], "not a run folder"),
        ("train", ["reward=sparse", "out={tiny}/data"], "already exists"),
        ("evaluate", ["run={tmp}"], "not a run folder"),
    ],
)
def test_bad_input_is_refused_with_what_to_do(tiny, tmp_path, verb, overrides, message):
    given = [o.format(tmp=tmp_path, tiny=tiny) for o in overrides]
    if verb in ("collect", "train") and not any(o.startswith(("out=", "resume=")) for o in given):
        given.append(f"out={tmp_path}/out")
    done = run_verb(verb, *given, check=False, timeout_s=90)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
