"""The run folder: nothing overwritten, atomic checkpoints, resume refuses another configuration."""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.cli import UsageError
from launch.run_folder import RunFolder, continued

CONFIG = {"env": {"task": "door-close"}, "agent": {"lr": 1e-3}, "total_agent_steps": 10, "seed": 0}


def make(tmp_path):
    return RunFolder.create(tmp_path / "run", OmegaConf.create(CONFIG))


def save(folder, step, keep=2):
    return folder.save_checkpoint(
        step, lambda p: (p / "learner.pt").write_text(str(step)), {"agent_steps": step}, keep
    )


def test_an_existing_folder_is_refused(tmp_path):
    folder = make(tmp_path)
    with pytest.raises(UsageError, match=r"already exists.*resume="):
        RunFolder.create(folder.path, OmegaConf.create(CONFIG))


def test_a_foreign_folder_cannot_be_resumed(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_resume_names_the_keys_that_differ(tmp_path):
    folder = make(tmp_path)
    changed = OmegaConf.merge(OmegaConf.create(CONFIG), {"agent": {"lr": 2e-3}, "total_agent_steps": 99})
    with pytest.raises(UsageError) as caught:
        folder.require_same_config(changed)
    assert "agent.lr: run has 0.001, given 0.002" in str(caught.value)
    assert "total_agent_steps" not in str(caught.value)
    folder.require_same_config(OmegaConf.merge(OmegaConf.create(CONFIG), {"total_agent_steps": 99}))


def test_a_run_from_before_a_key_existed_goes_on_with_its_default(tmp_path):
    folder = make(tmp_path)
    newer = OmegaConf.merge(OmegaConf.create(CONFIG), {"replay": {"num_shards": 1}})
    folder.require_same_config(newer)
    with pytest.raises(UsageError, match=r"replay\.num_shards: run has None, given 2"):
        folder.require_same_config(
            OmegaConf.merge(newer, {"replay": {"num_shards": 2}, "overrides": ["replay.num_shards=2"]})
        )


SAVED = {
    "agent": {"lr": 1.0},
    "env": {"task": "reach"},
    "total_agent_steps": 10,
    "storage": "s3://a",
    "preset_name": "laptop",
}
# The same choices today: the preset has another lr and a key that the run does not know.
TODAY = {
    "agent": {"lr": 2.0, "newer": 5},
    "env": {"task": "reach"},
    "total_agent_steps": 20,
    "storage": None,
    "preset_name": "laptop",
}


@pytest.mark.parametrize(
    ("given", "changed", "refused"),
    [
        ([], {}, None),
        (["preset=laptop", "task=reach"], {}, None),
        (["total_agent_steps=20", "storage=null"], {"total_agent_steps": 20, "storage": None}, None),
        (["cluster=multi_node"], {"total_agent_steps": 20, "storage": None}, None),
        (["agent.newer=7"], {"agent": {"newer": 5}}, "agent.newer: run has None"),
        (["agent.lr=2"], {"agent": {"lr": 2.0}}, "agent.lr: run has 1.0, given 2.0"),
    ],
)
def test_a_run_goes_on_with_its_own_values_where_nothing_is_given(tmp_path, given, changed, refused):
    saved, today = OmegaConf.create(SAVED), OmegaConf.create({**TODAY, "overrides": given})
    result = continued(saved, today, given)
    expected = {**SAVED, "overrides": given}
    assert result == OmegaConf.merge(expected, changed)
    folder = RunFolder.create(tmp_path / "run", saved)
    if refused is None:
        folder.require_same_config(result)
    else:
        with pytest.raises(UsageError, match=re.escape(refused)):
            folder.require_same_config(result)


def test_another_preset_is_refused_by_its_name(tmp_path):
    today = OmegaConf.create({**TODAY, "preset_name": "gpu"})
    result = continued(OmegaConf.create(SAVED), today, ["preset=gpu"])
    with pytest.raises(UsageError, match="preset_name: run has 'laptop', given 'gpu'"):
        RunFolder.create(tmp_path / "run", OmegaConf.create(SAVED)).require_same_config(result)


def test_latest_points_at_the_newest_whole_checkpoint_and_old_ones_go(tmp_path):
    folder = make(tmp_path)
    assert folder.latest_checkpoint() is None
    for step in (100, 200, 300):
        save(folder, step)
    assert folder.latest_checkpoint().name == "step_000000300"
    names = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
    assert names == ["LATEST", "step_000000200", "step_000000300"]
    assert folder.counters(folder.latest_checkpoint())["agent_steps"] == 300


def test_a_checkpoint_that_fails_half_way_leaves_the_former_one(tmp_path):
    folder = make(tmp_path)
    save(folder, 100)

    def fail(path):
        (path / "learner.pt").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        folder.save_checkpoint(200, fail, {}, keep=2)
    assert folder.latest_checkpoint().name == "step_000000100"


def test_the_same_step_twice_keeps_the_newer_state(tmp_path):
    folder = make(tmp_path)
    save(folder, 100)
    folder.save_checkpoint(100, lambda p: (p / "learner.pt").write_text("new"), {"agent_steps": 100}, keep=2)
    assert (folder.latest_checkpoint() / "learner.pt").read_text() == "new"


def test_a_cut_last_metrics_line_is_left_out(tmp_path):
    folder = make(tmp_path)
    (folder.path / "metrics.jsonl").write_text('{"phase": "train", "wall_s": 1}\n{"phase": "tr')
    assert list(folder.metric_lines()) == [{"phase": "train", "wall_s": 1}]


# ---- damaged checkpoints


def cut(path):
    path.write_bytes(path.read_bytes()[:2])


def flip(path):
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("learner.pt", cut, "learner.pt has 2 bytes, expected 3"),
        ("learner.pt", flip, "learner.pt has another checksum"),
        ("learner.pt", os.remove, "learner.pt is missing"),
        ("counters.json", flip, "counters.json has another checksum"),
        ("manifest.json", cut, "cannot be read"),
        ("manifest.json", os.remove, "manifest.json is missing"),
        ("", shutil.rmtree, "step_000000300, which LATEST names, is missing"),
    ],
)
def test_the_newest_whole_checkpoint_is_used_and_it_says_so(tmp_path, name, harm, message):
    folder, said = make(tmp_path), []
    for step in (200, 300):
        save(folder, step)
    harm(folder.path / "checkpoints" / "step_000000300" / name)
    assert folder.latest_checkpoint(tell=said.append).name == "step_000000200"
    assert len(said) == 1 and message in said[0] and "Using step_000000200" in said[0]

    save(folder, 400)  # The damaged one does not count among those that are kept.
    names = {p.name for p in (folder.path / "checkpoints").glob("step_*")}
    assert {"step_000000200", "step_000000400"} <= names or harm is flip
    assert folder.latest_checkpoint(tell=pytest.fail).name == "step_000000400"


