"""Videos with the learned reward drawn under the picture."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw

from models.episode import Episode

PLOT_HEIGHT_PX = 96
MARGIN_PX = 8
BACKGROUND = (24, 26, 32)
FAINT = (90, 94, 104)
CURVE = (255, 176, 46)
SUCCESS = (70, 200, 120)
TEXT = (225, 228, 235)
VIDEO_SUFFIXES = (".mp4", ".gif")


def overlay_rewards(
    frames: np.ndarray,
    rewards: np.ndarray,
    *,
    width_px: int = 256,
    label: str = "reward",
    successes: np.ndarray | None = None,
) -> np.ndarray:
    """Draws under each frame the reward curve up to that frame, and its value.

    Args:
        frames: (T+1, H, W, 3) uint8.
        rewards: (T+1,) float, one per frame, or (T,) as in `Episode.learned_rewards` (frame 0 has none then).
        width_px: Width of the video; frames are enlarged without smoothing.
        label: Written in front of the value.
        successes: (T,) bool, or None; success steps are drawn green.

    Returns:
        (T+1, H', W', 3) uint8 with even H' and W'.

    Raises:
        ValueError: if the lengths do not match or a reward is not finite.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.shape == (len(frames) - 1,):
        rewards = np.concatenate([[np.nan], rewards])
    if rewards.shape != (len(frames),) or not np.isfinite(rewards[1:]).all():
        raise ValueError(
            f"{len(frames)} frames need {len(frames)} or {len(frames) - 1} finite rewards, got shape {rewards.shape}"
        )
    reached = np.zeros(len(frames), dtype=bool)
    if successes is not None:
        reached[1:] = successes
    width_px += width_px % 2
    height_px = round(frames.shape[1] * width_px / frames.shape[2])
    height_px += height_px % 2
    points = _curve_points(rewards, width_px, height_px)
    bounds = (float(np.nanmin(rewards)), float(np.nanmax(rewards)))
    drawn = []
    for t, frame in enumerate(frames):
        canvas = Image.new("RGB", (width_px, height_px + PLOT_HEIGHT_PX), BACKGROUND)
        canvas.paste(Image.fromarray(frame).resize((width_px, height_px), Image.Resampling.NEAREST))
        _draw_plot(ImageDraw.Draw(canvas), points, reached, t, rewards[t], bounds, label, height_px, width_px)
        drawn.append(np.asarray(canvas))
    return np.stack(drawn)


def draw_rewards(
    episode: Episode, frame_rewards: np.ndarray | None = None, *, width_px: int = 256
) -> np.ndarray:
    """Frames of an episode with a reward curve under them.

    Args:
        episode: What is shown.
        frame_rewards: (T+1,) float, one learned reward per frame; None draws the environment's sparse reward.
        width_px: Width of the video.

    Returns:
        (T+1, H', W', 3) uint8 with even H' and W'.
    """
    rewards, label = frame_rewards, "learned reward"
    if rewards is None:
        rewards, label = episode.env_rewards, "sparse reward"
    return overlay_rewards(
        episode.frames,
        rewards,
        width_px=width_px,
        label=label,
        successes=episode.successes,
    )


def _curve_points(rewards: np.ndarray, width_px: int, top_px: int) -> list[tuple[float, float] | None]:
    """Pixel position of each reward, None where there is none."""
    low, high = np.nanmin(rewards), np.nanmax(rewards)
    span = max(high - low, 1e-9)
    plot_top, plot_bottom = top_px + 24, top_px + PLOT_HEIGHT_PX - MARGIN_PX
    xs = np.linspace(MARGIN_PX, width_px - MARGIN_PX, len(rewards))
    ys = plot_bottom - (rewards - low) / span * (plot_bottom - plot_top)
    return [None if np.isnan(y) else (float(x), float(y)) for x, y in zip(xs, ys)]


def _draw_plot(
    draw: ImageDraw.ImageDraw,
    points: list[tuple[float, float] | None],
    reached: np.ndarray,
    t: int,
    value: float,
    bounds: tuple[float, float],
    label: str,
    top_px: int,
    width_px: int,
) -> None:
    """Whole curve faint, the part up to step `t` bright, a dot at `t`, the value and the range in words."""
    draw.line([p for p in points if p], fill=FAINT, width=1)
    for i in range(1, t + 1):
        segment = [p for p in points[i - 1 : i + 1] if p]
        if len(segment) == 2:
            draw.line(segment, fill=SUCCESS if reached[i] else CURVE, width=2)
    here = points[t]
    if here:
        x, y = here
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=SUCCESS if reached[t] else CURVE)
    shown = "" if np.isnan(value) else f"{value:+.2f}"
    draw.text((MARGIN_PX, top_px + 5), f"{label} {shown}", fill=TEXT)
    scale = f"{bounds[0]:.1f} .. {bounds[1]:.1f}"
    draw.text((width_px - MARGIN_PX - draw.textlength(scale), top_px + 5), scale, fill=FAINT)


def gif_bytes(frames: np.ndarray, fps: float = 15.0) -> bytes:
    """Encodes (N, H, W, 3) uint8 frames as an animated GIF in memory."""
    buffer = io.BytesIO()
    images = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames]
    images[0].save(buffer, "gif", save_all=True, append_images=images[1:], duration=1000.0 / fps, loop=0)
    return buffer.getvalue()


def write_video(path: str | Path, frames: np.ndarray, fps: float = 15.0) -> Path:
    """Writes frames as .mp4 (H.264) or .gif; a reader sees the whole file or none.

    Args:
        path: New file; its folder is made. MetaWorld at action repeat 3 runs in real time at 27 frames/s.
        frames: (N, H, W, 3) uint8; H and W even for .mp4.
        fps: Frames per second, above 0.

    Returns:
        The path.

    Raises:
        ValueError: if the suffix, the frames or fps cannot be written.
        FileExistsError: if the file exists.
    """
    path = Path(path)
    if path.suffix not in VIDEO_SUFFIXES:
        raise ValueError(f"video {path.name!r} has suffix {path.suffix!r}, expected one of {VIDEO_SUFFIXES}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < 1:
        raise ValueError(f"frames must be (N, H, W, 3) uint8 with N >= 1, got {frames.shape} {frames.dtype}")
    if not fps > 0:
        raise ValueError(f"fps is {fps}, expected above 0")
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The encoders want a file name with the suffix, so `models.files.write_atomic` (an open file) does not fit.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        if path.suffix == ".gif":
            Path(temporary).write_bytes(gif_bytes(frames, fps))
        else:
            imageio.mimwrite(temporary, list(frames), fps=fps, codec="libx264", quality=8, macro_block_size=2)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
