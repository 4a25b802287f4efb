"""Videos with the reward under the picture."""

from __future__ import annotations

import io

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from actors.overlay import CURVE, SUCCESS, draw_rewards, gif_bytes, overlay_rewards, write_video
from models.episode import Episode


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)


def has_colour(image, colour):
    return bool((image == colour).all(axis=-1).any())


def test_picture_above_curve_below(frames):
    drawn = overlay_rewards(frames, np.arange(6.0), width_px=64)
    assert drawn.shape == (6, 64 + 96, 64, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[3, :64][::4, ::4], frames[3])
    assert has_colour(drawn[3, 64:], CURVE)
    bright = [(image[64:] == CURVE).all(-1).sum() for image in drawn]
    assert bright[1] < bright[3] < bright[5]  # the curve grows with time


def test_rewards_of_transitions_leave_the_first_frame_without_one(frames):
    drawn = overlay_rewards(frames, np.arange(5.0), width_px=64)
    assert not has_colour(drawn[0, 64:], CURVE) and has_colour(drawn[2, 64:], CURVE)


def test_episode_with_and_without_learned_rewards(frames):
    episode = Episode(
        episode_id="e",
        task="reach",
        frames=frames,
        actions=np.zeros((5, 4), np.float32),
        env_rewards=np.array([0, 0, 0, 2, 3], np.float32),
        discounts=np.ones(5, np.float32),
        successes=np.array([0, 0, 0, 1, 1], bool),
    )
    for rewards in (None, np.zeros(6)):
        drawn = draw_rewards(episode, rewards, width_px=64)
        assert not has_colour(drawn[2, 64:], SUCCESS) and has_colour(drawn[5, 64:], SUCCESS)


@pytest.mark.parametrize("rewards", [np.zeros(4), np.array([0, 0, np.nan, 0, 0, 0.0]), np.zeros((6, 1))])
def test_rewards_that_do_not_fit_are_refused(frames, rewards):
    with pytest.raises(ValueError, match="6 frames need 6 or 5 finite rewards"):
        overlay_rewards(frames, rewards)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_written_video_plays_back(tmp_path, frames, suffix):
    drawn = overlay_rewards(frames, np.arange(6.0), width_px=64)
    path = write_video(tmp_path / "videos" / f"episode{suffix}", drawn, fps=10)
    back = np.stack([frame[..., :3] for frame in imageio.mimread(path)])
    assert back.shape == drawn.shape
    assert np.abs(back.astype(int) - drawn).mean() < 30
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left


def test_gif_in_memory_has_all_frames_and_the_pace(frames):
    gif = Image.open(io.BytesIO(gif_bytes(frames, fps=10)))
    assert gif.n_frames == 6 and gif.info["duration"] == 100


def test_videos_are_not_overwritten_and_bad_ones_are_refused(tmp_path, frames):
    path = write_video(tmp_path / "a.gif", frames)
    with pytest.raises(FileExistsError, match="another name"):
        write_video(path, frames)
    with pytest.raises(ValueError, match=r"\.avi"):
        write_video(tmp_path / "a.avi", frames)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "b.mp4", frames.astype(np.float32))
    with pytest.raises(ValueError, match="fps"):
        write_video(tmp_path / "b.mp4", frames, fps=0)
