"""A tiny reward model made with the real verbs, once for all tests that need one."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from models.files import locked

ROOT = Path(__file__).resolve().parents[2]

# The same networks as anywhere, as small as they get; rewards mean nothing, everything else is real.
TINY = [
    "task=door-close",
    "env.episode_steps=20",
    "codec_training.train_steps=30",
    "codec_training.validate_every_steps=30",
    "video.num_layers=1",
    "video.width=32",
    "video.num_heads=2",
    "video_training.train_steps=30",
    "video_training.validate_every_steps=30",
    "video_training.validation_windows=64",
]


def run_verb(
    verb: str, *overrides: str, check: bool = True, timeout_s: float = 240
) -> subprocess.CompletedProcess:
    """Runs `python launch/<verb>.py`, as a user would."""
    done = subprocess.run(
        [sys.executable, f"launch/{verb}.py", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{verb} {overrides}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def run_here(verb: str, *overrides: str) -> str:
    """What `launch/<verb>.py` writes to stdout, run in this process: another one would import everything again."""
    code, output, errors = _main(verb, overrides)
    assert code == 0, f"{verb} {overrides}:\n{output[-3000:]}\n{errors[-3000:]}"
    return output


def refused(verb: str, *overrides: str) -> str:
    """What `launch/<verb>.py` writes to stderr when it ends with exit code 2, run in this process.

    Not for commands that have started Ray by then.
    """
    code, _, errors = _main(verb, overrides)
    assert code == 2, f"{verb} {overrides}: exit code {code}\n{errors}"
    return errors


def _main(verb: str, overrides: tuple[str, ...]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script's `main`."""
    output, errors = io.StringIO(), io.StringIO()
    main = importlib.import_module(f"launch.{verb}").main
    arguments = patch.object(sys, "argv", [f"{verb}.py", *overrides])
    with arguments, redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, output.getvalue(), errors.getvalue()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, worker_id) -> Path:
    """Folder with data/expert, data/random, codec and video of a tiny reward model; several processes share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny"
    with locked(f"{folder}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make_tiny(folder)
            (folder / "complete").touch()
    return folder


def make_tiny(folder: Path) -> None:
    common = [o for o in TINY if o.startswith(("task", "env"))]
    run_verb(
        "collect", *common, "env.episode_steps=60", "episodes=10", "workers=1", f"out={folder}/data/expert"
    )
    run_verb(
        "collect",
        *common,
        "behaviour=random",
        "episodes=2",
        "workers=1",
        "validation_every=0",
        f"out={folder}/data/random",
    )
    pretrain = [o for o in TINY if not o.startswith("env")] + [
        f"data={folder}/data/expert",
        "device=cpu",
        "threads=1",  # Tests run beside it.
    ]
    run_verb("pretrain", *pretrain, "stage=codec", f"out={folder}/codec")
    run_verb("pretrain", *pretrain, "stage=video", f"codec_checkpoint={folder}/codec", f"out={folder}/video")