def test_sizes_alone_are_checked_where_only_the_counters_are_wanted(tmp_path):
    folder = make(tmp_path)
    for step in (200, 300):
        save(folder, step)
    flip(folder.path / "checkpoints" / "step_000000300" / "learner.pt")
    assert folder.latest_checkpoint(read_files=False).name == "step_000000300"
    cut(folder.path / "checkpoints" / "step_000000300" / "learner.pt")
    assert folder.latest_checkpoint(read_files=False).name == "step_000000200"


def test_no_whole_checkpoint_at_all_is_an_error_that_names_each(tmp_path):
    folder = make(tmp_path)
    for path in [save(folder, step) for step in (200, 300)]:
        cut(path / "learner.pt")
    with pytest.raises(
        UsageError, match=r"no whole checkpoint is left.*step_000000300 is.*step_000000200 is"
    ):
        folder.latest_checkpoint()


def test_a_checkpoint_from_before_manifests_is_taken_and_a_new_one_wins_over_it(tmp_path):
    folder = make(tmp_path)
    for step in (100, 200):
        old = folder.path / "checkpoints" / f"step_{step:09d}"
        old.mkdir()
        (old / "counters.json").write_text('{"agent_steps": 200}')
    (folder.path / "checkpoints" / "LATEST").write_text("step_000000200")
    assert folder.latest_checkpoint(tell=pytest.fail) == old
    save(folder, 150)  # Later, though of an earlier step: a power cut may take the newest episodes.
    assert folder.latest_checkpoint(tell=pytest.fail).name == "step_000000150"
    assert old.exists()


