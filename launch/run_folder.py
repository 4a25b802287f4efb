"""The run folder: config, metrics, checkpoints; created once, resumed safely, never overwritten.

<run>/config.yaml        the composed configuration
<run>/metrics.jsonl      one JSON object a line: phase, agent_steps, frames, updates, wall_s, metrics
<run>/tensorboard/       the same, and videos
<run>/checkpoints/       step_000012000/ ..., LATEST names the newest whole one
<run>/videos/            evaluation videos with the learned reward under the picture
<run>/replay/            the durable replay shards
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launch.cli import UsageError
from models.files import read_json, write_atomic, write_json

# Keys that may change between a run and its continuation; everything else must match.
RESUMABLE_KEYS = (
    "resume",
    "out",
    "overrides",
    "total_agent_steps",
    "cluster",
    "reward.num_actors",
    "rollout.num_actors",
    "rollout.max_actors",
    "eval_every_agent_steps",
    "eval_episodes",
    "eval_videos",
    "checkpoint_every_s",
    "keep_checkpoints",
    "log_every_s",
    "console",
)


class RunFolder:
    """Paths and atomic checkpoints of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()

    @classmethod
    def create(cls, path: str | Path, config: DictConfig) -> RunFolder:
        """Makes a new run folder.

        Raises:
            UsageError: if the folder exists and is not empty.
        """
        folder = cls(path)
        if folder.path.exists() and any(folder.path.iterdir()):
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

    def config(self) -> DictConfig:
        """The configuration the run was started with."""
        loaded = OmegaConf.load(self.path / "config.yaml")
        assert isinstance(loaded, DictConfig)
        return loaded

    def require_same_config(self, config: DictConfig) -> None:
        """Refuses to resume with another configuration.

        Raises:
            UsageError: naming each key that differs, with both values.
        """
        saved = _flat(OmegaConf.to_container(self.config(), resolve=True))
        given = _flat(OmegaConf.to_container(config, resolve=True))
        different = [
            f"{key}: run has {saved.get(key)!r}, given {given.get(key)!r}"
            for key in sorted(saved.keys() | given.keys())
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
        temporary = self.path / "checkpoints" / f".step_{step:09d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit_checkpoint(self, temporary: Path, step: int, counters: Mapping[str, Any], keep: int) -> Path:
        """Completes a checkpoint whose parts are in `temporary`: counters, rename, LATEST, retention."""
        write_json(temporary / "counters.json", dict(counters))
        final = self.path / "checkpoints" / f"step_{step:09d}"
        if final.exists():  # The same step twice (a resume that made no progress): the newer state wins.
            stale = final.with_name(f".{final.name}.stale")
            shutil.rmtree(stale, ignore_errors=True)
            final.rename(stale)
        temporary.rename(final)
        write_atomic(self.path / "checkpoints" / "LATEST", lambda file: file.write(final.name.encode()))
        self._retain(keep)
        return final

    def _retain(self, keep: int) -> None:
        folder = self.path / "checkpoints"
        whole = sorted(p for p in folder.glob("step_*") if p.is_dir())
        for path in [*whole[:-keep], *folder.glob(".*.stale")]:
            shutil.rmtree(path, ignore_errors=True)

    def latest_checkpoint(self) -> Path | None:
        """Folder of the newest whole checkpoint, or None if there is none yet.

        Raises:
            UsageError: if LATEST names a folder that is gone.
        """
        pointer = self.path / "checkpoints" / "LATEST"
        if not pointer.is_file():
            return None
        folder = pointer.parent / pointer.read_text().strip()
        if not (folder / "counters.json").is_file():
            raise UsageError(f"{pointer} names {folder.name}, which is missing or incomplete")
        return folder

    def counters(self, checkpoint: Path) -> dict[str, Any]:
        """Counters stored in a checkpoint."""
        return read_json(checkpoint / "counters.json")

    # ---- metrics

    def metric_lines(self) -> Iterable[dict[str, Any]]:
        """Rows of metrics.jsonl; a half-written last line (after a kill) is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        for line in path.read_text().splitlines():
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
