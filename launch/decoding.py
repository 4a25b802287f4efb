"""Frames from people's videos: video files and image sequences, chosen by time, cut to one size.

Video files are decoded with PyAV, because it tells the time of every picture: resampling by time is then right also for
variable frame rates and for GIF delays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
FITS = ("crop", "pad", "stretch")
# Times are compared with this slack, so that 0.1 s and 3/30 s are the same moment.
SLACK_S = 1e-4
# Pictures further apart than this many typical distances mean a variable frame rate.
UNEVEN = 1.5
# A file whose pictures end before this part of the length it states was cut off.
COMPLETE = 0.8
MIN_FRAMES = 2


class Picture(NamedTuple):
    """A picture of a video before it is converted.

    Attributes:
        time_s: When it appears, seconds after the first one.
        duration_s: How long it stays, as the file says; 0 where it does not say.
        load: Gives the upright RGB picture.
    """

    time_s: float
    duration_s: float
    load: Callable[[], Image.Image]


@dataclass(frozen=True)
class Source:
    """One video file or image sequence, before it is decoded.

    Attributes:
        path: The file, or the folder of the pictures.
        fps: Mean frames per second, or None where unknown.
        length_s: Length in seconds, or None where unknown.
        pictures: The files of an image sequence, in order; empty for a video file.
    """

    path: Path
    fps: float | None
    length_s: float | None
    pictures: tuple[Path, ...] = ()

    def open(self) -> Iterator[Picture]:
        """Decodes one picture after the other."""
        return sequence_pictures(self.pictures, self.fps) if self.pictures else video_pictures(self.path)


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video are kept.

    Attributes:
        fps: Frames per second, chosen by time: each is the picture that is on screen at that moment. None keeps all.
        start_s: Where to begin, in seconds after the first picture, 0 or more.
        end_s: Where to end (not included), or None for the end of the video.
        max_frames: At most so many frames, 2 or more, or None.
        even: With fps None: refuse videos whose pictures are not evenly spaced in time.
    """

    fps: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
    max_frames: int | None = None
    even: bool = True

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps is {self.fps}, expected frames per second above 0, or null to keep all")
        if self.start_s < 0:
            raise ValueError(f"start_s is {self.start_s}, expected 0 or more")
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s is {self.end_s}, expected more than start_s={self.start_s}")
        if self.max_frames is not None and self.max_frames < MIN_FRAMES:
            raise ValueError(f"max_frames is {self.max_frames}, expected {MIN_FRAMES} or more, or null")


