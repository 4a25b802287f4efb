"""Paths that people give on the command line."""

from __future__ import annotations

import os
from pathlib import Path

from launch.cli import UsageError


def absolute_path(path: str, what: str) -> Path:
    """Resolves a path of the user; inside a submitted job only absolute ones make sense.

    Raises:
        UsageError: for a relative path inside a Ray job, whose working directory is a temporary copy.
    """
    given = Path(str(path)).expanduser()  # Hydra reads a name such as 2026 as a number.
    if not given.is_absolute() and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise UsageError(
            f"{what}={path} is relative, but a submitted job runs in a temporary copy of the working directory: "
            "give an absolute path that the cluster's nodes can reach"
        )
    return given.absolute()
