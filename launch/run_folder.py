"""The run folder: config, metrics, checkpoints; created once, resumed safely, never overwritten.

<run>/config.yaml        the composed configuration
<run>/metrics.jsonl      one JSON object a line: phase, agent_steps, frames, updates, wall_s, metrics
<run>/tensorboard/       the same, and videos
<run>/checkpoints/       step_000012000/ ..., each with a manifest of its files; LATEST names the newest
<run>/videos/            evaluation videos with the learned reward under the picture
<run>/replay/            the durable replay shards; began.json if they were begun later than the run
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launch.cli import UsageError
from launch.manifest import COUNTERS, FORMAT, checkpoint_number, damage, seal
from models.files import read_json, sync_to_disk, write_atomic, write_json

MISSING = object()
# Keys that may change between a run and its continuation; everything else must match.
RESUMABLE_KEYS = (
    "resume",
    "out",
    "overrides",
    "total_agent_steps",
    "cluster",
    "replay.sync",
    "reward.num_actors",
    "rollout.num_actors",
    "rollout.max_actors",
    "eval_every_agent_steps",
    "eval_episodes",
    "eval_videos",
    "checkpoint_every_s",
    "keep_checkpoints",
    "storage",
    "storage_replay",
    "log_every_s",
    "console",
)


# What a choice of a group is known by in a configuration.
GROUP_NAMES = {"task": "env.task", "reward": "reward.name", "preset": "preset_name"}


def continued(saved: DictConfig, composed: DictConfig, given: Sequence[str]) -> DictConfig:
    """The configuration of a resumed run: its own, but for the keys that may change and those that are given now.

    Presets may have changed since the run began. What was not given keeps the value that it had then, and a key that is
    newer than the run is left out, so that its default holds, which is what the run has always had.

    Args:
        saved: The run's configuration.
        composed: As this command line, after the run's own, composes it today.
        given: The overrides of this command line.
    """
    result = copy.deepcopy(saved)
    names = [override.partition("=")[0].lstrip("+~") for override in given]
    # A cluster's file has keys of other sections as well.
    resumable = RESUMABLE_KEYS if "cluster" in names else ("resume", "out", "overrides")
    for key in (*resumable, *(GROUP_NAMES.get(name, name) for name in names)):
        value = OmegaConf.select(composed, key, default=MISSING)
        if value is not MISSING:
            OmegaConf.update(result, key, value, merge=False, force_add=True)
    return result


@dataclass(frozen=True)
class ReplayStart:
    """Counters of the run when its replay was begun: above 0 where a run went on without its former replay."""

    agent_steps: int = 0
    updates: int = 0


def to_stderr(text: str) -> None:
    """Tells a person what a command found out on its way."""
    print(text, file=sys.stderr, flush=True)


class RunFolder:
    """Paths and atomic checkpoints of one run.

    Attributes:
        path: The folder.
        in_use: Checkpoints that are being read; they outlive `keep`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.in_use: set[Path] = set()

    @classmethod
    def create(cls, path: str | Path, config: DictConfig) -> RunFolder:
        """Makes a new run folder.

        Raises:
            UsageError: if the folder exists and holds more than a kill in the middle of this leaves.
        """
        folder = cls(path)
        if any(
            p.is_symlink() or not (p.is_dir() or p.name.startswith(".config.yaml."))
            for p in folder.path.rglob("*")
        ):
            raise UsageError(
                f"run folder {folder.path} already exists; nothing is overwritten. "
                f"Choose another with out=..., or go on with resume={folder.path}"
            )
        for name in ("checkpoints", "videos", "replay", "tensorboard"):
            (folder.path / name).mkdir(parents=True, exist_ok=True)
        text = OmegaConf.to_yaml(config)
        write_atomic(folder.path / "config.yaml", lambda file: file.write(text.encode()))
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Opens an existing run folder.

        Raises:
            UsageError: if it is not one.
        """
        folder = cls(path)
        if not (folder.path / "config.yaml").is_file():
            raise UsageError(
                f"{folder.path} is not a run folder: config.yaml is missing; expected one made by train.py"
            )
        return folder

    def discard_if_unused(self) -> None:
        """Removes a new folder in which nothing was trained, so that the corrected command may have its name."""
        if not (self.path / "metrics.jsonl").exists() and not self._all_checkpoints():
            shutil.rmtree(self.path, ignore_errors=True)

    def config(self) -> DictConfig:
        """The configuration the run was started with."""
        loaded = OmegaConf.load(self.path / "config.yaml")
        assert isinstance(loaded, DictConfig)
        return loaded

    def require_same_config(self, config: DictConfig) -> None:
        """Refuses to resume with another configuration.

        A key that the run does not know is newer than the run; its default is what the run has always had.

        Raises:
            UsageError: naming each key that differs, with both values.
        """
        saved = _flat(OmegaConf.to_container(self.config(), resolve=True))
        given = _flat(OmegaConf.to_container(config, resolve=True))
        named = {override.partition("=")[0].lstrip("+") for override in config.get("overrides", ())}
        different = [
            f"{key}: run has {saved.get(key)!r}, given {given.get(key)!r}"
            for key in sorted(saved.keys() | (given.keys() & named))
            if saved.get(key) != given.get(key) and not {key, key.split(".")[0]} & set(RESUMABLE_KEYS)
        ]
        if different:
            raise UsageError(
                f"resume={self.path} refuses a configuration that does not match: {'; '.join(different)}. "
                "Leave these keys out to go on with the run's own, or start a new run"
            )

    # ---- checkpoints

    def save_checkpoint(
        self, step: int, write_parts: Callable[[Path], None], counters: Mapping[str, Any], keep: int
    ) -> Path:
        """Writes a checkpoint into a temporary folder, renames it and points LATEST at it.

        Args:
            step: Agent steps; names the folder.
            write_parts: Writes the files of the checkpoint into the folder it is given.
            counters: JSON values for `counters.json`, written last.
            keep: How many checkpoints to keep.

        Returns:
            The final folder.
        """
        temporary = self.new_checkpoint_folder(step)
        write_parts(temporary)
        return self.commit_checkpoint(temporary, step, counters, keep)

    def new_checkpoint_folder(self, step: int) -> Path:
        """An empty temporary folder for the parts of a checkpoint."""
        temporary = self._checkpoints / f".step_{step:09d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit_checkpoint(self, temporary: Path, step: int, counters: Mapping[str, Any], keep: int) -> Path:
        """Completes a checkpoint whose parts are in `temporary`: counters, manifest, one rename, LATEST, retention.

        Each of these is on the disk itself before the next begins, and the rename alone makes the checkpoint exist: a
        kill before it leaves the former one as the newest, a kill after it this one.

        Returns:
            The final folder. A step that was saved before gets another folder, `step_000012000.2`.
        """
        write_json(temporary / COUNTERS, {**counters, **FORMAT})
        numbers = [number for p in self._all_checkpoints() if (number := checkpoint_number(p)) < float("inf")]
        seal(temporary, number=1 + int(max(numbers, default=0)))
        final = self._checkpoints / f"step_{step:09d}"
        attempt = 1
        while final.exists():
            attempt += 1
            final = final.with_name(f"step_{step:09d}.{attempt}")
        temporary.rename(final)
        sync_to_disk(self._checkpoints)
        write_atomic(self._checkpoints / "LATEST", lambda file: file.write(final.name.encode()))
        sync_to_disk(self._checkpoints)
        self._retain(keep)
        return final

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _all_checkpoints(self) -> list[Path]:
        """Every checkpoint that was renamed into place, the newest first; LATEST decides among unnumbered ones."""
        named = self._named_by_latest()

        def age(path: Path) -> tuple[float, bool, list[int]]:
            parts = [int(number) for number in re.findall(r"\d+", path.name)]
            return checkpoint_number(path), path.name == named, parts

        found = [path for path in self._checkpoints.glob("step_*") if path.is_dir()]
        return sorted(found, key=age, reverse=True)

    def _named_by_latest(self) -> str | None:
        pointer = self._checkpoints / "LATEST"
        return pointer.read_text(errors="replace").strip() if pointer.is_file() else None

    def _retain(self, keep: int) -> None:
        """Deletes what is neither among the newest `keep` whole checkpoints nor in use, and what kills have left."""
        self._delete_leftovers()
        found = [path for path in self._all_checkpoints() if path not in self.in_use]
        whole = [path for path in found if damage(path, read_files=False) is None]
        for path in found:
            if path not in whole[:keep]:
                # First a name that no reader looks at: a kill must not leave half a checkpoint.
                path.rename(path.with_name(f".{path.name}.{os.getpid()}.stale"))
        self._delete_leftovers()

    def _delete_leftovers(self) -> None:
        for pattern in (".*.stale", ".*.tmp", ".LATEST.*"):
            for path in self._checkpoints.glob(pattern):
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    def latest_checkpoint(
        self, read_files: bool = True, tell: Callable[[str], None] = to_stderr
    ) -> Path | None:
        """Folder of the newest whole checkpoint, or None if there is none yet.

        Args:
            read_files: Compare the checksums of its files. Where only the counters are wanted, their sizes are
                enough, which reads nothing large.
            tell: Called with a sentence if a newer checkpoint is damaged or missing.

        Raises:
            UsageError: if there are checkpoints and none of them is whole.
        """
        named, found = self._named_by_latest(), self._all_checkpoints()
        problems = []
        if named is not None and named not in [path.name for path in found]:
            problems.append(f"{named}, which LATEST names, is missing")
        for path in found:
            problem = damage(path, read_files)
            if problem is None:
                if problems:
                    tell(
                        f"WARNING: checkpoint {'; '.join(problems)}. Using {path.name}, the newest whole one, in its place"
                    )
                return path
            problems.append(f"{path.name} is damaged: {problem}")
        if problems:
            raise UsageError(
                f"no whole checkpoint is left in {self._checkpoints}: {'; '.join(problems)}. Put one back from a copy "
                "(of the folder, or resume=<storage URL>/<run>), or start a new run"
            )
        return None

    def counters(self, checkpoint: Path) -> dict[str, Any]:
        """Counters stored in a checkpoint."""
        return read_json(checkpoint / COUNTERS)

    # ---- replay

    def replay_start(self) -> ReplayStart:
        """Counters of the run when its replay was begun."""
        path = self.path / "replay" / "began.json"
        return ReplayStart(**read_json(path)) if path.exists() else ReplayStart()

    def begin_replay_again(self, start: ReplayStart) -> None:
        """Records that an empty replay goes on from here, before the first episode is stored in it."""
        write_json(self.path / "replay" / "began.json", asdict(start))
        sync_to_disk(self.path / "replay")

    # ---- metrics

    def metric_lines(self) -> Iterable[dict[str, Any]]:
        """Rows of metrics.jsonl; a half-written last line (after a kill) is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        for line in path.read_text(errors="replace").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        merged: dict[str, Any] = {}
        for key, inner in value.items():
            merged |= _flat(inner, f"{prefix}{key}.")
        return merged
    return {prefix.rstrip("."): value}