@dataclass(frozen=True)
class Cut:
    """How each picture becomes a frame.

    Attributes:
        fit: "crop" (the largest middle part of the frame's shape), "pad" (all of it, black bars) or "stretch".
        crop: x, y, width, height in pixels of the upright picture, cut out first; None takes all of it.
        height_px: Height of the frames.
        width_px: Width of the frames.
    """

    fit: str = "crop"
    crop: tuple[int, int, int, int] | None = None
    height_px: int = 64
    width_px: int = 64

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r} is unknown; use one of {', '.join(FITS)}")
        if self.crop is None:
            return
        given = list(self.crop) if isinstance(self.crop, tuple) else [self.crop]
        whole = len(given) == 4 and all(isinstance(v, int) for v in given)
        if not whole or min(given[:2]) < 0 or min(given[2:]) < 1:
            raise ValueError(f"crop is {given}, expected [x, y, width, height] in whole pixels")

    def frame(self, picture: Image.Image) -> np.ndarray:
        """Cuts and resizes one picture; every source pixel counts by its area.

        Args:
            picture: Upright RGB picture.

        Returns:
            (height_px, width_px, 3) uint8.

        Raises:
            ValueError: if `crop` is not inside the picture.
        """
        left, top, width, height = self.crop or (0, 0, *picture.size)
        if left + width > picture.width or top + height > picture.height:
            raise ValueError(
                f"crop={list(self.crop or ())} reaches beyond the picture of {picture.width}x{picture.height} pixels "
                "(width x height)"
            )
        box = (float(left), float(top), float(left + width), float(top + height))
        if self.fit == "crop":
            box = self._middle(box)
        size = (self.width_px, self.height_px)
        if self.fit == "pad":
            scale = min(self.width_px / width, self.height_px / height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
        is_smaller = size[0] <= box[2] - box[0] and size[1] <= box[3] - box[1]
        method = Image.Resampling.BOX if is_smaller else Image.Resampling.BILINEAR
        small = picture.resize(size, method, box=box)
        if small.size != (self.width_px, self.height_px):
            bars = Image.new("RGB", (self.width_px, self.height_px))
            bars.paste(small, ((self.width_px - size[0]) // 2, (self.height_px - size[1]) // 2))
            small = bars
        return np.asarray(small, dtype=np.uint8)

    def _middle(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """The largest part of the frame's shape around the middle of a box (left, top, right, bottom)."""
        left, top, right, bottom = box
        scale = min((right - left) / self.width_px, (bottom - top) / self.height_px)
        width, height = self.width_px * scale, self.height_px * scale
        x, y = (left + right - width) / 2, (top + bottom - height) / 2
        return x, y, x + width, y + height


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sorts names with numbers as people count: 2 before 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


def probe_video(path: Path) -> Source:
    """Reads what the head of a video file says.

    Raises:
        ValueError: if it cannot be read, or holds no video.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it holds no video stream")
            stream = container.streams.video[0]
            rate = stream.average_rate
            length_s = None
            if stream.duration is not None and stream.time_base is not None:
                length_s = float(stream.duration * stream.time_base)
            elif container.duration is not None:
                length_s = container.duration / av.time_base
    except av.FFmpegError as error:
        raise ValueError(f"it is not a readable video ({error.strerror})") from error
    return Source(path, float(rate) if rate else None, length_s)


def probe_sequence(folder: Path, pictures: Sequence[Path], source_fps: float | None) -> Source:
    """An image sequence as a source.

    Args:
        folder: Named in errors.
        pictures: Its pictures, in any order.
        source_fps: Frames per second, or None where unknown.
    """
    length_s = len(pictures) / source_fps if source_fps else None
    return Source(folder, source_fps, length_s, tuple(sorted(pictures, key=natural_key)))


def video_pictures(path: Path) -> Iterator[Picture]:
    """Decodes a video file, upright and with square pixels.

    Raises:
        ValueError: if the data is damaged, or the pictures have no times.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            aspect = stream.sample_aspect_ratio or Fraction(1)
            first: float | None = None
            for frame in container.decode(stream):
                if frame.time is None or frame.time_base is None:
                    raise ValueError("its pictures have no times; convert it with ffmpeg first")
                first = frame.time if first is None else first
                duration_s = float((frame.duration or 0) * frame.time_base)
                yield Picture(frame.time - first, duration_s, _loader(frame, aspect))
    except av.FFmpegError as error:
        raise ValueError(f"its data is damaged ({error.strerror})") from error


def _loader(frame: av.VideoFrame, aspect: Fraction) -> Callable[[], Image.Image]:
    def load() -> Image.Image:
        turns, rest = divmod(frame.rotation, 90)
        if rest:
            raise ValueError(
                f"it is to be shown turned by {frame.rotation} degrees; turn it with ffmpeg first"
            )
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
        if aspect != 1:
            picture = picture.resize((max(1, round(picture.width * aspect)), picture.height))
        # The angle says how far the picture is to be turned against the clock.
        turned = np.rot90(np.asarray(picture), k=turns)
        return Image.fromarray(np.ascontiguousarray(turned))

    return load


def sequence_pictures(pictures: Sequence[Path], fps: float | None) -> Iterator[Picture]:
    """The pictures of an image sequence; without a frame rate their times only count them.

    Raises:
        ValueError: on loading, if a picture cannot be read or has another size than the first.
    """
    distance_s = 1.0 / fps if fps else 1.0
    sizes: set[tuple[int, int]] = set()
    for number, path in enumerate(pictures):
        yield Picture(number * distance_s, distance_s, partial(_load_image, path, sizes))


def _load_image(path: Path, sizes: set[tuple[int, int]]) -> Image.Image:
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"{path.name} has {file.mode} pixels; save it with 8 bits per channel")
            upright = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, SyntaxError) as error:  # Pillow raises both for damaged files.
        raise ValueError(f"{path.name} is not a readable picture ({error})") from error
    sizes.add(upright.size)
    if len(sizes) > 1:
        raise ValueError(f"{path.name} has another size than the pictures before it: {sorted(sizes)}")
    black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, upright).convert("RGB")


def decode(
    source: Source, choice: FrameChoice, cut: Cut, on_time: Callable[[float], None] | None = None
) -> np.ndarray:
    """Decodes the chosen frames of one video.

    Args:
        source: What to decode.
        choice: Which frames are kept.
        cut: How they are cut and resized.
        on_time: Called with the time of each decoded picture, in seconds.

    Returns:
        (T, height_px, width_px, 3) uint8, T of 2 or more.

    Raises:
        ValueError: if data is damaged, the video is too short, or its frame rate does not fit; the message does not
            name the file.
    """
    times: list[float] = []
    ends = [0.0]

    def watched() -> Iterator[Picture]:
        for picture in source.open():
            if times and picture.time_s <= times[-1]:
                raise ValueError(f"the times of its pictures go back at {picture.time_s:.3f} s")
            times.append(picture.time_s)
            ends.append(picture.time_s + picture.duration_s)
            if on_time is not None:
                on_time(picture.time_s)
            yield picture

    frames = []
    for picture in choose(watched(), choice):
        frames.append(cut.frame(picture.load()))
        if len(frames) == choice.max_frames:
            break
    else:
        if choice.end_s is None and source.length_s is not None and ends[-1] < COMPLETE * source.length_s:
            raise ValueError(
                f"it states a length of {source.length_s:.2f} s, but its pictures end at {ends[-1]:.2f} s: it was cut "
                "off. Use the whole file, or say end_s="
            )
    if min(len(frames), len(times)) < MIN_FRAMES:
        raise ValueError(
            f"it is too short: {len(frames)} frames chosen out of {len(times)} pictures, expected {MIN_FRAMES} or more"
        )
    _check_rate(times, choice)
    return np.stack(frames)


def choose(pictures: Iterable[Picture], choice: FrameChoice) -> Iterator[Picture]:
    """Picks pictures by time: frame k is what is on screen at `start_s + k / fps`, up to the end of the video.

    The last picture stays for its own duration; where the file does not give it, as long as the one before it.
    """
    end_s = float("inf") if choice.end_s is None else choice.end_s
    previous: Picture | None = None
    step_s = 0.0
    taken = 0
    for picture in pictures:
        if choice.fps is None:
            if picture.time_s >= end_s - SLACK_S:
                return
            if picture.time_s >= choice.start_s - SLACK_S:
                yield picture
            continue
        if previous is not None:
            step_s = picture.time_s - previous.time_s
            count = _moments_before(min(picture.time_s, end_s), choice)
            for _ in range(taken, count):
                yield previous
            taken = max(taken, count)
            if picture.time_s >= end_s - SLACK_S:
                return
        previous = picture
    if previous is not None and choice.fps is not None:
        last_s = previous.time_s + (previous.duration_s or step_s)
        for _ in range(taken, _moments_before(min(last_s, end_s), choice)):
            yield previous


def _moments_before(time_s: float, choice: FrameChoice) -> int:
    """How many moments `start_s + k / fps` lie before a time."""
    assert choice.fps is not None
    return max(0, int(np.ceil((time_s - SLACK_S - choice.start_s) * choice.fps)))


def _check_rate(times: Sequence[float], choice: FrameChoice) -> None:
    """Refuses frames that would not be evenly spaced in time, or would only be repeated pictures."""
    distances = np.diff(times)
    typical_s = float(np.median(distances))
    if choice.fps is None and choice.even and distances.max() > UNEVEN * typical_s:
        raise ValueError(
            f"its frame rate varies (pictures are {distances.min():.3f} to {distances.max():.3f} s apart); choose the "
            f"frames by time with fps=, for example fps={1 / distances.max():.3g}"
        )
    if choice.fps is not None and choice.fps * typical_s > 1.05:
        raise ValueError(
            f"fps={choice.fps:g} is more than the {1 / typical_s:.3g} pictures per second of the file; frames would "
            "only be repeated, choose a lower fps"
        )
