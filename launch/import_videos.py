"""People's own videos as a video folder: one file, or one folder of pictures, is one episode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from actors.envs.registry import EnvConfig, task_names
from launch.cli import UsageError, build
from launch.decoding import (
    Cut,
    FrameChoice,
    Source,
    decode,
    probe_sequence,
    probe_video,
)
from launch.paths import absolute_path
from launch.progress import Progress
from launch.video_sources import Found, find_sources
from models.episode import Episode
from models.files import new_folder
from models.videos import OWN_DOMAIN, RECORDED, RenderSettings, frames_only, require_held_out, write_videos

# What nobody but the user can know of a simulator task's videos.
DECLARED = ("env.render.quality", "env.render.camera", "env.action_repeat")
# Frame rates of two files differ by less than this fraction if they are meant to be the same.
RATE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ImportSettings:
    """Which videos, and what they are.

    Attributes:
        path: A video file, a folder of video files and of folders of pictures, or a folder of pictures.
        env: Size of the frames; of a simulator task also how it was drawn.
        name: Own task name, or None if the videos show the task of `env`.
        behaviour: Label; statistics and training use "expert".
        validation_every: Every n-th video is held out (0: none); folders named train and test decide themselves.
        fps, start_s, end_s, max_frames: See `FrameChoice`.
        source_fps: Frames per second of image sequences, or None.
        fit, crop: See `Cut`.
    """

    path: str
    env: EnvConfig
    name: str | None = None
    behaviour: str = "expert"
    validation_every: int = 5
    fps: float | None = None
    source_fps: float | None = None
    fit: str = "crop"
    crop: tuple[int, ...] | None = None
    start_s: float = 0.0
    end_s: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for key in ("name", "behaviour"):
            value = getattr(self, key)
            if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
                raise ValueError(
                    f"{key} {value!r} is not usable; use letters, digits, '-', '_' and '.', such as pour-tea"
                )
        if self.name in task_names():
            raise ValueError(
                f"name {self.name!r} is a task of the simulator; choose another name for your own videos, or say "
                f"task={self.name} if they show the simulator"
            )
        if self.name == "domain":
            raise ValueError("name 'domain' stands for all tasks together in statistics; choose another name")
        if self.validation_every < 0:
            raise ValueError(f"validation_every must not be negative, got {self.validation_every}")
        if self.source_fps is not None and self.source_fps <= 0:
            raise ValueError(f"source_fps is {self.source_fps}, expected frames per second above 0")
        self.choice()
        self.cut()

    @property
    def task(self) -> str:
        """Task name of the video folder."""
        return self.env.task if self.name is None else self.name

    def choice(self) -> FrameChoice:
        """Which frames are kept. Videos of a simulator have a frame per agent step, whatever their clock says."""
        return FrameChoice(self.fps, self.start_s, self.end_s, self.max_frames, even=self.name is not None)

    def cut(self) -> Cut:
        """How pictures become frames."""
        return Cut(self.fit, self.crop, self.env.render.height_px, self.env.render.width_px)  # type: ignore[arg-type]

    def render(self, fps: float | None) -> RenderSettings:
        """What the video folder says of its frames, at so many frames per second."""
        if self.name is None:
            return self.env.render
        size = self.env.render
        camera = f"fit={self.fit} fps={fps:.3g}"
        return RenderSettings(RECORDED, camera, size.height_px, size.width_px)


def import_videos(config: DictConfig, out: Path) -> int:
    """Decodes videos into a new video folder; it appears under its name only when it is complete.

    Args:
        config: As composed for `collect`.
        out: The new folder.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if a setting is bad, or videos cannot be used; every one of them is named.
        ValueError: if none would be held out.
        FileNotFoundError: if there are no videos.
    """
    settings = _settings(config)
    groups = find_sources(absolute_path(settings.path, "path"))
    sources = _probe(groups, settings.source_fps)
    splits = [group.split for group in groups if group.split is not None] or None
    if splits is None:
        require_held_out(settings.behaviour, len(sources), settings.validation_every)
    fps = _frame_rate(settings, sources)
    render = settings.render(fps)
    repeat = settings.env.action_repeat if settings.name is None else 1
    _announce(settings, sources, render, repeat)
    with new_folder(out) as partial:
        count = write_videos(
            partial,
            decode_all(settings, sources),
            task=settings.task,
            domain=settings.env.domain if settings.name is None else OWN_DOMAIN,
            mode=settings.behaviour,
            render=render,
            action_repeat=repeat,
            validation_every=settings.validation_every,
            splits=splits,
            has_rewards=False,
            extra=_extra(settings, sources, fps),
        )
    print(f"[collect] {count} {settings.behaviour} videos of {settings.task}: {out}")
    return 0


def _settings(config: DictConfig) -> ImportSettings:
    if config.path is None:
        raise UsageError("source=videos needs path=<folder of videos, or a video>")
    given = {o.partition("=")[0] for o in config.overrides}
    if config.name is None and "task" not in given:
        raise UsageError(
            "whose videos are these? name=<your own task> for real ones, task=<simulator task> for videos of the simulator"
        )
    missing = [key for key in DECLARED if key not in given]
    if config.name is None and missing:
        env = config.env
        usual = (env.render.quality, env.render.camera, env.action_repeat)
        shown = " ".join(f"{key}={value}" for key, value in zip(DECLARED, usual) if key in missing)
        raise UsageError(
            f"nobody but you knows how these videos of {env.task} were drawn, and a reward model sees a difference as "
            f"strangeness. Say it; this project's own would be: {shown}. For videos that are not the simulator's, give "
            "name=<your own task> instead of task="
        )
    if config.name is not None and "task" in given:
        raise UsageError(f"give either name={config.name} or task={config.env.task}, not both")
    names = ImportSettings.__dataclass_fields__
    return build(ImportSettings, {name: config[name] for name in names})


def _probe(groups: Sequence[Found], source_fps: float | None) -> list[Source]:
    """Reads every file's head before the long work, and names all that cannot be read."""
    if source_fps is not None and not any(found.pictures for found in groups):
        raise UsageError(
            f"source_fps={source_fps:g} is for image sequences, and there are only video files, which have their own "
            "times: leave it out; fps= chooses frames by time"
        )
    sources: list[Source] = []
    problems: list[str] = []
    for found in groups:
        with _noted(found.path, problems):
            if found.pictures:
                sources.append(probe_sequence(found.path, found.pictures, source_fps))
            else:
                sources.append(probe_video(found.path))
    _refuse(problems, len(groups))
    return sources


