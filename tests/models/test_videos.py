"""Episodes and video folders: the records that flow through the whole system."""

from __future__ import annotations

import numpy as np
import pytest

from models.episode import Episode
from models.frames import FrameSampler, FrameSplits
from models.videos import RenderSettings, find_video_folders, read_videos, write_videos

RENDER = RenderSettings(height_px=8, width_px=8)


def episode(number: int = 0, steps: int = 3, **changes) -> Episode:
    frames = np.full((steps + 1, 8, 8, 3), number, np.uint8)
    frames[:, 0, 0, 0] = np.arange(steps + 1)
    values = {
        "episode_id": f"e{number}",
        "task": "door-close",
        "frames": frames,
        "actions": np.linspace(-1, 1, steps * 4, dtype=np.float32).reshape(steps, 4),
        "env_rewards": np.arange(steps, dtype=np.float32),
        "discounts": np.ones(steps, np.float32),
        "successes": np.arange(steps) == steps - 1,
    }
    return Episode(**{**values, **changes})


def write(folder, episodes, **changes) -> int:
    settings = {
        "task": "door-close",
        "domain": "metaworld",
        "mode": "expert",
        "render": RENDER,
        "action_repeat": 3,
    }
    return write_videos(folder, episodes, **{**settings, **changes})


def test_reward_of_frame_t_goes_to_the_action_that_led_there():
    scored = episode().with_learned_rewards(np.array([9.0, 1.0, 2.0, 3.0], np.float32))
    assert scored.learned_rewards.tolist() == [1.0, 2.0, 3.0]  # the row of frame 0 has no action
    assert scored.learned_rewards.dtype == np.float32


def test_episode_counts_success_of_the_last_step():
    assert episode().is_success and len(episode()) == 3 and episode().env_return == 3.0
    assert not episode(successes=np.zeros(3, bool)).is_success


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": np.zeros((3, 8, 8, 3), np.uint8)}, "3 actions need 4 frames, got 3"),
        ({"frames": np.zeros((4, 8, 8, 3), np.float32)}, "uint8"),
        ({"actions": np.zeros((0, 4), np.float32)}, "no steps"),
        ({"discounts": np.ones(4, np.float32)}, r"discounts must have shape \(3,\), got \(4,\)"),
    ],
)
def test_malformed_episodes_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        episode(**changes)


def test_rewards_must_fit_and_be_finite():
    with pytest.raises(ValueError, match=r"one reward per frame \(4,\), got \(3,\)"):
        episode().with_learned_rewards(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="learned reward of step 1 is nan"):
        episode().with_learned_rewards(np.array([0, 0, np.nan, 0], np.float32))


def test_videos_round_trip_with_splits(tmp_path):
    written = [episode(number) for number in range(10)]
    assert write(tmp_path / "v", iter(written), seeds=range(100, 110), extra={"noise": 0.1}) == 10
    videos = read_videos(tmp_path / "v")
    assert (videos.task, videos.domain, videos.mode, videos.action_repeat) == (
        "door-close",
        "metaworld",
        "expert",
        3,
    )
    assert videos.render == RENDER
    for before, after in zip(written, videos.episodes):
        for name, value in before.arrays().items():
            stored = getattr(after, name)
            assert np.array_equal(stored, value) and stored.dtype == value.dtype, name
    assert [int(e.frames[0, 1, 1, 0]) for e in videos.split("validation")] == [4, 9]
    assert len(videos.split("train")) == 8
    assert videos.records[3] == {
        "file": "episodes/000003.npz",
        "split": "train",
        "seed": 103,
        "success": True,
        "env_return": 3.0,
        "length_steps": 3,
    }
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        videos.split("test")


def test_video_folders_are_found_and_never_overwritten(tmp_path):
    write(tmp_path / "b" / "expert", [episode()])
    write(tmp_path / "a", [episode()])
    assert find_video_folders(tmp_path) == [tmp_path / "a", tmp_path / "b" / "expert"]
    with pytest.raises(FileExistsError, match="already holds videos"):
        write(tmp_path / "a", [episode()])
    with pytest.raises(FileNotFoundError, match="no video folder"):
        find_video_folders(tmp_path / "nothing")


def test_unfinished_collection_is_not_a_video_folder(tmp_path):
    def cut_off():
        yield episode()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "v", cut_off())
    with pytest.raises(FileNotFoundError, match=r"index\.json is missing"):
        read_videos(tmp_path / "v")


def test_different_rendering_is_named():
    other = RenderSettings(quality="full", height_px=8, width_px=8)
    with pytest.raises(ValueError, match="quality: 'fast' against 'full'"):
        RENDER.require_same(other, "the videos", "the environment")
    with pytest.raises(ValueError, match="'shiny' is unknown"):
        RenderSettings(quality="shiny")


def test_frame_splits_of_several_sets(tmp_path):
    write(tmp_path / "a", [episode(n) for n in range(5)])
    write(tmp_path / "b", [episode(n, steps=1) for n in range(10)])
    splits = FrameSplits.from_videos([read_videos(tmp_path / "a"), read_videos(tmp_path / "b")])
    assert (len(splits.train), len(splits.validation)) == (12, 3)
    assert (splits.num_train_frames, splits.num_validation_frames) == (4 * 4 + 8 * 2, 4 + 2 * 2)
    write(tmp_path / "c", [episode()], validation_every=0)
    with pytest.raises(ValueError, match="no validation videos"):
        FrameSplits.from_videos([read_videos(tmp_path / "c")])


def test_frame_sampler_finds_every_frame_and_its_still_picture():
    videos = [episode(10, steps=2).frames, episode(20, steps=3).frames]
    sampler = FrameSampler(videos, seed=0)
    assert len(sampler) == 7
    frames = sampler.frames(np.arange(7))
    assert frames[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert frames[:, 5, 5, 1].tolist() == [10, 10, 10, 20, 20, 20, 20]
    stills = sampler.stills(np.array([0, 6]))
    assert stills[:, 5, 5, 1].tolist() == [10, 20] and stills[0, 0, 0, 0] == 1
    # What lies still in each video, but elsewhere in the next, is part of its own still picture only.
    common = FrameSampler([*videos, episode(20, steps=1).frames], seed=0, still_of="all").stills(
        np.array([0, 6])
    )
    assert common.shape == stills.shape and common[:, 5, 5, 1].tolist() == [20, 20]
    assert sampler.even(3).tolist() == [0, 3, 6] and sampler.even(100).tolist() == list(range(7))
    drawn = np.concatenate([sampler.draw(32) for _ in range(4)])
    assert set(drawn.tolist()) == set(range(7))
    assert np.array_equal(FrameSampler(videos, seed=1).draw(32), FrameSampler(videos, seed=1).draw(32))