def test_bytes_that_are_no_text_cost_a_line_of_metrics_and_no_checkpoint(tmp_path):
    folder = make(tmp_path)
    whole = save(folder, 100)
    (folder.path / "checkpoints" / "LATEST").write_bytes(b"\xff\xfe")
    warnings = []
    assert folder.latest_checkpoint(tell=warnings.append) == whole
    assert "which LATEST names, is missing" in warnings[0]
    (folder.path / "metrics.jsonl").write_bytes(b'{"wall_s": 1.0}\n\xff\xfe\n{"wall_s": 2.0}\n')
    assert [row["wall_s"] for row in folder.metric_lines()] == [1.0, 2.0]


def test_a_checkpoint_in_use_outlives_its_successors(tmp_path):
    folder = make(tmp_path)
    first = save(folder, 100, keep=1)
    folder.in_use.add(first)
    save(folder, 200, keep=1)
    assert first.exists()
    folder.in_use.clear()
    save(folder, 300, keep=1)
    assert not first.exists()


# ---- kills

FILE_EVENTS = ("open", "os.", "shutil.", "tempfile.")


def until_event(work, last_event):
    """Works in a child process that is gone before its n-th file-system call; True if it came to its end."""
    child = os.fork()
    if child == 0:
        left = last_event

        def count(event, _):
            nonlocal left
            if event.startswith(FILE_EVENTS):
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(count)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("step", "keep"), [(300, 1), (200, 2)])
def test_a_kill_before_any_file_system_call_leaves_a_whole_checkpoint(tmp_path, monkeypatch, step, keep):
    """Of a later step, and of the step that was saved last."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # Decides what a power cut leaves, not a kill.
    seen, is_complete, event = [], False, 0
    while not is_complete:
        folder = RunFolder.create(tmp_path / f"run{event}", OmegaConf.create(CONFIG))
        for earlier in (100, 200):
            save(folder, earlier, keep)
        is_complete = until_event(partial(save, folder, step, keep), event)
        found = folder.latest_checkpoint(tell=pytest.fail)
        seen.append(found.name)
        assert folder.counters(found)["agent_steps"] == int((found / "learner.pt").read_text())
        save(folder, 400, keep)
        names = sorted(p.name for p in (folder.path / "checkpoints").iterdir())
        assert names[0] == "LATEST" and len(names) == 1 + keep  # Nothing is left lying about.
        assert names[-1] == folder.latest_checkpoint(tell=pytest.fail).name == "step_000000400"
        event += 1
    new = "step_000000300" if step == 300 else "step_000000200.2"
    assert event > 20 and seen[0] == "step_000000200" and seen[-1] == new
    assert seen == sorted(seen)  # First always the old one, from the rename on always the new one.


def test_a_kill_while_the_folder_is_made_leaves_one_that_is_made_again_or_resumed(tmp_path):
    is_complete, event, found = False, 0, []
    while not is_complete:
        path, config = tmp_path / f"run{event}", OmegaConf.create(CONFIG)
        is_complete = until_event(partial(RunFolder.create, path, config), event)
        found.append((path / "config.yaml").exists())
        folder = RunFolder.open(path) if found[-1] else RunFolder.create(path, config)
        assert folder.config() == config
        save(folder, 100)
        event += 1
    assert event > 5 and not found[0] and found == sorted(found)


def test_everything_is_on_the_disk_itself_before_the_next_step(tmp_path, monkeypatch):
    """What a power cut may undo: a rename that reaches the disk before what it renames."""
    folder, calls = make(tmp_path), []

    def record(name, what):
        def call(*arguments):
            calls.append((name, Path(what(arguments))))
            return real(*arguments)

        owner = Path if name == "rename" else os
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, call)

    record("fsync", lambda arguments: os.readlink(f"/proc/self/fd/{arguments[0]}"))
    record("replace", lambda arguments: arguments[1])
    record("rename", lambda arguments: arguments[1])
    final = save(folder, 100)
    renamed = calls.index(("rename", final))
    before, after = calls[:renamed], calls[renamed + 1 :]
    temporary = before[0][1].parent
    for name in ("learner.pt", "counters.json"):
        assert before.index(("fsync", temporary / name)) < before.index(
            ("replace", temporary / "manifest.json")
        )
    assert before[-1] == ("fsync", temporary)
    assert after[0] == ("fsync", final.parent) == after[-1]
    assert ("replace", final.parent / "LATEST") in after
