"""Which frames a reward row is conditioned on, as frame numbers (literal tables are in the tests)."""

from __future__ import annotations

import numpy as np

from models.video_windows import first_frame_history


def likelihood_history(
    num_frames: int,
    num_history_frames: int,
    frame_skip: int = 1,
    kind: str = "recent",
    content_len: int = 0,
) -> np.ndarray:
    """Frames that row t of the likelihood reward sees: those before frame t, which is the one scored.

    Args:
        num_frames: T, frames of the episode.
        num_history_frames: F, frames that the video model is conditioned on.
        frame_skip: Distance between two of them.
        kind: What a history is, as in `VQDiffusionConfig.history`.
        content_len: Tokens of a frame; only for kind "clock".

    Returns:
        (T, F) int64 frame numbers, oldest first: t - F frame_skip, ..., t - frame_skip; of other kinds
        `models.video_windows.first_frame_history`.
    """
    if kind != "recent":
        return first_frame_history(np.arange(num_frames), kind, content_len)
    offsets = frame_skip * np.arange(-num_history_frames, 0)
    return np.maximum(np.arange(num_frames)[:, None] + offsets, 0)


def leaking_history(num_frames: int, num_history_frames: int, frame_skip: int = 1) -> np.ndarray:
    """Frames that row t of the published likelihood reward sees: those before frame t, and frame t itself.

    Rows without a full history see copies of frame t, not of the first frame.

    Args:
        num_frames: T, frames of the episode.
        num_history_frames: F, frames that the video model was trained to be conditioned on.
        frame_skip: Distance between two of them.

    Returns:
        (T, F + 1) int64 frame numbers, oldest first.
    """
    rows = np.arange(num_frames)[:, None]
    wanted = rows + frame_skip * np.arange(-num_history_frames, 1)
    return np.where(wanted[:, :1] < 0, rows, wanted)
