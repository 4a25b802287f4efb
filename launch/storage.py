"""Copies of a run's checkpoints in a store that pyarrow or fsspec knows: s3://, gs://, file://, memory://, ...

<URL>/<run>/config.yaml            the run's configuration; says whose folder it is
<URL>/<run>/step_000012000/        a checkpoint, the metrics.jsonl up to it, and manifest.json, written last
<URL>/<run>/replay/                the replay, if wanted (launch/replay_copies.py)

Stores have no rename: a checkpoint is there from the moment at which its manifest is, and no longer when that is deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from pyarrow import fs

from launch.cli import UsageError
from launch.manifest import MANIFEST, files_damage
from launch.run_folder import ReplayStart, RunFolder, to_stderr
from launch.stores import ADVICE, ANSWER_TIMEOUT_S, open_store, within
from learner.replay_copy import restore_store
from models.files import new_folder, read_json, write_json

CONFIG, METRICS, REPLAY, REPLAY_INDEX = "config.yaml", "metrics.jsonl", "replay", "replay.json"
CHUNK_BYTES = 16 << 20
T = TypeVar("T")


class _DamagedError(Exception):
    """A checkpoint in a store is not whole; says what is wrong with it."""


class StoredRun:
    """One run in a store.

    Args:
        url: Of the run's own folder (`run_url`).

    Raises:
        UsageError: if nothing can open the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, path = within(ANSWER_TIMEOUT_S, url, lambda: open_store(url))
        self._root = path.rstrip("/")

    # ---- before a training

    def require_writable(self, is_new: bool) -> None:
        """Writes, reads and deletes a few bytes.

        Args:
            is_new: Also refuse a folder in which a run is stored already.

        Raises:
            UsageError: saying what does not work and what to do.
        """

        def probe() -> bool:
            name = f".probe-{os.getpid()}"
            self._write(name, b"probe")
            if self._read(name) != b"probe":
                raise OSError("what was written reads differently")
            self._fs.delete_file(f"{self._root}/{name}")
            return self._exists(CONFIG)

        if within(ANSWER_TIMEOUT_S, self.url, probe) and is_new:
            raise UsageError(
                f"a run is stored in {self.url} already; nothing is overwritten. Choose another name with out=..., or go "
                f"on with resume={self.url}"
            )

    def claim(self, folder: RunFolder) -> None:
        """Stores the configuration of a run, or finds its own there.

        Raises:
            UsageError: if another run is stored there.
        """
        own = (folder.path / CONFIG).read_bytes()

        def stored() -> bytes:
            if not self._exists(CONFIG):
                self._write(CONFIG, own)
            return self._read(CONFIG)

        if within(ANSWER_TIMEOUT_S, self.url, stored) != own:
            raise UsageError(
                f"{self.url} holds another run than {folder.path}: config.yaml differs. Give another storage=..., or "
                "storage=null"
            )

    # ---- while training

    def upload(self, checkpoint: Path, extra: Mapping[str, bytes], keep: int) -> None:
        """Copies a checkpoint as the newest, then deletes all but the newest `keep` and what failed attempts have left.

        Args:
            checkpoint: Folder of a whole checkpoint.
            extra: Further files by name: metrics.jsonl, and replay.json if the replay is stored.
            keep: How many checkpoints stay, at least 1.

        Raises:
            Exception: whatever the store's client raises; the checkpoint does not exist in the store then.
        """
        manifest = read_json(checkpoint / MANIFEST)
        self._delete(checkpoint.name)
        # The newest are kept, so this one must be: of a damaged one, or of a continuation in another folder, a number as
        # high or higher may be there.
        newest = max((stored["number"] for stored in self.checkpoints().values()), default=0)
        for name in manifest["files"]:
            self.copy_in(checkpoint / name, f"{checkpoint.name}/{name}")
        records = {}
        for name, data in extra.items():
            self._write(f"{checkpoint.name}/{name}", data)
            records[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        complete = {
            **manifest,
            "number": max(manifest["number"], newest + 1),
            "files": {**manifest["files"], **records},
        }
        self._write(f"{checkpoint.name}/{MANIFEST}", json.dumps(complete, indent=2).encode())
        self._retain(keep)

    def _retain(self, keep: int) -> None:
        kept = list(self.checkpoints())[:keep]
        for name in self._names(""):
            if name.startswith("step_") and name not in kept:
                self._delete(name)
        needed = {piece["name"] for name in kept for piece in self._pieces(name)}
        for name in self._names(REPLAY):
            if name not in needed:
                self._fs.delete_file(f"{self._root}/{REPLAY}/{name}")

    def _pieces(self, checkpoint: str) -> list[dict[str, Any]]:
        path = f"{checkpoint}/{REPLAY_INDEX}"
        shards = json.loads(self._read(path))["shards"] if self._exists(path) else []
        return [piece for shard in shards for piece in shard["pieces"]]

    def newest_replay(self) -> dict[str, Any] | None:
        """replay.json of the newest checkpoint that has one."""
        for name, manifest in self.checkpoints().items():
            if REPLAY_INDEX in manifest["files"]:
                return json.loads(self._read(f"{name}/{REPLAY_INDEX}"))
        return None

    # ---- reading

    def config(self) -> DictConfig:
        """The configuration that the run was started with.

        Raises:
            UsageError: if no run is stored there or it cannot be read.
        """

        def read() -> str | None:
            return self._read(CONFIG).decode() if self._exists(CONFIG) else None

        text = within(ANSWER_TIMEOUT_S, self.url, read)
        if text is None:
            raise UsageError(f"no run is stored in {self.url}: {CONFIG} is missing")
        loaded = OmegaConf.create(text)
        assert isinstance(loaded, DictConfig)
        return loaded

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Manifests of the checkpoints by name, the newest first; without a readable manifest there is none."""
        found = {}
        for name in (name for name in self._names("") if name.startswith("step_")):
            try:
                manifest = json.loads(self._read(f"{name}/{MANIFEST}"))
                found[name] = {"number": int(manifest["number"]), "files": dict(manifest["files"])}
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                continue
        return dict(sorted(found.items(), key=lambda item: item[1]["number"], reverse=True))

    def download(
        self, out: Path, with_replay: bool = True, tell: Callable[[str], None] = to_stderr
    ) -> RunFolder:
        """Makes a run folder from the newest whole checkpoint; the folder is there when it is complete.

        Args:
            out: New folder.
            with_replay: Make the replay again as well, where it is stored.
            tell: Called with a sentence if a newer checkpoint is damaged.

        Raises:
            UsageError: if the folder exists, the store does not answer, or no whole checkpoint is stored.
        """
        if out.exists() and any(out.iterdir()):
            raise UsageError(
                f"{out} already exists; nothing is overwritten. Go on with that one (resume={out}), or give another "
                "folder with out=..."
            )
        problems = []
        for name, manifest in self._answer(self.checkpoints).items():
            try:
                with new_folder(out) as folder:
                    problem = self._answer(partial(self._fetch, name, manifest, folder, with_replay))
                    if problem is not None:
                        raise _DamagedError(problem)
                    if problems:
                        tell(
                            f"WARNING: {'; '.join(problems)}. Using {name}, the newest whole one, in its place"
                        )
            except _DamagedError as damage:
                problems.append(f"checkpoint {name} in {self.url} is damaged: {damage}")
            else:
                return RunFolder.open(out)
        reason = "; ".join(problems) or "none was copied to its end"
        raise UsageError(f"no whole checkpoint is stored in {self.url} ({reason}); start a new run")

    def _fetch(self, name: str, manifest: dict[str, Any], folder: Path, with_replay: bool) -> str | None:
        """Downloads a checkpoint into a new run folder; returns what is wrong with it."""
        checkpoint = folder / "checkpoints" / name
        for part in (checkpoint, *(folder / other for other in ("videos", REPLAY, "tensorboard"))):
            part.mkdir(parents=True)
        problem = self._fetch_files(name, checkpoint, manifest["files"])
        if problem is None and with_replay and REPLAY_INDEX in manifest["files"]:
            problem = self._fetch_replay(read_json(checkpoint / REPLAY_INDEX), folder)
        if problem is None:
            (folder / CONFIG).write_bytes(self._read(CONFIG))
            (checkpoint / METRICS).rename(folder / METRICS)
            (checkpoint / REPLAY_INDEX).unlink(missing_ok=True)
            files = {file: r for file, r in manifest["files"].items() if file not in (METRICS, REPLAY_INDEX)}
            write_json(checkpoint / MANIFEST, {"number": manifest["number"], "files": files})
            (checkpoint.parent / "LATEST").write_text(name)
        return problem

    def _fetch_files(self, source: str, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
        real_folder = folder.resolve()  # The way to it may lead over symbolic links.
        for file in files:
            if real_folder not in (folder / file).resolve().parents:
                return f"its manifest names {file!r}, outside of its folder"
            if not self._exists(f"{source}/{file}"):
                return f"{file} is missing"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            path = f"{self._root}/{source}/{file}"
            fs.copy_files(path, str(folder / file), self._fs, fs.LocalFileSystem())
        return files_damage(folder, files)

    def _fetch_replay(self, replay: Mapping[str, Any], folder: Path) -> str | None:
        """Makes the shards again, a piece after the other; returns what is wrong with them."""
        for number, shard in enumerate(replay["shards"]):
            pieces = folder / f"pieces_{number}"
            pieces.mkdir()
            problem = self._fetch_files(REPLAY, pieces, {piece["name"]: piece for piece in shard["pieces"]})
            if problem is not None:
                return f"replay of shard {number}: {problem}"
            names = [pieces / piece["name"] for piece in shard["pieces"]]
            restore_store(folder / REPLAY / f"shard_{number}", shard, names)
            shutil.rmtree(pieces)
        RunFolder(folder).begin_replay_again(ReplayStart(**replay["began"]))
        return None

    # ---- the store

    def _answer(self, ask: Callable[[], T]) -> T:
        """Asks the store for something that may take as long as it likes.

        Raises:
            UsageError: if it fails, whatever the client's own exception is.
        """
        try:
            return ask()
        except Exception as error:  # Clients of stores raise exceptions of their own.
            raise UsageError(f"cannot read {self.url}: {error}; {ADVICE}") from error

    def _names(self, folder: str) -> list[str]:
        infos = self._fs.get_file_info(
            fs.FileSelector(f"{self._root}/{folder}".rstrip("/"), allow_not_found=True)
        )
        return sorted(info.path.rstrip("/").rpartition("/")[2] for info in infos)

    def _exists(self, name: str) -> bool:
        return self._fs.get_file_info(f"{self._root}/{name}").type != fs.FileType.NotFound

    def _read(self, name: str) -> bytes:
        with self._fs.open_input_stream(f"{self._root}/{name}") as file:
            return file.read()

    def _write(self, name: str, data: bytes) -> None:
        with self._fs.open_output_stream(self._new_path(name)) as file:
            file.write(data)

    def copy_in(self, path: Path, name: str) -> None:
        """Copies a local file to a name in the run's folder."""
        # One thread: uploads to S3 from several can stop for ever (apache/arrow issue 32372).
        fs.copy_files(
            str(path),
            self._new_path(name),
            fs.LocalFileSystem(),
            self._fs,
            chunk_size=CHUNK_BYTES,
            use_threads=False,
        )

    def _new_path(self, name: str) -> str:
        """Path of a file that is written next; some stores want its folder to be there."""
        path = f"{self._root}/{name}"
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        return path

    def _delete(self, name: str) -> None:
        """Deletes a checkpoint, the manifest first: it must not seem to be there while it is deleted."""
        if self._exists(f"{name}/{MANIFEST}"):
            self._fs.delete_file(f"{self._root}/{name}/{MANIFEST}")
        if self._exists(name):
            self._fs.delete_dir(f"{self._root}/{name}")
