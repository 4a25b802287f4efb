"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.ray_access import protect_local_ray

# Ray reads its token when it is imported, which some test may do early; all tests and what they start share one.
protect_local_ray("local")
ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of the same name.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several processes (`make test`): what starts Ray takes turns in one of them, any other file stays whole.

    The former takes longest, so it comes first.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        name = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def golden():
    """Returns `golden(name) -> Path` of one folder of golden tensors; skips where they are absent."""
    root = Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "golden"))

    def folder(name: str) -> Path:
        path = root / name
        if not path.is_dir():
            pytest.skip(f"golden tensors not found at {path}; set GOLDEN_DIR")
        return path

    return folder
