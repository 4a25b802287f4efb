"""Statistics of expert videos: which videos, which numbers, what stays in the file."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from models.episode import Episode
from models.videos import RenderSettings, VideoSet
from reward_service import statistics
from reward_service.config import DiffusionRewardConfig
from reward_service.contract import episode_seed
from reward_service.diffusion_reward import DiffusionReward
from reward_service.statistics import compute_statistics
from tests.reward_service.support import RENDER, random_video, write_tiny_folder

CONFIG = DiffusionRewardConfig(estimator="one_forward")


def video_set(
    folder, task="door-close", mode="expert", train=3, validation=0, render=RENDER, action_repeat=3
):
    episodes = []
    for i in range(train + validation):
        zeros = np.zeros(4, np.float32)
        episodes.append(
            Episode(f"{task}/{i}", task, random_video(i, 5), zeros[:, None], zeros, zeros, zeros > 0)
        )
    records = [{"split": "train"}] * train + [{"split": "validation"}] * validation
    return VideoSet(folder, task, "metaworld", mode, render, action_repeat, tuple(episodes), tuple(records))


@pytest.fixture()
def reward(tmp_path):
    return DiffusionReward.from_checkpoint(write_tiny_folder(tmp_path / "model"), CONFIG)


def test_mean_and_deviation_over_all_frames_of_the_split(reward, tmp_path):
    videos = video_set(tmp_path, train=2, validation=5)
    entry = compute_statistics(reward, [videos])["door-close"]
    held_out = videos.split("validation")
    values = np.concatenate(
        reward.raw([e.frames for e in held_out], [episode_seed(e.episode_id, 0) for e in held_out])
    )
    assert (entry["split"], entry["frames"]) == ("validation", 25)
    assert entry["mean"] == pytest.approx(values.mean(dtype=np.float64))
    assert entry["std"] == pytest.approx(values.std(dtype=np.float64))
    scores = reward.score(
        [e.frames for e in held_out],
        ["door-close"] * 5,
        [episode_seed(e.episode_id, 0) for e in held_out],
    )
    assert np.mean(scores) == pytest.approx(0, abs=1e-4)
    assert np.std(scores) == pytest.approx(1, abs=1e-4)


def test_the_split_is_chosen_by_the_number_of_validation_videos(reward, tmp_path):
    few = video_set(tmp_path, train=2, validation=4)
    assert compute_statistics(reward, [few])["door-close"]["split"] == "train"
    assert compute_statistics(reward, [few], split="all")["door-close"]["frames"] == 30
    two_halves = [video_set(tmp_path, train=1, validation=3), video_set(tmp_path, train=1, validation=2)]
    assert compute_statistics(reward, two_halves)["door-close"]["frames"] == 25
    with pytest.raises(ValueError, match="task 'door-close' has no validation videos"):
        compute_statistics(reward, [video_set(tmp_path)], split="validation")
    with pytest.raises(ValueError, match="split is 'test'"):
        compute_statistics(reward, [few], split="test")


def test_other_signatures_and_tasks_stay_in_the_file(reward, tmp_path):
    compute_statistics(reward, [video_set(tmp_path, "reach")])
    likelihood = DiffusionReward.from_checkpoint(
        reward.folder, {"estimator": "one_forward", "mode": "likelihood"}
    )
    compute_statistics(likelihood, [video_set(tmp_path, "reach")])
    compute_statistics(reward, [video_set(tmp_path, "door-close"), video_set(tmp_path, "hammer")])
    saved = json.loads((reward.folder / "statistics.json").read_text())
    assert {signature: sorted(tasks) for signature, tasks in saved.items()} == {
        "entropy/one_forward": ["domain", "door-close", "hammer", "reach"],
        "likelihood/one_forward": ["reach"],
    }
    assert set(saved["likelihood/one_forward"]["reach"]) == {"mean", "std", "frames", "split", "weights"}


def test_processes_that_write_at_once_keep_each_others_entries(tmp_path, monkeypatch):
    read = statistics.read_json
    both_read = threading.Barrier(2)

    def slow_read(path):
        known = read(path)
        with suppress(threading.BrokenBarrierError):  # the second one waits for the lock instead
            both_read.wait(0.5)
        return known

    monkeypatch.setattr(statistics, "read_json", slow_read)
    (tmp_path / "statistics.json").write_text("{}")
    writers = [
        threading.Thread(target=statistics._merge, args=(tmp_path, "entropy", {task: {"mean": 0.0}}))
        for task in ("reach", "hammer")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    saved = json.loads((tmp_path / "statistics.json").read_text())
    assert sorted(saved["entropy"]) == ["hammer", "reach"]


def test_videos_that_do_not_fit_are_refused_before_anything_is_written(reward, tmp_path):
    good = video_set(tmp_path)
    for bad, message in [
        (video_set(tmp_path, mode="random"), "'random' videos; reward statistics need expert videos"),
        (video_set(tmp_path, render=RenderSettings(quality="full")), "rendered differently"),
        (video_set(tmp_path, action_repeat=1), "action_repeat 3, but the videos .* has 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            compute_statistics(reward, [good, bad])
    with pytest.raises(ValueError, match="no videos"):
        compute_statistics(reward, [])
    assert not (reward.folder / "statistics.json").exists()


def test_rewards_without_spread_are_refused(reward, tmp_path, monkeypatch):
    monkeypatch.setattr(
        reward, "raw", lambda frames, seeds, names: [np.full(5, -7.0, np.float32)] * len(frames)
    )
    with pytest.raises(ValueError, match="all 15 raw rewards of task 'door-close' are -7"):
        compute_statistics(reward, [video_set(tmp_path)])


def test_domain_statistics_pool_all_tasks_of_the_model(reward, tmp_path):
    sets = [video_set(tmp_path, "door-close"), video_set(tmp_path, "reach")]
    entries = compute_statistics(reward, sets)
    assert reward.tasks == ("door-close",)  # so another task does not count
    assert entries["domain"]["mean"] == entries["door-close"]["mean"]
    only_other = compute_statistics(reward, [video_set(tmp_path, "reach")])
    assert "domain" not in only_other
    borrowed = type(reward).from_checkpoint(reward.folder, replace(reward.config, statistics_task="domain"))
    assert borrowed.scale("never-seen") == (entries["domain"]["mean"], entries["domain"]["std"])


def test_videos_of_another_domain_are_refused(reward, tmp_path):
    with pytest.raises(ValueError, match=r"was trained on 'metaworld' videos .* belongs to domain 'adroit'"):
        compute_statistics(reward, [replace(video_set(tmp_path), domain="adroit")])
