"""Frame histories and training windows, literally."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.video_windows import (
    TokenWindows,
    clock_rows,
    corrupt_tokens,
    encode_video,
    history_indices,
    training_windows,
)


def test_history_of_two_frames_repeats_the_first():
    assert history_indices(4, 2).tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert history_indices(2, 3).tolist() == [[0, 0, 0], [0, 0, 1]]
    assert history_indices(1, 2).tolist() == [[0, 0]]


def test_history_with_frame_skip():
    assert history_indices(6, 2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 4], [2, 5]]
    assert history_indices(6, 3, 2).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 2],
        [0, 1, 3],
        [0, 2, 4],
        [1, 3, 5],
    ]


def test_training_windows_end_with_the_frame_one_skip_ahead():
    assert training_windows(4, 2).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert training_windows(5, 2, 2).tolist() == [[0, 0, 2], [0, 1, 3], [0, 2, 4]]
    assert training_windows(2, 2, 2).shape == (0, 3)


def test_windows_of_kind_first_pair_the_first_frame_with_every_frame():
    assert training_windows(3, 1, 5, "first").tolist() == [[0, 0], [0, 1], [0, 2]]
    assert training_windows(3, 1, 5, "first", 5)[:, 1].tolist() == [0, 1, 2, 2, 2]
    assert training_windows(3, 1, 5, "first", 2)[:, 1].tolist() == [0, 1, 2]


def test_windows_of_kind_clock_tell_how_long_ago_the_first_frame_was():
    assert clock_rows(3).tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert training_windows(6, 2, 5, "clock", content_len=4).tolist() == [
        *([0, -1, 0], [0, -2, 1], [0, -3, 2]),
        *([0, -4, 3], [0, -5, 4], [0, -5, 5]),  # the clock has four places and stands still from then on
    ]
    videos = [np.full((length, 4, 4, 3), 9 * length, np.uint8) for length in (2, 3)]
    windows = TokenWindows.encode(BrightnessCodec(), videos, 2, kind="clock", hold_frames=4)
    history, target = windows.rows(torch.arange(8))
    clock = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert history.tolist() == [
        [*[9 * length] * 4, *row] for length, rows in ((2, clock), (3, clock)) for row in rows
    ]
    assert target[:, 0].tolist() == [18] * 4 + [27] * 4


@pytest.mark.parametrize("bad", [{"num_frames": 0}, {"num_history_frames": 0}, {"frame_skip": 0}])
def test_bad_window_names_the_argument(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        history_indices(**{"num_frames": 3, "num_history_frames": 2, "frame_skip": 1, **bad})


class BrightnessCodec(torch.nn.Module):
    """One token per quadrant: its brightness in 0..255. Counts the frames it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.encoded_frames = 0

    def encode_tokens(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded_frames += len(images)
        quadrants = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2)
        return ((quadrants + 1) * 127.5).round().long().flatten(1)


def video(*levels: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


def test_each_frame_is_encoded_once_and_windows_stay_inside_their_video():
    codec = BrightnessCodec()
    windows = TokenWindows.encode(codec, [video(10, 11, 12), video(20, 21)], num_history_frames=2)
    assert codec.encoded_frames == 5
    history, target = windows.rows(torch.arange(len(windows)))
    assert history.shape == (3, 8) and target.shape == (3, 4)
    assert history[:, ::4].tolist() == [[10, 10], [10, 11], [20, 20]]
    assert target[:, 0].tolist() == [11, 12, 21]


def test_long_videos_are_encoded_in_parts():
    frames = video(*range(10))
    assert encode_video(BrightnessCodec(), frames, batch_frames=4)[:, 0].tolist() == list(range(10))


def test_videos_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="frame_skip=3"):
        TokenWindows.encode(BrightnessCodec(), [video(1, 2, 3)], num_history_frames=2, frame_skip=3)


def test_even_windows_reach_from_the_first_to_the_last():
    windows = TokenWindows.encode(BrightnessCodec(), [video(*range(11))], num_history_frames=1)
    assert windows.even(4).tolist() == [0, 3, 6, 9]
    assert windows.even(99).tolist() == list(range(10))


def test_corruption_replaces_part_of_some_rows():
    torch.manual_seed(0)
    tokens = torch.full((4000, 50), 99)
    changed = corrupt_tokens(tokens, probability=0.25, fraction=0.4, num_codes=64) != tokens
    assert abs(changed.any(1).float().mean() - 0.25) < 0.04
    assert abs(changed.float().mean() - 0.25 * 0.2) < 0.01
    assert torch.equal(corrupt_tokens(tokens, 0.0, 0.4, 64), tokens)
