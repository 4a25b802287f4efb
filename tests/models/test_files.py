"""One process trains in a folder at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from models.files import hold_folder, new_folder, read_json, try_lock

WRITE = """
import sys; from pathlib import Path; from models.files import new_folder
with new_folder(Path(sys.argv[1])) as folder: (folder / "part").write_text(""); print("begun", flush=True); sys.stdin.read()
"""
HOLD = "import sys; from models.files import hold_folder; hold_folder(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_folder_is_held_until_its_process_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        second = subprocess.run(command, input=b"", capture_output=True, check=False)
        assert f"another process is training in {tmp_path}" in second.stderr.decode()
        first.kill()
    hold_folder(tmp_path)
    hold_folder(tmp_path)  # resumed by the same process
    third = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert third.returncode != 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_files_cannot_be_locked_one_trains_with_a_warning(tmp_path, monkeypatch, number):
    def flock(handle, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(RuntimeWarning, match=f"{tmp_path}/.lock cannot be locked"):
        hold_folder(tmp_path)
    hold_folder(tmp_path)  # said once


def test_a_lock_that_fails_otherwise_leaves_no_file_open(tmp_path, monkeypatch):
    def flock(handle, kind):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Input/output error"):
        try_lock(tmp_path / "file")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_new_folder_appears_only_when_it_is_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "data/videos") as folder:
        (folder / "part").write_text("")
        raise KeyboardInterrupt
    assert list((tmp_path / "data").iterdir()) == []
    with new_folder(tmp_path / "data/videos") as folder:
        (folder / "part").write_text("")
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["videos", "part"]


def test_what_a_kill_left_of_a_new_folder_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "videos [2]"
    (tmp_path / f".{path.name}.partial-7").mkdir()  # with no lock, of a former version
    before = set(tmp_path.iterdir())
    command = [sys.executable, "-c", WRITE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"begun\n"
        (begun,) = set(tmp_path.iterdir()) - before
        with new_folder(path):
            assert (begun / path.name / "part").exists()  # somebody is writing there
        path.rmdir()
        first.kill()
    assert begun.exists()
    with new_folder(tmp_path / "another"):  # whose default name has the time in it
        assert not begun.exists()
    assert set(tmp_path.iterdir()) == before | {tmp_path / "another"}


def test_json_that_is_no_text_or_no_object_is_named(tmp_path):
    path = tmp_path / "store.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{path} is not valid JSON"):
        read_json(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match=rf"{path} holds \[1, 2\], expected an object"):
        read_json(path)
