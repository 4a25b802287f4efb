"""Checkpoints in a store: whole or not there, whatever fails; a run goes on from them with the same counters."""

from __future__ import annotations

import json
import os
import time
import uuid
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from launch import replay_copies, storage
from launch.cli import UsageError
from launch.replay_copies import ReplayCopies
from launch.run_folder import ReplayStart, RunFolder
from launch.storage import StoredRun
from launch.stores import is_url, run_name, run_url
from learner.replay import EpisodeStore, ReplayConfig
from learner.replay_actor import ReplayShard
from tests.learner.helpers import ACTION_DIM, make_episode

CONFIG = {"total_agent_steps": 10, "overrides": ["seed=3"]}


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    """A store of pyarrow's own, and one that only fsspec knows."""
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def make(tmp_path, name="run"):
    folder = RunFolder.create(tmp_path / name, OmegaConf.create(CONFIG))
    (folder.path / "metrics.jsonl").write_text('{"phase": "train", "agent_steps": 0, "wall_s": 1.5}\n')
    return folder


def save(folder, step, keep=2):
    def write(path):
        (path / "rllib").mkdir()
        (path / "rllib" / "state.bin").write_bytes(bytes([step % 251]) * 5000)
        (path / "learner.pt").write_text(str(step))

    return folder.save_checkpoint(step, write, {"agent_steps": step, "updates": step // 2}, keep)


def metrics(folder):
    return (folder.path / "metrics.jsonl").read_bytes()


def extra(folder):
    return {"metrics.jsonl": metrics(folder)}


def step_folders(store):
    return [name for name in reversed(store._names("")) if name.startswith("step_")]


def test_urls():
    assert (
        run_url("s3://bucket/runs/?region=eu-west-1", "a_seed0")
        == "s3://bucket/runs/a_seed0?region=eu-west-1"
    )
    assert run_url("memory://x", "a") == "memory://x/a"
    assert run_name("s3://bucket/runs/a_seed0?region=eu-west-1") == "a_seed0"
    assert is_url("gs://b/x") and not is_url("/abs/run") and not is_url(None)
    with pytest.raises(UsageError, match="names no run"):
        run_name("s3://bucket")
    with pytest.raises(UsageError, match="cannot be part of a URL"):
        run_url("s3://bucket", "a b")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("runs", "is no URL"),
        ("nope://bucket/run", r"neither pyarrow .* nor fsspec .*Protocol not known: nope"),
        ("s3://key:secret@bucket/run", "has a password in it"),
    ],
)
def test_urls_that_cannot_work_are_refused(bad, message):
    with pytest.raises(UsageError, match=message) as caught:
        StoredRun(bad)
    assert "secret" not in str(caught.value)


def test_a_store_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(
        UsageError, match=r"cannot use file://.*check the URL, the network and the credentials"
    ):
        StoredRun(f"file://{tmp_path}/store/run").require_writable(is_new=True)


def test_a_store_that_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr(storage, "ANSWER_TIMEOUT_S", 0.1)
    store = StoredRun(f"memory://{uuid.uuid4().hex}/run")
    monkeypatch.setattr(store, "_write", lambda *_: time.sleep(5))
    with pytest.raises(UsageError, match="no answer within 0 s"):
        store.require_writable(is_new=True)


def test_a_run_is_stored_once_and_only_its_own_folder_goes_on(tmp_path, url):
    folder, store = make(tmp_path), StoredRun(f"{url}/run")
    store.require_writable(is_new=True)
    store.claim(folder)
    assert store.config() == OmegaConf.create(CONFIG)
    with pytest.raises(UsageError, match=r"stored in .* already; nothing is overwritten"):
        StoredRun(f"{url}/run").require_writable(is_new=True)
    StoredRun(f"{url}/run").require_writable(is_new=False)
    StoredRun(f"{url}/run").claim(folder)
    other = RunFolder.create(tmp_path / "other", OmegaConf.create({"total_agent_steps": 11}))
    with pytest.raises(UsageError, match="holds another run"):
        store.claim(other)
    with pytest.raises(UsageError, match="no run is stored"):
        StoredRun(f"{url}/nothing").config()


def test_what_is_stored_comes_back_the_same_and_old_checkpoints_go(tmp_path, url):
    folder, store = make(tmp_path), StoredRun(f"{url}/run")
    store.claim(folder)
    for step in (100, 200, 300):
        checkpoint = save(folder, step)
        store.upload(checkpoint, extra(folder), keep=2)
    assert list(store.checkpoints()) == step_folders(store) == ["step_000000300", "step_000000200"]

    copy = StoredRun(f"{url}/run").download(tmp_path / "copy")
    found = copy.latest_checkpoint(tell=pytest.fail)
    assert found == tmp_path / "copy" / "checkpoints" / "step_000000300"
    files = lambda root: {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}  # noqa: E731
    there = {n: json.loads(d) if n == "manifest.json" else d for n, d in files(found).items()}
    here = {n: json.loads(d) if n == "manifest.json" else d for n, d in files(checkpoint).items()}
    assert there == here
    assert metrics(copy) == metrics(folder) and copy.config() == folder.config()
    assert save(copy, 300).name == "step_000000300.2"  # Numbered on: newer than what was downloaded.
    assert copy.latest_checkpoint(tell=pytest.fail).name == "step_000000300.2"
    with pytest.raises(UsageError, match="already exists; nothing is overwritten"):
        store.download(tmp_path / "copy")


