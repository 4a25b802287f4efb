"""People's own videos: real encoded files and image sequences, through to rewards."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from launch import cli, pretrain, score, train
from launch import collect as collecting
from launch.decoding import Cut, FrameChoice, Picture, choose, decode, probe_sequence, probe_video
from launch.video_sources import find_sources
from models.videos import read_videos
from tests.launch.conftest import TINY, run_verb

SIZE = (96, 64)  # width, height
EVERY_FRAME = FrameChoice()


def picture(number: int, total: int = 30) -> np.ndarray:
    """A red 16-pixel square that moves from left to right along the top, on grey: (H, W, 3) uint8."""
    width, height = SIZE
    image = np.full((height, width, 3), 96, np.uint8)
    x = round(number / max(1, total - 1) * (width - 16))
    image[:16, x : x + 16] = (255, 0, 0)
    return image


def square_x(frame: np.ndarray) -> float:
    """Where the red square is, as a fraction of the way from left to right of the frame."""
    redness = frame[..., 0].astype(float) - frame[..., 2]
    xs = np.nonzero((redness > 60).any(axis=0))[0]
    return float((xs.min() + xs.max() + 1) / 2 / frame.shape[1])


def encode(path: Path, pictures, fps: int = 30, codec: str | None = None, size=SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=fps, codec=codec, quality=9, macro_block_size=1, ffmpeg_log_level="error"
    )
    writer.send(None)
    for image in pictures:
        writer.send(np.ascontiguousarray(image))
    writer.close()
    return path


def ffmpeg(*arguments: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=60)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """One second of the moving square as mp4, webm, gif and with a variable frame rate."""
    folder = tmp_path_factory.mktemp("clips")
    pictures = [picture(i) for i in range(30)]
    encode(folder / "square.mp4", pictures)
    encode(folder / "square.webm", pictures, codec="libvpx-vp9")
    images = [Image.fromarray(picture(i, 10)) for i in range(10)]
    images[0].save(folder / "square.gif", save_all=True, append_images=images[1:], duration=100, loop=0)
    # Every picture of the first 10, then every third.
    variable = ["-vf", "select='lt(n,10)+not(mod(n,3))'", "-fps_mode", "vfr"]
    ffmpeg("-i", folder / "square.mp4", *variable, folder / "variable.mkv")
    ffmpeg("-display_rotation", "90", "-i", folder / "square.mp4", "-c", "copy", folder / "turned.mp4")
    return folder


def frames_of(path: Path, choice: FrameChoice = EVERY_FRAME, cut: Cut | None = None) -> np.ndarray:
    return decode(probe_video(path), choice, cut or Cut(fit="stretch", height_px=64, width_px=96))


def positions(count: int, pictures: int = 30, fps: float = 30, target: float | None = None) -> list[float]:
    """Where the square must be in each of `count` frames at `target` frames per second."""
    numbers = [int(k * fps / (target or fps) + 1e-6) for k in range(count)]
    return [(round(n / (pictures - 1) * 80) + 8) / 96 for n in numbers]


@pytest.mark.parametrize("name", ["square.mp4", "square.webm"])
def test_every_frame_comes_in_order_and_in_its_colours(clips, name):
    frames = frames_of(clips / name)
    assert frames.shape == (30, 64, 96, 3) and frames.dtype == np.uint8
    assert np.allclose([square_x(f) for f in frames], positions(30), atol=0.02)
    assert np.abs(frames[0, 4:12, 4:12].astype(int) - (255, 0, 0)).max() < 40  # red, so not BGR
    assert np.abs(frames[0, 40:, 40:].astype(int) - 96).max() < 12


def test_gif_has_its_own_clock(clips):
    source = probe_video(clips / "square.gif")
    assert source.fps == pytest.approx(10) and source.length_s == pytest.approx(1.0)
    frames = frames_of(clips / "square.gif", FrameChoice(fps=5))
    assert np.allclose([square_x(f) for f in frames], positions(5, 10, 10, 5), atol=0.02)


@pytest.mark.parametrize(("fps", "count"), [(10, 10), (7.5, 8), (30, 30), (1.5, 2)])
def test_resampling_shows_what_is_on_screen_at_each_moment(clips, fps, count):
    frames = frames_of(clips / "square.mp4", FrameChoice(fps=fps))
    assert len(frames) == count
    assert np.allclose([square_x(f) for f in frames], positions(count, target=fps), atol=0.02)


def test_resampling_literal_times():
    pictures = [Picture(t, 0.0, lambda: None) for t in (0.0, 0.1, 0.5, 0.6)]

    def chosen(**changes):
        return [p.time_s for p in choose(iter(pictures), FrameChoice(**changes))]

    assert chosen(fps=10) == [
        0.0,
        0.1,
        0.1,
        0.1,
        0.1,
        0.5,
        0.6,
    ]  # the last one stays as long as the one before
    assert chosen(fps=10, start_s=0.3, end_s=0.6) == [0.1, 0.1, 0.5]
    assert chosen(start_s=0.1, end_s=0.6) == [0.1, 0.5]
    held = [*pictures[:-1], Picture(0.6, 0.3, lambda: None)]
    assert [p.time_s for p in choose(held, FrameChoice(fps=10, start_s=0.5))] == [0.5, 0.6, 0.6, 0.6]


def test_variable_frame_rate_needs_a_choice_by_time(clips):
    with pytest.raises(ValueError, match=r"frame rate varies .*fps=10"):
        frames_of(clips / "variable.mkv")
    assert len(frames_of(clips / "variable.mkv", FrameChoice(even=False))) == 16
    frames = frames_of(clips / "variable.mkv", FrameChoice(fps=10))
    expected = positions(10, target=10)[: len(frames)]
    assert len(frames) >= 9 and np.allclose([square_x(f) for f in frames], expected, atol=0.02)


def test_a_file_that_was_cut_off_is_refused(clips, tmp_path):
    data = (clips / "square.webm").read_bytes()
    (tmp_path / "half.webm").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"length of 1\.00 s, but its pictures end at 0\.\d+ s"):
        frames_of(tmp_path / "half.webm")
    assert len(frames_of(tmp_path / "half.webm", FrameChoice(end_s=0.1))) == 3


def test_part_of_a_video_and_at_most_so_many_frames(clips):
    frames = frames_of(clips / "square.mp4", FrameChoice(start_s=0.5, end_s=0.8))
    assert np.allclose([square_x(f) for f in frames], positions(24)[15:], atol=0.02)
    assert len(frames_of(clips / "square.mp4", FrameChoice(fps=10, max_frames=4))) == 4


def test_a_turned_phone_video_is_upright(clips, tmp_path):
    """The same picture as the one that ffmpeg, which turns by itself, writes."""
    frames = frames_of(clips / "turned.mp4", cut=Cut("stretch", height_px=96, width_px=64))
    still = tmp_path / "still.png"
    ffmpeg("-i", clips / "turned.mp4", "-frames:v", "1", still)
    expected = np.asarray(Image.open(still).convert("RGB")).astype(int)
    assert expected.shape == (96, 64, 3)
    assert np.abs(frames[0].astype(int) - expected).mean() < 2
    assert frames[0][90, 4, 0] > 200 and frames[0][90, 4, 2] < 60  # lower left


def test_crop_pad_and_stretch_literal():
    wide = Image.fromarray(np.kron(np.array([[10, 20, 30, 40]], np.uint8), np.ones((8, 4), np.uint8)))
    wide = wide.convert("RGB")  # 16x8: four stripes of 4 pixels
    side = {"height_px": 8, "width_px": 8}
    assert Cut("crop", **side).frame(wide)[0, :, 0].tolist() == [20] * 4 + [30] * 4
    assert Cut("stretch", **side).frame(wide)[0, :, 0].tolist() == [10, 10, 20, 20, 30, 30, 40, 40]
    padded = Cut("pad", **side).frame(wide)
    assert padded[:2].max() == 0 and padded[6:].max() == 0 and padded[2:6].min() == 10
    assert Cut("crop", crop=(8, 0, 8, 8), **side).frame(wide)[0, :, 0].tolist() == [30] * 4 + [40] * 4
    # Shrinking averages areas; taking every eighth pixel would give stripes.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert set(Cut("crop", **side).frame(Image.fromarray(stripes)).ravel().tolist()) == {100}
    with pytest.raises(ValueError, match=r"crop=\[10, 0, 8, 8\] reaches beyond the picture of 16x8"):
        Cut("crop", crop=(10, 0, 8, 8), **side).frame(wide)


def sequence(folder: Path, count: int = 12, suffix: str = "png") -> Path:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.fromarray(picture(number - 1, count)).save(folder / f"{number}.{suffix}")
    return folder


def test_image_sequences_are_in_the_order_of_their_numbers(tmp_path):
    folder = sequence(tmp_path / "seq")
    source = probe_sequence(folder, list(folder.iterdir()), 12.0)
    frames = decode(source, FrameChoice(), Cut("stretch", height_px=64, width_px=96))
    assert [p.stem for p in source.pictures] == [str(n) for n in range(1, 13)]
    assert np.allclose([square_x(f) for f in frames], positions(12, 12), atol=0.02)
    assert len(decode(source, FrameChoice(fps=6), Cut())) == 6


def test_a_damaged_picture_of_a_sequence_is_named_with_its_video(tmp_path):
    folder = sequence(tmp_path / "in" / "seq")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "5.png")
    data = bytearray((folder / "5.png").read_bytes())
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)  # The first holds a part of the picture.
    data[second : second + 2] = b"\x01\xff"
    (folder / "5.png").write_bytes(data)
    given = [f"path={tmp_path}/in", "name=mine", "validation_every=0", "source_fps=10"]
    with pytest.raises(cli.UsageError, match=r"seq: 5\.png is not a readable picture \(broken PNG file"):
        collect(*given, f"out={tmp_path}/out")


def test_folders_give_episodes_and_splits(tmp_path):
    for name in ("train/10.mp4", "train/2.mp4", "test/a.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sequence(tmp_path / "test" / "b", 3)
    (tmp_path / ".DS_Store").touch()
    found = find_sources(tmp_path)
    assert [(f.path.name, f.split, len(f.pictures)) for f in found] == [
        ("2.mp4", "train", 0),
        ("10.mp4", "train", 0),
        ("a.webm", "validation", 0),
        ("b", "validation", 3),
    ]
    assert [f.split for f in find_sources(tmp_path / "test")] == [None, None]
    assert len(find_sources(tmp_path / "test" / "b")) == 1  # a folder of pictures alone is one video
    (tmp_path / "notes.mp4").touch()
    with pytest.raises(ValueError, match=r"beside them notes\.mp4"):
        find_sources(tmp_path)


def run(verb: str, function, *overrides: str) -> None:
    """What `python launch/<verb>.py` does, without the cost of a new process."""
    given = [str(o) for o in overrides]
    config = cli.compose(verb, given)
    if "overrides" in config:
        config.overrides = given
    assert function(config) == 0


def collect(*overrides: str) -> None:
    run("collect", collecting.collect, "source=videos", *overrides)


def test_every_bad_video_is_named_and_nothing_is_left(clips, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips / "square.mp4", folder / "good.mp4")
    (folder / "junk.mp4").write_bytes(b"not a video" * 50)
    shutil.copy(clips / "square.mp4", folder / "cut_off.mp4")
    with (folder / "cut_off.mp4").open("r+b") as file:
        file.truncate(1000)
    common = [f"path={folder}", "name=mine", "validation_every=0", f"out={tmp_path}/out/mine"]
    done = run_verb("collect", "source=videos", *common, check=False, timeout_s=60)
    assert done.returncode == 2 and "2 of 3 videos cannot be used" in done.stderr
    assert "junk.mp4" in done.stderr and "cut_off.mp4" in done.stderr and "Traceback" not in done.stderr

    for name in ("junk.mp4", "cut_off.mp4"):
        (folder / name).unlink()
    encode(folder / "one.mp4", [picture(0)])
    damaged = bytearray((clips / "square.mp4").read_bytes())
    start = damaged.index(b"mdat") + 4
    damaged[start : start + 1500] = np.random.default_rng(0).bytes(1500)
    (folder / "damaged.mp4").write_bytes(damaged)
    with pytest.raises(cli.UsageError, match="2 of 3 videos cannot be used") as error:
        collect(*common)
    assert "one.mp4: it is too short" in str(error.value)
    assert "damaged.mp4: its data is damaged" in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["path={clips}/none", "name=mine"], "no such file"),
        (["path={clips}/square.mp4"], "whose videos are these?"),
        (["path={clips}/square.mp4", "name=door-close"], "is a task of the simulator"),
        (["path={clips}/square.mp4", "name=mine", "fit=squash"], "'squash' is unknown; use one of crop"),
        (["path={clips}/square.mp4", "name=mine"], "hold none out"),
        (["path={clips}/square.mp4", "task=door-close"], "env.render.quality=fast"),
        (["path={clips}/square.mp4", "name=mine", "validation_every=0", "fps=60"], "would only be repeated"),
        (
            ["path={clips}/square.mp4", "name=mine", "validation_every=0", "crop=[50,0,60,60]"],
            "reaches beyond",
        ),
        (["path={clips}", "name=mine", "validation_every=0"], "different frame rates"),
        (["path={sequence}", "name=mine", "validation_every=0"], "source_fps="),
        (["path={clips}/square.mp4", "name=mine", "validation_every=0", "source_fps=25"], "only video files"),
        (["path={clips}/square.mp4", "name=mine", "crop=60"], "crop is [60], expected [x, y, width, height]"),
        (["name=mine"], "source=videos needs path="),
        (["path={clips}", "task_set=metaworld7"], "imports one task"),
    ],
)
def test_bad_input_says_what_to_do(clips, tmp_path, overrides, message):
    given = [o.format(clips=clips, sequence=tmp_path / "seq") for o in overrides]
    if any(str(tmp_path) in o for o in given):
        sequence(tmp_path / "seq", 3)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        collect(*given, f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_videos_of_a_simulator_task_are_what_the_user_says(clips, tmp_path):
    declared = ["env.render.quality=full", "env.render.camera=corner2", "env.action_repeat=3"]
    path = f"path={clips}/square.mp4"
    collect(path, "task=door-close", *declared, "validation_every=0", f"out={tmp_path}/out")
    videos = read_videos(tmp_path / "out")
    assert (videos.task, videos.domain, videos.action_repeat) == ("door-close", "metaworld", 3)
    assert (videos.render.quality, videos.render.camera) == ("full", "corner2")
    with pytest.raises(cli.UsageError, match="already exists"):
        collect(path, "task=door-close", *declared, "validation_every=0", f"out={tmp_path}/out")


def scene(number: int, take: int) -> np.ndarray:
    """A large square slides over a coloured wall; every take has its own height: (120, 160, 3) uint8."""
    y, x = np.mgrid[:120, :160]
    image = np.stack([x, 2 * y, 255 - x], axis=-1).astype(np.uint8)
    top, left = 5 * take, 30 + 2 * number
    image[top : top + 45, left : left + 45] = (255, 255, 0)
    return image


def test_own_videos_become_a_reward_model_and_are_scored(tmp_path):
    for number in range(6):
        split = "train" if number < 4 else "test"
        encode(
            tmp_path / "in" / split / f"take{number}.mp4",
            [scene(i, number) for i in range(30)],
            size=(160, 120),
        )
    collect(f"path={tmp_path}/in", "name=slide", "fps=15", f"out={tmp_path}/data")
    videos = read_videos(tmp_path / "data")
    assert (videos.task, videos.domain, videos.mode) == ("slide", "videos", "expert")
    assert (len(videos.split("train")), len(videos.split("validation"))) == (4, 2)
    assert videos.episodes[0].frames.shape == (15, 64, 64, 3)
    # Nothing pretends to know actions, rewards or successes.
    assert videos.episodes[0].actions.shape == (14, 0)
    assert {(r["success"], r["env_return"], r["seed"]) for r in videos.records} == {(None, None, None)}
    index = json.loads((tmp_path / "data" / "index.json").read_text())
    assert index["extra"]["has_actions"] is False and index["extra"]["has_rewards"] is False

    tiny = [o for o in TINY if not o.startswith(("task", "env"))]
    quick = [
        "codec_training.warmup_steps=0",
        "video_training.warmup_steps=0",
        "video_training.train_steps=60",
    ]
    common = [*tiny, *quick, f"data={tmp_path}/data", "device=cpu", "threads=1"]
    run("pretrain", pretrain.pretrain, *common, "stage=codec", f"out={tmp_path}/codec")
    video = ["stage=video", f"codec_checkpoint={tmp_path}/codec"]
    run("pretrain", pretrain.pretrain, *common, *video, f"out={tmp_path}/video")
    out = tmp_path / "score"
    scoring = [f"checkpoint={tmp_path}/video", f"videos={tmp_path}/data", "against=frozen"]
    run("score", score.score, *scoring, "split=validation", f"out={out}")
    with (out / "rewards.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["set"] == "expert" for row in rows) == 2 * 15
    assert np.isfinite([float(row["reward"]) for row in rows]).all()

    collect(f"path={tmp_path}/in", "name=slide", "fps=10", f"out={tmp_path}/slow")
    with pytest.raises(ValueError, match="'fit=crop fps=15' against 'fit=crop fps=10'"):
        run("score", score.score, scoring[0], f"videos={tmp_path}/slow", f"out={tmp_path}/s")
    with pytest.raises(ValueError, match=r"trained on 'videos' videos \(slide\)"):
        run("train", train.run_training, "task=door-close", f"reward.{scoring[0]}", f"out={tmp_path}/run")
