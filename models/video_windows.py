"""Windows of a video: the history frames of each row, and token windows for training.

The row of frame t has the history t - (F-1) s, ..., t - s, t with F frames and frame skip s; times before the first
frame repeat the first frame. Its target is frame t + s (Diffusion Reward, arXiv 2312.14134, section 3; s = 1 there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.frames import images_to_tensor
from models.vqgan import VQGAN


def history_indices(num_frames: int, num_history_frames: int, frame_skip: int = 1) -> np.ndarray:
    """Frame numbers of the history of every frame, padded with the first frame.

    Args:
        num_frames: Frames of the video, T > 0.
        num_history_frames: F > 0.
        frame_skip: Distance of neighbouring history frames, > 0.

    Returns:
        (T, F) int64, oldest first; row t ends with t.
    """
    for name, value in (
        ("num_frames", num_frames),
        ("num_history_frames", num_history_frames),
        ("frame_skip", frame_skip),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    age = np.arange(num_history_frames - 1, -1, -1) * frame_skip
    return np.maximum(np.arange(num_frames)[:, None] - age[None], 0)


def clock_rows(content_len: int) -> Tensor:
    """A clock as frames of tokens: one place more has code 1 after each frame, until all have.

    A bar that fills up is close to its neighbours in time, and needs no parameters but the embeddings of codes and places
    that a condition has anyway.

    Args:
        content_len: L, tokens of a frame.

    Returns:
        (L + 1, L) int64, 0 or 1; row t belongs to t frames after the first, the last row to all later ones as well.
    """
    return torch.ones(content_len + 1, content_len, dtype=torch.int64).tril(-1)


def with_clock(tokens: Tensor) -> Tensor:
    """(N, L) tokens of frames, and behind them the clock's rows from last to first: row -1 - t is the clock after t frames."""
    return torch.cat([tokens, clock_rows(tokens.shape[1]).flip(0).to(tokens)])


def first_frame_history(times: np.ndarray, kind: str, content_len: int) -> np.ndarray:
    """Histories that begin with the first frame, for any times.

    Args:
        times: (T,) int64 frames since the first.
        kind: "first" or "clock", as in `VQDiffusionConfig.history`.
        content_len: L, tokens of a frame.

    Returns:
        (T, 1) or, with the clock, (T, 2) int64 frame numbers: 0, and -1 - t for the clock's row t (`with_clock`).
    """
    first = np.zeros_like(times)
    columns = [first] if kind == "first" else [first, -1 - np.minimum(times, content_len)]
    return np.stack(columns, axis=1)


def placed(numbers: np.ndarray, start: int) -> np.ndarray:
    """Frame numbers of one video as rows of a table in which it begins at `start`; the clock's stay."""
    return np.where(numbers < 0, numbers, numbers + start)


def training_windows(
    num_frames: int,
    num_history_frames: int,
    frame_skip: int = 1,
    kind: str = "recent",
    hold_frames: int | None = None,
    content_len: int = 0,
) -> np.ndarray:
    """Frame numbers of every training window of a video, first-frame padding included.

    Args:
        num_frames: Frames of the video, T > 0.
        num_history_frames: F > 0.
        frame_skip: s > 0.
        kind: What a history is, as in `VQDiffusionConfig.history`.
        hold_frames: As in `VideoTrainingConfig`; not for kind "recent".
        content_len: Tokens of a frame; only for kind "clock".

    Returns:
        (max(T - s, 0), F + 1) int64: history as in `history_indices`, then the target `frame_skip` later. Of other kinds:
        (max(T, hold_frames), F + 1), `first_frame_history` and any frame, the last one repeated.
    """
    if kind != "recent":
        times = np.arange(max(num_frames, hold_frames or 0))
        history = first_frame_history(times, kind, content_len)
        return np.concatenate([history, np.minimum(times, num_frames - 1)[:, None]], axis=1)
    history = history_indices(num_frames, num_history_frames, frame_skip)[: max(num_frames - frame_skip, 0)]
    return np.concatenate([history, history[:, -1:] + frame_skip], axis=1)