def test_a_run_comes_back_into_a_folder_behind_a_symbolic_link(tmp_path, url):
    folder, store = make(tmp_path), StoredRun(f"{url}/run")
    store.claim(folder)
    store.upload(save(folder, 100), extra(folder), keep=1)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    copy = store.download(tmp_path / "runs" / "copy", tell=pytest.fail)
    assert copy.latest_checkpoint(tell=pytest.fail).name == "step_000000100"


class Dying(StoredRun):
    """Leaves half of the n-th thing that it writes or deletes, and does nothing more."""

    def __init__(self, url, calls):
        super().__init__(url)
        self.calls = calls

    def _count(self):
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("gone")
        return self.calls == 0

    def _write(self, name, data):
        super()._write(name, data[: len(data) // 2] if self._count() else data)

    def copy_in(self, path, name):
        if self._count():
            StoredRun._write(self, name, path.read_bytes()[:1])
        else:
            super().copy_in(path, name)

    def _delete(self, name):
        if not self._exists(name):
            return
        if self._count():
            self._fs.delete_file(f"{self._root}/{name}/manifest.json")
        else:
            super()._delete(name)


def test_an_upload_that_stops_anywhere_leaves_the_former_checkpoint(tmp_path, url):
    folder = make(tmp_path)
    former, newer, newest = (save(folder, step, keep=3) for step in (100, 200, 300))
    names, calls, is_complete = [], 0, False
    while not is_complete:
        calls += 1
        place = f"{url}/run{calls}"
        StoredRun(place).claim(folder)
        StoredRun(place).upload(former, extra(folder), keep=1)
        try:
            Dying(place, calls).upload(newer, extra(folder), keep=1)
            is_complete = calls > 10
        except ConnectionError:
            pass
        copy = StoredRun(place).download(tmp_path / f"copy{calls}", tell=pytest.fail)
        names.append(copy.latest_checkpoint(tell=pytest.fail).name)
        StoredRun(place).upload(newest, extra(folder), keep=1)
        assert step_folders(StoredRun(place)) == ["step_000000300"]  # The remains are gone.
    # counters.json, learner.pt, rllib/state.bin, metrics.jsonl, the manifest (half of it is none), the former's end.
    assert names[:5] == ["step_000000100"] * 5 and set(names[5:]) == {"step_000000200"}


def test_a_damaged_stored_checkpoint_is_told_and_the_one_before_it_used(tmp_path, url):
    folder, store, said = make(tmp_path), StoredRun(f"{url}/run"), []
    store.claim(folder)
    for step in (100, 200):
        store.upload(save(folder, step), extra(folder), keep=2)
    store._write("step_000000200/learner.pt", b"2xx")
    copy = store.download(tmp_path / "copy", tell=said.append)
    assert copy.latest_checkpoint(tell=pytest.fail).name == "step_000000100"
    assert "step_000000200" in said[0] and "learner.pt has another checksum" in said[0]

    manifest = json.loads(store._read("step_000000100/manifest.json"))
    manifest["files"]["../../../elsewhere"] = manifest["files"]["learner.pt"]
    store._write("step_000000100/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(UsageError, match=r"no whole checkpoint is stored.*outside of its folder"):
        store.download(tmp_path / "second", tell=said.append)
    assert sorted(p.name for p in tmp_path.iterdir() if "second" in p.name) == []


def test_after_a_damaged_newest_checkpoint_the_next_copy_stays(tmp_path, url):
    folder, store = make(tmp_path), StoredRun(f"{url}/run")
    store.claim(folder)
    for step in (100, 200):
        store.upload(save(folder, step), extra(folder), keep=2)
    store._write("step_000000200/learner.pt", b"2xx")
    copy = store.download(tmp_path / "copy", tell=[].append)
    store.upload(save(copy, 250), extra(copy), keep=1)
    assert list(store.checkpoints()) == ["step_000000250"]


def test_what_a_killed_download_left_goes_with_the_next_one(tmp_path):
    folder, store = make(tmp_path), StoredRun(f"memory://{uuid.uuid4().hex}/run")
    store.claim(folder)
    store.upload(save(folder, 100), extra(folder), keep=1)
    child = os.fork()
    if child == 0:
        try:
            store._fetch_files = lambda *_: os._exit(9)
            store.download(tmp_path / "copy")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.iterdir())) == 2
    store.download(tmp_path / "copy", tell=pytest.fail)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "copy"}


# ---- beside a training


