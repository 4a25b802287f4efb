"""Official PNG datasets: read as they are, in order, upright, and refused by file name where they are damaged."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from actors.envs.registry import DOMAINS
from launch import convert
from launch.cli import UsageError
from launch.official_dataset import is_official, official_task_names, read_official, read_one
from launch.pretrain_stages import read_all
from models.videos import RenderSettings


def picture(number: int, size: int = 64) -> np.ndarray:
    """Grey level = number; the upper half is red, so that up is visible."""
    array = np.full((size, size, 3), number, np.uint8)
    array[: size // 2, :, 0] = 200
    return array


def write_episode(folder, frames: int = 12, size: int = 64, flip: bool = False) -> None:
    folder.mkdir(parents=True)
    for number in range(frames):
        array = picture(number, size)
        Image.fromarray(array[::-1] if flip else array).save(folder / f"{number}.png")


@pytest.fixture
def root(tmp_path):
    """Two domains: metaworld with two tasks, adroit (upside down) with one."""
    for task in ("door-close-v2", "reach-v2"):
        for split, count in (("train", 11), ("test", 2)):
            for episode in range(count if task == "reach-v2" else 1):
                write_episode(tmp_path / "metaworld" / task / split / str(episode))
    write_episode(tmp_path / "adroit" / "door" / "train" / "0", flip=True)
    return tmp_path


def test_a_task_folder_is_read_in_numeric_order(root):
    (videos,) = read_official(root / "metaworld" / "reach-v2")
    assert (videos.task, videos.domain, videos.mode, videos.action_repeat) == (
        "reach",
        "metaworld",
        "expert",
        3,
    )
    assert videos.render == RenderSettings("full", "corner2", 64, 64)
    assert (len(videos.split("train")), len(videos.split("validation"))) == (11, 2)
    names = [episode.episode_id for episode in videos.episodes]
    assert names[:3] == ["reach-v2/train/0", "reach-v2/train/1", "reach-v2/train/2"]
    assert names[10:] == ["reach-v2/train/10", "reach-v2/test/0", "reach-v2/test/1"]
    # 2.png comes before 10.png.
    np.testing.assert_array_equal(videos.episodes[0].frames, np.stack([picture(n) for n in range(12)]))


def test_what_is_not_known_is_marked(root):
    (videos,) = read_official(root / "metaworld" / "door-close-v2")
    episode, record = videos.episodes[0], videos.records[0]
    assert (record["success"], record["env_return"], record["length_steps"]) == (None, None, 11)
    assert episode.actions.shape == (11, 0)
    assert not episode.env_rewards.any() and not episode.successes.any()


def test_domain_folders_and_roots_are_read(root):
    assert [v.task for v in read_official(root / "metaworld")] == ["door-close", "reach"]
    assert [v.task for v in read_official(root)] == ["adroit-door", "door-close", "reach"]
    assert [v.task for v in read_official(root, domain="metaworld")] == ["door-close", "reach"]
    assert [v.task for v in read_official(root, task="reach")] == ["reach"]
    assert [v.task for v in read_all(str(root), domain="adroit")] == ["adroit-door"]
    assert read_one(root / "metaworld", "reach").task == "reach"
    assert read_one(root / "adroit", "reach").task == "adroit-door"
    with pytest.raises(FileNotFoundError, match=r"no official dataset of lever-pull.*door-close, reach"):
        read_official(root / "metaworld", task="lever-pull")


def test_both_orientations_come_out_upright(root, capsys):
    upright = np.stack([picture(n) for n in range(12)])
    (adroit,) = read_official(root / "adroit")
    np.testing.assert_array_equal(adroit.episodes[0].frames, upright)
    assert (adroit.render.camera, adroit.action_repeat) == ("paper", 2)
    assert "upside down on disk and turned upright (upside_down not given" in capsys.readouterr().out
    (as_is,) = read_official(root / "adroit", upside_down=False)
    np.testing.assert_array_equal(as_is.episodes[0].frames, upright[:, ::-1])
    assert "upright on disk (as given)" in capsys.readouterr().out


def test_a_word_is_no_orientation(root):
    with pytest.raises(UsageError, match="upside_down is 'no', expected true, false, or null"):
        read_official(root / "adroit", upside_down="no")
    weights = SimpleNamespace(upside_down="no", domain="metaworld")
    with pytest.raises(UsageError, match="upside_down is 'no'"):
        convert._build_codec(weights, None)


def test_domain_follows_from_the_task_where_the_folder_does_not_say(root, tmp_path):
    shutil.move(root / "adroit", tmp_path / "mine")
    (videos,) = read_official(tmp_path / "mine")
    assert (videos.task, videos.domain) == ("adroit-door", "adroit")


def test_every_task_has_official_names():
    for domain in DOMAINS:
        assert set(official_task_names(domain.name).values()) == set(domain.tasks)
    assert official_task_names("metaworld")["door-close-v2"] == "door-close"
    assert official_task_names("adroit")["pen"] == "adroit-pen"
    with pytest.raises(UsageError, match="domain='dmc'"):
        official_task_names("dmc")


def test_unknown_tasks_are_named(root):
    (root / "metaworld" / "reach-v2").rename(root / "metaworld" / "raech-v2")
    with pytest.raises(ValueError, match=r"'raech-v2' is no task of metaworld; did you mean reach-v2"):
        read_official(root / "metaworld")


def test_own_folders_and_other_folders_are_not_official(root, tmp_path):
    assert is_official(root / "metaworld" / "reach-v2")
    assert not is_official(root / "metaworld" / "reach-v2" / "train")
    (tmp_path / "empty").mkdir()
    assert not is_official(tmp_path / "empty")
    assert not is_official(tmp_path / "absent")


def damage_gap(folder):
    (folder / "5.png").unlink()


def damage_size(folder):
    Image.fromarray(picture(7, 32)).save(folder / "7.png")


def damage_shape(folder):
    Image.fromarray(picture(7)[:32]).save(folder / "7.png")


def damage_name(folder):
    (folder / "7.png").rename(folder / "seven.png")


def damage_content(folder):
    (folder / "7.png").write_bytes(b"not a picture")


def damage_end(folder):
    data = (folder / "7.png").read_bytes()
    (folder / "7.png").write_bytes(data[: len(data) // 2])


def damage_length(folder):
    for number in range(1, 12):
        (folder / f"{number}.png").unlink()


def damage_episode(folder):
    write_episode(folder.parent / "1", size=32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_gap, r"train/0 lacks 5\.png, but has 11\.png"),
        (damage_size, r"train/0/7\.png is 32x32 pixels, 0\.png beside it 64x64"),
        (damage_shape, r"train/0/7\.png is 32x64 pixels; official pictures are square"),
        (damage_name, r"train/0/seven\.png: expected pictures named"),
        (damage_content, r"train/0/7\.png is not a readable picture"),
        (damage_end, r"train/0/7\.png is not a readable picture"),
        (damage_length, r"train/0 holds 1 pictures; an episode needs at least two"),
        (damage_episode, r"train/1: pictures of 32x32 pixels, but door-close-v2/train/0 has 64x64"),
    ],
)
def test_damage_is_refused_by_name(root, damage, message):
    damage(root / "metaworld" / "door-close-v2" / "train" / "0")
    with pytest.raises(ValueError, match=message):
        read_official(root / "metaworld" / "door-close-v2")
