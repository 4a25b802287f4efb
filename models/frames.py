"""Frames as tensors, and random training batches of frames from videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from einops import rearrange

from models.videos import VideoSet


def images_to_tensor(frames: np.ndarray) -> torch.Tensor:
    """Frames to the input scale of the codec.

    Args:
        frames: (..., H, W, C) uint8 [0, 255]; all leading axes become one batch axis.

    Returns:
        (N, C, H, W) float32, u8 / 127.5 - 1.

    Raises:
        ValueError: if `frames` is not uint8 or has fewer than three axes.
    """
    if frames.dtype != np.uint8 or frames.ndim < 3:
        raise ValueError(f"frames must be (..., H, W, C) uint8, got {frames.shape} {frames.dtype}")
    batch = torch.from_numpy(np.ascontiguousarray(frames).reshape(-1, *frames.shape[-3:]))
    channels_first = rearrange(batch, "batch height width channel -> batch channel height width")
    return channels_first.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


def tensor_to_images(images: torch.Tensor) -> np.ndarray:
    """The inverse of `images_to_tensor`: (N, C, H, W) float32 [-1, 1] -> (N, H, W, C) uint8, rounded and clipped."""
    pixels = images.detach().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(pixels, "batch channel height width -> batch height width channel").cpu().numpy()


@dataclass(frozen=True)
class FrameSplits:
    """Frames to train and to validate on.

    Attributes:
        train: One (T_i, H, W, C) uint8 array per video.
        validation: The same for held-out videos.
    """

    train: tuple[np.ndarray, ...]
    validation: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for name in ("train", "validation"):
            videos = getattr(self, name)
            if not videos:
                raise ValueError(
                    f"no {name} videos: collect more videos, every fifth goes to the validation split by default"
                )
            for video in videos:
                if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != self.train[0].shape[1:]:
                    raise ValueError(
                        f"{name} videos must all be (T, H, W, C) uint8 of one size, got {video.shape} {video.dtype} "
                        f"beside {self.train[0].shape}"
                    )

    @classmethod
    def from_videos(cls, videos: Iterable[VideoSet]) -> FrameSplits:
        """The splits of several video sets together.

        Raises:
            ValueError: if a split is empty, or the sets are rendered differently.
        """
        videos = list(videos)
        for other in videos[1:]:
            videos[0].render.require_same(other.render, str(videos[0].folder), str(other.folder))
        return cls(
            train=tuple(episode.frames for video in videos for episode in video.split("train")),
            validation=tuple(episode.frames for video in videos for episode in video.split("validation")),
        )

    @property
    def num_train_frames(self) -> int:
        """Frames of all training videos together."""
        return sum(len(video) for video in self.train)

    @property
    def num_validation_frames(self) -> int:
        """Frames of all validation videos together."""
        return sum(len(video) for video in self.validation)


class FrameSampler:
    """Draws random frames, each with the still picture that it is compared with.

    Args:
        videos: (T_i, H, W, C) uint8 arrays; kept by reference.
        seed: Seed of the drawing; `generator` holds the state, which a checkpoint may save.
        still_of: Of what a still is the median picture: "video", the frame's own, so that it shows what does not move;
            or "all" of the videos, so that it lacks what is elsewhere in each.
    """

    def __init__(self, videos: Sequence[np.ndarray], seed: int, still_of: str = "video") -> None:
        self.videos = tuple(videos)
        self.still_of = still_of
        self.generator = torch.Generator().manual_seed(seed)
        self._ends = np.cumsum([len(video) for video in self.videos])
        self._stills: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def frames(self, positions: np.ndarray) -> np.ndarray:
        """(N,) positions in 0..len-1 -> (N, H, W, C) uint8 frames."""
        numbers, offsets = self._locate(positions)
        return np.stack([self.videos[number][offset] for number, offset in zip(numbers, offsets)])

    def stills(self, positions: np.ndarray) -> np.ndarray:
        """(N,) positions -> (N, H, W, C) uint8 median picture over the video of each frame, or over all videos."""
        if self.still_of == "all":
            return np.broadcast_to(self._common_still, (len(positions), *self._common_still.shape))
        return np.stack([self._still(number) for number in self._locate(positions)[0]])

    def draw(self, batch_frames: int) -> np.ndarray:
        """Positions of a random batch, (batch_frames,) int64, uniform over all frames."""
        return torch.randint(len(self), (batch_frames,), generator=self.generator).numpy()

    def even(self, batch_frames: int) -> np.ndarray:
        """At most `batch_frames` positions spread evenly over all frames: the same ones every time."""
        count = min(batch_frames, len(self))
        return np.linspace(0, len(self) - 1, count).round().astype(np.int64)

    def _locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.searchsorted(self._ends, positions, side="right")
        starts = np.concatenate([[0], self._ends])[numbers]
        return numbers, positions - starts

    @cached_property
    def _common_still(self) -> np.ndarray:
        """Median of the videos' own medians: every video counts alike, and few pictures have to be held at once."""
        return np.median([self._still(number) for number in range(len(self.videos))], axis=0).astype(np.uint8)

    def _still(self, number: int) -> np.ndarray:
        if number not in self._stills:
            self._stills[number] = np.median(self.videos[number], axis=0).astype(np.uint8)
        return self._stills[number]
