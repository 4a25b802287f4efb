"""Copies of checkpoints in the background: they hold nothing up, the newest counts, and a failure is told."""

from __future__ import annotations

import threading
import time
import uuid

from launch import uploads
from launch.storage import StoredRun
from launch.uploads import Uploads
from tests.launch.test_storage import make, save


def wait_for(condition):
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.01)


def test_uploads_do_not_hold_up_and_the_newest_is_copied(tmp_path):
    folder, store = make(tmp_path), StoredRun(f"memory://{uuid.uuid4().hex}/run")
    store.claim(folder)
    began, go, plain = threading.Event(), threading.Event(), store.upload

    def upload(*arguments):
        began.set()
        go.wait()
        plain(*arguments)

    store.upload = upload
    copies = Uploads(store, folder, keep=2)
    copies.submit(save(folder, 100, keep=1))
    began.wait()
    for step in (200, 300, 400):
        copies.submit(save(folder, step, keep=1))
    kept = {p.name for p in (folder.path / "checkpoints").glob("step_*")}
    assert {"step_000000100", "step_000000400"} <= kept and "step_000000200" not in kept
    go.set()
    copies.finish()
    assert list(store.checkpoints()) == ["step_000000400", "step_000000100"]
    assert copies.metrics() == {"storage_copies": 2, "storage_failures": 0}
    save(folder, 500, keep=1)
    assert [p.name for p in (folder.path / "checkpoints").glob("step_*")] == ["step_000000500"]


def test_a_failed_copy_is_told_and_tried_again_with_the_next_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "RETRY_PAUSE_S", 0.01)
    folder, store = make(tmp_path), StoredRun(f"memory://{uuid.uuid4().hex}/run")
    store.claim(folder)
    plain, is_down = store.copy_in, True

    def copy(*arguments):
        if is_down:
            raise ConnectionError("no route")
        plain(*arguments)

    store.copy_in = copy
    copies = Uploads(store, folder, keep=2)
    copies.submit(save(folder, 100))
    wait_for(lambda: copies.failures == 1)
    (told,) = copies.news()
    assert "step_000000100 is not copied" in told and "no route" in told and not copies.news()
    is_down = False
    copies.submit(save(folder, 200))
    copies.finish()
    assert list(store.checkpoints()) == ["step_000000200"]
    assert copies.news() == [f"checkpoint step_000000200 is copied to {store.url} again"]

    is_down = True
    copies.submit(save(folder, 300))
    copies.finish()
    assert copies.failures == 4 and "the last checkpoint is not in" in copies.news()[-1]


def test_a_checkpoint_that_failed_is_not_copied_after_a_newer_one(tmp_path):
    folder, store = make(tmp_path), StoredRun(f"memory://{uuid.uuid4().hex}/run")
    store.claim(folder)
    asked, began, go, plain = [], threading.Event(), threading.Event(), store.upload

    def upload(checkpoint, *arguments):
        asked.append(checkpoint.name)
        if len(asked) == 1:
            began.set()
            go.wait()
            raise ConnectionError("no route")
        plain(checkpoint, *arguments)

    store.upload = upload
    copies = Uploads(store, folder, keep=2)
    copies.submit(save(folder, 100))
    began.wait()
    copies.submit(save(folder, 200))
    go.set()
    copies.finish()
    assert asked == ["step_000000100", "step_000000200"]
    assert not any("the last checkpoint is not in" in text for text in copies.news())


# ---- the replay in the store