class Shard:
    """A replay shard that answers at once."""

    def __init__(self, folder):
        self.actor = ReplayShard(
            folder, ReplayConfig(capacity_transitions=60, episode_steps=10), 4, ACTION_DIM
        )
        self.export = SimpleNamespace(remote=self.actor.export)

    def insert(self, *numbers):
        self.actor.insert("block", [make_episode(number, 10) for number in numbers])


def shard_of(folder, monkeypatch):
    monkeypatch.setattr(replay_copies.ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(replay_copies, "PIECE_BYTES", 25 * 3 * 4 * 4)  # Two episodes of ten steps.
    return Shard(folder.path / "replay" / "shard_0")


def with_replay(folder, copies):
    return {**extra(folder), "replay.json": copies.update()}


def restored(folder):
    store = EpisodeStore(
        folder.path / "replay" / "shard_0", ReplayConfig(60, episode_steps=10), 4, ACTION_DIM
    )
    store.close()
    return store


def test_only_new_pieces_of_the_replay_are_copied_and_unused_ones_go(tmp_path, url, monkeypatch):
    folder, store = make(tmp_path), StoredRun(f"{url}/run")
    shard = shard_of(folder, monkeypatch)
    store.claim(folder)
    shard.insert(0, 1, 2)
    copies = ReplayCopies(store, folder, [shard])
    read, own = [], replay_copies.file_record
    monkeypatch.setattr(replay_copies, "file_record", lambda path: (read.append(path), own(path))[1])
    left_by_a_kill = [
        folder.path / "replay" / "shard_0" / name for name in ("outgoing-1.npz", ".outgoing-2.npz.k3x_9a")
    ]
    for path in left_by_a_kill:
        path.touch()
    store.upload(save(folder, 30), with_replay(folder, copies), keep=1)
    assert len(set(read)) == 2 and not any(path.exists() for path in (*read, *left_by_a_kill))
    assert [name[:27] for name in store._names("replay")] == [
        *("shard_0-000000000-000000002", "shard_0-000000002-000000003")
    ]
    shard.insert(3)
    again = ReplayCopies(StoredRun(f"{url}/run"), folder, [shard])  # As after a kill.
    again._store.copy_in = lambda path, name, plain=again._store.copy_in: (
        copied.append(name),
        plain(path, name),
    )
    copied = []
    store.upload(save(folder, 40), with_replay(folder, again), keep=1)
    assert [name[:34] for name in copied] == ["replay/shard_0-000000003-000000004"]
    shard.insert(4, 5, 6, 7)  # The ring holds five or six.
    store.upload(save(folder, 80), with_replay(folder, again), keep=1)
    assert store._names("replay")[0].startswith("shard_0-000000002") and len(store._names("replay")) == 4

    copy = store.download(tmp_path / "copy")
    assert restored(copy).ids == shard.actor.ids()
    assert restored(copy).total_inserted_steps == 80
    assert not any(copy.path.glob("pieces*")) and copy.replay_start() == ReplayStart()
    assert not any((store.download(tmp_path / "bare", with_replay=False).path / "replay").iterdir())


def test_a_damaged_piece_is_told_and_the_checkpoint_before_it_used(tmp_path, url, monkeypatch):
    folder, store, said = make(tmp_path), StoredRun(f"{url}/run"), []
    shard = shard_of(folder, monkeypatch)
    store.claim(folder)
    folder.begin_replay_again(ReplayStart(500, 200))
    copies = ReplayCopies(store, folder, [shard])
    for number in (0, 1):
        shard.insert(number)
        store.upload(save(folder, 510 + 10 * number), with_replay(folder, copies), keep=2)
    store._write(f"replay/{store._names('replay')[-1]}", b"half")
    copy = store.download(tmp_path / "copy", tell=said.append)
    assert copy.latest_checkpoint().name == "step_000000510" and "replay of shard 0" in said[0]
    assert restored(copy).ids == ["e0"] and copy.replay_start() == ReplayStart(500, 200)


def test_a_folder_that_is_behind_its_store_is_copied_whole_when_it_goes_on(tmp_path, url, monkeypatch):
    """As after a continuation elsewhere: the store has checkpoints of higher numbers."""
    folder, store = make(tmp_path), StoredRun(f"{url}/run")
    shard = shard_of(folder, monkeypatch)
    store.claim(folder)
    shard.insert(0)
    store.upload(save(folder, 10), with_replay(folder, ReplayCopies(store, folder, [shard])), keep=2)
    elsewhere = store.download(tmp_path / "elsewhere")
    replay = store._read("step_000000010/replay.json")
    for step in (200, 300, 400):
        store.upload(save(elsewhere, step), {**extra(elsewhere), "replay.json": replay}, keep=2)

    copies = ReplayCopies(StoredRun(f"{url}/run"), folder, [shard])
    for number in (1, 2, 3):
        shard.insert(number)
        name = save(folder, 10 + 10 * number).name
        store.upload(folder.path / "checkpoints" / name, with_replay(folder, copies), keep=2)
        assert next(iter(store.checkpoints())) == name
        copy = store.download(tmp_path / f"copy{number}", tell=pytest.fail)
        assert restored(copy).ids == shard.actor.ids()