@contextmanager
def _noted(path: Path, problems: list[str]) -> Iterator[None]:
    """Notes what is wrong with a video and goes on, so that all that are bad can be named together."""
    try:
        yield
    except ValueError as error:
        problems.append(f"{path}: {error}")


def _refuse(problems: Sequence[str], total: int) -> None:
    if problems:
        listed = "\n  ".join(problems)
        raise UsageError(
            f"{len(problems)} of {total} videos cannot be used; nothing was written. Repair or move them:\n  {listed}"
        )


def _frame_rate(settings: ImportSettings, sources: Sequence[Source]) -> float | None:
    """Frames per second of the collected videos, the same for all of them; unknown only for a simulator's.

    Raises:
        UsageError: if it is needed and unknown, or the files differ.
    """
    unknown = [str(source.path) for source in sources if source.fps is None]
    if unknown and (
        settings.name is not None
        or settings.fps is not None
        or settings.start_s > 0
        or settings.end_s is not None
    ):
        raise UsageError(
            f"the frame rate of {', '.join(unknown[:5])} is unknown (image sequences do not have one): give it with "
            "source_fps="
        )
    if settings.fps is not None or settings.name is None:
        return settings.fps
    rates = {str(source.path): source.fps or 0.0 for source in sources}
    slow, fast = min(rates, key=lambda p: rates[p]), max(rates, key=lambda p: rates[p])
    if rates[fast] > rates[slow] * (1 + RATE_TOLERANCE):
        raise UsageError(
            f"videos have different frame rates ({slow}: {rates[slow]:.3g}, {fast}: {rates[fast]:.3g} per second), so "
            f"motion would look faster in some: choose one for all, for example fps={min(10.0, rates[slow]):.3g}"
        )
    return rates[slow]


def _announce(
    settings: ImportSettings, sources: Sequence[Source], render: RenderSettings, repeat: int
) -> None:
    length_s = sum(source.length_s or 0.0 for source in sources)
    print(f"[collect] {len(sources)} videos, {length_s:,.1f} s, actions and rewards unknown", flush=True)
    if settings.name is None:
        print(
            f"[collect] taken as frames of the simulator task {settings.task}: {render.quality} rendering, camera "
            f"{render.camera}, one frame every {repeat} simulator steps, as you say",
            flush=True,
        )


def _extra(settings: ImportSettings, sources: Sequence[Source], fps: float | None) -> dict[str, Any]:
    return {
        "has_actions": False,
        "has_rewards": False,
        "path": settings.path,
        "fps": fps,
        "fit": settings.fit,
        "crop": settings.crop,
        "start_s": settings.start_s,
        "end_s": settings.end_s,
        "max_frames": settings.max_frames,
        "sources": [
            {"name": source.path.name, "fps": source.fps, "length_s": source.length_s} for source in sources
        ],
    }


def decode_all(settings: ImportSettings, sources: Sequence[Source]) -> Iterator[Episode]:
    """Yields the episode of each video; those that fail are named together, after the last one.

    Raises:
        UsageError: if any video could not be used.
    """
    choice, cut = settings.choice(), settings.cut()
    lengths_s = [min(s.length_s or 0.0, settings.end_s or float("inf")) for s in sources]
    progress = Progress("collect", "s of video")
    problems: list[str] = []
    for number, source in enumerate(sources):
        shown = _TimeShown(progress, sum(lengths_s[:number]), sum(lengths_s))
        with _noted(source.path, problems):
            yield frames_only(source.path.name, settings.task, decode(source, choice, cut, shown))
    _refuse(problems, len(sources))


@dataclass
class _TimeShown:
    """Progress over all videos from the time within one."""

    progress: Progress
    before_s: float
    total_s: float

    def __call__(self, time_s: float) -> None:
        total = max(1, round(self.total_s))
        # Lengths are what the files say, so the end is left to the closing line.
        self.progress(min(int(self.before_s + time_s), total - 1), total)
