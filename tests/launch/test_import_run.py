"""Videos of a run's own policy: the newest episodes of all its replay shards."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launch.cli import UsageError, compose
from launch.collect import collect
from launch.run_folder import RunFolder
from launch.train import train_settings
from learner.replay import EpisodeStore
from models.episode import Episode
from models.videos import read_videos

SHARDS = 2


def episode(number: int, success: bool, place: int = 0) -> Episode:
    steps = 3
    frames = np.full((steps + 1, 64, 64, 3), number, np.uint8)
    zeros = np.zeros(steps, np.float32)
    return Episode(
        f"b{number:07d}-{place}",
        "reach",
        frames,
        np.zeros((steps, 4), np.float32),
        zeros,
        zeros + 1,
        zeros > -success,
    )


@pytest.fixture
def run(tmp_path):
    """A stopped run on reach with five episodes in two shards."""
    given = ["task=reach", "reward=sparse", f"replay.num_shards={SHARDS}", "replay.capacity_transitions=200"]
    config = compose("train", ["preset=laptop", "env.render.camera=close", "env.episode_steps=3", *given])
    folder = RunFolder.create(tmp_path / "run", config)
    settings = train_settings(config)
    for shard in range(SHARDS):
        store = EpisodeStore(folder.path / f"replay/shard_{shard}", settings.replay_config, 64, 4)
        for number in range(shard, 5, SHARDS):
            assert store.insert(episode(number, success=number == 4))
        store.close()
    return folder


def take(*given: str) -> int:
    config = compose("collect", ["source=run", *given])
    config.overrides = list(given)
    return collect(config)


def test_the_newest_episodes_of_all_shards_become_videos(run, tmp_path, capsys):
    out = tmp_path / "policy"
    assert take(f"path={run.path}", "behaviour=policy", "episodes=3", "validation_every=2", f"out={out}") == 0
    assert (
        "3 policy videos of reach, 1 of them a success (b0000002-0 to b0000004-0" in capsys.readouterr().out
    )
    videos = read_videos(out)
    assert (videos.task, videos.mode, videos.render.camera) == ("reach", "policy", "close")
    assert [int(e.frames[0, 0, 0, 0]) for e in videos.episodes] == [2, 3, 4]
    assert [record["success"] for record in json.loads((out / "index.json").read_text())["episodes"]] == [
        *(False, False),
        True,
    ]
    # The run itself is as it was.
    store = EpisodeStore(run.path / "replay/shard_0", train_settings(run.config()).replay_config, 64, 4)
    assert store.ids == ["b0000000-0", "b0000002-0", "b0000004-0"]
    store.close()


def test_episodes_with_a_success_can_be_left_out(run, tmp_path, capsys):
    out = tmp_path / "failed"
    assert take(f"path={run.path}", "behaviour=policy", "episodes=2", "only_failures=true", f"out={out}") == 0
    assert "2 policy videos of reach, 0 of them a success" in capsys.readouterr().out
    assert [int(e.frames[0, 0, 0, 0]) for e in read_videos(out).episodes] == [2, 3]


def test_the_tenth_episode_of_a_block_is_newer_than_the_ninth(run, tmp_path, capsys):
    store = EpisodeStore(run.path / "replay/shard_0", train_settings(run.config()).replay_config, 64, 4)
    for place in range(12):
        assert store.insert(episode(7, success=False, place=place))
    store.close()
    take(f"path={run.path}", "behaviour=policy", "episodes=3", f"out={tmp_path}/policy")
    assert "(b0000007-9 to b0000007-11 of" in capsys.readouterr().out


def test_an_experts_folder_is_no_run(tmp_path):
    folder = RunFolder.create(tmp_path / "expert", compose("train_expert", ["task=reach"]))
    with pytest.raises(UsageError, match=r"it is none of train\.py"):
        take(f"path={folder.path}", "behaviour=policy", f"out={tmp_path}/policy")


def test_what_cannot_be_meant_is_refused(run, tmp_path):
    out = f"out={tmp_path}/policy"
    with pytest.raises(UsageError, match=r"needs path=<run folder of train.py> and out="):
        take("behaviour=policy", out)
    with pytest.raises(UsageError, match="say behaviour=policy"):
        take(f"path={run.path}", out)
    with pytest.raises(UsageError, match=r"as they are stored; leave out seed, task"):
        take(f"path={run.path}", "behaviour=policy", "task=reach", "seed=3", out)
    with pytest.raises(UsageError, match="not a run folder"):
        take(f"path={tmp_path}", "behaviour=policy", out)
    store = EpisodeStore(run.path / "replay/shard_1", train_settings(run.config()).replay_config, 64, 4)
    with pytest.raises(UsageError, match=r"open in another process; .*; stop the run first"):
        take(f"path={run.path}", "behaviour=policy", out)
    store.close()
    assert not (tmp_path / "policy").exists()
