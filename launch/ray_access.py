"""Which Ray a run uses, and who else may use it. Imported before Ray, which reads its settings on import."""

from __future__ import annotations

import os
import secrets


def ray_address(configured: str | None) -> str:
    """The configured address, else that of the submitted job or the shell (RAY_ADDRESS), else "local"."""
    return configured or os.environ.get("RAY_ADDRESS") or "local"


def protect_local_ray(configured: str | None) -> None:
    """Gives a local Ray a random token: its internal ports listen on every interface, and they run code.

    The token lives in the environment of this process and its children, never on disk. Whoever has chosen
    RAY_AUTH_MODE already keeps that choice. Call it before `import ray`.

    Args:
        configured: `cluster.address`.
    """
    if ray_address(configured) == "local" and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