@torch.no_grad()
def encode_video(codec: VQGAN, frames: np.ndarray, batch_frames: int = 128) -> Tensor:
    """Tokens of every frame of a video.

    Args:
        codec: In eval mode.
        frames: (T, H, W, C) uint8.
        batch_frames: Frames per codec call.

    Returns:
        (T, L) int64 on the codec's device.
    """
    device = next(codec.parameters()).device
    parts = np.array_split(frames, math.ceil(len(frames) / batch_frames))
    return torch.cat([codec.encode_tokens(images_to_tensor(part).to(device)) for part in parts])


@dataclass(frozen=True)
class TokenWindows:
    """Training windows of several videos, as tokens.

    Attributes:
        tokens: (N, L) int64 tokens of all frames of all videos, each stored once, and of the clock.
        windows: (W, F+1) int64 rows of `tokens`: history, oldest first, then the target.
    """

    tokens: Tensor
    windows: Tensor

    @classmethod
    def encode(
        cls,
        codec: VQGAN,
        videos: Sequence[np.ndarray],
        num_history_frames: int,
        frame_skip: int = 1,
        kind: str = "recent",
        hold_frames: int | None = None,
    ) -> TokenWindows:
        """Encodes every frame once and lists all windows; no window crosses from one video to the next.

        Args:
            codec: In eval mode; its device is where the tokens stay.
            videos: (T_i, H, W, C) uint8 each.
            num_history_frames: F.
            frame_skip: s.
            kind: What a history is, as in `VQDiffusionConfig.history`.
            hold_frames: As in `VideoTrainingConfig`.

        Raises:
            ValueError: if no video is long enough for one window.
        """
        tokens, windows, start = [], [], 0
        for frames in videos:
            tokens.append(encode_video(codec, frames))
            own = training_windows(
                len(frames), num_history_frames, frame_skip, kind, hold_frames, tokens[-1].shape[1]
            )
            windows.append(placed(own, start))
            start += len(frames)
        if not sum(map(len, windows)):
            lengths = [len(frames) for frames in videos]
            raise ValueError(
                f"no training window in {len(videos)} videos of {lengths[:5]} frames: a window needs more than "
                f"frame_skip={frame_skip} frames; collect more or longer videos, or lower frame_skip"
            )
        all_tokens = with_clock(torch.cat(tokens))
        all_windows = torch.from_numpy(np.concatenate(windows)).to(all_tokens.device)
        return cls(tokens=all_tokens, windows=all_windows)

    def __len__(self) -> int:
        """Number of windows W."""
        return len(self.windows)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Some windows.

        Args:
            index: (B,) int64 in [0, W).

        Returns:
            Condition tokens (B, F*L) int64 and target tokens (B, L) int64.
        """
        window = self.tokens[self.windows[index]]
        return rearrange(window[:, :-1], "b f l -> b (f l)"), window[:, -1]

    def even(self, count: int) -> Tensor:
        """At most `count` window numbers, spread evenly over all videos: the same ones every time."""
        count = min(count, len(self))
        return torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()


def corrupt_tokens(tokens: Tensor, probability: float, fraction: float, num_codes: int) -> Tensor:
    """Replaces tokens of some histories by random codes, so that the model does not rely on any one token.

    Args:
        tokens: (B, S) int64.
        probability: Of a row to be corrupted, [0, 1].
        fraction: Largest fraction of tokens replaced in such a row, [0, 1]; each row draws its own below it.
        num_codes: Random codes are below it.

    Returns:
        (B, S) int64, a new tensor.
    """
    device = tokens.device
    hit_row = torch.rand(len(tokens), 1, device=device) < probability
    row_fraction = torch.rand(len(tokens), 1, device=device) * fraction
    hit = hit_row & (torch.rand(tokens.shape, device=device) < row_fraction)
    return torch.where(hit, torch.randint(num_codes, tokens.shape, device=device), tokens)
